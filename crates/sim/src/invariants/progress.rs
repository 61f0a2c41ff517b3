//! After healing everything works within a bound: new WAL is committed, the membership change is through, every
//! member has all of it.

use super::{Checked, ensure};
use crate::disk::position;
use crate::ledger::Ledger;
use crate::node::Node;
use lakebed_types::Lsn;

/// Virtual time from healing to full health, in milliseconds.
pub(crate) const BOUND_MS: u64 = 30_000;

/// Whether all is well again, `target` being a position past what was committed when the faults ended.
pub(crate) fn healthy(nodes: &[Node], ledger: &Ledger, target: Lsn) -> bool {
    let members = &ledger.config;
    let whole = |n: &&Node| n.acceptor.is_some() && position(n.disk.solid().len()) >= target;
    let all = nodes.iter().filter(|n| members.contains(n.id)).all(|n| whole(&n));
    let idle = members.new.is_none() && ledger.previous.is_none() && ledger.joining.is_none();
    all && ledger.commit() >= target && idle
}

/// The bound has passed, or nothing is left to happen.
pub(crate) fn too_late(nodes: &[Node], ledger: &Ledger, target: Lsn) -> Checked {
    ensure(false, "progress", || {
        let ends: Vec<_> = nodes
            .iter()
            .map(|n| (n.id, position(n.disk.solid().len())))
            .collect();
        format!(
            "not healthy {BOUND_MS} ms after healing: {target} wanted, {} committed, {ends:?}, {:?}, {:?}, {:?}",
            ledger.commit(),
            ledger.config,
            ledger.previous,
            ledger.joining
        )
    })
}
