//! WAL goes from a safekeeper only when it is in object storage and every shard has consumed it.

use super::{Checked, ensure};
use crate::ledger::Ledger;
use crate::node::Node;

/// After any step of a node.
pub(crate) fn check(node: &Node, ledger: &Ledger) -> Checked {
    let truncate = node.disk.control.truncate;
    ensure(
        truncate <= ledger.uploaded() && truncate <= ledger.consumed,
        "removal",
        || {
            let (id, up, used) = (node.id, ledger.uploaded(), ledger.consumed);
            format!("node {id} removes WAL below {truncate}; uploaded {up}, consumed {used}")
        },
    )
}
