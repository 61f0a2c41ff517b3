//! Records of the toy resource manager, and what pages must be after them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lakebed_pageserver::ingest::Ingestor;
use lakebed_pageserver::timeline::Timeline;
use lakebed_redo::{PageBytes, page};
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::record::{BlockRef, DecodedRecord};

use crate::toy::{REL, RMID};

pub const BLOCKS: u32 = 120;
/// Records between two flushes.
const ROUND: u64 = 700;

/// Numbers that look random.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Pages as they must be: all versions of each block.
#[derive(Clone, Default)]
pub struct Expected(pub BTreeMap<u32, Vec<(Lsn, Box<PageBytes>)>>);

impl Expected {
    fn write(&mut self, lsn: Lsn, block: u32, at: usize, data: &[u8], begins: bool) {
        let versions = self.0.entry(block).or_default();
        let before = versions.last().filter(|_| !begins);
        let mut page = before.map_or(Box::new([0; 8192]), |(_, page)| page.clone());
        page[at..at + data.len()].copy_from_slice(data);
        page::set_lsn(&mut page, lsn);
        versions.push((lsn, page));
    }

    pub fn truncate(&mut self, lsn: Lsn, from: u32) {
        for versions in self.0.range_mut(from..).map(|(_, versions)| versions) {
            versions.push((lsn, Box::new([0; 8192])));
        }
    }

    pub fn page(&self, block: u32, lsn: Lsn) -> Box<PageBytes> {
        let versions = self.0.get(&block).into_iter().flatten();
        let seen = versions.take_while(|(at, _)| *at <= lsn).last();
        seen.map_or(Box::new([0; 8192]), |(_, page)| page.clone())
    }
}

/// Ingests the records after the timeline's last one.
#[allow(dead_code)]
pub fn ingest(timeline: &Arc<Timeline>, records: &[DecodedRecord]) {
    let mut ingestor = Ingestor::new(timeline.clone()).unwrap();
    let last = timeline.last_record();
    for record in records.iter().filter(|record| record.end > last) {
        ingestor.record(record).unwrap();
    }
    ingestor.publish(records.last().map_or(last, |record| record.end));
}

/// Records behind `start`; one block gets a third of them.
#[allow(dead_code)]
pub fn make(numbers: &mut Numbers, start: Lsn, expected: &mut Expected) -> Vec<DecodedRecord> {
    make_some(numbers, start, expected, (ROUND, BLOCKS))
}

/// So many records, of so many blocks.
pub fn make_some(
    numbers: &mut Numbers,
    start: Lsn,
    expected: &mut Expected,
    (count, blocks): (u64, u32),
) -> Vec<DecodedRecord> {
    let mut records = Vec::new();
    for number in 0..count {
        let lsn = Lsn(start.0 + number * 64);
        if numbers.below(90) == 0 {
            // Mostly of the last blocks, now and then of all.
            let from =
                blocks - 1 - numbers.below(u64::from(blocks)) as u32 % [4, blocks][numbers.below(2) as usize];
            expected.truncate(Lsn(lsn.0 + 64), from);
            records.push(truncation(lsn, from));
            continue;
        }
        let block = match numbers.below(3) {
            0 => 7,
            _ => numbers.below(u64::from(blocks)) as u32,
        };
        let at = 100 + numbers.below(7000) as u16;
        let data: Vec<u8> = (0..1 + numbers.below(200))
            .map(|_| numbers.below(256) as u8)
            .collect();
        let begins = numbers.below(40) == 0;
        let end = Lsn(lsn.0 + 64);
        expected.write(end, block, usize::from(at), &data, begins);
        records.push(DecodedRecord {
            version: PgVersion::V15,
            start: lsn,
            end,
            prev: Lsn(0),
            xid: 0,
            rmid: RMID,
            info: 0x20,
            origin: None,
            toplevel_xid: None,
            blocks: vec![BlockRef {
                id: 0,
                rel: REL,
                block,
                will_init: begins,
                image: None,
                data: Some(data.into()),
            }],
            main_data: Bytes::copy_from_slice(&at.to_le_bytes()),
        });
    }
    records
}

/// What [`truncation`] was given.
#[allow(dead_code)]
pub fn truncated_to(record: &DecodedRecord) -> u32 {
    record
        .main_data
        .first_chunk()
        .map_or(0, |blocks| u32::from_le_bytes(*blocks))
}

/// The relation keeps so many blocks.
pub fn truncation(lsn: Lsn, blocks: u32) -> DecodedRecord {
    const TRUNCATE_HEAP: u32 = 1;
    let words = [blocks, REL.spcnode, REL.dbnode, REL.relnode, TRUNCATE_HEAP];
    let words: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    DecodedRecord {
        version: PgVersion::V15,
        start: lsn,
        end: Lsn(lsn.0 + 64),
        prev: Lsn(0),
        xid: 0,
        rmid: lakebed_ingest::rmgr::STORAGE,
        info: 0x20,
        origin: None,
        toplevel_xid: None,
        blocks: Vec::new(),
        main_data: words.into(),
    }
}
