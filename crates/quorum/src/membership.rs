//! Who counts: one set of acceptors, or two while membership changes.
//!
//! Who is to join is a *learner* first: a proposer sends it WAL, and it is in no set. No quorum counts on a learner, so
//! nobody has to agree on who is one, and no generation says it; see `Learners` among the proposer's inputs.

use lakebed_types::{Generation, NodeId};
use std::collections::BTreeSet;

/// A membership configuration; with `new` present it is a joint one and both sets must agree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Membership {
    /// Rises with every change.
    pub generation: Generation,
    /// The set in force.
    pub old: BTreeSet<NodeId>,
    /// The set that is to follow, while joint.
    pub new: Option<BTreeSet<NodeId>>,
}

impl Membership {
    /// Whether the nodes for which `agrees` holds are a majority of every set. An empty set has no majority.
    pub fn is_quorum(&self, agrees: impl Fn(NodeId) -> bool) -> bool {
        let majority = |set: &BTreeSet<NodeId>| set.iter().filter(|n| agrees(**n)).count() * 2 > set.len();
        majority(&self.old) && self.new.as_ref().is_none_or(majority)
    }

    /// Whether `node` is in either set.
    pub fn contains(&self, node: NodeId) -> bool {
        self.old.contains(&node) || self.new.as_ref().is_some_and(|set| set.contains(&node))
    }
}
