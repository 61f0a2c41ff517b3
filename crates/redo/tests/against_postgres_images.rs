//! Redo against Postgres itself: with `wal_consistency_checking` every record carries images of its pages as the
//! server had them after the change. Each page is replayed from the cluster's first state and compared after every
//! record. Full page writes are off, so that no image takes redo's place.

mod corpus_writer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use corpus_writer::CorpusWriter;
use lakebed_pgtest::{Cluster, Stop, run};
use lakebed_redo::{PageBytes, PageRecord, StoredPlace, mask, redo_block, restore_image};
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::control::ControlFile;
use lakebed_wal::page::WalFormat;
use lakebed_wal::record::{BlockRef, DecodedRecord};
use lakebed_wal::stream::{RawRecord, WalDecoder};

const WORKLOAD: &str = include_str!("workload.sql");

struct Pages {
    base: PathBuf,
    pages: HashMap<(RelTag, u32), Box<PageBytes>>,
}

impl Pages {
    /// The current version, first read from the cluster's first state.
    fn get(&mut self, rel: RelTag, block: u32) -> &mut PageBytes {
        self.pages.entry((rel, block)).or_insert_with(|| {
            let mut page = Box::new([0; 8192]);
            let place = if rel.spcnode == 1664 {
                "global".to_owned()
            } else {
                format!("base/{}", rel.dbnode)
            };
            let suffix = ["", "_fsm", "_vm", "_init"][rel.fork as usize];
            if let Ok(file) = fs::File::open(self.base.join(place).join(format!("{}{suffix}", rel.relnode))) {
                let _ = file.read_exact_at(&mut page[..], u64::from(block) * 8192);
            }
            page
        })
    }
}

/// All WAL from the first checkpoint to the last record.
fn records(data: &Path, first: &ControlFile) -> Vec<RawRecord> {
    let start = first.checkpoint_lsn();
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: first.system_identifier(),
        segment_bytes: first.segment_bytes(),
    };
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    let size = u64::from(first.segment_bytes());
    let mut records = Vec::new();
    for segment in start.0 / size.. {
        let Ok(bytes) = fs::read(data.join(format!("pg_wal/00000001{:016X}", segment_name(segment)))) else {
            break;
        };
        let skip = if segment == start.0 / size {
            (start.0 % size) as usize
        } else {
            0
        };
        decoder.feed(&bytes[skip..]);
        while let Ok(Some(record)) = decoder.next_raw() {
            records.push(record);
        }
    }
    records
}

/// GiST's NSN and its flag to follow the right link, which Postgres's mask hides. They must be equal except where the
/// primary writes them after the record: on the left half of a split that the record finishes.
fn compare_split_marks(record: &DecodedRecord, block: &BlockRef, ours: &PageBytes, expected: &PageBytes) {
    let left_half = matches!((record.info & 0xF0, block.id), (0x00, 1) | (0x30, 0));
    if record.rmid == 14 && !left_half {
        assert_eq!(ours[8176..8184], expected[8176..8184], "NSN at {}", record.start);
        assert_eq!(
            ours[8188] & 8,
            expected[8188] & 8,
            "follow right at {}",
            record.start
        );
    }
}

/// GiST's flag "tuples were deleted" (2 to the 2nd): a server that removes dead tuples on insert does not set it, its
/// recovery does, so that Postgres's own consistency check fails here. Nothing reads the flag. Redo follows recovery.
fn hide_gist_prune_mark(pruned: bool, ours: &PageBytes, expected: &mut PageBytes) {
    if pruned {
        expected[8188] |= ours[8188] & 4;
    }
}

fn segment_name(segment: u64) -> u64 {
    ((segment / 256) << 32) | (segment % 256)
}

/// What the stored forms take, by resource manager: versions of pages, bytes, bytes of the records that they are of
/// (once per page) without images for checking.
#[derive(Default)]
struct StoredBytes(BTreeMap<u8, (usize, usize, usize)>);

impl StoredBytes {
    fn add(&mut self, record: &DecodedRecord, stored: usize) {
        let images = record.blocks.iter().filter_map(|block| block.image.as_ref());
        let applied = images.filter(|image| image.apply).map(|image| image.bytes.len());
        let data = record.blocks.iter().filter_map(|block| block.data.as_ref());
        let whole =
            record.main_data.len() + applied.sum::<usize>() + data.map(|data| data.len()).sum::<usize>();
        let entry = self.0.entry(record.rmid).or_default();
        *entry = (entry.0 + 1, entry.1 + stored, entry.2 + whole);
    }
}

/// Resource manager and operation. For insertions into GIN indexes with the kind of page: 1 for posting trees, 2 for
/// leaves.
fn kind(record: &DecodedRecord) -> (u8, u8) {
    let operation = record.info & 0xF0;
    match (record.rmid, operation) {
        (13, 0x20) => (13, operation | record.main_data[0] & 3),
        (rmid, _) => (rmid, operation),
    }
}

#[test]
fn every_page_equals_the_image_in_its_record() {
    let mut cluster = Cluster::init();
    let base = cluster.copy();
    let first = ControlFile::decode(&fs::read(base.data_dir().join("global/pg_control")).unwrap()).unwrap();
    cluster.start(&[
        "wal_consistency_checking=all",
        "full_page_writes=off",
        "wal_keep_size=8GB",
        "wal_recycle=off",
        "max_prepared_transactions=10",
        "autovacuum_naptime=1",
        "track_commit_timestamp=on",
        "wal_compression=lz4",
    ]);
    cluster.sql(WORKLOAD);
    run(cluster.client("pgbench").args(["-i", "-q", "-s", "2"]));
    run(cluster
        .client("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-t", "500"]));
    let script = cluster.home().join("concurrent.sql");
    fs::write(&script, include_str!("concurrent.sql")).unwrap();
    run(cluster
        .client("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-t", "150", "-f"])
        .arg(script));
    cluster.sql("UPDATE pgbench_accounts SET abalance = 1; VACUUM FULL pgbench_accounts; VACUUM (FREEZE) pgbench_tellers");
    cluster.stop(Stop::Clean);

    let mut pages = Pages {
        base: base.data_dir(),
        pages: HashMap::new(),
    };
    let mut checked: BTreeMap<(u8, u8), u32> = BTreeMap::new();
    let mut seen: BTreeMap<(u8, u8), u32> = BTreeMap::new();
    let mut pruned = HashSet::new();
    let mut corpus = CorpusWriter::default();
    let (mut stored, mut stored_total) = (Vec::new(), StoredBytes::default());
    for raw in records(&cluster.data_dir(), &first) {
        let record = raw.decode().unwrap();
        corpus.record(&raw, record.rmid, record.info);
        if (record.rmid, record.info & 0xF0) == (14, 0x10) {
            pruned.insert((record.blocks[0].rel, record.blocks[0].block));
        }
        *seen.entry(kind(&record)).or_default() += 1;
        let pageless = (18..=19).contains(&record.rmid) || record.rmid == 21;
        assert!(!pageless || record.blocks.is_empty(), "{record:?} names a page");
        for block in &record.blocks {
            if block.rel.fork == ForkNumber::Fsm {
                continue;
            }
            let page = pages.get(block.rel, block.block);
            let mut stored_result = *page;
            let whole = PageRecord::new(&record, block);
            corpus.page(&whole, page);
            redo_block(&record, block, page).unwrap();
            stored.clear();
            whole.encode(&mut stored);
            stored_total.add(&record, stored.len());
            let place = StoredPlace {
                version: record.version,
                end: record.end,
                rel: block.rel,
                block: block.block,
            };
            let from_stored = PageRecord::decode(&stored, place).unwrap();
            assert_eq!(from_stored.starts_page(), whole.starts_page());
            from_stored.redo(&mut stored_result).unwrap();
            assert!(
                stored_result == *page,
                "the stored form of {record:?} replays differently"
            );
            let Some(image) = block.image.as_ref().filter(|image| !image.apply) else {
                continue;
            };
            let mut expected = [0; 8192];
            restore_image(image, &mut expected).unwrap();
            let mut ours = *page;
            if block.rel.fork == ForkNumber::Vm {
                // Bits that heap records clear without naming the map are not this crate's business.
                continue;
            }
            if record.rmid == 14 {
                let pruned = pruned.contains(&(block.rel, block.block));
                hide_gist_prune_mark(pruned, &ours, &mut expected);
            }
            compare_split_marks(&record, block, &ours, &expected);
            mask::for_record(record.rmid, &mut ours, block.block);
            mask::for_record(record.rmid, &mut expected, block.block);
            if let Some(at) = (0..8192).find(|&at| ours[at] != expected[at]) {
                panic!(
                    "{} rmgr {} info {:#x} {} block {} differs at byte {at}: {:02x?}, Postgres has {:02x?}",
                    record.start,
                    record.rmid,
                    record.info,
                    block.rel,
                    block.block,
                    &ours[at..(at + 16).min(8192)],
                    &expected[at..(at + 16).min(8192)]
                );
            }
            *checked.entry(kind(&record)).or_default() += 1;
        }
    }
    for ((rmid, op), count) in &seen {
        let images = checked.get(&(*rmid, *op)).copied().unwrap_or(0);
        println!("resource manager {rmid}, operation {op:#04x}: {count} records, {images} images checked");
    }
    for (rmid, (versions, bytes, whole)) in &stored_total.0 {
        println!(
            "resource manager {rmid}: {versions} page versions stored in {bytes} bytes, whole records' data {whole}"
        );
    }
    // Every role that a page has in these records. Unit tests see to the two that SQL does not reach: the second bitmap
    // page of a large hash index, and the page after a freed one (only the last of a bucket is ever freed).
    let roles = [
        (12, 0x10, 2),
        (12, 0x20, 2),
        (12, 0x30, 3),
        (12, 0x40, 3),
        (12, 0x60, 2),
        (12, 0x70, 3),
        (12, 0x80, 4),
        (12, 0x90, 2),
        (12, 0xC0, 2),
        (14, 0x00, 2),
        (14, 0x10, 1),
        (14, 0x30, 4),
        (14, 0x60, 2),
        (16, 0x10, 2),
        (16, 0x20, 3),
        (16, 0x30, 3),
        (16, 0x40, 2),
        (16, 0x50, 4),
        (17, 0x10, 2),
        (17, 0x20, 3),
        (17, 0x40, 2),
        (17, 0x50, 2),
        (20, 0x00, 2),
    ];
    for (rmid, op, ids) in roles {
        for id in 0..ids {
            assert!(corpus.has_role((rmid, op, id)), "no page {id} of {rmid} {op:#x}");
        }
    }
    for key in [(12, 0x30, 4), (12, 0x80, 5), (12, 0x80, 6)] {
        assert!(corpus.has_role(key), "no {key:x?}");
    }
    if std::env::var_os("LAKEBED_WRITE_CORPUS").is_some() {
        let size = u64::from(first.segment_bytes());
        let segment = first.checkpoint_lsn().0 / size + 1;
        let name = format!("pg_wal/00000001{:016X}", segment_name(segment));
        let wal = fs::read(cluster.data_dir().join(name)).unwrap();
        corpus.write(&first, Lsn(segment * size), &wal);
    }
    // GIN's splits (0x30) and entry page vacuums (0x40) carry images of their pages, which take redo's place.
    for operation in [0x30, 0x40] {
        assert!(
            seen.contains_key(&(13, operation)),
            "no GIN record {operation:#x}"
        );
    }
    let gin = [0x10, 0x20, 0x21, 0x22, 0x23, 0x30, 0x50, 0x60, 0x70, 0x80, 0x90].map(|op| (13, op));
    let heap = (0x00..=0x70)
        .step_by(0x10)
        .filter(|op| ![0x30].contains(op))
        .map(|op| (10, op));
    let heap2 = [0x10, 0x20, 0x30, 0x40, 0x50].map(|op| (9, op));
    let btree = [0x00, 0x10, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xA0, 0xB0, 0xC0].map(|op| (11, op));
    // All but SPLIT_PAGE, which is always an image to apply.
    let hash = (0x00..=0xC0)
        .step_by(0x10)
        .filter(|op| *op != 0x50)
        .map(|op| (12, op));
    let brin = [0x00, 0x10, 0x90, 0x20, 0xA0, 0x30, 0x40, 0x50].map(|op| (17, op));
    let generic = [(20, 0)];
    // Hash SPLIT_PAGE; CommitTs, ReplicationOrigin and LogicalMessage name no page.
    for kind in [(12, 0x50), (18, 0), (19, 0), (19, 0x10), (21, 0)] {
        assert!(seen.contains_key(&kind), "the workload produced no {kind:x?}");
    }
    let gist = [0x00, 0x10, 0x30, 0x60].map(|op| (14, op));
    let spgist = (0x10..=0x80).step_by(0x10).map(|op| (16, op));
    assert!(seen.contains_key(&(14, 0x20)), "no GiST page was used again");
    for kind in heap
        .chain(heap2)
        .chain(btree)
        .chain([(15, 0)])
        .chain(hash)
        .chain(gin)
        .chain(gist)
        .chain(spgist)
        .chain(brin)
        .chain(generic)
    {
        let count = checked.get(&kind).copied().unwrap_or(0);
        assert!(
            count > 0,
            "the workload produced no record of resource manager {}, operation {:#x}",
            kind.0,
            kind.1
        );
    }
}
