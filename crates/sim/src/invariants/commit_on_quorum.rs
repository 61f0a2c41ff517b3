//! Commit is monotonic, and when it is said, a quorum (of both sets, while joint) has those very bytes on disk.
//!
//! A disk that is gone by now counts with what it had: its answer may have been on its way.

use super::{Checked, ensure};
use crate::disk::offset;
use crate::node::Node;
use lakebed_quorum::membership::Membership;
use lakebed_types::Lsn;

const NAME: &str = "commit_on_quorum";

/// A proposer under `members` whose log is `log` moves its commit from `before` to `lsn`.
pub(crate) fn check(nodes: &[Node], members: &Membership, log: &[u8], before: Lsn, lsn: Lsn) -> Checked {
    ensure(lsn > before, NAME, || {
        format!("commit went from {before} to {lsn}")
    })?;
    let wanted = log.get(..offset(lsn)).unwrap_or_default();
    let holders: Vec<_> = nodes
        .iter()
        .filter(|n| n.disk.solid().starts_with(wanted) || n.lost.starts_with(wanted))
        .map(|n| n.id)
        .collect();
    ensure(members.is_quorum(|id| holders.contains(&id)), NAME, || {
        format!("commit {lsn} is on {holders:?} only, of {members:?}")
    })
}
