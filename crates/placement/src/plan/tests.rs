//! The planner against a world in which every call succeeds, and against single differences.

use lakebed_types::{Generation, Lsn};

use super::*;
use crate::fixture::{
    self, active, apply, branch, change, detach, finish_import, make_ready, register, settled, tenant_id,
};

mod split;

/// Short text of an intent, for tables.
fn text(intent: &Intent) -> String {
    match intent {
        Intent::Propose(command) => match command {
            Command::TimelineReady { timeline, .. } => format!("ready {}", timeline.0[0]),
            Command::TimelineDeleted { timeline, .. } => format!("deleted {}", timeline.0[0]),
            Command::TenantDeleted { tenant } => format!("tenant deleted {}", tenant.0[0]),
            Command::BranchDetached { timeline, .. } => format!("detached {}", timeline.0[0]),
            other => format!("{other:?}"),
        },
        Intent::Call(call) => {
            let node = call.node;
            match &call.action {
                Action::AttachShard { shard, timelines } => {
                    let ids: Vec<u8> = timelines.iter().map(|t| t.timeline.0[0]).collect();
                    format!(
                        "{node}: attach {}/{}@{} {ids:?}",
                        shard.shard.index(),
                        shard.shard.count().get(),
                        shard.generation
                    )
                }
                Action::CreateOnShard { shard, timeline } => {
                    format!(
                        "{node}: create {} on shard {}",
                        timeline.timeline.0[0],
                        shard.shard.index()
                    )
                }
                Action::DeleteOnShard { shard, timeline } => {
                    format!(
                        "{node}: delete {} on shard {}",
                        timeline.0[0],
                        shard.shard.index()
                    )
                }
                Action::DetachOnShard { shard, timeline } => {
                    format!(
                        "{node}: detach {} on shard {}",
                        timeline.0[0],
                        shard.shard.index()
                    )
                }
                Action::FillShard {
                    shard,
                    from,
                    timelines,
                } => {
                    let ids: Vec<u8> = timelines.iter().map(|t| t.0[0]).collect();
                    format!(
                        "{node}: fill {}@{} from {from} {ids:?}",
                        shard.shard, shard.generation
                    )
                }
                Action::RetireShard { shard } => {
                    format!("{node}: retire {}@{}", shard.shard, shard.generation)
                }
                Action::TakeOverShard { shard, from } => {
                    format!(
                        "{node}: take {}@{} over from {from}",
                        shard.shard, shard.generation
                    )
                }
                Action::DropShard { shard } => format!("{node}: drop {}@{}", shard.shard, shard.generation),
                Action::CreateOnSafekeeper {
                    timeline, start_lsn, ..
                } => {
                    format!("{node}: create {} at {}", timeline.0[0], start_lsn.0)
                }
                Action::TellSafekeeper {
                    timeline,
                    safekeepers,
                } => {
                    format!("{node}: tell {} of {}", timeline.0[0], safekeepers.generation)
                }
                Action::DeleteOnSafekeeper { timeline } => format!("{node}: delete {}", timeline.0[0]),
                Action::LeaveSafekeeper { timeline } => format!("{node}: leave {}", timeline.0[0]),
            }
        }
    }
}

fn texts(state: &State, observed: &Observed) -> Vec<String> {
    plan(state, observed).iter().map(text).collect()
}

/// Does what is planned, except on the nodes that are down, until nothing is left to do; returns what was done.
fn settle(state: &mut State, observed: &mut Observed, down: &[u64]) -> Vec<String> {
    let mut done = Vec::new();
    for _ in 0..100 {
        let possible = |intent: &Intent| match intent {
            Intent::Call(call) => !down.contains(&call.node.0),
            Intent::Propose(_) => true,
        };
        let intents: Vec<_> = plan(state, observed).into_iter().filter(possible).collect();
        if intents.is_empty() {
            return done;
        }
        for intent in intents {
            done.push(text(&intent));
            let command = match intent {
                Intent::Call(call) => observed.done(&call),
                Intent::Propose(command) => Some(command),
            };
            if let Some(command) = command {
                apply(state, command).unwrap();
            }
        }
        observed.prune(state);
    }
    panic!("the planner does not come to rest: {done:?}");
}

#[test]
fn a_tenant_is_attached_imported_and_made_ready() {
    let mut state = fixture::with_nodes(3, 2);
    let mut observed = Observed::default();
    fixture::create_tenant(&mut state, 1, "acme", &[11, 12], &[1, 2, 3]);
    assert_eq!(
        settle(&mut state, &mut observed, &[]),
        ["11: attach 0/2@1 []", "12: attach 1/2@1 []"]
    );

    apply(&mut state, finish_import()).unwrap();
    let expected = [
        "11: create 1 on shard 0",
        "12: create 1 on shard 1",
        "1: create 1 at 1000",
        "2: create 1 at 1000",
        "3: create 1 at 1000",
        "ready 1",
    ];
    assert_eq!(settle(&mut state, &mut observed, &[]), expected);
    assert_eq!(state.tenants[&tenant_id(1)].state, TenantState::Active);
}

#[test]
fn a_branch_becomes_ready_without_a_minority_but_not_without_a_shard() {
    let mut state = active();
    let mut observed = Observed::default();
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, branch("dev", 2, 1, 2000)).unwrap();

    let done = settle(&mut state, &mut observed, &[3, 12]);
    assert_eq!(
        done,
        [
            "11: create 2 on shard 0",
            "1: create 2 at 2000",
            "2: create 2 at 2000"
        ]
    );
    let done = settle(&mut state, &mut observed, &[3]);
    assert_eq!(done, ["12: create 2 on shard 1", "ready 2"]);
    assert_eq!(settle(&mut state, &mut observed, &[]), ["3: create 2 at 2000"]);
}

#[test]
fn a_new_controller_attaches_again_but_never_creates_again_on_a_safekeeper() {
    let mut state = active();
    apply(&mut state, branch("dev", 0, 1, 2000)).unwrap();
    apply(&mut state, branch("dev2", 9, 1, 2000)).unwrap();
    settle(&mut state, &mut Observed::default(), &[]);
    // Parents first, whatever their ids.
    let expected = ["11: attach 0/2@1 [1, 0, 9]", "12: attach 1/2@1 [1, 0, 9]"];
    assert_eq!(settle(&mut state, &mut Observed::default(), &[]), expected);
}

#[test]
fn restarts_moves_and_new_addresses_reach_the_pageservers() {
    let mut state = active();
    let mut observed = Observed::default();
    settle(&mut state, &mut observed, &[]);

    apply(&mut state, register(12, NodeRole::Pageserver, 2)).unwrap();
    assert_eq!(settle(&mut state, &mut observed, &[]), ["12: attach 1/2@2 [1]"]);

    apply(
        &mut state,
        Command::MoveShard {
            tenant: tenant_id(1),
            shard: 0,
            to: NodeId(12),
        },
    )
    .unwrap();
    assert_eq!(settle(&mut state, &mut observed, &[]), ["12: attach 0/2@2 [1]"]);

    let address = "elsewhere:1".to_owned();
    let moved = Command::RegisterNode {
        node: NodeId(2),
        role: NodeRole::Safekeeper,
        address,
        incarnation: 1,
    };
    apply(&mut state, moved).unwrap();
    assert_eq!(
        settle(&mut state, &mut observed, &[]),
        ["12: create 1 on shard 0", "12: create 1 on shard 1"]
    );
}

#[test]
fn children_are_deleted_before_their_parents() {
    let mut state = active();
    let mut observed = Observed::default();
    apply(&mut state, branch("dev", 2, 1, 2000)).unwrap();
    make_ready(&mut state, 2);
    apply(&mut state, branch("leaf", 3, 2, 3000)).unwrap();
    settle(&mut state, &mut observed, &[]);
    for name in ["leaf", "dev"] {
        let name = name.parse().unwrap();
        apply(
            &mut state,
            Command::DeleteBranch {
                tenant: tenant_id(1),
                name,
            },
        )
        .unwrap();
    }
    let of = |n: u8| {
        let nodes = ["1: delete", "2: delete", "3: delete"].map(|s| format!("{s} {n}"));
        let shards = [
            format!("11: delete {n} on shard 0"),
            format!("12: delete {n} on shard 1"),
        ];
        [&nodes[..], &shards[..], &[format!("deleted {n}")]].concat()
    };
    assert_eq!(texts(&state, &observed), of(3)[..5]);
    assert_eq!(settle(&mut state, &mut observed, &[]), [of(3), of(2)].concat());
    assert!(
        observed.deleted.is_empty(),
        "facts about what is gone are dropped"
    );

    apply(&mut state, Command::DeleteTenant { tenant: tenant_id(1) }).unwrap();
    let mut all = of(1);
    all.push("tenant deleted 1".to_owned());
    assert_eq!(settle(&mut state, &mut observed, &[]), all);
    assert!(state.tenants.is_empty());
    assert!(!state.nodes.is_empty());
}

#[test]
fn a_replaced_safekeeper_is_told_to_leave_only_when_the_new_set_has_settled() {
    let mut state = active();
    let mut observed = Observed::default();
    apply(&mut state, register(4, NodeRole::Safekeeper, 1)).unwrap();
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, change(1, &[2, 3, 4])).unwrap();
    let told = ["11: create 1 on shard 0", "12: create 1 on shard 1"];
    // The new member gets it, the others hear of it, and so do the shards.
    let steps = settle(&mut state, &mut observed, &[]);
    let of = |node: u64, generation: u64| format!("{node}: tell 1 of {generation}");
    let joint = [
        told[0].to_owned(),
        told[1].to_owned(),
        of(1, 2),
        of(2, 2),
        of(3, 2),
    ];
    assert_eq!(steps, [&joint[..], &["4: create 1 at 1000".to_owned()]].concat());
    // A controller that has just taken charge does not know who was told.
    assert_eq!(
        texts(&state, &Observed::default())[2..],
        [of(1, 2), of(2, 2), of(3, 2), of(4, 2)]
    );
    apply(&mut state, settled(2)).unwrap();
    let alone = [
        told[0].to_owned(),
        told[1].to_owned(),
        of(2, 3),
        of(3, 3),
        of(4, 3),
    ];
    assert_eq!(settle(&mut state, &mut observed, &[]), alone);
    apply(&mut state, settled(3)).unwrap();
    // It is down, perhaps for ever: nothing waits for it.
    assert_eq!(settle(&mut state, &mut observed, &[1]), [] as [&str; 0]);
    assert_eq!(texts(&state, &observed), ["1: leave 1"]);
    assert_eq!(settle(&mut state, &mut observed, &[]), ["1: leave 1"]);
    // Back as a new member it is created anew.
    apply(&mut state, change(3, &[1, 2, 3])).unwrap();
    assert!(settle(&mut state, &mut observed, &[]).contains(&"1: create 1 at 1000".to_owned()));
}

#[test]
fn who_is_to_join_gets_the_timeline_and_nobody_else_hears_of_it() {
    let mut state = active();
    let mut observed = Observed::default();
    apply(&mut state, register(4, NodeRole::Safekeeper, 1)).unwrap();
    settle(&mut state, &mut observed, &[]);
    let until_unix_micros = 1_000;
    let (tenant, timeline, attempt) = (tenant_id(1), fixture::timeline_id(1), 1);
    let join = Command::LetJoin {
        tenant,
        timeline,
        generation: Generation(1),
        safekeepers: [2, 3, 4].map(NodeId).into(),
        within_bytes: 10,
        until_unix_micros,
    };
    apply(&mut state, join).unwrap();
    let created = |intent: &Intent| match intent {
        Intent::Call(Call {
            action: Action::CreateOnSafekeeper { learner, peers, .. },
            ..
        }) => Some((*learner, peers.clone())),
        _ => None,
    };
    let planned: Vec<_> = plan(&state, &observed).iter().filter_map(created).collect();
    assert_eq!(
        planned,
        [(true, ["n1:1", "n2:1", "n3:1"].map(str::to_owned).into())]
    );
    assert_eq!(settle(&mut state, &mut observed, &[]), ["4: create 1 at 1000"]);
    assert_eq!(timed_out(&state, 999), (Vec::new(), Some(until_unix_micros)));
    let over = Intent::Propose(Command::JoinTimedOut {
        tenant,
        timeline,
        attempt,
    });
    assert_eq!(timed_out(&state, 1000), (vec![over], None));
    let caught_up = Command::CaughtUp {
        tenant,
        timeline,
        attempt,
    };
    apply(&mut state, caught_up).unwrap();
    assert_eq!(timed_out(&state, 1000), (Vec::new(), None));
    let told = settle(&mut state, &mut observed, &[]);
    let of = |node: u64| format!("{node}: tell 1 of 2");
    assert_eq!(told[2..], [of(1), of(2), of(3), of(4)]);
}

#[test]
fn a_timeline_with_former_members_is_deleted_there_as_well() {
    let mut state = active();
    let mut observed = Observed::default();
    apply(&mut state, register(4, NodeRole::Safekeeper, 1)).unwrap();
    apply(&mut state, change(1, &[2, 3, 4])).unwrap();
    apply(&mut state, settled(2)).unwrap();
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, Command::DeleteTenant { tenant: tenant_id(1) }).unwrap();
    let steps = settle(&mut state, &mut observed, &[]);
    for node in 1..=4 {
        assert!(steps.contains(&format!("{node}: delete 1")), "{steps:?}");
    }
}

#[test]
fn shards_are_told_of_a_horizon_with_the_branches_below_it() {
    let (mut state, mut observed) = (active(), Observed::default());
    for (name, timeline, lsn) in [("a", 2, 1200), ("b", 3, 1300), ("c", 4, 1900)] {
        apply(&mut state, branch(name, timeline, 1, lsn)).unwrap();
    }
    settle(&mut state, &mut observed, &[]);
    let gone = Command::DeleteBranch {
        tenant: tenant_id(1),
        name: "b".parse().unwrap(),
    };
    apply(&mut state, gone).unwrap();
    let horizon = crate::Horizon {
        lsn: Lsn(1500),
        unix_micros: 1,
    };
    let timeline = fixture::timeline_id(1);
    let tenant = tenant_id(1);
    let raise = Command::RaiseHorizon {
        tenant,
        timeline,
        horizon,
    };
    apply(&mut state, raise).unwrap();
    let told: Vec<_> = plan(&state, &observed)
        .into_iter()
        .filter_map(|intent| match intent {
            Intent::Call(Call {
                action: Action::CreateOnShard { timeline, .. },
                ..
            }) => Some((timeline.timeline, timeline.kept)),
            _ => None,
        })
        .collect();
    let kept = Kept {
        horizon: Lsn(1500),
        branches: [fixture::timeline_id(2)].into(),
    };
    assert_eq!(told, vec![(timeline, kept); 2]);
    settle(&mut state, &mut observed, &[]);
    assert_eq!(plan(&state, &observed), []);
}

/// `main` with the ready branches `dev` at 2000 and, of that, `leaf` at 3000; all is as it should be.
fn with_family() -> (State, Observed) {
    let (mut state, mut observed) = (active(), Observed::default());
    for (name, timeline, parent, lsn) in [("dev", 2, 1, 2000), ("leaf", 3, 2, 3000)] {
        apply(&mut state, branch(name, timeline, parent, lsn)).unwrap();
        settle(&mut state, &mut observed, &[]);
    }
    (state, observed)
}

fn delete(name: &str) -> Command {
    Command::DeleteBranch {
        tenant: tenant_id(1),
        name: name.parse().unwrap(),
    }
}

#[test]
fn a_branch_is_detached_when_every_shard_has_said_so_and_each_says_it_once() {
    let (mut state, mut observed) = with_family();
    apply(&mut state, detach("dev")).unwrap();
    let on = |shard: u8| format!("{}: detach 2 on shard {shard}", 11 + shard);
    assert_eq!(texts(&state, &observed), [on(0), on(1)]);
    // The one that is down is waited for; the other one is not asked again.
    assert_eq!(settle(&mut state, &mut observed, &[12]), [on(0)]);
    assert_eq!(texts(&state, &observed), [on(1)]);
    // A restart of the other one does not undo what is durable there.
    apply(&mut state, register(11, NodeRole::Pageserver, 2)).unwrap();
    assert_eq!(
        settle(&mut state, &mut observed, &[12]),
        ["11: attach 0/2@2 [1, 2, 3]"]
    );
    assert_eq!(
        settle(&mut state, &mut observed, &[]),
        [on(1), "detached 2".to_owned()]
    );
    assert_eq!(plan(&state, &observed), [], "shards that run need not be told");
    assert!(observed.detached.is_empty(), "what is over is forgotten");

    // Who attaches later is told that it has no parent, and it may come before what was its parent.
    let attached: Vec<_> = plan(&state, &Observed::default())
        .into_iter()
        .filter_map(|intent| match intent {
            Intent::Call(Call {
                action: Action::AttachShard { timelines, .. },
                ..
            }) => Some(timelines),
            _ => None,
        })
        .collect();
    let of = |n: Option<u8>| n.map(fixture::timeline_id);
    for timelines in attached {
        let parents: Vec<_> = timelines.iter().map(|t| (t.timeline.0[0], t.parent)).collect();
        assert_eq!(parents, [(1, None), (2, None), (3, of(Some(2)))]);
    }
    apply(&mut state, delete("main")).unwrap();
    let steps = settle(&mut state, &mut observed, &[]);
    assert_eq!(steps.last().map(String::as_str), Some("deleted 1"));
}

#[test]
fn a_new_controller_asks_every_shard_again() {
    let (mut state, mut observed) = with_family();
    apply(&mut state, detach("dev")).unwrap();
    settle(&mut state, &mut observed, &[12]);
    // The parent is named until all have confirmed.
    let mut anew = Observed::default();
    let attach = |shard: u8| format!("{}: attach {shard}/2@1 [1, 2, 3]", 11 + shard);
    assert_eq!(texts(&state, &anew), [attach(0), attach(1)]);
    let told = |intent: &Intent| match intent {
        Intent::Call(Call {
            action: Action::AttachShard { timelines, .. },
            ..
        }) => timelines
            .iter()
            .find(|t| t.timeline.0[0] == 2)
            .and_then(|t| t.parent),
        _ => None,
    };
    let parents: Vec<_> = plan(&state, &anew).iter().map(told).collect();
    assert_eq!(parents, vec![Some(fixture::timeline_id(1)); 2]);
    let on = |shard: u8| format!("{}: detach 2 on shard {shard}", 11 + shard);
    assert_eq!(
        settle(&mut state, &mut anew, &[]),
        [attach(0), attach(1), on(0), on(1), "detached 2".to_owned()]
    );
}

#[test]
fn nothing_is_asked_of_a_branch_that_was_given_up_while_it_was_detached() {
    let (mut state, mut observed) = with_family();
    apply(&mut state, detach("leaf")).unwrap();
    assert_eq!(
        settle(&mut state, &mut observed, &[12]),
        ["11: detach 3 on shard 0"]
    );
    apply(&mut state, delete("leaf")).unwrap();
    let steps = settle(&mut state, &mut observed, &[]);
    assert!(!steps.iter().any(|step| step.contains("detach")), "{steps:?}");
    assert_eq!(steps.last().map(String::as_str), Some("deleted 3"));
    assert!(observed.detached.is_empty());
}

#[test]
fn a_detached_branch_is_no_longer_among_those_below_its_parents_horizon() {
    let (mut state, mut observed) = with_family();
    let horizon = crate::Horizon {
        lsn: Lsn(2500),
        unix_micros: 1,
    };
    let raise = Command::RaiseHorizon {
        tenant: tenant_id(1),
        timeline: fixture::timeline_id(1),
        horizon,
    };
    apply(&mut state, raise).unwrap();
    settle(&mut state, &mut observed, &[]);
    let told = |shard: u8| format!("{}: create 1 on shard {shard}", 11 + shard);
    let on = |shard: u8| format!("{}: detach 2 on shard {shard}", 11 + shard);
    apply(&mut state, detach("dev")).unwrap();
    assert_eq!(
        settle(&mut state, &mut observed, &[]),
        [on(0), on(1), "detached 2".to_owned(), told(0), told(1)]
    );
    assert_eq!(plan(&state, &observed), []);
}
