//! Records for tests, made by hand from the C structures.

use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::control::Checkpoint;
use lakebed_wal::record::{BlockRef, DecodedRecord};

use crate::rmgr;

pub(crate) const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: ForkNumber::Main,
};

/// A record of transaction 700 without blocks.
pub(crate) fn record(rmid: u8, info: u8, main_data: impl Into<Vec<u8>>) -> DecodedRecord {
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x1000),
        end: Lsn(0x1100),
        prev: Lsn(0xf00),
        xid: 700,
        rmid,
        info,
        origin: None,
        toplevel_xid: None,
        blocks: Vec::new(),
        main_data: Bytes::from(main_data.into()),
    }
}

pub(crate) fn with_blocks(mut record: DecodedRecord, blocks: &[(RelTag, u32)]) -> DecodedRecord {
    for (id, &(rel, block)) in (0u8..).zip(blocks) {
        record.blocks.push(BlockRef {
            id,
            rel,
            block,
            will_init: false,
            image: None,
            data: None,
        });
    }
    record
}

/// The same, written by a server of this version.
pub(crate) fn written_by(version: PgVersion, record: DecodedRecord) -> DecodedRecord {
    DecodedRecord { version, ..record }
}

/// Little-endian 32-bit words.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn checkpoint() -> Checkpoint {
    Checkpoint {
        redo: Lsn(0x800),
        timeline: 1,
        previous_timeline: 1,
        full_page_writes: true,
        wal_level: 0,
        next_xid: 700,
        next_oid: 20_000,
        next_multi: 10,
        next_multi_offset: 30,
        oldest_xid: 600,
        oldest_xid_db: 1,
        oldest_multi: 5,
        oldest_multi_db: 1,
        time: 1_700_000_000,
        oldest_commit_ts_xid: 0,
        newest_commit_ts_xid: 0,
        oldest_active_xid: 0,
    }
}

/// The identity of a statistics entry to drop.
fn stats_item(version: PgVersion) -> Vec<u8> {
    match version {
        PgVersion::V18 => words(&[2, 5, 16384, 1]),
        _ => words(&[2, 5, 16384]),
    }
}

/// A commit with every part that Postgres can put into one, except a prepared transaction.
pub(crate) fn full_commit(version: PgVersion) -> DecodedRecord {
    let mut data = 5_000_000i64.to_le_bytes().to_vec();
    data.extend(words(&[0x16f | 1 << 31])); // all but two-phase and its name
    data.extend(words(&[5, 1663])); // database
    data.extend(words(&[2, 701, 32_768])); // subtransactions
    data.extend(words(&[1, 1663, 5, 16384])); // relations
    data.extend(words(&[1])); // statistics
    data.extend(stats_item(version));
    data.extend(words(&[1, 1, 2, 3, 4])); // invalidations
    data.extend(0x77u64.to_le_bytes());
    data.extend(9_000_000i64.to_le_bytes());
    let mut record = written_by(version, record(rmgr::TRANSACTION, 0x80, data));
    record.origin = Some(3);
    record
}

/// A prepare of transaction 700 named "gid", with subtransaction 701 and, to drop at commit, one relation and one
/// statistics entry.
pub(crate) fn prepare(version: PgVersion) -> DecodedRecord {
    let mut data = words(&[0x57f9_4534, 0, 700, 5]);
    data.extend(1i64.to_le_bytes()); // time
    data.extend(words(&[10, 1, 1, 0, 1, 0, 0])); // owner and counts
    data.extend([0, 0, 4, 0]); // relation cache, padding, length of the name
    data.extend(0x99u64.to_le_bytes());
    data.extend(0i64.to_le_bytes());
    data.extend(b"gid\0\0\0\0\0");
    data.extend(words(&[701, 0]));
    data.extend(words(&[1663, 5, 16384, 0]));
    data.extend(stats_item(version));
    data.resize(data.len().next_multiple_of(8), 0);
    data.extend([0xee; 16]); // parts of resource managers
    let length = data.len() as u32 + 4;
    data[4..8].copy_from_slice(&length.to_le_bytes());
    written_by(version, record(rmgr::TRANSACTION, 0x10, data))
}

/// A relation map with one entry.
pub(crate) fn relation_map(version: PgVersion) -> DecodedRecord {
    let bytes = crate::relation_map_bytes(version);
    let mut data = words(&[5, 1663, bytes as u32, 0x59_2717, 1, 1259, 1259]);
    data.resize(12 + bytes, 0);
    written_by(version, record(rmgr::RELMAP, 0, data))
}

/// One of each type whose layout changed after Postgres 15.
fn later_samples() -> Vec<DecodedRecord> {
    use PgVersion::{V16, V17, V18};
    let level_2 = Checkpoint {
        wal_level: 2,
        ..checkpoint()
    };
    let end_of_recovery = words(&[0, 0, 2, 1, 1, 0]);
    vec![
        relation_map(V16),
        full_commit(V18),
        prepare(V18),
        written_by(V17, record(rmgr::XLOG, 0x10, level_2.encode())),
        written_by(V17, record(rmgr::XLOG, 0x90, end_of_recovery)),
        written_by(V17, record(rmgr::XLOG, 0xe0, words(&[1]))),
        written_by(V17, record(rmgr::CLOG, 0x00, words(&[3, 0]))),
        written_by(V17, record(rmgr::CLOG, 0x10, words(&[64, 0, 2_200_000, 5]))),
        written_by(V17, record(rmgr::COMMIT_TS, 0x00, words(&[3, 0]))),
        written_by(V17, record(rmgr::COMMIT_TS, 0x10, words(&[64, 0, 60_000]))),
        written_by(V18, record(rmgr::MULTIXACT, 0x00, words(&[1, 0]))),
        written_by(V18, record(rmgr::MULTIXACT, 0x10, words(&[2, 0]))),
    ]
}

/// One well-formed record of each type that has an effect or moves a counter.
pub(crate) fn samples() -> Vec<DecodedRecord> {
    let mut commit_prepared = 0i64.to_le_bytes().to_vec();
    commit_prepared.extend(words(&[0x90, 700]));
    commit_prepared.extend(b"gid\0");
    let time_and = |rest: &[u32]| [0i64.to_le_bytes().to_vec(), words(rest)].concat();
    let mut restore_point = 0i64.to_le_bytes().to_vec();
    restore_point.extend([&b"here"[..], &[0; 60]].concat());
    let mut rewrite = words(&[700, 5, 16384, 0, 72, 0, 1, 0, 0x88, 2]);
    rewrite.extend([1; 36]);
    let mut samples = vec![
        full_commit(PgVersion::V15),
        record(rmgr::TRANSACTION, 0x20, 0i64.to_le_bytes()),
        record(rmgr::TRANSACTION, 0xb0, commit_prepared.clone()),
        record(rmgr::TRANSACTION, 0xc0, commit_prepared),
        prepare(PgVersion::V15),
        record(rmgr::TRANSACTION, 0x50, words(&[700, 2, 701, 702])),
        record(rmgr::XLOG, 0x00, checkpoint().encode()),
        record(rmgr::XLOG, 0x10, checkpoint().encode()),
        record(rmgr::XLOG, 0x30, words(&[28_192])),
        record(rmgr::XLOG, 0x60, words(&[100, 8, 10, 0, 64, 1, 0x0100])),
        record(rmgr::XLOG, 0x70, restore_point),
        record(rmgr::XLOG, 0x80, [1]),
        record(rmgr::XLOG, 0x90, time_and(&[2, 1])),
        record(rmgr::STORAGE, 0x10, words(&[1663, 5, 16384, 3])),
        record(rmgr::STORAGE, 0x20, words(&[100, 1663, 5, 16384, 7])),
        record(rmgr::CLOG, 0x00, words(&[3])),
        record(rmgr::CLOG, 0x10, words(&[64, 2_200_000, 5])),
        record(rmgr::COMMIT_TS, 0x00, words(&[3])),
        record(rmgr::COMMIT_TS, 0x10, words(&[64, 60_000])),
        record(rmgr::DATABASE, 0x00, words(&[16_500, 1663, 1, 1664])),
        record(rmgr::DATABASE, 0x10, words(&[16_500, 1663])),
        record(rmgr::DATABASE, 0x20, words(&[16_500, 2, 1663, 16_400])),
        record(
            rmgr::TABLESPACE,
            0x00,
            [&words(&[16_400])[..], b"/mnt\0"].concat(),
        ),
        record(rmgr::TABLESPACE, 0x10, words(&[16_400])),
        record(rmgr::MULTIXACT, 0x00, words(&[1])),
        record(rmgr::MULTIXACT, 0x10, words(&[2])),
        record(rmgr::MULTIXACT, 0x20, words(&[10, 30, 2, 700, 1, 701, 5])),
        record(rmgr::MULTIXACT, 0x30, words(&[5, 1, 70_000, 1, 200_000])),
        relation_map(PgVersion::V15),
        record(rmgr::REPLICATION_ORIGIN, 0x00, words(&[0x77, 0, 0x0001_0003, 0])),
        record(rmgr::REPLICATION_ORIGIN, 0x10, [3, 0]),
        record(rmgr::HEAP2, 0x00, rewrite),
    ];
    samples.extend(later_samples());
    samples
}
