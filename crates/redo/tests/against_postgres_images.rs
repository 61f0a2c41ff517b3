//! Redo against Postgres itself: with `wal_consistency_checking` every record carries images of its pages as the
//! server had them after the change. Each page is replayed from the cluster's first state and compared after every
//! record. Full page writes are off, so that no image takes redo's place.

mod corpus_writer;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use corpus_writer::CorpusWriter;
use lakebed_ingest::{CatalogueChange, interpret};
use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, run, workloads};
use lakebed_redo::{
    Managers, PageBytes, PageRecord, StoredPlace, mask, page, redo_block, redo_vm_clear, redo_vm_truncate,
    restore_image,
};
use lakebed_types::{ForkNumber, Lsn, RelTag};
use lakebed_wal::control::ControlFile;
use lakebed_wal::page::WalFormat;
use lakebed_wal::record::{BlockRef, DecodedRecord};
use lakebed_wal::stream::{RawRecord, WalDecoder};

/// All pages of a cluster, as redo makes them.
struct Pages {
    base: PathBuf,
    pages: HashMap<(RelTag, u32), Box<PageBytes>>,
    /// From which block on nothing of the first state counts any more.
    cut: HashMap<RelTag, u32>,
}

impl Pages {
    /// The current version, first read from the cluster's first state.
    fn get(&mut self, rel: RelTag, block: u32) -> &mut PageBytes {
        self.pages.entry((rel, block)).or_insert_with(|| {
            let mut page = Box::new([0; 8192]);
            if self.cut.get(&rel).is_none_or(|cut| block < *cut)
                && let Ok(file) = fs::File::open(path(&self.base, rel))
            {
                let _ = file.read_exact_at(&mut page[..], u64::from(block) * 8192);
            }
            page
        })
    }

    /// What the record does to pages that it does not name.
    fn replay_unnamed(&mut self, record: &DecodedRecord) {
        let effects = interpret(record).unwrap();
        for clear in &effects.vm_clears {
            redo_vm_clear(self.get(clear.rel, clear.block), clear.heap_block, clear.flags);
        }
        for tail in &effects.vm_truncates {
            let page = self.get(tail.rel, tail.block);
            // A map that ends before this page stays as it is.
            if !page::is_new(page) {
                redo_vm_truncate(page, tail.first_heap_block);
            }
        }
        for change in &effects.catalogue {
            match *change {
                CatalogueChange::RelationTruncated { rel, blocks } => self.cut(rel, blocks),
                CatalogueChange::RelationDropped { rel } => {
                    for fork in ForkNumber::ALL {
                        self.cut(rel.with_fork(fork), 0);
                    }
                }
                _ => {}
            }
        }
    }

    fn cut(&mut self, rel: RelTag, blocks: u32) {
        self.pages.retain(|&(of, block), _| of != rel || block < blocks);
        let cut = self.cut.entry(rel).or_insert(blocks);
        *cut = blocks.min(*cut);
    }
}

/// A relation fork's first file.
fn path(data: &Path, rel: RelTag) -> PathBuf {
    let place = if rel.spcnode == 1664 {
        "global".to_owned()
    } else {
        format!("base/{}", rel.dbnode)
    };
    let suffix = ["", "_fsm", "_vm", "_init"][rel.fork as usize];
    data.join(place).join(format!("{}{suffix}", rel.relnode))
}

/// All WAL from the first checkpoint to the last record, segment by segment.
fn for_each_record(data: &Path, first: &ControlFile, mut replay: impl FnMut(RawRecord)) {
    let start = first.checkpoint_lsn();
    let format = WalFormat {
        version: first.version(),
        timeline: 1,
        system_identifier: first.system_identifier(),
        segment_bytes: first.segment_bytes(),
    };
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    let size = u64::from(first.segment_bytes());
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
            replay(record);
        }
    }
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

/// Whether every bit of the map that the primary has set is set in ours. Where heap records do not name the map, the
/// primary clears a bit some time before it writes the record, and another record's image may lie between.
fn is_within(expected: &PageBytes, ours: &PageBytes) -> bool {
    expected[..24] == ours[..24]
        && expected[24..]
            .iter()
            .zip(&ours[24..])
            .all(|(bits, own)| bits & !own == 0)
}

/// In the end the primary has written all that it cleared: the maps are equal, but for LSN and checksum.
fn compare_maps(pages: &Pages, data: &Path) -> usize {
    let maps = pages
        .pages
        .iter()
        .filter(|((rel, _), page)| rel.fork == ForkNumber::Vm && !page::is_new(page));
    let mut compared = 0;
    for (&(rel, block), page) in maps {
        let mut expected = [0; 8192];
        let file = fs::File::open(path(data, rel)).unwrap_or_else(|error| panic!("{rel}: {error}"));
        file.read_exact_at(&mut expected, u64::from(block) * 8192)
            .unwrap_or_else(|error| panic!("{rel} block {block}: {error}"));
        let mut ours = **page;
        mask::visibility_map(&mut ours);
        mask::visibility_map(&mut expected);
        assert!(ours == expected, "{rel} block {block} differs from its file");
        compared += 1;
    }
    compared
}

#[test]
fn every_page_equals_the_image_in_its_record() {
    Installation::each(compare_with_images);
}

/// Releases of one major version differ in what heap records name, and in nothing else: the earlier ones get the workload
/// without indexes other than B-trees.
fn is_latest_of_its_major(installation: &Installation) -> bool {
    Installation::all()
        .iter()
        .all(|other| other.major != installation.major || other.minor <= installation.minor)
}

/// What was met, and compared.
#[derive(Default)]
struct Met {
    /// Records of each kind.
    seen: BTreeMap<(u8, u8), u32>,
    /// Images of pages that were compared.
    checked: BTreeMap<(u8, u8), u32>,
    /// Resource manager, operation and role of pages of visibility maps that were compared.
    maps: BTreeSet<(u8, u8, u8)>,
    /// A few of each resource manager, operation and role of a page.
    corpus: CorpusWriter,
}

fn compare_with_images(installation: &Installation) {
    let mut cluster = Cluster::init_with(installation, &InitOptions::default());
    let base = cluster.copy();
    let first = ControlFile::decode(&fs::read(base.data_dir().join("global/pg_control")).unwrap()).unwrap();
    cluster.start(&[
        "fsync=off",
        "wal_consistency_checking=all",
        "full_page_writes=off",
        "wal_keep_size=8GB",
        "wal_recycle=off",
        "max_prepared_transactions=10",
        "autovacuum_naptime=1",
        "track_commit_timestamp=on",
    ]);
    // LZ4 where it is compiled in.
    cluster.sql(
        r"SELECT CASE WHEN 'lz4' = ANY (enumvals) THEN 'lz4' ELSE 'pglz' END AS method
          FROM pg_settings WHERE name = 'wal_compression' \gset
          ALTER SYSTEM SET wal_compression = :'method';
          SELECT pg_reload_conf()",
    );
    run(cluster.client("pgbench").args(["-i", "-q", "-s", "2"]));
    run(cluster
        .client("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-t", "500"]));
    let everything = is_latest_of_its_major(installation);
    if everything {
        cluster.sql(workloads::EVERYTHING);
        cluster.sql(workloads::GIST_DEAD);
        let script = cluster.home().join("concurrent.sql");
        fs::write(&script, workloads::CONCURRENT).unwrap();
        run(cluster
            .client("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-t", "150", "-f"])
            .arg(script));
    } else {
        cluster.sql(workloads::DDL);
    }
    cluster.sql("UPDATE pgbench_accounts SET abalance = 1; VACUUM FULL pgbench_accounts; VACUUM (FREEZE) pgbench_tellers");
    cluster.stop(Stop::Clean);

    let mut pages = Pages {
        base: base.data_dir(),
        pages: HashMap::new(),
        cut: HashMap::new(),
    };
    let mut met = Met::default();
    let mut pruned = HashSet::new();
    let (mut stored, mut stored_total) = (Vec::new(), StoredBytes::default());
    for_each_record(&cluster.data_dir(), &first, |raw| {
        let record = raw.decode().unwrap();
        met.corpus.record(&raw, record.rmid, record.info);
        if (record.rmid, record.info & 0xF0) == (14, 0x10) {
            pruned.insert((record.blocks[0].rel, record.blocks[0].block));
        }
        *met.seen.entry(kind(&record)).or_default() += 1;
        let pageless = (18..=19).contains(&record.rmid) || record.rmid == 21;
        assert!(!pageless || record.blocks.is_empty(), "{record:?} names a page");
        pages.replay_unnamed(&record);
        for block in &record.blocks {
            if block.rel.fork == ForkNumber::Fsm {
                continue;
            }
            let page = pages.get(block.rel, block.block);
            let mut stored_result = *page;
            let whole = PageRecord::new(&record, block);
            met.corpus.page(&whole, page);
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
            from_stored.redo(&mut stored_result, Managers::none()).unwrap();
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
            if block.rel.fork == ForkNumber::Vm && matches!(record.rmid, 9 | 10) {
                mask::visibility_map(&mut ours);
                mask::visibility_map(&mut expected);
                let equal = if installation.names_map_pages() {
                    ours == expected
                } else {
                    is_within(&expected, &ours)
                };
                assert!(equal, "{} differs from the map at {}", block.rel, record.start);
                met.maps.insert((record.rmid, record.info & 0x70, block.id));
                *met.checked.entry(kind(&record)).or_default() += 1;
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
            *met.checked.entry(kind(&record)).or_default() += 1;
        }
    });
    let maps = compare_maps(&pages, &cluster.data_dir());
    assert!(maps > 0);
    for ((rmid, op), count) in &met.seen {
        let images = met.checked.get(&(*rmid, *op)).copied().unwrap_or(0);
        println!(
            "{installation}: resource manager {rmid}, operation {op:#04x}: {count} records, {images} images checked"
        );
    }
    println!(
        "{installation}: {} records of {} types, {} images of {} types checked, {maps} pages of visibility maps",
        met.seen.values().sum::<u32>(),
        met.seen.len(),
        met.checked.values().sum::<u32>(),
        met.checked.len()
    );
    for (rmid, (versions, bytes, whole)) in &stored_total.0 {
        println!(
            "{installation}: resource manager {rmid}: {versions} page versions stored in {bytes} bytes, whole records' data {whole}"
        );
    }
    assert_heap_coverage(&met, installation);
    if everything {
        assert_index_coverage(&met);
    }
    if installation.major == 15 && std::env::var_os("LAKEBED_WRITE_CORPUS").is_some() {
        let size = u64::from(first.segment_bytes());
        let segment = first.checkpoint_lsn().0 / size + 1;
        let name = format!("pg_wal/00000001{:016X}", segment_name(segment));
        let wal = fs::read(cluster.data_dir().join(name)).unwrap();
        met.corpus.write(&first, Lsn(segment * size), &wal);
    }
}

/// That images of each of these kinds were compared.
fn assert_checked(met: &Met, kinds: impl IntoIterator<Item = (u8, u8)>) {
    for (rmid, operation) in kinds {
        assert!(
            met.checked.contains_key(&(rmid, operation)),
            "the workload produced no record of resource manager {rmid}, operation {operation:#x}"
        );
    }
}

/// Heap, B-trees, sequences, and the pages of visibility maps in all their roles.
fn assert_heap_coverage(met: &Met, installation: &Installation) {
    let mut expected_maps = vec![(9, 0x40, 0)];
    if installation.names_map_pages() {
        expected_maps.extend([
            (9, 0x50, 1),
            (10, 0x00, 1),
            (10, 0x10, 1),
            (10, 0x20, 2),
            (10, 0x20, 3),
            (10, 0x60, 1),
        ]);
    }
    for role in expected_maps {
        assert!(met.maps.contains(&role), "no map page as {role:x?}");
    }
    let heap = [0x00, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70].map(|op| (10, op));
    let heap2 = [0x10, 0x20, 0x30, 0x40, 0x50].map(|op| (9, op));
    let btree = [0x00, 0x10, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xA0, 0xB0, 0xC0].map(|op| (11, op));
    assert_checked(met, heap.into_iter().chain(heap2).chain(btree).chain([(15, 0)]));
}

/// All other access methods.
fn assert_index_coverage(met: &Met) {
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
            assert!(
                met.corpus.has_role((rmid, op, id)),
                "no page {id} of {rmid} {op:#x}"
            );
        }
    }
    for key in [(12, 0x30, 4), (12, 0x80, 5), (12, 0x80, 6)] {
        assert!(met.corpus.has_role(key), "no {key:x?}");
    }
    // GIN's splits (0x30) and entry page vacuums (0x40) and hash's SPLIT_PAGE carry images of their pages, which take
    // redo's place. CommitTs, ReplicationOrigin, LogicalMessage and GiST's page reuse name no page.
    for kind in [
        (13, 0x30),
        (13, 0x40),
        (12, 0x50),
        (14, 0x20),
        (18, 0),
        (19, 0),
        (19, 0x10),
        (21, 0),
    ] {
        assert!(met.seen.contains_key(&kind), "the workload produced no {kind:x?}");
    }
    let gin = [0x10, 0x20, 0x21, 0x22, 0x23, 0x30, 0x50, 0x60, 0x70, 0x80, 0x90].map(|op| (13, op));
    let hash = (0x00..=0xC0)
        .step_by(0x10)
        .filter(|op| *op != 0x50)
        .map(|op| (12, op));
    let brin = [0x00, 0x10, 0x90, 0x20, 0xA0, 0x30, 0x40, 0x50].map(|op| (17, op));
    let gist = [0x00, 0x10, 0x30, 0x60].map(|op| (14, op));
    let spgist = (0x10..=0x80).step_by(0x10).map(|op| (16, op));
    let indexes = hash.chain(gin).chain(gist).chain(spgist).chain(brin);
    assert_checked(met, indexes.chain([(20, 0)]));
}
