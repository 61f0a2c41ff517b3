//! Histories never fork below commit, and a log is what its last term's winner had.
//!
//! The first: whoever wins a term has everything that was acknowledged. The second (log matching): the WAL on a disk
//! equals, up to its end, the log of the term that the history on the same disk names for that end.

use super::{Checked, ensure};
use crate::disk::{offset, position};
use crate::ledger::Ledger;
use crate::node::Node;
use lakebed_types::{Lsn, Term};

const NAME: &str = "histories";

/// A proposer wins `term`, which starts at `start`, with the donor's log `log` below: as it was in the donor's vote.
pub(crate) fn on_election(ledger: &Ledger, term: Term, start: Lsn, log: &[u8]) -> Checked {
    ensure(log.len() == offset(start), NAME, || {
        format!(
            "term {term} starts at {start}, its donor has {}",
            position(log.len())
        )
    })?;
    // Not everything that was acknowledged: a slow winner may learn of its votes when a later term has committed
    // already. It will never commit; what matters is what the terms before it did.
    ensure(log.starts_with(ledger.committed_before(term)), NAME, || {
        format!(
            "term {term} starts at {start} without what earlier terms committed: {:?}",
            ledger.commits
        )
    })
}

/// `term` has committed up to `lsn`: whoever won a later term has that.
pub(crate) fn on_commit(ledger: &Ledger, term: Term, lsn: Lsn) -> Checked {
    let committed = ledger.committed.get(..offset(lsn)).unwrap_or_default();
    let later = ledger.logs.iter().filter(|(later, _)| **later > term);
    let lacking: Vec<_> = later
        .filter(|(_, log)| !log.starts_with(committed))
        .map(|(term, _)| *term)
        .collect();
    ensure(lacking.is_empty(), NAME, || {
        format!("term {term} commits {lsn}, which {lacking:?} do not have")
    })
}

/// After any change of a disk.
pub(crate) fn check(node: &Node, ledger: &Ledger) -> Checked {
    let wal = node.disk.solid();
    let term = node.disk.control.term_history.last_log_term(position(wal.len()));
    let log = ledger.logs.get(&term).map(Vec::as_slice).unwrap_or_default();
    ensure(log.starts_with(wal), NAME, || {
        let differs = log.iter().zip(wal).position(|(a, b)| a != b).unwrap_or(log.len());
        let (id, end) = (node.id, position(wal.len()));
        format!(
            "node {id} holds WAL to {end} as of term {term}, whose winner had other WAL at {}",
            position(differs)
        )
    })
}
