//! Object storage holds committed WAL and nothing else: what it has is what was acknowledged, and never more.

use super::{Checked, ensure};
use crate::ledger::Ledger;

/// After an upload.
pub(crate) fn check(ledger: &Ledger) -> Checked {
    ensure(ledger.committed.starts_with(&ledger.store), "uploads", || {
        let (up, commit) = (ledger.uploaded(), ledger.commit());
        format!("object storage has WAL to {up} that is not the committed WAL, which ends at {commit}")
    })
}
