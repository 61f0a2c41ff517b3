//! A set follows only when those who join it have caught up, so that no commit waits for that: each had flushed all but a
//! bounded part of what was committed when a proposer said so.
//!
//! A node whose disk was lost meanwhile is as good as one that has not begun; nobody can know.

use super::{Checked, ensure};
use crate::disk::position;
use crate::ledger::Joining;
use crate::node::Node;
use lakebed_types::Lsn;

/// So far behind a learner may be when it joins, in bytes.
pub(crate) const WITHIN: u64 = 128;

/// Learners become members; `commit` was the commit position when that was found to be possible.
pub(crate) fn check(nodes: &[Node], joining: &Joining, commit: Lsn) -> Checked {
    let behind: Vec<_> = nodes
        .iter()
        .filter(|node| joining.learners.contains(&node.id) && !node.gone)
        .map(|node| (node.id, position(node.disk.solid().len())))
        .filter(|(_, end)| end.0 + WITHIN < commit.0)
        .collect();
    ensure(behind.is_empty(), "joiners", || {
        format!("{behind:?} join, more than {WITHIN} bytes behind {commit}")
    })
}
