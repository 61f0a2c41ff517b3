//! What an acceptor says is on its disk when the answer leaves: term, generation, history and WAL. What it serves as a
//! donor is the log of the term on whose behalf it was asked.

use super::{Checked, ensure};
use crate::disk::{offset, position};
use crate::ledger::Ledger;
use crate::node::Node;
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::message::{Body, Response};
use lakebed_types::{Lsn, NodeId, Term};

const NAME: &str = "promises";

/// An answer leaves.
pub(crate) fn on_answer(node: &Node, ledger: &Ledger, msg: &Response) -> Checked {
    let (id, control) = (node.id, &node.disk.control);
    let end = position(node.disk.solid().len());
    ensure(msg.term <= control.term, NAME, || {
        format!("node {id} names term {}, its disk has {}", msg.term, control.term)
    })?;
    let generation = control.membership.generation;
    ensure(msg.generation <= generation, NAME, || {
        format!(
            "node {id} names generation {}, its disk has {generation}",
            msg.generation
        )
    })?;
    let (history, flush) = match &msg.body {
        Body::Greeted { history, flush, .. } | Body::Voted { history, flush, .. } => (Some(history), *flush),
        Body::Applied { flush } | Body::Appended { flush, .. } => {
            // Not just so much WAL: that of the term in which the answer is given.
            let log = ledger
                .logs
                .get(&msg.term)
                .and_then(|log| log.get(..offset(*flush)));
            ensure(
                log.is_some_and(|log| node.disk.solid().starts_with(log)),
                NAME,
                || {
                    format!(
                        "node {id} says it flushed {flush} of term {}, its disk has other WAL",
                        msg.term
                    )
                },
            )?;
            (None, *flush)
        }
        Body::Refused(_) => return Ok(()),
    };
    ensure(flush <= end, NAME, || {
        format!("node {id} says it flushed {flush}, its disk has {end}")
    })?;
    // The disk may have moved on: to a higher term, to the history of this one, or to more terms of committed WAL.
    let moved = msg.term < control.term || control.term_history.last().0 == control.term;
    let known = |h: &TermHistory| control.term_history.entries().starts_with(h.entries());
    let same = history.is_none_or(|h| known(h) || moved);
    ensure(same, NAME, || {
        format!("node {id} names a history that its disk does not have")
    })
}

/// A safekeeper serves committed WAL from `begin` on to another.
pub(crate) fn on_offer(ledger: &Ledger, from: NodeId, begin: Lsn, bytes: &[u8]) -> Checked {
    let committed = ledger.committed.get(offset(begin)..);
    ensure(committed.is_some_and(|log| log.starts_with(bytes)), NAME, || {
        format!("node {from} offers WAL at {begin} that is not what was committed")
    })
}

/// `donor` serves WAL from `begin` on to the winner of `term`, who will send it on under its own history.
pub(crate) fn on_read(ledger: &Ledger, donor: NodeId, term: Term, begin: Lsn, bytes: &[u8]) -> Checked {
    let log = ledger.logs.get(&term).and_then(|log| log.get(offset(begin)..));
    ensure(log.is_some_and(|log| log.starts_with(bytes)), NAME, || {
        format!("node {donor} serves WAL at {begin} to the winner of term {term}, who had other WAL there")
    })
}
