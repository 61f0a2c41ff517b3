//! No step of the control plane deletes a timeline that is still needed: the safekeepers that are left are a quorum of
//! every configuration in force.
//!
//! The simulator itself takes disks away only as far as this allows.

use super::{Checked, ensure};
use crate::ledger::Ledger;
use crate::node::Node;
use lakebed_types::NodeId;

/// Whether the nodes that still have their disks would be a quorum of every configuration without `lost`, also of the one
/// that learners are about to join: what they reported before they were lost may be on its way.
pub(crate) fn suffice(nodes: &[Node], ledger: &Ledger, lost: Option<NodeId>) -> bool {
    let there = |id| nodes.iter().any(|n| n.id == id && !n.gone) && lost != Some(id);
    let to_follow = ledger.to_follow();
    ledger
        .in_force()
        .chain(&to_follow)
        .all(|members| members.is_quorum(there))
}

/// After a disk is gone.
pub(crate) fn check(nodes: &[Node], ledger: &Ledger) -> Checked {
    ensure(suffice(nodes, ledger, None), "survivors", || {
        let gone: Vec<_> = nodes.iter().filter(|n| n.gone).map(|n| n.id).collect();
        format!(
            "{gone:?} are gone, the others are no quorum of {:?}",
            ledger.in_force().collect::<Vec<_>>()
        )
    })
}
