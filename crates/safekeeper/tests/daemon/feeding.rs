//! What shards are fed: each what it needs, all together everything.

use std::collections::HashMap;

use lakebed_ingest::{Route, interpret, reaches_every_shard, route};
use lakebed_proto::convert::relation;
use lakebed_proto::v1::{self, FeedEntry, feed_entry::Entry, feed_shard_request::Message};
use lakebed_types::{Lsn, PgVersion, RelTag, ShardCount};
use lakebed_wal::stream::RawRecord;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::driver::Driver;
use crate::node::{Nodes, eventually, soon, timeline_ref};
use crate::sample::sample;

const SHARDS: u8 = 2;

pub struct Feed {
    requests: mpsc::Sender<v1::FeedShardRequest>,
    batches: Streaming<v1::FeedShardBatch>,
    at: Lsn,
}

impl Feed {
    pub async fn start(nodes: &Nodes, shard: u8, generation: u64, from: Lsn) -> Feed {
        Feed::start_at(nodes, 1, shard, generation, from).await
    }

    /// A feed from this safekeeper.
    pub async fn start_at(nodes: &Nodes, node: u64, shard: u8, generation: u64, from: Lsn) -> Feed {
        let (requests, outbound) = mpsc::channel(16);
        let mut client = nodes.client(node).await;
        let opened = soon("a feed to open", client.feed_shard(ReceiverStream::new(outbound))).await;
        let feed = Feed {
            requests,
            batches: opened.unwrap().into_inner(),
            at: from,
        };
        let start = v1::FeedStart {
            timeline: Some(timeline_ref()),
            shard_index: shard.into(),
            shard_count: SHARDS.into(),
            shard_generation: generation,
            from_lsn: from.0,
        };
        feed.tell(Message::Start(start)).await;
        feed
    }

    /// Tells how far the shard is, everything in object storage.
    pub async fn report(&self, shard: u8, remote: Lsn) {
        self.tell(Message::Progress(v1::ShardProgress {
            shard_index: shard.into(),
            last_record_lsn: remote.0,
            disk_consistent_lsn: remote.0,
            remote_consistent_lsn: remote.0,
        }))
        .await;
    }

    async fn tell(&self, message: Message) {
        let request = v1::FeedShardRequest {
            message: Some(message),
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next batch, of whatever entries; they lie in order behind the batch before.
    async fn batch(&mut self) -> Result<v1::FeedShardBatch, Status> {
        let batch = soon("a batch", self.batches.message()).await?;
        let batch = batch.expect("a batch or a status");
        let mut last = self.at.0;
        for entry in &batch.entries {
            assert!(entry.end_lsn > self.at.0 && entry.end_lsn >= last, "out of order");
            last = entry.end_lsn;
        }
        assert!(batch.end_lsn >= last && batch.commit_lsn >= batch.end_lsn);
        self.at = Lsn(batch.end_lsn);
        Ok(batch)
    }

    /// Everything up to here.
    pub async fn until(&mut self, end: Lsn) -> Vec<FeedEntry> {
        let mut entries = Vec::new();
        while self.at < end {
            entries.extend(self.batch().await.unwrap().entries);
        }
        assert_eq!(self.at, end);
        entries
    }
}

pub fn records(entries: &[FeedEntry]) -> Vec<RawRecord> {
    let record = |entry: &FeedEntry| match entry.entry.as_ref().unwrap() {
        Entry::Record(record) => Some(RawRecord {
            version: PgVersion::V15,
            start: Lsn(record.start_lsn),
            end: Lsn(entry.end_lsn),
            bytes: record.record.clone(),
        }),
        _ => None,
    };
    entries.iter().filter_map(record).collect()
}

pub struct Routed {
    raw: RawRecord,
    route: Route,
    smaller: bool,
}

/// The sample's records up to `end`, routed by hand.
pub fn routed(end: Lsn) -> Vec<Routed> {
    let count = ShardCount::new(SHARDS).unwrap();
    let taken = sample().records.iter().take_while(|record| record.end <= end);
    let route = |raw: &RawRecord| {
        let record = raw.decode().unwrap();
        let effects = interpret(&record).unwrap();
        Routed {
            raw: raw.clone(),
            route: route(&record, &effects, count),
            smaller: effects.catalogue.iter().any(reaches_every_shard),
        }
    };
    taken.map(route).collect()
}

pub fn expected(routed: &[Routed], shard: u8, from: Lsn) -> Vec<RawRecord> {
    let wanted = |r: &&Routed| r.raw.end > from && r.route.shards.contains(shard);
    routed.iter().filter(wanted).map(|r| r.raw.clone()).collect()
}

/// Shard 0 knows size and transaction id of every record that it does not get, and is told nothing twice.
fn check_hints(entries: &[FeedEntry], routed: &[Routed]) -> usize {
    let mut entries = entries.iter().peekable();
    let mut sizes: HashMap<RelTag, u32> = HashMap::new();
    let (mut xid, mut hints) = (0, 0);
    for record in routed {
        if record.smaller {
            sizes.clear();
        }
        while let Some(entry) = entries.next_if(|entry| entry.end_lsn <= record.raw.end.0) {
            match entry.entry.as_ref().unwrap() {
                Entry::Record(_) => xid = xid.max(record.raw.decode().unwrap().xid),
                Entry::XidSeen(seen) => {
                    assert!(*seen > xid, "told twice: xid {seen} at {}", record.raw.end);
                    xid = *seen;
                }
                Entry::Extent(extent) => {
                    let rel = relation(extent.relation.as_ref()).unwrap();
                    let before = sizes.insert(rel, extent.blocks).unwrap_or(0);
                    assert!(
                        extent.blocks > before,
                        "told twice: {rel:?} at {}",
                        record.raw.end
                    );
                    hints += 1;
                }
            }
        }
        for (rel, blocks) in &record.route.extents {
            assert!(sizes.get(rel) >= Some(blocks), "{rel:?} at {}", record.raw.end);
        }
        assert!(
            record.route.xid.is_none_or(|id| id <= xid),
            "xid at {}",
            record.raw.end
        );
    }
    assert!(entries.next().is_none());
    hints
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_together_get_every_record() {
    let nodes = Nodes::start(1).await;
    let (start, end) = (sample().start, sample().end());
    let middle = sample().at_percent(50);
    let driver = Driver::start(&nodes.addresses, 1, 0);
    let mut feeds = [
        Feed::start(&nodes, 0, 1, start).await,
        Feed::start(&nodes, 1, 1, start).await,
    ];
    // One half while the feeds wait for it, the other while they are behind.
    driver.commit(middle).await;
    driver.write(end);
    let first = feeds[0].until(end).await;
    let second = feeds[1].until(end).await;

    let routed = routed(end);
    let (to_first, to_second) = (expected(&routed, 0, start), expected(&routed, 1, start));
    assert!(records(&first) == to_first, "shard 0 got other records");
    assert!(records(&second) == to_second, "shard 1 got other records");
    assert_eq!(records(&second).len(), second.len(), "shard 1 was given hints");
    let all = routed.iter().filter(|r| !r.route.shards.is_empty()).count();
    let both = to_first
        .iter()
        .filter(|r| to_second.binary_search_by_key(&r.end, |o| o.end).is_ok());
    assert_eq!(to_first.len() + to_second.len() - both.count(), all);
    assert!(
        to_first.len() < all && to_second.len() < all,
        "nothing was filtered"
    );
    let hints = check_hints(&first, &routed);
    assert!(hints > 10, "{hints} hints of sizes");

    // A feed that begins in the middle gets what is left.
    let resumed = Feed::start(&nodes, 1, 1, middle).await.until(end).await;
    assert!(records(&resumed) == expected(&routed, 1, middle));

    // Feeds without work say that they are alive.
    let idle = feeds[0].batch().await.unwrap();
    assert_eq!((idle.entries.len(), idle.end_lsn), (0, end.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_has_one_owner_and_tells_its_progress() {
    let nodes = Nodes::start(1).await;
    let (start, end) = (sample().start, sample().at_percent(1));
    let driver = Driver::start(&nodes.addresses, 1, 0);
    driver.commit(end).await;
    let mut old = Feed::start(&nodes, 1, 4, start).await;
    old.until(end).await;
    let progress = v1::ShardProgress {
        shard_index: 1,
        last_record_lsn: end.0,
        disk_consistent_lsn: start.0,
        remote_consistent_lsn: start.0,
    };
    old.tell(Message::Progress(progress)).await;
    eventually("the progress to show", async || {
        nodes.status(1).await.shards == [progress]
    })
    .await;

    let mut new = Feed::start(&nodes, 1, 5, end).await;
    let overtaken = loop {
        if let Err(status) = old.batch().await {
            break status;
        }
    };
    assert_eq!(overtaken.code(), Code::Aborted, "{overtaken}");
    let mut late = Feed::start(&nodes, 1, 4, end).await;
    assert_eq!(late.batch().await.unwrap_err().code(), Code::Aborted);
    let next = sample().at_percent(2);
    driver.commit(next).await;
    new.until(next).await;
}
