//! Between the schema and the domain: checked on the way in, plain on the way out.

use lakebed_proto::convert::{self, InvalidMessage};
use lakebed_proto::differences::Appends;
use lakebed_proto::quorum::{self, PROTOCOL_VERSION};
use lakebed_proto::v1;
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Body, Request};
use lakebed_types::{Generation, Lsn, PgVersion, ShardCount, ShardIdentity, Term};
use lakebed_wal::page::{WAL_PAGE_BYTES, header_bytes};
use tonic::Status;

use crate::control_file::{MAX_HISTORY_ENTRIES, MAX_MEMBERS};
use crate::data_dir::Name;
use crate::owner::Answer;
use crate::view::{Progress, Shards, View};

/// Largest piece of WAL in one append.
pub const MAX_APPEND_BYTES: usize = 4 << 20;

const SEGMENT_BYTES: std::ops::RangeInclusive<u32> = 1 << 20..=1 << 30;

/// What a cluster's WAL looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// System identifier.
    pub system_id: u64,
    /// Major Postgres version.
    pub pg_version: PgVersion,
    /// Bytes of a segment.
    pub segment_bytes: u32,
}

fn invalid(field: &'static str, reason: impl ToString) -> InvalidMessage {
    InvalidMessage::Field {
        field,
        reason: reason.to_string(),
    }
}

/// A message that is not valid, as the end of a call.
pub fn refused(error: InvalidMessage) -> Status {
    Status::invalid_argument(error.to_string())
}

pub(crate) fn cluster(wire: Option<&v1::ClusterIdentity>) -> Result<Cluster, InvalidMessage> {
    let wire = wire.ok_or(InvalidMessage::Missing("cluster"))?;
    let pg_version = PgVersion::try_from(wire.postgres_major)
        .map_err(|error| invalid("cluster.postgres_major", error.to_string()))?;
    let bytes = wire.wal_segment_bytes;
    if !bytes.is_power_of_two() || !SEGMENT_BYTES.contains(&bytes) {
        let reason = format!("{bytes} is not a power of two from 1 MiB to 1 GiB");
        return Err(invalid("cluster.wal_segment_bytes", reason));
    }
    if wire.system_identifier == 0 {
        return Err(invalid("cluster.system_identifier", "it is 0"));
    }
    Ok(Cluster {
        system_id: wire.system_identifier,
        pg_version,
        segment_bytes: bytes,
    })
}

/// A timeline starts between two records: aligned, and not inside a page header.
pub(crate) fn check_start(start: Lsn, segment_bytes: u32) -> Result<(), InvalidMessage> {
    let page = Lsn(start.0 - start.0 % WAL_PAGE_BYTES);
    let header = Lsn(page.0 + header_bytes(page, segment_bytes) as u64);
    let inside_header = page < start && start < header;
    // Far from the end of the address space, so that no position overflows.
    if !start.0.is_multiple_of(8) || inside_header || start.0 < WAL_PAGE_BYTES || start.0 > u64::MAX / 2 {
        return Err(invalid(
            "start_lsn",
            format!("{start} is not a place where a record can begin"),
        ));
    }
    Ok(())
}

pub(crate) fn membership(wire: Option<&v1::Membership>) -> Result<Membership, InvalidMessage> {
    let named = wire.map_or(0, |wire| wire.current.len().max(wire.next.len()));
    if named > MAX_MEMBERS {
        return Err(invalid(
            "membership",
            format!("it names {named} nodes, at most {MAX_MEMBERS} are possible"),
        ));
    }
    quorum::membership(wire)
}

fn history(wire: &[v1::TermStart]) -> Result<TermHistory, InvalidMessage> {
    if wire.len() > MAX_HISTORY_ENTRIES {
        let reason = format!("more than {MAX_HISTORY_ENTRIES} entries");
        return Err(invalid("history", reason));
    }
    quorum::history(wire)
}

/// The terms that wrote a timeline's WAL from `start` to `begin`, as another member knows them.
pub(crate) fn history_below(
    begin: Lsn,
    start: Lsn,
    wire: &[v1::TermStart],
    segment_bytes: u32,
) -> Result<TermHistory, InvalidMessage> {
    check_start(begin, segment_bytes)?;
    let history = history(wire)?;
    let first = history.entries().first().map(|(_, at)| *at);
    if begin < start || first != Some(start) {
        let reason = format!("it does not lie on a timeline that starts at {start}");
        return Err(invalid("begin_lsn", reason));
    }
    Ok(history.below(begin))
}

/// A shard that starts a feed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeedStart {
    pub(crate) name: Name,
    pub(crate) shard: ShardIdentity,
    pub(crate) generation: Generation,
    pub(crate) from: Lsn,
}

pub(crate) fn feed_start(wire: &v1::FeedStart) -> Result<FeedStart, InvalidMessage> {
    let count = u8::try_from(wire.shard_count).ok().and_then(ShardCount::new);
    let count = count.ok_or_else(|| invalid("shard_count", "it is not between 1 and 128"))?;
    let shard = u8::try_from(wire.shard_index)
        .ok()
        .and_then(|index| ShardIdentity::new(index, count));
    Ok(FeedStart {
        name: convert::timeline(wire.timeline.as_ref())?,
        shard: shard.ok_or_else(|| invalid("shard_index", "it is not below shard_count"))?,
        generation: Generation(wire.shard_generation),
        from: Lsn(wire.from_lsn),
    })
}

pub(crate) fn progress(wire: &v1::ShardProgress, of: &FeedStart) -> Result<Progress, InvalidMessage> {
    if wire.shard_index != u32::from(of.shard.index()) {
        return Err(invalid(
            "progress.shard_index",
            "it is another shard than this feed's",
        ));
    }
    let progress = Progress {
        generation: of.generation,
        last_record: Lsn(wire.last_record_lsn),
        disk_consistent: Lsn(wire.disk_consistent_lsn),
        remote_consistent: Lsn(wire.remote_consistent_lsn),
    };
    if progress.remote_consistent > progress.disk_consistent
        || progress.disk_consistent > progress.last_record
    {
        return Err(invalid("progress", "its positions are out of order"));
    }
    Ok(progress)
}

fn progress_to_wire((index, progress): (u8, Progress)) -> v1::ShardProgress {
    v1::ShardProgress {
        shard_index: u32::from(index),
        last_record_lsn: progress.last_record.0,
        disk_consistent_lsn: progress.disk_consistent.0,
        remote_consistent_lsn: progress.remote_consistent.0,
    }
}

/// A proposer's message as a request to the core; with the timeline when it is a greeting.
pub(crate) fn request(wire: v1::ProposerMessage) -> Result<(Option<Name>, Request), InvalidMessage> {
    use v1::proposer_message::Message;
    Ok(match wire.message.ok_or(InvalidMessage::Missing("message"))? {
        Message::Greeting(greeting) => {
            if greeting.protocol_version != PROTOCOL_VERSION {
                let reason = format!(
                    "{} is spoken there, {PROTOCOL_VERSION} here",
                    greeting.protocol_version
                );
                return Err(invalid("protocol_version", reason));
            }
            let cluster = cluster(greeting.cluster.as_ref())?;
            let request = Request::Greeting {
                membership: membership(greeting.membership.as_ref())?,
                system_id: cluster.system_id,
                pg_version: cluster.pg_version,
                segment_bytes: u64::from(cluster.segment_bytes),
            };
            (Some(convert::timeline(greeting.timeline.as_ref())?), request)
        }
        Message::Vote(vote) => {
            let request = Request::Vote {
                generation: Generation(vote.generation),
                term: Term(vote.term),
            };
            (None, request)
        }
        Message::Elected(elected) => {
            let request = Request::Elected {
                generation: Generation(elected.generation),
                term: Term(elected.term),
                history: history(&elected.history)?,
                common: Lsn(elected.common_lsn),
            };
            (None, request)
        }
        Message::Append(append) => {
            if append.wal.len() > MAX_APPEND_BYTES {
                return Err(invalid(
                    "wal",
                    format!("more than {MAX_APPEND_BYTES} bytes in one append"),
                ));
            }
            (None, Appends::in_full(&append).request(append.wal))
        }
        Message::AppendNext(_) => return Err(InvalidMessage::Missing("greeting")),
    })
}

/// An answer of the acceptor, for the wire. A refusal of whatever request is a `Refusal`.
pub(crate) fn answer(answer: Answer, node_id: u64) -> v1::AcceptorMessage {
    use v1::acceptor_message::Message;
    let (generation, term) = (answer.response.generation.0, answer.response.term.0);
    let message = match answer.response.body {
        Body::Greeted {
            history,
            flush,
            commit,
            truncate,
            timeline_start,
        } => Message::Greeting(v1::AcceptorGreeting {
            protocol_version: PROTOCOL_VERSION,
            node_id,
            membership: Some(quorum::membership_to_wire(&answer.membership)),
            term,
            history: quorum::history_to_wire(&history),
            flush_lsn: flush.0,
            commit_lsn: commit.0,
            truncate_lsn: truncate.0,
            start_lsn: timeline_start.0,
            codec: lakebed_walcodec::stream::VERSION.into(),
        }),
        Body::Voted {
            history,
            flush,
            truncate,
            timeline_start,
        } => Message::Vote(v1::VoteResponse {
            generation,
            term,
            granted: true,
            history: quorum::history_to_wire(&history),
            flush_lsn: flush.0,
            truncate_lsn: truncate.0,
            start_lsn: timeline_start.0,
            commit_lsn: answer.commit.0,
        }),
        Body::Applied { flush } => Message::Elected(v1::ElectedResponse {
            generation,
            term,
            flush_lsn: flush.0,
        }),
        Body::Appended { flush, commit } => Message::Append(v1::AppendResponse {
            generation,
            term,
            flush_lsn: flush.0,
            commit_lsn: commit.0,
            slowest_shard: answer.slowest.map(progress_to_wire),
        }),
        Body::Refused(refusal) => {
            let (kind, value) = quorum::refusal_to_wire(refusal);
            Message::Refusal(v1::Refusal {
                generation,
                term,
                reason: answer.reason.unwrap_or_else(|| refusal.to_string()),
                kind: kind.into(),
                value,
            })
        }
    };
    v1::AcceptorMessage {
        message: Some(message),
    }
}

/// A timeline's status, for the wire.
pub(crate) fn status(name: Name, view: &View, shards: &Shards) -> v1::SafekeeperTimelineStatus {
    let mut status = v1::SafekeeperTimelineStatus {
        timeline: Some(convert::timeline_ref(name.0, name.1)),
        commit_lsn: view.commit.0,
        flush_lsn: view.flush.0,
        write_lsn: view.write.0,
        stopped_reason: view.stopped.clone().unwrap_or_default(),
        shards: shards
            .all()
            .into_iter()
            .map(|((_, index), progress)| progress_to_wire((index, progress)))
            .collect(),
        shard_reports: shards
            .all()
            .into_iter()
            .map(|((count, index), progress)| v1::ShardReport {
                shard_index: index.into(),
                shard_count: count.into(),
                generation: progress.generation.0,
                remote_consistent_lsn: progress.remote_consistent.0,
                fed: shards.is_fed((count, index)),
            })
            .collect(),
        ..Default::default()
    };
    if let Some(state) = &view.state {
        status.cluster = Some(v1::ClusterIdentity {
            system_identifier: state.system_id,
            postgres_major: state.pg_version.major(),
            wal_segment_bytes: u32::try_from(state.segment_bytes).unwrap_or(u32::MAX),
            data_checksums: false,
        });
        status.membership = Some(quorum::membership_to_wire(&state.membership));
        status.term = state.term.0;
        status.history = quorum::history_to_wire(&state.term_history);
        status.start_lsn = state.timeline_start.0;
        status.truncate_lsn = state.truncate.0;
        status.backup_lsn = state.backup.0;
    }
    status
}
