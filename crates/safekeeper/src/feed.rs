//! Committed WAL for pageserver shards, record by record.
//!
//! A feed sends what one shard needs of the records after its position, up to commit and never beyond, and then waits
//! for commit to advance. The shard tells its progress on the same stream. A shard has one owner, the one with the
//! highest generation: an older owner's feed ends when a newer one begins.

use lakebed_proto::v1::{self, feed_entry::Entry, feed_shard_request};
use lakebed_types::{Lsn, ShardIdentity};
use lakebed_wal::stream::RawRecord;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::boundary;
use crate::metrics::Live;
use crate::propose::stopped_status;
use crate::server::Safekeeper;
use crate::timeline::Timeline;
use crate::wire::{self, FeedStart};

/// Batches that wait for a shard to take them.
pub const BATCHES_AHEAD: usize = 2;

type Out = mpsc::Sender<Result<v1::FeedShardBatch, Status>>;

/// What a shard gets for a record; nothing when the record does not concern it.
///
/// Every shard gets every record until the routing of `lakebed-ingest` is asked here.
pub fn select_for_shard(record: &RawRecord, _shard: ShardIdentity) -> Option<v1::FeedEntry> {
    Some(v1::FeedEntry {
        end_lsn: record.end.0,
        entry: Some(Entry::Record(v1::FeedRecord {
            start_lsn: record.start.0,
            record: record.bytes.clone(),
        })),
    })
}

/// Serves one feed until it ends; the reason goes out last.
pub(crate) async fn serve(
    safekeeper: std::sync::Arc<Safekeeper>,
    inbound: Streaming<v1::FeedShardRequest>,
    out: Out,
) {
    let _live = Live::new(&safekeeper.metrics().feeds);
    let status = tokio::select! {
        result = feed(&safekeeper, inbound, &out) => result.err(),
        () = safekeeper.ending().cancelled() => Some(Safekeeper::unavailable()),
        () = out.closed() => None,
    };
    if let Some(status) = status {
        let _ = out.send(Err(status)).await;
    }
}

async fn feed(
    safekeeper: &Safekeeper,
    mut inbound: Streaming<v1::FeedShardRequest>,
    out: &Out,
) -> Result<(), Status> {
    let start = match inbound.message().await? {
        Some(v1::FeedShardRequest {
            message: Some(feed_shard_request::Message::Start(start)),
        }) => wire::feed_start(&start).map_err(wire::refused)?,
        Some(_) => return Err(Status::invalid_argument("the first message must be a start")),
        None => return Ok(()),
    };
    let timeline = safekeeper.timeline(start.name)?;
    if !timeline.shards.claim(start.shard, start.generation, start.from) {
        return Err(overtaken(&start));
    }
    tokio::select! {
        result = send(safekeeper, &timeline, &start, out) => result,
        result = take_progress(&timeline, &start, inbound) => result,
    }
}

fn overtaken(start: &FeedStart) -> Status {
    Status::aborted(format!(
        "shard {} has a newer owner than generation {}",
        start.shard, start.generation
    ))
}

async fn take_progress(
    timeline: &Timeline,
    start: &FeedStart,
    mut inbound: Streaming<v1::FeedShardRequest>,
) -> Result<(), Status> {
    while let Some(message) = inbound.message().await? {
        let Some(feed_shard_request::Message::Progress(told)) = message.message else {
            return Err(Status::invalid_argument(
                "after the start only progress may be sent",
            ));
        };
        let progress = wire::progress(&told, start).map_err(wire::refused)?;
        if progress.last_record > timeline.view().borrow().commit {
            let reason =
                "progress beyond commit: this shard took in WAL that this safekeeper did not commit yet";
            tracing::debug!(shard = %start.shard, reason);
        }
        if !timeline.shards.report(start.shard, progress) {
            return Err(overtaken(start));
        }
    }
    // The shard has nothing more to tell and may still listen.
    std::future::pending().await
}

async fn send(
    safekeeper: &Safekeeper,
    timeline: &Timeline,
    start: &FeedStart,
    out: &Out,
) -> Result<(), Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    if start.from < working.files.start() {
        let reason = format!(
            "{} lies before the WAL held here, which starts at {}",
            start.from,
            working.files.start()
        );
        return Err(Status::out_of_range(reason));
    }
    wait_for_commit(timeline, start.from).await?;
    let (files, from) = (working.files.clone(), start.from);
    let found = tokio::task::spawn_blocking(move || boundary::at_or_below(&files, from)).await;
    let mut at = found
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::data_loss(error.to_string()))?;
    if at.lsn != start.from {
        let reason = format!(
            "{} is inside a record, the last boundary before it is {}",
            start.from, at.lsn
        );
        return Err(Status::invalid_argument(reason));
    }
    loop {
        let commit = wait_for_commit(timeline, Lsn(at.lsn.0 + 1)).await?;
        let decoded = working.decoded.after(at, commit).await;
        let decoded = decoded.map_err(|error| Status::data_loss(error.to_string()))?;
        if !timeline.shards.is_owner(start.shard, start.generation) {
            return Err(overtaken(start));
        }
        let select = |record| select_for_shard(record, start.shard);
        let entries: Vec<_> = decoded.records.iter().filter_map(select).collect();
        let bytes: usize = entries.iter().map(entry_bytes).sum();
        safekeeper.metrics().fed_bytes.inc_by(bytes as u64);
        at = decoded.end;
        let batch = v1::FeedShardBatch {
            entries,
            end_lsn: at.lsn.0,
            commit_lsn: timeline.view().borrow().commit.max(at.lsn).0,
        };
        if out.send(Ok(batch)).await.is_err() {
            return Ok(());
        }
    }
}

fn entry_bytes(entry: &v1::FeedEntry) -> usize {
    match &entry.entry {
        Some(Entry::Record(record)) => record.record.len(),
        _ => 0,
    }
}

/// Waits until commit is at or past a position; returns it.
async fn wait_for_commit(timeline: &Timeline, least: Lsn) -> Result<Lsn, Status> {
    let mut view = timeline.view();
    let found = view
        .wait_for(|view| view.stopped.is_some() || view.commit >= least)
        .await;
    match found {
        Ok(view) if view.stopped.is_none() => Ok(view.commit),
        _ => Err(stopped_status(timeline)),
    }
}
