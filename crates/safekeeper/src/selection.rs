//! What one shard gets of the records: those that it needs, and for shard 0 hints of the others.
//!
//! `lakebed-ingest` says where a record goes and what shard 0 must know of those that it does not get. A hint that
//! says nothing new is left out; what was told is forgotten when a record may have made a relation smaller.

use std::collections::HashMap;

use lakebed_proto::convert::relation_to_wire;
use lakebed_proto::v1::{FeedEntry, FeedRecord, feed_entry::Entry};
use lakebed_types::{Lsn, RelTag, ShardIdentity};

use crate::decoded::RoutedRecord;

/// Relation forks whose told size is remembered; when there are more, hints repeat themselves.
const MAX_SIZES_TOLD: usize = 1 << 16;

/// The state of one feed.
#[derive(Debug)]
pub struct Selection {
    shard: ShardIdentity,
    /// Sizes in blocks that hints have told.
    sizes: HashMap<RelTag, u32>,
    /// The newest transaction id that the shard knows of.
    xid: Option<u32>,
}

impl Selection {
    /// For a shard that was told nothing yet.
    pub fn new(shard: ShardIdentity) -> Selection {
        Selection {
            shard,
            sizes: HashMap::new(),
            xid: None,
        }
    }

    /// What the shard gets of these records, which follow the ones before.
    pub fn take(&mut self, records: &[RoutedRecord]) -> Vec<FeedEntry> {
        let mut entries = Vec::new();
        for record in records {
            self.take_one(record, &mut entries);
        }
        entries
    }

    fn take_one(&mut self, record: &RoutedRecord, entries: &mut Vec<FeedEntry>) {
        if record.forgets_sizes {
            self.sizes.clear();
        }
        let end = record.raw.end;
        if record.route.shards.contains(self.shard.index()) {
            if record.xid != 0 {
                self.is_news(record.xid);
            }
            let taken = FeedRecord {
                start_lsn: record.raw.start.0,
                record: record.raw.bytes.clone(),
            };
            entries.push(entry(end, Entry::Record(taken)));
            return;
        }
        if !self.shard.keeps_catalogue() {
            return;
        }
        if let Some(xid) = record.route.xid
            && self.is_news(xid)
        {
            entries.push(entry(end, Entry::XidSeen(xid)));
        }
        for &(rel, blocks) in &record.route.extents {
            if self.sizes.get(&rel).is_some_and(|told| *told >= blocks) {
                continue;
            }
            if self.sizes.len() >= MAX_SIZES_TOLD {
                self.sizes.clear();
            }
            self.sizes.insert(rel, blocks);
            let extent = lakebed_proto::v1::RelationExtent {
                relation: Some(relation_to_wire(rel)),
                blocks,
            };
            entries.push(entry(end, Entry::Extent(extent)));
        }
    }

    /// Whether the id comes after all before, on the circle that ids go round.
    fn is_news(&mut self, xid: u32) -> bool {
        let news = self.xid.is_none_or(|told| xid.wrapping_sub(told) as i32 > 0);
        if news {
            self.xid = Some(xid);
        }
        news
    }
}

fn entry(end: Lsn, entry: Entry) -> FeedEntry {
    FeedEntry {
        end_lsn: end.0,
        entry: Some(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lakebed_ingest::{Route, ShardSet};
    use lakebed_types::PgVersion;
    use lakebed_types::{ForkNumber, ShardCount};
    use lakebed_wal::stream::RawRecord;

    const REL: RelTag = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Main,
    };

    fn shard(index: u8) -> ShardIdentity {
        ShardIdentity::new(index, ShardCount::new(4).unwrap()).unwrap()
    }

    /// A record for one shard of four that touches the last block of `blocks`.
    fn record(end: u64, to: u8, xid: u32, blocks: u32) -> RoutedRecord {
        let mut shards = ShardSet::default();
        shards.insert(to);
        let hints = to != 0;
        RoutedRecord {
            raw: RawRecord {
                version: PgVersion::V15,
                start: Lsn(end - 8),
                end: Lsn(end),
                bytes: Bytes::from_static(b"record"),
            },
            route: Route {
                shards,
                extents: if hints { vec![(REL, blocks)] } else { Vec::new() },
                xid: hints.then_some(xid),
            },
            xid,
            forgets_sizes: false,
        }
    }

    fn told(entries: &[FeedEntry]) -> Vec<String> {
        let text = |entry: &FeedEntry| match entry.entry.as_ref().unwrap() {
            Entry::Record(_) => format!("{} record", entry.end_lsn),
            Entry::Extent(extent) => format!("{} extent {}", entry.end_lsn, extent.blocks),
            Entry::XidSeen(xid) => format!("{} xid {xid}", entry.end_lsn),
        };
        entries.iter().map(text).collect()
    }

    #[test]
    fn shard_0_is_told_once_what_it_does_not_see() {
        let mut records = vec![
            record(16, 1, 7, 3),
            record(24, 2, 7, 2),
            record(32, 3, 6, 4),
            record(40, 0, 9, 9),
            record(48, 1, 8, 4),
            record(56, 1, 10, 4),
        ];
        let mut first = Selection::new(shard(0));
        let expected = ["16 xid 7", "16 extent 3", "32 extent 4", "40 record", "56 xid 10"];
        assert_eq!(told(&first.take(&records)), expected);
        assert_eq!(told(&Selection::new(shard(3)).take(&records)), ["32 record"]);

        // A truncation comes to all; the size has to be told anew.
        let mut truncation = record(64, 0, 10, 0);
        truncation.forgets_sizes = true;
        records = vec![truncation, record(72, 1, 10, 2)];
        assert_eq!(told(&first.take(&records)), ["64 record", "72 extent 2"]);
    }

    #[test]
    fn ids_that_went_round_are_news() {
        let mut first = Selection::new(shard(0));
        let records = [record(16, 1, u32::MAX, 1), record(24, 1, 3, 1)];
        let expected = ["16 xid 4294967295", "16 extent 1", "24 xid 3"];
        assert_eq!(told(&first.take(&records)), expected);
    }
}
