//! Placement policy: which nodes get something new. Run by the member that proposes; the command carries the result.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{NodeId, ShardCount};

use crate::state::{NodeRole, SafekeeperSet, State, Timeline};

/// Too few nodes are registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotPlace {
    /// Fewer safekeepers than wanted.
    #[error("{wanted} safekeepers are needed, {registered} registered")]
    TooFewSafekeepers {
        /// Needed.
        wanted: usize,
        /// There.
        registered: usize,
    },
    /// Every safekeeper that runs keeps the timeline already, or is still leaving it.
    #[error("no other safekeeper runs that could take the place of {0}")]
    NoReplacement(NodeId),
    /// It has nothing of the timeline.
    #[error("safekeeper {0} is none of this timeline's")]
    NoMember(NodeId),
    /// Commits would wait until safekeepers without any WAL had caught up.
    #[error(
        "{joining} safekeepers join at once and would outweigh those that have the WAL: change fewer at a time"
    )]
    TooManyJoin {
        /// How many join.
        joining: usize,
    },
    /// No pageserver at all.
    #[error("no pageserver is registered")]
    NoPageserver,
}

/// The safekeepers with the fewest timelines, `wanted` of them, each once.
pub fn safekeepers(state: &State, wanted: usize) -> Result<BTreeSet<NodeId>, CannotPlace> {
    let load = safekeeper_load(state);
    let registered = load.len();
    if wanted == 0 || registered < wanted {
        return Err(CannotPlace::TooFewSafekeepers {
            wanted: wanted.max(1),
            registered,
        });
    }
    let mut by_load: Vec<(usize, NodeId)> = load.into_iter().map(|(node, n)| (n, node)).collect();
    by_load.sort();
    Ok(by_load.into_iter().take(wanted).map(|(_, node)| node).collect())
}

/// The present set with another safekeeper instead of `node`: of those who are `there` and have nothing of the timeline,
/// the one with the fewest timelines.
pub fn replacement(
    state: &State,
    timeline: &Timeline,
    node: NodeId,
    there: impl Fn(NodeId) -> bool,
) -> Result<BTreeSet<NodeId>, CannotPlace> {
    let set = &timeline.safekeepers;
    let taken = &set.members() | &timeline.leaving;
    let mut wanted = set.current.clone();
    if !wanted.remove(&node) {
        return Err(CannotPlace::NoMember(node));
    }
    let load = safekeeper_load(state).into_iter();
    let others = load.filter(|(other, _)| !taken.contains(other) && there(*other));
    let least = others.min_by_key(|(other, timelines)| (*timelines, *other));
    let (other, _) = least.ok_or(CannotPlace::NoReplacement(node))?;
    wanted.insert(other);
    Ok(wanted)
}

/// Whether a change keeps commits going: until those who join have caught up, a majority of the wanted set must be
/// safekeepers that have the WAL already. A single one may join any set: where all must agree, commits wait for it.
pub fn check_change(set: &SafekeeperSet, wanted: &BTreeSet<NodeId>) -> Result<(), CannotPlace> {
    let staying = wanted.intersection(&set.current).count();
    let joining = wanted.len() - staying;
    if joining > 1 && staying * 2 <= wanted.len() {
        return Err(CannotPlace::TooManyJoin { joining });
    }
    Ok(())
}

/// Timelines of each safekeeper.
fn safekeeper_load(state: &State) -> BTreeMap<NodeId, usize> {
    let mut load = load(state, NodeRole::Safekeeper);
    let timelines = state
        .tenants
        .values()
        .flat_map(|tenant| tenant.timelines.values());
    for member in timelines.flat_map(|timeline| timeline.safekeepers.members()) {
        load.entry(member).and_modify(|n| *n += 1);
    }
    load
}

/// A pageserver for each shard, the one with the fewest shards first. With fewer pageservers than shards, some get
/// several.
pub fn shards(state: &State, count: ShardCount) -> Result<Vec<NodeId>, CannotPlace> {
    let mut load = load(state, NodeRole::Pageserver);
    for shard in state.tenants.values().flat_map(|tenant| &tenant.shards) {
        load.entry(shard.node).and_modify(|n| *n += 1);
    }
    let next = |_| {
        let (node, n) = load.iter_mut().min_by_key(|(node, n)| (**n, **node))?;
        *n += 1;
        Some(*node)
    };
    (0..count.get())
        .map(next)
        .collect::<Option<Vec<_>>>()
        .ok_or(CannotPlace::NoPageserver)
}

fn load(state: &State, role: NodeRole) -> BTreeMap<NodeId, usize> {
    let of_role = state.nodes.iter().filter(|(_, node)| node.role == role);
    of_role.map(|(id, _)| (*id, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, with_nodes};

    #[test]
    fn load_is_spread_and_too_few_nodes_are_reported() {
        let mut state = with_nodes(4, 2);
        let three = safekeepers(&state, 3).unwrap();
        assert_eq!(three, [1, 2, 3].map(NodeId).into());
        assert_eq!(
            shards(&state, ShardCount::new(3).unwrap()).unwrap(),
            [11, 12, 11].map(NodeId)
        );
        fixture::create_tenant(&mut state, 1, "a", &[11], &[1, 2, 3]);
        let timelines = &state.tenants[&fixture::tenant_id(1)].timelines;
        let mut timeline = timelines[&fixture::timeline_id(1)].clone();
        let set = timeline.safekeepers.clone();
        let (two, five, none) = (NodeId(2), NodeId(5), Err(CannotPlace::NoReplacement(NodeId(2))));
        let instead = |timeline: &Timeline, node| replacement(&state, timeline, node, |_| true);
        assert_eq!(instead(&timeline, two).unwrap(), [1, 3, 4].map(NodeId).into());
        assert_eq!(instead(&timeline, five), Err(CannotPlace::NoMember(five)));
        assert_eq!(
            replacement(&state, &timeline, two, |node| node != NodeId(4)),
            none
        );
        timeline.leaving.insert(NodeId(4));
        assert_eq!(instead(&timeline, two), none);
        let table = [
            (&[1, 2, 4][..], Ok(())),
            (&[1, 2, 3, 4, 5], Ok(())),
            (&[3], Ok(())),
            (&[4], Ok(())),
            (&[1, 4, 5], Err(CannotPlace::TooManyJoin { joining: 2 })),
            (&[4, 5, 6], Err(CannotPlace::TooManyJoin { joining: 3 })),
        ];
        for (wanted, allowed) in table {
            let wanted = wanted.iter().copied().map(NodeId).collect();
            assert_eq!(check_change(&set, &wanted), allowed, "{wanted:?}");
        }
        assert_eq!(safekeepers(&state, 3).unwrap(), [1, 2, 4].map(NodeId).into());
        assert_eq!(shards(&state, ShardCount::new(1).unwrap()).unwrap(), [NodeId(12)]);

        let few = CannotPlace::TooFewSafekeepers {
            wanted: 5,
            registered: 4,
        };
        assert_eq!(safekeepers(&state, 5), Err(few));
        assert_eq!(
            shards(&State::default(), ShardCount::new(1).unwrap()),
            Err(CannotPlace::NoPageserver)
        );
    }
}
