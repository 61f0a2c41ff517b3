//! Committed WAL for pageserver shards, record by record.
//!
//! A feed sends what one shard needs of the records after its position, up to commit and never beyond, and then waits
//! for commit to advance. The shard tells its progress on the same stream. A shard has one owner, the one with the
//! highest generation: an older owner's feed ends when a newer one begins.
//!
//! WAL is removed here once every shard has it in layers. A shard that needs it all the same, since its layers were lost or
//! taken back, gets it from object storage.

use std::sync::Arc;
use std::time::Duration;

use lakebed_proto::v1::{self, feed_entry::Entry, feed_shard_request};
use lakebed_types::Lsn;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::Instrument;
use tracing::field::Empty;

use crate::backup::BackupError;
use crate::backup::archive::{Archive, Reader};
use crate::boundary;
use crate::decoded::from_archive;
use crate::metrics::Live;
use crate::propose::stopped_status;
use crate::read_wal::{decode_archived, timeline_start};
use crate::recovery::Boundary;
use crate::selection::Selection;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};
use crate::wire::{self, FeedStart};

/// Batches that wait for a shard to take them.
pub const BATCHES_AHEAD: usize = 2;
/// A shard that has everything gets what comes next in batches this far apart: under load one for many commits. Reads
/// of computes do not wait for it, as they depend on nothing newer than the start of their term.
pub const GATHER: Duration = Duration::from_millis(2);
/// A shard hears from its feed at least this often.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

type Out = mpsc::Sender<Result<v1::FeedShardBatch, Status>>;

/// Serves one feed until it ends; the reason goes out last.
pub(crate) async fn serve(safekeeper: Arc<Safekeeper>, inbound: Streaming<v1::FeedShardRequest>, out: Out) {
    let _live = Live::new(&safekeeper.metrics().feeds);
    let span = tracing::info_span!("feed", tenant = Empty, timeline = Empty, shard = Empty);
    let status = tokio::select! {
        result = feed(&safekeeper, inbound, &out).instrument(span.clone()) => result.err(),
        () = safekeeper.ending().cancelled() => Some(Safekeeper::unavailable()),
        () = out.closed() => None,
    };
    if let Some(status) = status {
        tracing::info!(parent: &span, %status, "a feed ends");
        let _ = out.send_timeout(Err(status), HEARTBEAT).await;
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
    let span = tracing::Span::current();
    span.record("tenant", tracing::field::display(start.name.0));
    span.record("timeline", tracing::field::display(start.name.1));
    span.record("shard", tracing::field::display(start.shard));
    let timeline = safekeeper.timeline(start.name)?;
    if !timeline.shards.claim(start.shard, start.generation, start.from) {
        return Err(overtaken(&start));
    }
    let _open = timeline.shards.open(start.shard);
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
    let archive = safekeeper.archive(start.name);
    check_held(timeline, working, archive.is_some(), start.from)?;
    let mut heartbeat = Heartbeat {
        timeline,
        start,
        out,
        end: start.from,
    };
    // The shard may have been fed by a safekeeper that knows of a later commit.
    heartbeat.until_commit(start.from).await?;
    let mut at = start_boundary(timeline, working, archive.as_ref(), start.from).await?;
    let mut selection = Selection::new(start.shard);
    let (mut reader, count) = (Reader::default(), start.shard.count());
    loop {
        let commit = heartbeat.until_commit(Lsn(at.lsn.0 + 1)).await?;
        let local = working.files.start();
        let decoded = match &archive {
            Some(archive) if at.lsn < local => {
                let format = working.files.format();
                let decoded = from_archive(archive, &mut reader, format, at, (local, count)).await;
                Arc::new(decoded.map_err(archive_status)?)
            }
            _ => {
                let decoded = working.decoded.after(at, commit, count).await;
                if at.lsn < working.files.start() {
                    // Removed while it was read.
                    check_held(timeline, working, archive.is_some(), at.lsn)?;
                    continue;
                }
                decoded.map_err(|error| Status::data_loss(error.to_string()))?
            }
        };
        if !timeline.shards.is_owner(start.shard, start.generation) {
            return Err(overtaken(start));
        }
        let entries = selection.take(&decoded.records);
        let bytes: usize = entries.iter().map(entry_bytes).sum();
        safekeeper.metrics().fed_bytes.inc_by(bytes as u64);
        at = decoded.end;
        heartbeat.end = at.lsn;
        if out.send(Ok(heartbeat.batch(entries))).await.is_err() {
            return Ok(());
        }
        if at.lsn >= commit {
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// WAL from here on is here or, with a way there, in object storage, which has that of the timeline's own history.
fn check_held(timeline: &Timeline, working: &Working, archived: bool, from: Lsn) -> Result<(), Status> {
    let local = working.files.start();
    let start = match archived {
        true => timeline_start(timeline).unwrap_or(local),
        false => local,
    };
    if from >= start {
        return Ok(());
    }
    Err(Status::out_of_range(format!(
        "{from} lies before the WAL held here, which starts at {start}"
    )))
}

/// What a shard is told when object storage does not give what was removed here.
fn archive_status(error: BackupError) -> Status {
    match error {
        BackupError::Blob(error) => Status::unavailable(format!("WAL that was removed here: {error}")),
        BackupError::Gap { .. } => Status::out_of_range(format!("WAL that was removed here: {error}")),
        error => Status::data_loss(format!("WAL that was removed here: {error}")),
    }
}

/// The boundary that a shard names must be one: from inside a record nothing can be decoded.
async fn start_boundary(
    timeline: &Timeline,
    working: &Working,
    archive: Option<&Archive>,
    from: Lsn,
) -> Result<Boundary, Status> {
    let files = working.files.clone();
    let found = match archive.zip(timeline_start(timeline)) {
        Some((archive, start)) if from < files.start() => {
            let found = decode_archived(archive, files.format(), start, from).await;
            found.map_err(archive_status)?
        }
        _ => {
            let found = tokio::task::spawn_blocking(move || boundary::at_or_below(&files, from)).await;
            found
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(|error| Status::data_loss(error.to_string()))?
        }
    };
    if found.lsn == from {
        return Ok(found);
    }
    Err(Status::invalid_argument(format!(
        "{from} is inside a record, the last boundary before it is {}",
        found.lsn
    )))
}

/// Says while there is nothing to send that this feed is alive, so that silence means a dead connection.
struct Heartbeat<'a> {
    timeline: &'a Timeline,
    start: &'a FeedStart,
    out: &'a Out,
    /// End of what was sent.
    end: Lsn,
}

impl Heartbeat<'_> {
    fn batch(&self, entries: Vec<v1::FeedEntry>) -> v1::FeedShardBatch {
        v1::FeedShardBatch {
            entries,
            end_lsn: self.end.0,
            commit_lsn: self.timeline.view().borrow().commit.max(self.end).0,
        }
    }

    /// Waits until commit is at or past a position; returns it.
    async fn until_commit(&self, least: Lsn) -> Result<Lsn, Status> {
        loop {
            match tokio::time::timeout(HEARTBEAT, wait_for_commit(self.timeline, least)).await {
                Ok(reached) => return reached,
                Err(_)
                    if !self
                        .timeline
                        .shards
                        .is_owner(self.start.shard, self.start.generation) =>
                {
                    return Err(overtaken(self.start));
                }
                // Whoever does not listen any more ends the feed from elsewhere.
                Err(_) => drop(self.out.send(Ok(self.batch(Vec::new()))).await),
            }
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
