//! A tenant gets more shards.

use super::*;
use crate::command::{Outcome, Rejection};

fn split(nodes: &[u64]) -> Command {
    Command::SplitShards {
        tenant: tenant_id(1),
        shards: nodes.iter().copied().map(NodeId).collect(),
    }
}

#[test]
fn a_tenant_is_split_in_order_and_the_old_shards_go_last() {
    let (mut state, mut observed) = (active(), Observed::default());
    apply(&mut state, branch("dev", 2, 1, 2000)).unwrap();
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, split(&[11, 12, 11, 12])).unwrap();
    let done = settle(&mut state, &mut observed, &[]);
    let expected = [
        "11: fill 0of4@2 from 0of2 [1, 2]",
        "12: fill 1of4@2 from 1of2 [1, 2]",
        "11: fill 2of4@2 from 0of2 [1, 2]",
        "12: fill 3of4@2 from 1of2 [1, 2]",
        "11: attach 0/4@2 [1, 2]",
        "12: attach 1/4@2 [1, 2]",
        "11: attach 2/4@2 [1, 2]",
        "12: attach 3/4@2 [1, 2]",
        "11: retire 0of2@1",
        "11: take 0of4@2 over from 0of2",
        "12: take 1of4@2 over from 1of2",
        "11: take 2of4@2 over from 0of2",
        "12: take 3of4@2 over from 1of2",
    ];
    assert_eq!(done[..expected.len()], expected);
    assert!(done[expected.len()].starts_with("SplitFinished"), "{done:?}");
    assert_eq!(done[expected.len() + 1..], ["11: drop 0of2@1", "12: drop 1of2@1"]);
    let tenant = &state.tenants[&tenant_id(1)];
    assert_eq!(
        (tenant.shards.len(), tenant.split.len(), tenant.former.len()),
        (4, 0, 0)
    );
    assert_eq!(
        apply(&mut state, split(&[11, 12, 11, 12])),
        Ok(Outcome::Unchanged)
    );
}

#[test]
fn an_owner_that_begins_anew_in_a_split_takes_its_steps_again() {
    let (mut state, mut observed) = (active(), Observed::default());
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, split(&[11, 12])).unwrap();
    assert!(texts(&state, &observed).is_empty(), "it has two shards");
    apply(&mut state, register(13, NodeRole::Pageserver, 1)).unwrap();
    apply(&mut state, split(&[11, 12, 13, 13])).unwrap();
    settle(&mut state, &mut observed, &[13]);
    let waits = ["13: fill 2of4@2 from 0of2 [1]", "13: fill 3of4@2 from 1of2 [1]"];
    assert_eq!(texts(&state, &observed), waits);
    // The owner of an old shard and of a part of it.
    apply(&mut state, register(11, NodeRole::Pageserver, 2)).unwrap();
    let now = [
        "11: attach 0/2@2 [1]",
        "11: fill 0of4@3 from 0of2 [1]",
        "13: fill 2of4@3 from 0of2 [1]",
        "13: fill 3of4@2 from 1of2 [1]",
    ];
    assert_eq!(texts(&state, &observed), now);
    // All but the end, which is proposed with what is known until then.
    let mut end = None;
    while end.is_none() {
        for intent in plan(&state, &observed) {
            match intent {
                Intent::Call(call) => drop(observed.done(&call)),
                Intent::Propose(command) => end = Some(command),
            }
        }
    }
    let end = end.unwrap();
    for node in [11, 13] {
        let mut state = state.clone();
        apply(&mut state, register(node, NodeRole::Pageserver, 3)).unwrap();
        let before = state.tenants.clone();
        assert_eq!(apply(&mut state, end.clone()), Ok(Outcome::Unchanged));
        assert_eq!(
            state.tenants, before,
            "what {node} took over is not known any more"
        );
        let done = settle(&mut state, &mut observed.clone(), &[]);
        assert!(
            done.iter().any(|step| step.starts_with("SplitFinished")),
            "{done:?}"
        );
    }
    assert_eq!(apply(&mut state, end), Ok(Outcome::Applied));
}

#[test]
fn a_split_that_is_called_off_leaves_the_shards_as_they_were_and_can_be_begun_again() {
    let (mut state, mut observed) = (active(), Observed::default());
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, split(&[11, 12, 11, 12])).unwrap();
    assert_eq!(
        apply(&mut state, split(&[11, 12, 11, 12, 11, 12])),
        Err(Rejection::SplitUnderWay(4))
    );
    let abort = Command::AbortSplit { tenant: tenant_id(1) };
    assert_eq!(apply(&mut state, abort.clone()), Ok(Outcome::Applied));
    assert_eq!(apply(&mut state, abort), Ok(Outcome::Unchanged));
    assert_eq!(
        apply(&mut state, split(&[11, 12, 11, 12])),
        Err(Rejection::StillDropping(4))
    );
    // The old shard 0 may have been retired, and begins anew.
    let done = settle(&mut state, &mut observed, &[]);
    let drops = [0, 1, 2, 3].map(|index| format!("{}: drop {index}of4@2", 11 + index % 2));
    assert_eq!(done[0], "11: attach 0/2@2 [1]");
    assert_eq!(done[1..], drops);
    apply(&mut state, split(&[11, 12, 11, 12])).unwrap();
    let generations = state.tenants[&tenant_id(1)]
        .split
        .iter()
        .map(|shard| shard.generation.0);
    assert_eq!(
        generations.collect::<Vec<_>>(),
        [3, 3, 3, 3],
        "none is used twice"
    );
}

#[test]
fn in_a_split_both_sets_of_shards_are_told_of_what_happens_to_timelines() {
    let (mut state, mut observed) = (active(), Observed::default());
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, register(13, NodeRole::Pageserver, 1)).unwrap();
    apply(&mut state, split(&[11, 12, 13, 12])).unwrap();
    settle(&mut state, &mut observed, &[13]);
    apply(&mut state, branch("dev", 2, 1, 2000)).unwrap();
    let done = settle(&mut state, &mut observed, &[13]);
    // Shards 0 and 1 of 2, 0, 1 and 3 of 4.
    let on_shards = done.iter().filter(|step| step.contains("create 2 on shard"));
    assert_eq!(on_shards.count(), 5, "{done:?}");
    assert!(
        done.contains(&"ready 2".to_owned()),
        "it waits for no shard of the split: {done:?}"
    );
    // What a shard of the split has not confirmed is not over.
    apply(&mut state, detach("dev")).unwrap();
    let done = settle(&mut state, &mut observed, &[13]);
    assert!(!done.contains(&"detached 2".to_owned()), "{done:?}");
    let done = settle(&mut state, &mut observed, &[]);
    assert!(done.contains(&"detached 2".to_owned()), "{done:?}");
    let again = |count: usize| (0..count).map(|at| 11 + at as u64 % 3).collect::<Vec<_>>();
    for (count, refused) in [(4, false), (6, true), (2, true), (129, true), (128, false)] {
        let mut state = state.clone();
        assert_eq!(
            apply(&mut state, split(&again(count))).is_err(),
            refused,
            "{count} shards"
        );
    }
}

#[test]
fn what_is_to_be_split_off_gives_nothing_up_before_it_is_in_force() {
    let (mut state, mut observed) = (active(), Observed::default());
    let raise = Command::RaiseHorizon {
        tenant: tenant_id(1),
        timeline: fixture::timeline_id(1),
        horizon: crate::Horizon {
            lsn: Lsn(1500),
            unix_micros: 1,
        },
    };
    apply(&mut state, raise).unwrap();
    settle(&mut state, &mut observed, &[]);
    apply(&mut state, split(&[11, 12, 11, 12])).unwrap();
    let mut told = Vec::new();
    loop {
        let intents = plan(&state, &observed);
        if intents.is_empty() {
            break;
        }
        for intent in intents {
            let in_force = state.tenants[&tenant_id(1)].split.is_empty();
            match intent {
                Intent::Call(call) => {
                    let timelines = match &call.action {
                        Action::AttachShard { timelines, .. } => timelines.clone(),
                        Action::CreateOnShard { timeline, .. } => vec![timeline.clone()],
                        _ => Vec::new(),
                    };
                    let kept = timelines.iter().map(|spec| (in_force, spec.kept.horizon.0));
                    told.extend(kept);
                    if let Some(command) = observed.done(&call) {
                        apply(&mut state, command).unwrap();
                    }
                }
                Intent::Propose(command) => drop(apply(&mut state, command)),
            }
        }
    }
    let (before, after): (Vec<_>, Vec<_>) = ([(false, 0); 4].into(), [(true, 1500); 4].into());
    assert_eq!(told, [before, after].concat());
}
