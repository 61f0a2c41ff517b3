//! Placement policy: which nodes get something new. Run by the member that proposes; the command carries the result.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{NodeId, ShardCount, TenantId};

use crate::state::{NodeRole, State, Timeline};

/// Too few nodes are registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotPlace {
    /// Fewer safekeepers than wanted, those not counted that are being emptied.
    #[error("{wanted} safekeepers are needed, {registered} registered that are not being emptied")]
    TooFewSafekeepers {
        /// Needed.
        wanted: usize,
        /// There.
        registered: usize,
    },
    /// Every safekeeper that runs keeps the timeline already, or is still leaving it.
    #[error("no other safekeeper runs, and is not being emptied, that could take the place of {0}")]
    NoReplacement(NodeId),
    /// It has nothing of the timeline.
    #[error("safekeeper {0} is none of this timeline's")]
    NoMember(NodeId),
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
    let taken = &timeline.keepers() | &timeline.leaving;
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

/// Who keeps a branch of a timeline: those who keep the timeline, with others in the place of those that are being
/// emptied; one that is `there` and has the fewest timelines for each. None: nobody is being emptied.
pub fn branch_safekeepers(
    state: &State,
    parent: &Timeline,
    there: impl Fn(NodeId) -> bool,
) -> Result<Option<BTreeSet<NodeId>>, CannotPlace> {
    let draining = |node: &NodeId| state.nodes.get(node).is_some_and(|node| node.draining);
    let set = parent.safekeepers.to_stay();
    let (emptied, mut kept): (BTreeSet<_>, BTreeSet<_>) = set.iter().partition(|node| draining(node));
    let load = safekeeper_load(state).into_iter();
    let others = load.filter(|(other, _)| !set.contains(other) && there(*other));
    let mut others: Vec<_> = others.map(|(node, timelines)| (timelines, node)).collect();
    others.sort();
    let mut others = others.into_iter();
    for node in &emptied {
        let (_, other) = others.next().ok_or(CannotPlace::NoReplacement(*node))?;
        kept.insert(other);
    }
    Ok((!emptied.is_empty()).then_some(kept))
}

/// Timelines of each safekeeper that something may be placed on.
fn safekeeper_load(state: &State) -> BTreeMap<NodeId, usize> {
    let mut load = load(state, NodeRole::Safekeeper);
    load.retain(|node, _| state.nodes.get(node).is_some_and(|node| !node.draining));
    let timelines = state
        .tenants
        .values()
        .flat_map(|tenant| tenant.timelines.values());
    for keeper in timelines.flat_map(Timeline::keepers) {
        load.entry(keeper).and_modify(|n| *n += 1);
    }
    load
}

/// A pageserver for each shard, the one with the fewest shards first. With fewer pageservers than shards, some get
/// several. Shards of `instead_of`, which they are to take the place of, do not count.
pub fn shards(
    state: &State,
    count: ShardCount,
    instead_of: Option<TenantId>,
) -> Result<Vec<NodeId>, CannotPlace> {
    let mut load = load(state, NodeRole::Pageserver);
    let others = state.tenants.iter().filter(|(id, _)| Some(**id) != instead_of);
    for shard in others.flat_map(|(_, tenant)| tenant.shards.iter().chain(&tenant.split)) {
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
    use crate::command::{Command, Outcome};
    use crate::fixture::{self, with_nodes};

    #[test]
    fn load_is_spread_and_too_few_nodes_are_reported() {
        let mut state = with_nodes(4, 2);
        let three = safekeepers(&state, 3).unwrap();
        assert_eq!(three, [1, 2, 3].map(NodeId).into());
        assert_eq!(
            shards(&state, ShardCount::new(3).unwrap(), None).unwrap(),
            [11, 12, 11].map(NodeId)
        );
        fixture::create_tenant(&mut state, 1, "a", &[11], &[1, 2, 3]);
        let timelines = &state.tenants[&fixture::tenant_id(1)].timelines;
        let mut timeline = timelines[&fixture::timeline_id(1)].clone();
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
        assert_eq!(safekeepers(&state, 3).unwrap(), [1, 2, 4].map(NodeId).into());
        assert_eq!(
            shards(&state, ShardCount::new(1).unwrap(), None).unwrap(),
            [NodeId(12)]
        );

        let drain = |state: &mut State, node: u64, draining| {
            let node = NodeId(node);
            fixture::apply(state, Command::DrainSafekeeper { node, draining }).unwrap()
        };
        assert_eq!(drain(&mut state, 1, true), Outcome::Applied);
        assert_eq!(drain(&mut state, 1, true), Outcome::Unchanged);
        assert_eq!(safekeepers(&state, 3).unwrap(), [2, 3, 4].map(NodeId).into());
        timeline.leaving.clear();
        drain(&mut state, 4, true);
        // The only one left is being emptied.
        assert_eq!(replacement(&state, &timeline, two, |_| true), none);
        let branch = |state: &State| branch_safekeepers(state, &timeline, |_| true);
        assert_eq!(branch(&state), Err(CannotPlace::NoReplacement(NodeId(1))));
        drain(&mut state, 4, false);
        assert_eq!(branch(&state), Ok(Some([2, 3, 4].map(NodeId).into())));
        drain(&mut state, 1, false);
        assert_eq!(branch(&state), Ok(None));

        let few = CannotPlace::TooFewSafekeepers {
            wanted: 5,
            registered: 4,
        };
        assert_eq!(safekeepers(&state, 5), Err(few));
        assert_eq!(
            shards(&State::default(), ShardCount::new(1).unwrap(), None),
            Err(CannotPlace::NoPageserver)
        );
    }
}
