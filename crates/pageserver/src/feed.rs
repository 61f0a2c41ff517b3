//! The feed of one timeline: committed WAL from a safekeeper, ingested in batches.
//!
//! Any safekeeper of the timeline will do; when one fails, the next is asked. One that answers and has nothing new fails
//! too, once a reader complains ([`Timeline::complain`]) or another one has more: it may be cut off from the compute.
//! Memory is bounded: when it is full, the next batch waits for the flush. A record that cannot be ingested stops the
//! timeline for good.

mod batch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::v1::{self, feed_shard_request};
use lakebed_proto::{connect, convert};
use lakebed_types::Lsn;
use lakebed_wal::page::{WAL_PAGE_BYTES, header_bytes};
use lakebed_wal::stream::RawRecord;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::batch::{Batch, Told};
use crate::ingest::{IngestStop, Ingestor};
use crate::manifest::Cluster;
use crate::node::Node;
use crate::timeline::Timeline;

/// Pause before the next safekeeper is tried.
const RETRY: Duration = Duration::from_millis(200);
/// A safekeeper sends at least an empty batch this often; silence beyond it means that the connection is dead.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a safekeeper may take to send what a reader waits for, before the next one is asked. It doubles with each
/// one that was given up like this: all of them may be slow.
const READER_PATIENCE: Duration = Duration::from_secs(1);
/// When there was nothing new for this long, another safekeeper is asked whether it has more.
const SECOND_OPINION: Duration = Duration::from_secs(30);
/// Changes are stored at least this often.
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

/// Versions of pages that are added at once: readers wait for so long.
const PUBLISHED_AT_ONCE: usize = 1024;

/// Why one connection ended.
enum End {
    /// Try the next safekeeper.
    Retry(anyhow::Error),
    /// The timeline cannot go on.
    Stop(IngestStop),
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> End {
        End::Retry(error)
    }
}

/// Runs until stopped, or until a record cannot be ingested. The safekeepers may change meanwhile.
pub async fn run(
    node: Arc<Node>,
    timeline: Arc<Timeline>,
    mut safekeepers: watch::Receiver<Vec<String>>,
    stop: CancellationToken,
) {
    let identity = &timeline.identity;
    let span = tracing::info_span!("feed", tenant = %identity.tenant, timeline = %identity.timeline, shard = %identity.shard);
    let flusher =
        tokio::spawn(flush_regularly(node.clone(), timeline.clone(), stop.clone()).instrument(span.clone()));
    let (mut next, mut patience) = (0, READER_PATIENCE);
    let ingest = async {
        loop {
            let addresses = safekeepers.borrow_and_update().clone();
            let Some(address) = addresses.get(next % addresses.len().max(1)) else {
                if safekeepers.changed().await.is_err() {
                    return;
                }
                continue;
            };
            next += 1;
            let other = addresses
                .get(next % addresses.len())
                .filter(|other| *other != address);
            let follower = Follower {
                node: &node,
                timeline: &timeline,
                address,
                other: other.map(String::as_str),
                safekeepers: safekeepers.clone(),
                moved: Instant::now(),
                patience: &mut patience,
            };
            match follower.follow().await {
                Ok(()) => tracing::info!(%address, "the safekeeper ended the feed; trying the next one"),
                Err(End::Retry(error)) => {
                    node.metrics.feed_errors.inc();
                    tracing::info!(%address, error = format!("{error:#}"), "feed interrupted; trying the next safekeeper");
                }
                Err(End::Stop(reason)) => {
                    tracing::error!(%reason, "ingest stopped: this record cannot be replayed");
                    timeline.stop(reason.to_string());
                    return;
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = ingest.instrument(span) => stop.cancelled().await,
        () = stop.cancelled() => {}
    }
    let _ = flusher.await;
}

/// Stores layers when memory is full, and now and then.
async fn flush_regularly(node: Arc<Node>, timeline: Arc<Timeline>, stop: CancellationToken) {
    let mut last_record = timeline.watch_last_record();
    let mut due = Instant::now() + FLUSH_INTERVAL;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
            changed = last_record.changed() => {
                if changed.is_err() {
                    return;
                }
                if !timeline.wants_flush() {
                    continue;
                }
            }
        }
        due = Instant::now() + FLUSH_INTERVAL;
        match timeline.flush().await {
            Ok(()) => {
                node.metrics.flushes.inc();
            }
            Err(error) => {
                node.metrics.flush_failures.inc();
                tracing::warn!(%error, "could not store a layer; trying again");
                due = Instant::now() + Duration::from_secs(1);
            }
        }
    }
}

/// One connection to one safekeeper.
struct Follower<'a> {
    node: &'a Node,
    timeline: &'a Arc<Timeline>,
    address: &'a str,
    /// Who is asked for a second opinion, and who comes next.
    other: Option<&'a str>,
    safekeepers: watch::Receiver<Vec<String>>,
    /// When this connection began, or last brought anything.
    moved: Instant,
    /// How long nothing may come while a reader waits.
    patience: &'a mut Duration,
}

impl Follower<'_> {
    async fn follow(mut self) -> Result<(), End> {
        let (timeline, address) = (self.timeline, self.address);
        let channel = self.word(connect(address)).await?.context("connecting")?;
        let ingestor = timeline.obtaining(|| Ingestor::new(timeline.clone())).await;
        let mut ingestor = ingestor.map_err(|stop| match stop {
            IngestStop::State(error) if error.may_pass() => End::Retry(error.into()),
            stop => End::Stop(stop),
        })?;
        let identity = &timeline.identity;
        let (requests, receiver) = mpsc::channel(4);
        let start = v1::FeedStart {
            timeline: Some(convert::timeline_ref(identity.tenant, identity.timeline)),
            shard_index: identity.shard.index().into(),
            shard_count: identity.shard.count().get().into(),
            shard_generation: identity.generation.0,
            from_lsn: timeline.last_record().0,
        };
        let request = |message| v1::FeedShardRequest {
            message: Some(message),
        };
        requests
            .send(request(feed_shard_request::Message::Start(start)))
            .await
            .context("starting the feed")?;
        let response = self.word(batch::feed(channel, ReceiverStream::new(receiver)));
        let mut batches = response.await?.context("starting the feed")?;
        tracing::info!(%address, from = %timeline.last_record(), "feed connected");
        loop {
            let batch = self.word(batches.message()).await?;
            let Some(batch) = batch.context("reading the feed")? else {
                return Ok(());
            };
            let before = timeline.last_record();
            ingest_batch(self.node, &mut ingestor, &batch, identity.cluster).map_err(End::Stop)?;
            // Four times the flush size is where memory ends.
            while timeline.memory_bytes() > 4 * self.node.config.flush_bytes {
                timeline.flush().await.context("storing a layer to make room")?;
            }
            let progress = v1::ShardProgress {
                shard_index: identity.shard.index().into(),
                last_record_lsn: timeline.last_record().0,
                disk_consistent_lsn: timeline.disk_consistent().0,
                remote_consistent_lsn: timeline.disk_consistent().0,
            };
            // Progress is advice: when the safekeeper does not take it fast enough, the next one will do.
            let _ = requests.try_send(request(feed_shard_request::Message::Progress(progress)));
            if timeline.last_record() > before {
                self.moved = Instant::now();
                *self.patience = READER_PATIENCE;
            } else if self.moved.elapsed() >= SECOND_OPINION {
                self.second_opinion().await?;
            }
        }
    }

    /// The safekeeper's next word, unless it is time for another safekeeper.
    async fn word<T>(&mut self, next: impl Future<Output = T>) -> anyhow::Result<T> {
        let overdue = self.moved + *self.patience;
        let complaint = async {
            loop {
                self.timeline.complaint().await;
                if Instant::now() >= overdue {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            word = tokio::time::timeout(SILENCE, next) => word.context("no word from the safekeeper"),
            changed = self.safekeepers.changed() => match changed {
                Ok(()) => Err(anyhow::anyhow!("the timeline has other safekeepers now")),
                Err(_) => Err(anyhow::anyhow!("the timeline is closed")),
            },
            () = complaint => {
                *self.patience = (*self.patience * 2).min(SILENCE);
                Err(anyhow::anyhow!(
                    "it stands still at {} and a reader waits",
                    self.timeline.last_record()
                ))
            }
        }
    }

    /// Nothing new for long is how an idle timeline looks, and a safekeeper that the compute does not reach.
    async fn second_opinion(&mut self) -> anyhow::Result<()> {
        self.moved = Instant::now();
        let Some(other) = self.other else { return Ok(()) };
        let identity = &self.timeline.identity;
        let name = convert::timeline_ref(identity.tenant, identity.timeline);
        let ask = async {
            let mut client = SafekeeperClient::new(connect(other).await?);
            anyhow::Ok(client.get_timeline_status(name).await?.into_inner().commit_lsn)
        };
        // Whoever does not answer has no opinion.
        let Ok(Ok(theirs)) = tokio::time::timeout(READER_PATIENCE, ask).await else {
            return Ok(());
        };
        let own = self.timeline.last_record();
        if Lsn(theirs) > own {
            anyhow::bail!(
                "it stands still at {own}, and {other} has committed up to {}",
                Lsn(theirs)
            );
        }
        Ok(())
    }
}

/// End of the record before the one that starts here: the same position, unless a page header lies in between.
fn boundary_before(start: Lsn, segment_bytes: u32) -> Lsn {
    let page = Lsn(start.0 - start.0 % WAL_PAGE_BYTES);
    if start.0 - page.0 == header_bytes(page, segment_bytes) as u64 {
        page
    } else {
        start
    }
}

fn ingest_batch(
    node: &Node,
    ingestor: &mut Ingestor,
    batch: &Batch,
    cluster: Cluster,
) -> Result<(), IngestStop> {
    let mut records = 0;
    for entry in &batch.entries {
        let end = entry.end;
        match entry.told {
            Told::Record { start, at, length } => {
                let raw = RawRecord {
                    version: cluster.postgres_major,
                    start,
                    end,
                    bytes: batch.record(at, length),
                };
                if let Err(reason) = ingestor.raw(raw) {
                    // What came before it is good, and served: all of it, also when this shard had no work in it.
                    ingestor.publish(boundary_before(start, cluster.wal_segment_bytes));
                    node.metrics.records.inc_by(records);
                    return Err(reason);
                }
                records += 1;
                // Readers wait while versions are added.
                if ingestor.unpublished() >= PUBLISHED_AT_ONCE {
                    ingestor.publish(ingestor.last());
                }
            }
            Told::Extent(rel, blocks) => ingestor.extent(end, rel, blocks),
            Told::Xid(xid) => ingestor.xid(end, xid),
        }
    }
    ingestor.publish(batch.end);
    node.metrics.records.inc_by(records);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_header_belongs_to_no_record() {
        let table = [
            (0x150_0028, 0x150_0028),
            (0x150_2018, 0x150_2000),
            (0x150_2020, 0x150_2020),
            (0x100_0028, 0x100_0000),
            (0x100_0030, 0x100_0030),
        ];
        for (start, expected) in table {
            assert_eq!(boundary_before(Lsn(start), 1 << 24), Lsn(expected), "{start:#x}");
        }
    }
}
