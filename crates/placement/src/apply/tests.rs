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
    let mut with_ready_child = with_child.clone();
    make_ready(&mut with_ready_child, 2);
    let mut given_up = with_ready_child.clone();
    apply(&mut given_up, detach("dev")).unwrap();
    apply(&mut given_up, delete_branch("dev")).unwrap();
    let mut without_root = with_ready_child.clone();
    apply(&mut without_root, detach("dev")).unwrap();
    apply(&mut without_root, detached(2)).unwrap();
    apply(&mut without_root, delete_branch("main")).unwrap();
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
            "while other branches start from it: dev; `lakebed branch detach CHILD`",
        ),
        (
            &childless,
            delete_branch("main"),
            "'main' is the only branch of its tenant: delete the tenant instead",
        ),
        (
            &importing,
            delete_branch("main"),
            "'main' is the only branch of its tenant",
        ),
        (
            &without_root,
            delete_branch("dev"),
            "'dev' is the only branch of its tenant",
        ),
        (
            &without_root,
            delete_branch("main"),
            "tenant 'acme' has no branch 'main'",
        ),
        (
            &without_root,
            finish_import(),
            "or its first branch was deleted since",
        ),
        (&without_root, branch("x", 9, 1, 2000), "is Deleting"),
        (&without_root, branch("x", 9, 2, 1999), "is before 0/7D0"),
        (&with_child, detach("none"), "tenant 'acme' has no branch 'none'"),
        (&with_child, detach("dev"), "is Creating"),
        (&importing, detach("main"), "is Importing"),
        (&given_up, detach("dev"), "tenant 'acme' has no branch 'dev'"),
        (&given_up, detached(2), "is Deleting"),
        (&deleting, detach("main"), "has no branch 'main'"),
        (&deleting, detached(1), "is Deleting"),
        (&with_ready_child, detached(2), "is not being detached"),
        (&with_ready_child, detached(9), "there is no timeline"),
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
    for (name, timeline) in [("going", 3), ("gone", 4)] {
        apply(&mut state, branch(name, timeline, 1, 2000)).unwrap();
        make_ready(&mut state, timeline);
        apply(&mut state, detach(name)).unwrap();
    }
    apply(&mut state, detached(4)).unwrap();
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
        // The first one, which never had a parent.
        detach("main"),
        detached(1),
        detach("going"),
        detach("gone"),
        detached(4),
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

#[test]
fn a_detached_branch_has_no_parent_and_outlives_what_was_its_parent() {
    let mut state = active();
    apply(&mut state, branch("dev", 2, 1, 2000)).unwrap();
    make_ready(&mut state, 2);
    apply(&mut state, branch("leaf", 3, 2, 3000)).unwrap();
    make_ready(&mut state, 3);
    let timeline = |state: &State, n: u8| state.tenants[&tenant_id(1)].timelines[&timeline_id(n)].clone();
    let before = timeline(&state, 2);

    assert_eq!(apply(&mut state, detach("dev")), Ok(Outcome::Applied));
    let during = timeline(&state, 2);
    assert_eq!((during.parent, during.detaching), (Some(timeline_id(1)), true));
    // Not yet.
    let refused = apply(&mut state, delete_branch("main"));
    assert!(
        matches!(refused, Err(Rejection::HasChildren { .. })),
        "{refused:?}"
    );

    assert_eq!(apply(&mut state, detached(2)), Ok(Outcome::Applied));
    let parent = None;
    assert_eq!(timeline(&state, 2), Timeline { parent, ..before });
    assert_eq!(
        timeline(&state, 3).parent,
        Some(timeline_id(2)),
        "its own children stay its"
    );
    assert_eq!(
        apply(&mut state, finish_import()),
        Ok(Outcome::Unchanged),
        "the first one is known"
    );
    assert_eq!(State::decode(&state.encode().unwrap()).unwrap(), state);

    assert_eq!(apply(&mut state, delete_branch("main")), Ok(Outcome::Applied));
    let gone = Command::TimelineDeleted {
        tenant: tenant_id(1),
        timeline: timeline_id(1),
    };
    assert_eq!(apply(&mut state, gone), Ok(Outcome::Applied));
    // The one that is left can be branched from where it starts, under the name that is free.
    apply(&mut state, branch("main", 4, 2, 2000)).unwrap();
    assert!(matches!(
        apply(&mut state, finish_import()),
        Err(Rejection::ImportDiffers(_))
    ));
}

#[test]
fn what_was_stored_before_branches_could_be_detached_is_read() {
    let state = active();
    let text = String::from_utf8(state.encode().unwrap()).unwrap();
    let old = text.replace("\"detaching\":false,", "");
    assert_ne!(old, text);
    assert_eq!(State::decode(old.as_bytes()).unwrap(), state);
}

#[test]
fn a_branch_restored_to_an_earlier_position_is_detached_from_its_former_head() {
    let mut state = active();
    let restore = Command::RestoreBranch {
        tenant: tenant_id(1),
        name: "main".parse().unwrap(),
        of: timeline_id(1),
        keep_as: "before".parse().unwrap(),
        timeline: timeline_id(2),
        parent: timeline_id(1),
        lsn: Lsn(1800),
        last_record: Lsn(1750),
        safekeepers: None,
    };
    apply(&mut state, restore).unwrap();
    make_ready(&mut state, 2);
    assert!(apply(&mut state, delete_branch("before")).is_err());
    apply(&mut state, detach("main")).unwrap();
    apply(&mut state, detached(2)).unwrap();
    assert_eq!(apply(&mut state, delete_branch("before")), Ok(Outcome::Applied));
}
