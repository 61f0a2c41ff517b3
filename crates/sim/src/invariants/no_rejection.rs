//! Members of one quorum understand each other: none is shut out, none stops except for its disk.

use super::{Checked, ensure};
use lakebed_quorum::message::Refusal;
use lakebed_types::NodeId;

const NAME: &str = "no_rejection";

/// A proposer finds that an acceptor cannot take part.
pub(crate) fn on_rejected(acceptor: NodeId, refusal: Refusal) -> Checked {
    ensure(false, NAME, || format!("node {acceptor} is shut out: {refusal}"))
}

/// An acceptor stops.
pub(crate) fn on_stop(node: NodeId, reason: &'static str) -> Checked {
    ensure(reason == "a write or fsync failed", NAME, || {
        format!("node {node} stops: {reason}")
    })
}
