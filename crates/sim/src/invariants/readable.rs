//! Acknowledged bytes stay readable, unchanged, from any quorum: those who lack them never are one.
//!
//! Of the configuration that the controller decided last and, until that has settled, of the one before. A node whose
//! disk is gone answers nobody, so it lacks nothing.

use super::{Checked, ensure};
use crate::ledger::Ledger;
use crate::node::Node;

const NAME: &str = "readable";

/// After any change of a disk or of the configuration.
pub(crate) fn check(nodes: &[Node], ledger: &Ledger) -> Checked {
    let lacking: Vec<_> = nodes
        .iter()
        .filter(|n| !n.gone && !n.disk.solid().starts_with(&ledger.committed))
        .map(|n| n.id)
        .collect();
    for members in ledger.in_force() {
        ensure(!members.is_quorum(|id| lacking.contains(&id)), NAME, || {
            format!(
                "{lacking:?} lack acknowledged WAL below {}: a quorum of {members:?}",
                ledger.commit()
            )
        })?;
    }
    Ok(())
}
