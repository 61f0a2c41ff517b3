//! The feed of one timeline: committed WAL from a safekeeper, ingested in batches.
//!
//! Any safekeeper of the timeline will do; when one fails, the next is asked. Memory is bounded: when it is full, the
//! next batch waits for the flush. A record that cannot be ingested stops the timeline for good.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::v1::{self, feed_entry::Entry as FeedEntryKind, feed_shard_request};
use lakebed_proto::{connect, convert};
use lakebed_types::Lsn;
use lakebed_wal::stream::RawRecord;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::ingest::{IngestStop, Ingestor};
use crate::node::Node;
use crate::timeline::Timeline;

/// Pause before the next safekeeper is tried.
const RETRY: Duration = Duration::from_millis(200);
/// A safekeeper sends at least an empty batch this often; silence beyond it means that the connection is dead.
const SILENCE: Duration = Duration::from_secs(10);
/// Changes are stored at least this often.
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

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

/// Runs until stopped, or until a record cannot be ingested.
pub async fn run(
    node: Arc<Node>,
    timeline: Arc<Timeline>,
    safekeepers: Vec<String>,
    stop: CancellationToken,
) {
    let identity = &timeline.identity;
    let span = tracing::info_span!("feed", tenant = %identity.tenant, timeline = %identity.timeline, shard = %identity.shard);
    let flusher =
        tokio::spawn(flush_regularly(node.clone(), timeline.clone(), stop.clone()).instrument(span.clone()));
    let mut next = 0;
    let ingest = async {
        loop {
            let Some(address) = safekeepers.get(next % safekeepers.len().max(1)) else {
                return;
            };
            match follow(&node, &timeline, address).await {
                End::Retry(error) => {
                    node.metrics.feed_errors.inc();
                    tracing::info!(%address, error = format!("{error:#}"), "feed interrupted; trying the next safekeeper");
                }
                End::Stop(reason) => {
                    tracing::error!(%reason, "ingest stopped: this record cannot be replayed");
                    timeline.stop(reason.to_string());
                    return;
                }
            }
            next += 1;
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
    let mut due = tokio::time::Instant::now() + FLUSH_INTERVAL;
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
        due = tokio::time::Instant::now() + FLUSH_INTERVAL;
        match timeline.flush().await {
            Ok(()) => {
                node.metrics.flushes.inc();
            }
            Err(error) => {
                node.metrics.flush_failures.inc();
                tracing::warn!(%error, "could not store a layer; trying again");
                due = tokio::time::Instant::now() + Duration::from_secs(1);
            }
        }
    }
}

async fn follow(node: &Node, timeline: &Arc<Timeline>, address: &str) -> End {
    match follow_inner(node, timeline, address).await {
        Ok(()) => End::Retry(anyhow::anyhow!("the safekeeper ended the stream")),
        Err(end) => end,
    }
}

async fn follow_inner(node: &Node, timeline: &Arc<Timeline>, address: &str) -> Result<(), End> {
    let channel = connect(address).await.context("connecting")?;
    let mut client = SafekeeperClient::new(channel).max_decoding_message_size(64 << 20);
    let mut ingestor = Ingestor::new(timeline.clone()).map_err(End::Stop)?;
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
    let response = tokio::time::timeout(SILENCE, client.feed_shard(ReceiverStream::new(receiver)));
    let mut batches = response
        .await
        .context("starting the feed")?
        .context("starting the feed")?
        .into_inner();
    tracing::info!(%address, from = %timeline.last_record(), "feed connected");
    loop {
        let batch = tokio::time::timeout(SILENCE, batches.message())
            .await
            .context("no word from the safekeeper")?;
        let Some(batch) = batch.context("reading the feed")? else {
            return Ok(());
        };
        ingest_batch(node, &mut ingestor, batch)?;
        // Four times the flush size is where memory ends.
        while timeline.sizes().0 > 4 * node.config.flush_bytes {
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
    }
}

fn ingest_batch(node: &Node, ingestor: &mut Ingestor, batch: v1::FeedShardBatch) -> Result<(), End> {
    for entry in batch.entries {
        let end = Lsn(entry.end_lsn);
        match entry.entry.context("a feed entry without content")? {
            FeedEntryKind::Record(record) => {
                let raw = RawRecord {
                    start: Lsn(record.start_lsn),
                    end,
                    bytes: record.record,
                };
                let taken = raw
                    .decode()
                    .map_err(IngestStop::from)
                    .and_then(|record| ingestor.record(&record));
                if let Err(reason) = taken {
                    // What came before it is good, and served.
                    ingestor.publish(ingestor.last());
                    return Err(End::Stop(reason));
                }
                node.metrics.records.inc();
            }
            FeedEntryKind::Extent(extent) => {
                let rel = convert::relation(extent.relation.as_ref()).context("an extent's relation")?;
                ingestor.extent(end, rel, extent.blocks);
            }
            FeedEntryKind::XidSeen(xid) => ingestor.xid(end, xid),
        }
    }
    ingestor.publish(Lsn(batch.end_lsn));
    Ok(())
}
