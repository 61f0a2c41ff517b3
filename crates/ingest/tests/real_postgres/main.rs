//! Everything outside of pages, replayed from the WAL of a real Postgres, against that Postgres's own files: after a
//! clean stop, and after its own crash recovery.

mod replica;
mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lakebed_ingest::ControlState;
use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, temp_dir};
use lakebed_types::{ForkNumber, Lsn};
use lakebed_wal::control::{Checkpoint, ControlFile};
use lakebed_wal::page::WalFormat;
use lakebed_wal::record::DecodedRecord;
use lakebed_wal::stream::WalDecoder;
use replica::{Replica, assert_same_slrus, directory, path, read_slrus};

const SEGMENT: u64 = 1 << 24;
/// `VAR_OID_PREFETCH`: oids that a server reserves at a time.
const OID_PREFETCH: u32 = 8192;
/// Oid of the database `postgres` (`catalog/pg_database.dat`).
const POSTGRES_DB: u32 = 5;

fn control(data: &Path) -> ControlFile {
    ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap()
}

/// All records from `start` on, up to and including the one that starts at `last` or to the end of what is there.
fn records(data: &Path, start: Lsn, last: Option<Lsn>) -> Vec<DecodedRecord> {
    let format = WalFormat {
        version: control(data).version(),
        timeline: 1,
        system_identifier: control(data).system_identifier(),
        segment_bytes: SEGMENT as u32,
    };
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    let mut records: Vec<DecodedRecord> = Vec::new();
    loop {
        match decoder.next_record() {
            Ok(Some(record)) => {
                let done = Some(record.start) == last;
                records.push(record);
                if done {
                    return records;
                }
            }
            Ok(None) => {
                let next = decoder.fed_to();
                let segment = next.segment_number(SEGMENT);
                let name = format!("pg_wal/00000001{:08X}{:08X}", segment / 256, segment % 256);
                let Ok(bytes) = fs::read(data.join(name)) else {
                    assert_eq!(last, None);
                    return records;
                };
                decoder.feed(&bytes[next.segment_offset(SEGMENT) as usize..]);
            }
            Err(error) => {
                assert_eq!(last, None, "{error}");
                return records;
            }
        }
    }
}

/// Path and content of the files of prepared transactions.
fn two_phase_files(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |entry: &fs::DirEntry| format!("pg_twophase/{}", entry.file_name().to_str().unwrap());
    let entries = fs::read_dir(data.join("pg_twophase"))
        .unwrap()
        .map(Result::unwrap);
    entries
        .map(|entry| (name(&entry), fs::read(entry.path()).unwrap()))
        .collect()
}

/// What the files of a stopped server must hold if the replica is right.
fn compare_files(replica: &Replica, data: &Path) {
    assert_same_slrus(&replica.slru, &read_slrus(data));
    assert_eq!(replica.two_phase_files(), two_phase_files(data));
    for (&(db, tablespace), map) in &replica.maps {
        let file = fs::read(directory(data, tablespace, db).join("pg_filenode.map")).unwrap();
        assert!(*map == file, "the relation map of {tablespace}/{db} differs");
    }
    for (&rel, &blocks) in &replica.relations {
        let bytes = fs::metadata(path(data, rel))
            .unwrap_or_else(|error| panic!("{rel}: {error}"))
            .len();
        assert_eq!(bytes, u64::from(blocks) * 8192, "size of {rel}");
    }
    for &rel in &replica.dropped {
        assert!(!path(data, rel).exists(), "{rel} was dropped and is there");
    }
}

/// Bits of the visibility maps of relations that WAL created in the database `postgres`. The page header is redo's.
/// Other databases are copies, whose maps WAL does not carry: `STRATEGY wal_log` logs them with their bits cut out as
/// a hole.
fn compare_visibility_maps(replica: &Replica, data: &Path) -> usize {
    let mut compared = 0;
    for rel in replica.relations.keys().filter(|rel| rel.dbnode == POSTGRES_DB) {
        let vm = rel.with_fork(ForkNumber::Vm);
        let file = fs::read(path(data, vm)).unwrap_or_default();
        for (block, page) in (0u32..).zip(file.chunks(8192)) {
            let found = replica
                .vm
                .get(&(vm, block))
                .map_or(&[0; 8192 - 24][..], |page| &page[24..]);
            assert!(*found == page[24..], "{vm} block {block} differs");
            compared += usize::from(found.iter().any(|&byte| byte != 0));
        }
    }
    compared
}

/// The counters that replay alone must get right.
fn counters(checkpoint: Checkpoint) -> (u64, u32, u32) {
    (
        checkpoint.next_xid,
        checkpoint.next_multi,
        checkpoint.next_multi_offset,
    )
}

#[test]
fn replayed_wal_gives_postgres_s_own_files() {
    Installation::each(replay_and_compare);
}

fn replay_and_compare(installation: &Installation) {
    let tablespace = temp_dir();
    let mut cluster = Cluster::init_with(installation, &InitOptions::default());
    cluster.start(&workload::SETTINGS);
    cluster.stop(Stop::Clean);
    let data = cluster.data_dir();
    let start = control(&data);
    let mut replica = Replica::new(
        &data,
        start.version(),
        ControlState::from_checkpoint(&start.checkpoint()),
    );
    assert!(replica.control.commit_ts_active());

    cluster.start(&workload::SETTINGS);
    workload::first(&cluster, tablespace.path());
    let prepared = two_phase_files(&data);
    assert_eq!(prepared.len(), 2);
    cluster.stop(Stop::Clean);

    let end = control(&data);
    let wal = records(&data, start.checkpoint_lsn(), Some(end.checkpoint_lsn()));
    let (last, before) = wal.split_last().unwrap();
    before.iter().for_each(|record| replica.replay(record));
    // Before the last checkpoint tells its counters, replay has arrived at them by itself.
    let (own, real) = (replica.control.to_checkpoint(), end.checkpoint());
    assert_eq!(counters(own), counters(real));
    assert!((real.next_oid..=real.next_oid + OID_PREFETCH).contains(&own.next_oid));
    assert_eq!(
        (own.oldest_commit_ts_xid, own.newest_commit_ts_xid),
        (real.oldest_commit_ts_xid, real.newest_commit_ts_xid)
    );
    assert_eq!(
        (own.oldest_multi, own.oldest_multi_db),
        (real.oldest_multi, real.oldest_multi_db)
    );
    replica.replay(last);
    assert_eq!(replica.control.to_checkpoint(), real);
    assert_eq!(replica.two_phase_files(), prepared);
    compare_files(&replica, &data);
    let maps = compare_visibility_maps(&replica, &data);
    assert!(maps >= 5, "only {maps} visibility maps have a bit set");
    assert_coverage(&replica, installation);

    // The same against crash recovery, which has only the WAL too.
    cluster.start(&workload::SETTINGS);
    workload::second(&cluster);
    cluster.stop(Stop::Crash);
    let mut recovered = cluster.copy();
    records(&data, last.end, None)
        .iter()
        .for_each(|record| replica.replay(record));
    recovered.start(&workload::SETTINGS);
    // Recovery ends with a checkpoint.
    let (own, real) = (
        replica.control.to_checkpoint(),
        control(&recovered.data_dir()).checkpoint(),
    );
    let told = Checkpoint {
        redo: real.redo,
        time: real.time,
        oldest_active_xid: real.oldest_active_xid,
        ..own
    };
    assert_eq!(told, real);
    recovered.stop(Stop::Clean);
    assert_eq!(replica.two_phase.len(), 1);
    compare_files(&replica, &recovered.data_dir());
    assert!(compare_visibility_maps(&replica, &recovered.data_dir()) >= 5);
}

fn assert_coverage(replica: &Replica, installation: &Installation) {
    let expected = [
        "Clog ZeroPage",
        "Clog ClogSetStatus",
        "CommitTs ZeroPage",
        "CommitTs CommitTsSet",
        "MultiXactOffsets ZeroPage",
        "MultiXactOffsets MultiOffsetsSet",
        "MultiXactMembers ZeroPage",
        "MultiXactMembers MembersSet",
        "RelationCreated",
        "RelationTruncated",
        "RelationDropped",
        "DatabaseCreatedByCopy",
        "DatabaseCreatedWalLog",
        "DatabaseDropped",
        "RelationMapUpdated",
        "TwoPhasePrepared",
        "TwoPhaseFinished",
        "TablespaceCreated",
        "OriginAdvanced",
        "SlruTruncated",
        "TransactionEnd",
        "RestorePoint",
        "VmTruncate",
        "Vm named",
    ];
    let unnamed: &[&str] = if installation.names_map_pages() {
        &[]
    } else {
        &["VmClear 2", "VmClear 3"]
    };
    for kind in expected.iter().chain(unnamed) {
        assert!(
            replica.seen.contains_key(*kind),
            "{kind} was not seen, but {:?}",
            replica.seen
        );
    }
}
