//! Each command against a small state: what it does, what refuses it, and that a refusal changes nothing.

use super::*;
use crate::fixture::*;

fn create_tenant_command(n: u8, name: &str, shards: &[u64], safekeepers: &[u64]) -> Command {
    Command::CreateTenant {
        tenant: tenant_id(n),
        name: name.parse().unwrap(),
        branch: "main".parse().unwrap(),
        timeline: timeline_id(n),
        shards: shards.iter().copied().map(NodeId).collect(),
        safekeepers: safekeepers.iter().copied().map(NodeId).collect(),
        retention: Retention::USUAL,
    }
}

fn delete_branch(name: &str) -> Command {
    Command::DeleteBranch {
        tenant: tenant_id(1),
        name: name.parse().unwrap(),
    }
}

#[test]
fn what_is_refused_and_why() {
    let mut with_child = active();
    apply(&mut with_child, branch("dev", 2, 1, 2000)).unwrap();
    let childless = active();
    let mut deleting = active();
    apply(&mut deleting, Command::DeleteTenant { tenant: tenant_id(1) }).unwrap();
    let mut importing = with_nodes(3, 2);
    create_tenant(&mut importing, 1, "acme", &[11], &[1, 2, 3]);
    let (tenant, timeline) = (tenant_id(1), timeline_id(1));
    let other_import = Command::FinishImport {
        tenant,
        start_lsn: Lsn(1001),
        start_last_record: Lsn(900),
        consistent_lsn: Lsn::INVALID,
        cluster: CLUSTER,
    };
    let bad_cluster = Command::FinishImport {
        tenant,
        start_lsn: Lsn(1000),
        start_last_record: Lsn(900),
        consistent_lsn: Lsn::INVALID,
        cluster: ClusterIdentity {
            wal_segment_bytes: 3 << 20,
            ..CLUSTER
        },
    };
    let nobody = Command::RegisterNode {
        node: NodeId(5),
        role: NodeRole::Safekeeper,
        address: String::new(),
        incarnation: 1,
    };
    let many: Vec<u64> = vec![11; 129];

    let rows: Vec<(&State, Command, &str)> = vec![
        (
            &with_child,
            register(1, NodeRole::Pageserver, 1),
            "belongs to the safekeeper",
        ),
        (
            &with_child,
            register(1, NodeRole::Safekeeper, 2),
            "lost what it had acknowledged",
        ),
        (&with_child, nobody, "1 to 255 characters"),
        (
            &with_child,
            create_tenant_command(7, "acme", &[11], &[1]),
            "tenant 'acme' already exists",
        ),
        (
            &with_child,
            create_tenant_command(1, "b", &[11], &[1]),
            "already in use",
        ),
        (
            &with_child,
            create_tenant_command(2, "b", &[11], &[1]),
            "already in use",
        ),
        (
            &with_child,
            create_tenant_command(7, "b", &[], &[1]),
            "1 to 128 shards",
        ),
        (
            &with_child,
            create_tenant_command(7, "b", &many, &[1]),
            "1 to 128 shards",
        ),
        (
            &with_child,
            create_tenant_command(7, "b", &[11], &[]),
            "1 to 9 safekeepers",
        ),
        (
            &with_child,
            create_tenant_command(7, "b", &[1], &[1]),
            "node 1 is not registered as a pageserver",
        ),
        (
            &with_child,
            create_tenant_command(7, "b", &[11], &[11]),
            "not registered as a safekeeper",
        ),
        (&with_child, other_import, "already finished with other values"),
        (&importing, bad_cluster, "WAL segments of 1 MiB to 1 GiB"),
        (&deleting, finish_import(), "is Deleting"),
        (&importing, branch("x", 9, 1, 2000), "tenant 'acme' is Importing"),
        (
            &with_child,
            branch("dev", 9, 1, 2000),
            "branch 'dev' already exists",
        ),
        (&with_child, branch("x", 2, 1, 2000), "already in use"),
        (&with_child, branch("x", 9, 8, 2000), "there is no timeline"),
        (&with_child, branch("x", 9, 2, 2000), "is Creating"),
        (&with_child, branch("x", 9, 1, 999), "is before 0/3E8"),
        (
            &with_child,
            delete_branch("none"),
            "tenant 'acme' has no branch 'none'",
        ),
        (
            &with_child,
            delete_branch("main"),
            "while other branches start from it: dev",
        ),
        (&childless, delete_branch("main"), "delete the tenant instead"),
        (
            &with_child,
            Command::TimelineReady {
                tenant,
                timeline: timeline_id(2),
            },
            "not on a quorum",
        ),
        (
            &importing,
            Command::TimelineReady { tenant, timeline },
            "is Importing",
        ),
        (
            &with_child,
            Command::TimelineDeleted { tenant, timeline },
            "is Active",
        ),
        (
            &with_child,
            Command::CreatedOnSafekeeper {
                tenant,
                timeline,
                node: NodeId(9),
            },
            "not registered",
        ),
        (&with_child, Command::TenantDeleted { tenant }, "is Active"),
        (&deleting, Command::TenantDeleted { tenant }, "still there"),
        (
            &with_child,
            Command::DeleteTenant { tenant: tenant_id(8) },
            "there is no tenant",
        ),
        (
            &with_child,
            Command::MoveShard {
                tenant,
                shard: 2,
                to: NodeId(11),
            },
            "has no shard 2",
        ),
        (
            &with_child,
            Command::MoveShard {
                tenant,
                shard: 0,
                to: NodeId(1),
            },
            "as a pageserver",
        ),
    ];
    for (before, command, expected) in rows {
        let mut state = before.clone();
        let rejection = apply(&mut state, command.clone()).expect_err(&format!("{command:?}"));
        assert!(
            rejection.to_string().contains(expected),
            "{command:?}: {rejection}"
        );
        state.clock_unix_micros = before.clock_unix_micros;
        assert_eq!(state, *before, "{command:?} left a trace");
    }
}

#[test]
fn repeats_change_nothing() {
    let mut state = active();
    apply(&mut state, branch("dev", 2, 1, 2000)).unwrap();
    let (tenant, timeline) = (tenant_id(1), timeline_id(1));
    for command in [
        register(1, NodeRole::Safekeeper, 1),
        finish_import(),
        Command::CreatedOnSafekeeper {
            tenant,
            timeline,
            node: NodeId(1),
        },
        Command::TimelineReady { tenant, timeline },
        Command::TimelineDeleted {
            tenant,
            timeline: timeline_id(99),
        },
        Command::TenantDeleted {
            tenant: tenant_id(99),
        },
        Command::MoveShard {
            tenant,
            shard: 0,
            to: NodeId(11),
        },
        Command::ReleaseLease {
            name: "x".parse().unwrap(),
            holder: "h".into(),
        },
    ] {
        let before = state.clone();
        assert_eq!(
            apply(&mut state, command.clone()),
            Ok(Outcome::Unchanged),
            "{command:?}"
        );
        state.clock_unix_micros = before.clock_unix_micros;
        assert_eq!(state, before, "{command:?}");
    }
}

#[test]
fn a_restarted_pageserver_gets_the_next_generation_of_its_shards_only() {
    let mut state = active();
    apply(&mut state, register(12, NodeRole::Pageserver, 7)).unwrap();
    let generations = state.tenants[&tenant_id(1)].shards.iter().map(|s| s.generation.0);
    assert_eq!(generations.collect::<Vec<_>>(), [1, 2]);
    // Another address alone is no restart.
    let moved = Command::RegisterNode {
        node: NodeId(12),
        role: NodeRole::Pageserver,
        address: "new:1".into(),
        incarnation: 7,
    };
    assert_eq!(apply(&mut state, moved), Ok(Outcome::Applied));
    assert_eq!(state.tenants[&tenant_id(1)].shards[1].generation, Generation(2));
}

#[test]
fn a_branch_inherits_the_safekeepers_and_its_name_is_free_once_deleted() {
    let mut state = active();
    apply(&mut state, branch("dev", 2, 1, 2000)).unwrap();
    let tenant = &state.tenants[&tenant_id(1)];
    let child = &tenant.timelines[&timeline_id(2)];
    assert_eq!(
        child.safekeepers.current,
        tenant.timelines[&timeline_id(1)].safekeepers.current
    );
    assert_eq!((child.start_lsn, child.start_last_record), (Lsn(2000), Lsn(1950)));
    assert_eq!(tenant.name_of(timeline_id(2)).unwrap().as_str(), "dev");

    apply(&mut state, delete_branch("dev")).unwrap();
    apply(&mut state, branch("dev", 3, 1, 2000)).unwrap();
    let tenant = &state.tenants[&tenant_id(1)];
    assert_eq!(tenant.branches[&"dev".parse().unwrap()], timeline_id(3));
    assert_eq!(tenant.timelines[&timeline_id(2)].state, TimelineState::Deleting);
}

#[test]
fn a_lease_has_one_holder_until_it_ends() {
    let mut state = State::default();
    let name: Name = "compute-main".parse().unwrap();
    let acquire = |at_unix_micros, holder: &str| Stamped {
        at_unix_micros,
        command: Command::AcquireLease {
            name: name.clone(),
            holder: holder.into(),
            micros: 100,
        },
    };
    let release = |at_unix_micros, holder: &str| Stamped {
        at_unix_micros,
        command: Command::ReleaseLease {
            name: name.clone(),
            holder: holder.into(),
        },
    };
    let held = |by: &str| {
        Err(Rejection::LeaseHeld {
            name: name.clone(),
            holder: by.into(),
        })
    };
    let rows = [
        (acquire(1000, "a"), Ok(Outcome::Applied)),
        (acquire(1099, "b"), held("a")),
        (acquire(1050, "a"), Ok(Outcome::Applied)), // the clock does not go back: until 1199
        (acquire(1198, "b"), held("a")),
        (release(1198, "b"), held("a")),
        (acquire(1199, "b"), Ok(Outcome::Applied)),
        (release(1200, "a"), held("b")),
        (release(1200, "b"), Ok(Outcome::Applied)),
        (acquire(1200, "a"), Ok(Outcome::Applied)),
    ];
    for (command, expected) in rows {
        assert_eq!(state.apply(&command), expected, "{command:?}");
    }
}

#[test]
fn stored_forms_round_trip_and_newer_ones_are_refused() {
    let state = active();
    let bytes = state.encode().unwrap();
    assert_eq!(State::decode(&bytes).unwrap(), state);
    let stamped = Stamped {
        at_unix_micros: 5,
        command: branch("dev", 2, 1, 2000),
    };
    assert_eq!(Stamped::decode(&stamped.encode().unwrap()).unwrap(), stamped);

    let newer = br#"[2,{"something":"else"}]"#;
    assert!(matches!(State::decode(newer), Err(DecodeError::Newer(2))));
    for bad in [
        &b""[..],
        b"[1]",
        b"[1,{}]",
        b"{}",
        b"[1,{},3]",
        &bytes[..bytes.len() - 1],
    ] {
        assert!(
            matches!(Stamped::decode(bad), Err(DecodeError::Malformed(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn a_timeline_of_a_base_backup_has_no_branch_before_it_is_consistent() {
    let mut state = with_nodes(3, 2);
    create_tenant(&mut state, 1, "acme", &[11], &[1, 2, 3]);
    let finish = |consistent_lsn| Command::FinishImport {
        tenant: tenant_id(1),
        start_lsn: Lsn(1000),
        start_last_record: Lsn(900),
        consistent_lsn,
        cluster: CLUSTER,
    };
    let before_its_start = apply(&mut state, finish(Lsn(999)));
    assert!(matches!(before_its_start, Err(Rejection::Invalid(_))));
    apply(&mut state, finish(Lsn(1500))).unwrap();
    assert_eq!(apply(&mut state, finish(Lsn(1500))), Ok(Outcome::Unchanged));
    let other = apply(&mut state, finish(Lsn(1501)));
    assert!(matches!(other, Err(Rejection::ImportDiffers(_))));
    make_ready(&mut state, 1);
    let early = apply(&mut state, branch("early", 2, 1, 1499));
    let (lsn, consistent) = (Lsn(1499), Lsn(1500));
    assert_eq!(early, Err(Rejection::NotConsistent { lsn, consistent }));
    apply(&mut state, branch("first", 3, 1, 1500)).unwrap();
    let stored = State::decode(&state.encode().unwrap()).unwrap();
    assert_eq!(stored, state);
}
