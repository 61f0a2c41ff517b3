//! Placement policy: which nodes get something new. Run by the member that proposes; the command carries the result.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{NodeId, ShardCount};

use crate::state::{NodeRole, State};

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
    /// No pageserver at all.
    #[error("no pageserver is registered")]
    NoPageserver,
}

/// The safekeepers with the fewest timelines, `wanted` of them, each once.
pub fn safekeepers(state: &State, wanted: usize) -> Result<BTreeSet<NodeId>, CannotPlace> {
    let mut load = load(state, NodeRole::Safekeeper);
    let registered = load.len();
    if wanted == 0 || registered < wanted {
        return Err(CannotPlace::TooFewSafekeepers {
            wanted: wanted.max(1),
            registered,
        });
    }
    let timelines = state
        .tenants
        .values()
        .flat_map(|tenant| tenant.timelines.values());
    for member in timelines.flat_map(|timeline| timeline.safekeepers.members()) {
        load.entry(member).and_modify(|n| *n += 1);
    }
    let mut by_load: Vec<(usize, NodeId)> = load.into_iter().map(|(node, n)| (n, node)).collect();
    by_load.sort();
    Ok(by_load.into_iter().take(wanted).map(|(_, node)| node).collect())
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
