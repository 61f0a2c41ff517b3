//! The consensus messages of [`lakebed_quorum`] on the wire: a proposer's side.

use std::collections::BTreeSet;

use bytes::Bytes;
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Body, Refusal, Request, Response};
use lakebed_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::convert::{self, InvalidMessage};
use crate::v1::{self, RefusalKind};

/// Version of the consensus protocol.
pub const PROTOCOL_VERSION: u32 = 1;

fn invalid(field: &'static str, reason: impl ToString) -> InvalidMessage {
    InvalidMessage::Field {
        field,
        reason: reason.to_string(),
    }
}

/// A membership from the wire.
///
/// # Errors
/// An empty or repeated set.
pub fn membership(wire: Option<&v1::Membership>) -> Result<Membership, InvalidMessage> {
    let wire = wire.ok_or(InvalidMessage::Missing("membership"))?;
    let set = |field, ids: &[u64]| {
        let set: BTreeSet<NodeId> = ids.iter().copied().map(NodeId).collect();
        if set.len() == ids.len() {
            Ok(set)
        } else {
            Err(invalid(field, "it names a node twice"))
        }
    };
    if wire.current.is_empty() {
        return Err(invalid("membership.current", "it is empty"));
    }
    let next = set("membership.next", &wire.next)?;
    Ok(Membership {
        generation: Generation(wire.generation),
        old: set("membership.current", &wire.current)?,
        new: (!next.is_empty()).then_some(next),
    })
}

/// A membership for the wire.
pub fn membership_to_wire(membership: &Membership) -> v1::Membership {
    v1::Membership {
        generation: membership.generation.0,
        current: membership.old.iter().map(|node| node.0).collect(),
        next: membership.new.iter().flatten().map(|node| node.0).collect(),
    }
}

/// A term history from the wire.
///
/// # Errors
/// Entries out of order, or none.
pub fn history(wire: &[v1::TermStart]) -> Result<TermHistory, InvalidMessage> {
    let entries = wire.iter().map(|entry| (Term(entry.term), Lsn(entry.start_lsn)));
    TermHistory::new(entries.collect()).map_err(|error| invalid("history", error))
}

/// A term history for the wire.
pub fn history_to_wire(history: &TermHistory) -> Vec<v1::TermStart> {
    let entry = |&(term, start): &(Term, Lsn)| v1::TermStart {
        term: term.0,
        start_lsn: start.0,
    };
    history.entries().iter().map(entry).collect()
}

/// A proposer's request for the wire.
pub fn request_to_wire(request: Request, tenant: TenantId, timeline: TimelineId) -> v1::ProposerMessage {
    use v1::proposer_message::Message;
    let message = match request {
        Request::Greeting {
            membership,
            system_id,
            pg_version,
            segment_bytes,
        } => Message::Greeting(v1::ProposerGreeting {
            protocol_version: PROTOCOL_VERSION,
            timeline: Some(convert::timeline_ref(tenant, timeline)),
            cluster: Some(v1::ClusterIdentity {
                system_identifier: system_id,
                postgres_major: pg_version.major(),
                wal_segment_bytes: u32::try_from(segment_bytes).unwrap_or(u32::MAX),
                data_checksums: false,
            }),
            membership: Some(membership_to_wire(&membership)),
            codec: 0,
        }),
        Request::Vote { generation, term } => Message::Vote(v1::VoteRequest {
            generation: generation.0,
            term: term.0,
        }),
        Request::Elected {
            generation,
            term,
            history,
            common,
        } => Message::Elected(v1::Elected {
            generation: generation.0,
            term: term.0,
            history: history_to_wire(&history),
            common_lsn: common.0,
        }),
        Request::Append {
            generation,
            term,
            begin,
            bytes,
            commit,
            truncate,
        } => Message::Append(v1::Append {
            generation: generation.0,
            term: term.0,
            begin_lsn: begin.0,
            wal: bytes,
            commit_lsn: commit.0,
            truncate_lsn: truncate.0,
            batch: Bytes::new(),
        }),
    };
    v1::ProposerMessage {
        message: Some(message),
    }
}

/// A refusal's kind and value for the wire.
pub fn refusal_to_wire(refusal: Refusal) -> (RefusalKind, u64) {
    match refusal {
        Refusal::Identity => (RefusalKind::Identity, 0),
        Refusal::Generation(generation) => (RefusalKind::Generation, generation.0),
        Refusal::Term(term) => (RefusalKind::Term, term.0),
        Refusal::NotElected => (RefusalKind::NotElected, 0),
        Refusal::Gap(lsn) => (RefusalKind::Gap, lsn.0),
        Refusal::History => (RefusalKind::History, 0),
        Refusal::NoCommonHistory => (RefusalKind::NoCommonHistory, 0),
        Refusal::BelowCommit(lsn) => (RefusalKind::BelowCommit, lsn.0),
    }
}

fn refusal(wire: &v1::Refusal) -> Result<Refusal, InvalidMessage> {
    let value = wire.value;
    match RefusalKind::try_from(wire.kind).unwrap_or(RefusalKind::Unspecified) {
        RefusalKind::Identity => Ok(Refusal::Identity),
        RefusalKind::Generation => Ok(Refusal::Generation(Generation(value))),
        RefusalKind::Term => Ok(Refusal::Term(Term(value))),
        RefusalKind::NotElected => Ok(Refusal::NotElected),
        RefusalKind::Gap => Ok(Refusal::Gap(Lsn(value))),
        RefusalKind::History => Ok(Refusal::History),
        RefusalKind::NoCommonHistory => Ok(Refusal::NoCommonHistory),
        RefusalKind::BelowCommit => Ok(Refusal::BelowCommit(Lsn(value))),
        RefusalKind::Unspecified => Err(invalid("kind", format!("unknown refusal: {}", wire.reason))),
    }
}

/// An acceptor's answer from the wire.
///
/// # Errors
/// The message is not valid; the stream should end.
pub fn response(wire: v1::AcceptorMessage) -> Result<Response, InvalidMessage> {
    use v1::acceptor_message::Message;
    let response = |generation, term, body| Response {
        generation: Generation(generation),
        term: Term(term),
        body,
    };
    Ok(match wire.message.ok_or(InvalidMessage::Missing("message"))? {
        Message::Greeting(greeting) => {
            let generation = membership(greeting.membership.as_ref())?.generation.0;
            let body = Body::Greeted {
                history: history(&greeting.history)?,
                flush: Lsn(greeting.flush_lsn),
                commit: Lsn(greeting.commit_lsn),
                truncate: Lsn(greeting.truncate_lsn),
                timeline_start: Lsn(greeting.start_lsn),
            };
            response(generation, greeting.term, body)
        }
        Message::Vote(vote) => {
            if !vote.granted {
                return Err(invalid("granted", "a vote that is not granted is a refusal"));
            }
            let body = Body::Voted {
                history: history(&vote.history)?,
                flush: Lsn(vote.flush_lsn),
                truncate: Lsn(vote.truncate_lsn),
                timeline_start: Lsn(vote.start_lsn),
            };
            response(vote.generation, vote.term, body)
        }
        Message::Elected(elected) => response(
            elected.generation,
            elected.term,
            Body::Applied {
                flush: Lsn(elected.flush_lsn),
            },
        ),
        Message::Append(append) => {
            let body = Body::Appended {
                flush: Lsn(append.flush_lsn),
                commit: Lsn(append.commit_lsn),
            };
            response(append.generation, append.term, body)
        }
        Message::AppendedNext(_) => {
            return Err(invalid(
                "appended_next",
                "it says something only after another answer",
            ));
        }
        Message::Refusal(refused) => response(
            refused.generation,
            refused.term,
            Body::Refused(refusal(&refused)?),
        ),
    })
}
