//! Every installed release of Postgres 15 to 18: all page records that SQL makes, also under concurrency, against the
//! images in the records and against stock recovery; and what a pageserver stores of a record must do what the record
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;

use lakebed_ingest::{Effects, IngestError};
use lakebed_pgtest::{Cluster, Installation, run, workloads};
use lakebed_redo::{Managers, PageBytes, PageRecord, StoredPlace};
use lakebed_types::{ForkNumber, Lsn};
use lakebed_verify::segments::Segments;
use lakebed_verify::{Native, Redo};
use lakebed_wal::control::ControlFile;
use lakebed_wal::page::WalFormat;
use lakebed_wal::record::{BlockRef, DecodedRecord};

use crate::corpus_writer::CorpusWriter;
use crate::history::{History, WITHOUT_GIST_IMAGES};
use crate::{assert_ok, verified};

/// Redo that goes through the stored form too, and takes note of what it met.
#[derive(Default)]
struct AlsoStored(Mutex<Met>);

#[derive(Default)]
struct Met {
    /// Images for checking, by kind of record.
    checked: BTreeMap<(u8, u8), u32>,
    /// Resource manager, operation and role of pages of visibility maps with such images.
    maps: BTreeSet<(u8, u8, u8)>,
    /// Versions of pages, and bytes of their stored forms.
    stored: (u64, u64),
    buffer: Vec<u8>,
    corpus: CorpusWriter,
}

impl Redo for AlsoStored {
    fn page(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String> {
        let mut met = self.0.lock().unwrap();
        let met = &mut *met;
        let whole = PageRecord::new(record, block);
        met.corpus.page(&whole, page);
        let mut result = *page;
        Native.page(record, block, page)?;

        met.buffer.clear();
        whole.encode(&mut met.buffer);
        met.stored = (met.stored.0 + 1, met.stored.1 + met.buffer.len() as u64);
        let place = StoredPlace {
            version: record.version,
            end: record.end,
            rel: block.rel,
            block: block.block,
        };
        let stored = PageRecord::decode(&met.buffer, place).unwrap();
        assert_eq!(stored.starts_page(), whole.starts_page());
        stored.redo(&mut result, Managers::none()).unwrap();
        assert!(
            result == *page,
            "the stored form of {record:?} replays differently"
        );

        if block.image.as_ref().is_some_and(|image| !image.apply) {
            *met.checked.entry(kind(record)).or_default() += 1;
            if block.rel.fork == ForkNumber::Vm {
                met.maps.insert((record.rmid, record.info & 0x70, block.id));
            }
        }
        Ok(())
    }

    fn effects(&self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestError> {
        Native.effects(record, effects)
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
fn every_release_is_verified() {
    Installation::each(|installation| {
        let everything = is_latest_of_its_major(installation);
        let history = History::of(installation, |primary, _| load(primary, everything));
        let recovered = history.recover();
        let mut request = history.request();
        request.against = Some(recovered.data_dir());
        let redo = AlsoStored::default();
        let report = verified(&request, &redo).unwrap();
        println!("{installation}: {:#?}", report.summary());
        assert_ok(&report);

        let met = redo.0.into_inner().unwrap();
        let (versions, bytes) = met.stored;
        println!("{installation}: {versions} versions of pages are stored in {bytes} bytes");
        heap_coverage(&met, installation);
        if everything {
            index_coverage(&met);
            let seen = |rmgr: &str, operation: &str| report.of(rmgr, operation).seen;
            // All their images take the place of redo, or they name no page.
            for (rmgr, operation) in [
                ("Gin", "SPLIT"),
                ("Gin", "VACUUM_PAGE"),
                ("Hash", "SPLIT_PAGE"),
                ("CommitTs", "ZEROPAGE"),
                ("ReplicationOrigin", "SET"),
                ("ReplicationOrigin", "DROP"),
                ("LogicalMessage", "MESSAGE"),
            ] {
                assert!(seen(rmgr, operation) > 0, "{installation}: no {rmgr}/{operation}");
            }
        }
        if installation.major == 15 && std::env::var_os("LAKEBED_WRITE_CORPUS").is_some() {
            write_corpus(met.corpus, &history);
        }
    });
}

/// Releases of one major version differ in what heap records name, and in nothing else: the earlier ones get the
/// workload without indexes other than B-trees.
fn is_latest_of_its_major(installation: &Installation) -> bool {
    Installation::all()
        .iter()
        .all(|other| other.major != installation.major || other.minor <= installation.minor)
}

fn load(primary: &Cluster, everything: bool) {
    let pgbench = |arguments: &[&str]| run(primary.client("pgbench").args(arguments));
    pgbench(&["-i", "-q", "-s", "2"]);
    pgbench(&["-n", "-c", "4", "-j", "2", "-t", "500"]);
    if everything {
        primary.sql(workloads::EVERYTHING);
        primary.sql(&format!("{WITHOUT_GIST_IMAGES}{}", workloads::GIST_DEAD));
        let script = primary.home().join("concurrent.sql");
        let concurrent = format!("{WITHOUT_GIST_IMAGES}{}", workloads::CONCURRENT);
        fs::write(&script, concurrent).unwrap();
        run(primary
            .client("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-t", "150", "-f"])
            .arg(script));
    } else {
        primary.sql(workloads::DDL);
    }
    primary.sql(
        "UPDATE pgbench_accounts SET abalance = 1; VACUUM FULL pgbench_accounts; VACUUM (FREEZE) pgbench_tellers",
    );
}

fn write_corpus(mut corpus: CorpusWriter, history: &History) {
    let control = fs::read(history.base.data_dir().join("global/pg_control")).unwrap();
    let control = ControlFile::decode(&control).unwrap();
    let format = WalFormat {
        version: control.version(),
        timeline: 1,
        system_identifier: control.system_identifier(),
        segment_bytes: control.segment_bytes(),
    };
    let start = control.checkpoint_lsn();
    let mut segments = Segments::open(&history.wal(), format, start).unwrap();
    while let Ok(raw) = segments.next_record().unwrap() {
        let record = raw.decode().unwrap();
        corpus.record(&raw, record.rmid, record.info);
    }
    let size = u64::from(control.segment_bytes());
    let segment = start.0 / size + 1;
    let wal = fs::read(history.wal().join(format.segment_file_name(segment))).unwrap();
    corpus.write(&control, Lsn(segment * size), &wal);
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
fn heap_coverage(met: &Met, installation: &Installation) {
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
fn index_coverage(met: &Met) {
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
    let gin = [0x10, 0x20, 0x21, 0x22, 0x23, 0x30, 0x50, 0x60, 0x70, 0x80, 0x90].map(|op| (13, op));
    let hash = (0x00..=0xC0)
        .step_by(0x10)
        .filter(|op| *op != 0x50)
        .map(|op| (12, op));
    let brin = [0x00, 0x10, 0x90, 0x20, 0xA0, 0x30, 0x40, 0x50].map(|op| (17, op));
    // Gist/DELETE has a test of its own.
    let gist = [0x00, 0x30, 0x60].map(|op| (14, op));
    let spgist = (0x10..=0x80).step_by(0x10).map(|op| (16, op));
    let indexes = hash.chain(gin).chain(gist).chain(spgist).chain(brin);
    assert_checked(met, indexes.chain([(20, 0)]));
}
