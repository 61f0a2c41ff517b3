//! Positions in order: `truncate <= backup <= commit <= flush <= write`, in memory and on disk; an acceptor never
//! believes more to be committed than is.

use super::{Checked, ensure};
use crate::disk::position;
use crate::ledger::Ledger;
use crate::node::Node;

const NAME: &str = "positions";

/// After any step of a node.
pub(crate) fn check(node: &Node, ledger: &Ledger) -> Checked {
    let id = node.id;
    if let Some(acceptor) = &node.acceptor {
        let (s, (flush, write)) = (acceptor.state(), acceptor.ends());
        let order = [s.truncate, s.backup, s.commit, flush, write];
        ensure(order.is_sorted(), NAME, || {
            format!("node {id} in memory: {order:?}")
        })?;
        ensure(s.commit <= ledger.commit(), NAME, || {
            format!(
                "node {id} believes {} committed, {} is",
                s.commit,
                ledger.commit()
            )
        })?;
    }
    let s = &node.disk.control;
    let order = [s.truncate, s.backup, s.commit, position(node.disk.solid().len())];
    ensure(order.is_sorted(), NAME, || {
        format!("node {id} on disk: {order:?}")
    })
}
