//! At most one term commits at an LSN, and a term has one winner: what is acknowledged extends what was.

use super::{Checked, ensure};
use crate::disk::offset;
use crate::ledger::Ledger;
use lakebed_types::{Lsn, Term};

const NAME: &str = "one_committer";

/// A proposer says that it won `term`.
pub(crate) fn on_election(ledger: &Ledger, term: Term) -> Checked {
    ensure(!ledger.logs.contains_key(&term), NAME, || {
        format!("term {term} was won twice")
    })
}

/// A proposer whose log is `log` says that everything below `lsn` is committed.
pub(crate) fn on_commit(ledger: &Ledger, log: &[u8], term: Term, lsn: Lsn) -> Checked {
    let both = ledger.committed.len().min(offset(lsn));
    let same = log.get(..both) == ledger.committed.get(..both);
    ensure(same && offset(lsn) <= log.len(), NAME, || {
        let differs = log.iter().zip(&ledger.committed).position(|(a, b)| a != b);
        format!("term {term} commits {lsn}; its log parts from what was acknowledged at offset {differs:?}")
    })
}
