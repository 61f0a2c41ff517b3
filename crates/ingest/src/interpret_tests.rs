use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PageKey, PgVersion, SlruKind};

use super::*;
use crate::effects::{CatalogueChange, Parameters};
use crate::slru::SlruCut;
use crate::testing::{REL, record, relation_map, samples, with_blocks, words, written_by};
use crate::{SlruDelta, rmgr};

fn catalogue(record: &DecodedRecord) -> Vec<CatalogueChange> {
    interpret(record).unwrap().catalogue
}

#[test]
fn records_of_one_change_each() {
    let origin_set = words(&[0xCDE, 0x16, 0x0001_0003, 0]);
    let table = [
        (
            record(rmgr::STORAGE, 0x10, words(&[1663, 5, 16384, 3])),
            CatalogueChange::RelationCreated {
                rel: REL.with_fork(ForkNumber::Init),
            },
        ),
        (
            record(rmgr::DATABASE, 0x00, words(&[16_500, 1663, 1, 16_400])),
            CatalogueChange::DatabaseCreatedByCopy {
                source_db: 1,
                source_tablespace: 16_400,
                db: 16_500,
                tablespace: 1663,
            },
        ),
        (
            record(rmgr::DATABASE, 0x10, words(&[16_500, 1663])),
            CatalogueChange::DatabaseCreatedWalLog {
                db: 16_500,
                tablespace: 1663,
            },
        ),
        (
            record(rmgr::DATABASE, 0x20, words(&[16_500, 2, 1663, 16_400])),
            CatalogueChange::DatabaseDropped {
                db: 16_500,
                tablespaces: vec![1663, 16_400],
            },
        ),
        (
            record(
                rmgr::TABLESPACE,
                0x00,
                [&words(&[16_400])[..], b"/mnt/a\0"].concat(),
            ),
            CatalogueChange::TablespaceCreated {
                oid: 16_400,
                path: Bytes::from_static(b"/mnt/a"),
            },
        ),
        (
            record(rmgr::TABLESPACE, 0x10, words(&[16_400])),
            CatalogueChange::TablespaceDropped { oid: 16_400 },
        ),
        (
            record(rmgr::REPLICATION_ORIGIN, 0x00, origin_set),
            CatalogueChange::OriginAdvanced {
                origin: 3,
                remote: Lsn(0x16_0000_0CDE),
                local: Lsn(0x1100),
                force: true,
            },
        ),
        (
            record(rmgr::REPLICATION_ORIGIN, 0x10, [3, 0]),
            CatalogueChange::OriginDropped { origin: 3 },
        ),
        (
            record(rmgr::CLOG, 0x10, words(&[64, 2_200_000, 5])),
            CatalogueChange::SlruTruncated {
                kind: SlruKind::Clog,
                cut: SlruCut::Before { page: 64 },
            },
        ),
        (
            record(rmgr::XLOG, 0x80, [0]),
            CatalogueChange::FullPageWrites { on: false },
        ),
    ];
    for (record, expected) in table {
        assert_eq!(catalogue(&record), [expected]);
    }
}

#[test]
fn settings_and_what_they_do_to_commit_timestamps() {
    let changed = |flags: u32| record(rmgr::XLOG, 0x60, words(&[100, 8, 10, 4, 64, 2, flags]));
    let parameters = Parameters {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 4,
        max_locks_per_transaction: 64,
        wal_level: 2,
        wal_log_hints: false,
        track_commit_timestamp: true,
    };
    assert_eq!(
        catalogue(&changed(0x100)),
        [CatalogueChange::ParametersChanged(parameters)]
    );
    let off = Parameters {
        wal_log_hints: true,
        track_commit_timestamp: false,
        ..parameters
    };
    let all_gone = CatalogueChange::SlruTruncated {
        kind: SlruKind::CommitTs,
        cut: SlruCut::All,
    };
    assert_eq!(
        catalogue(&changed(1)),
        [all_gone, CatalogueChange::ParametersChanged(off)]
    );
}

#[test]
fn a_relation_map_gets_its_magic_number_and_crc() {
    for (version, length, crc_at, max) in [
        (PgVersion::V15, 512, 504, 62),
        (PgVersion::V16, 524, 520, 64),
        (PgVersion::V17, 524, 520, 64),
        (PgVersion::V18, 524, 520, 64),
    ] {
        check_relation_map(version, length, crc_at, max);
    }
    // A map of another version's length.
    let foreign = written_by(PgVersion::V16, relation_map(PgVersion::V15));
    assert!(interpret(&foreign).is_err());
}

fn check_relation_map(version: PgVersion, length: usize, crc_at: usize, max: u32) {
    let [
        CatalogueChange::RelationMapUpdated {
            db: 5,
            tablespace: 1663,
            bytes,
        },
    ] = &catalogue(&relation_map(version))[..]
    else {
        panic!("no relation map")
    };
    assert_eq!(bytes.len(), length);
    assert_eq!(bytes[..8], words(&[0x59_2717, 1]));
    assert_eq!(
        bytes[crc_at..crc_at + 4],
        crc32c::crc32c(&bytes[..crc_at]).to_le_bytes()
    );
    let with_entries = |count: u32| {
        let mut many = relation_map(version);
        let mut data = many.main_data.to_vec();
        data[16..20].copy_from_slice(&count.to_le_bytes());
        many.main_data = data.into();
        interpret(&many)
    };
    assert!(with_entries(max).is_ok() && with_entries(max + 1).is_err());
}

#[test]
fn zeroed_pages_and_the_place_of_commit_timestamps() {
    let table = [
        (rmgr::CLOG, 0x00, SlruKind::Clog),
        (rmgr::MULTIXACT, 0x00, SlruKind::MultiXactOffsets),
        (rmgr::MULTIXACT, 0x10, SlruKind::MultiXactMembers),
    ];
    for (rmid, info, kind) in table {
        let effects = interpret(&record(rmid, info, words(&[7]))).unwrap();
        assert_eq!(
            effects.slru,
            [(PageKey::Slru { kind, page: 7 }, SlruDelta::ZeroPage)]
        );
    }
    let effects = interpret(&record(rmgr::COMMIT_TS, 0x00, words(&[7]))).unwrap();
    assert!(effects.slru.is_empty());
    assert_eq!(
        (
            effects.slru_changes(true).count(),
            effects.slru_changes(false).count()
        ),
        (1, 0)
    );
    assert!(interpret(&record(rmgr::CLOG, 0x00, words(&[u32::MAX]))).is_err());

    // 64 bits since Postgres 17.
    for version in [PgVersion::V17, PgVersion::V18] {
        let zeroed = |page: &[u32]| interpret(&written_by(version, record(rmgr::CLOG, 0x00, words(page))));
        let key = PageKey::Slru {
            kind: SlruKind::Clog,
            page: 1 << 32 | 7,
        };
        assert_eq!(zeroed(&[7, 1]).unwrap().slru, [(key, SlruDelta::ZeroPage)]);
        assert!(zeroed(&[7]).is_err() && zeroed(&[0, u32::MAX]).is_err());
    }
}

#[test]
fn a_file_of_logical_decoding() {
    let mut data = words(&[0x2bc, 5, 0x4000, 0, 72, 0, 2, 0, 0x88, 0x2]);
    data.extend([7; 72]);
    assert_eq!(
        catalogue(&record(rmgr::HEAP2, 0x00, data)),
        [CatalogueChange::LogicalRewriteMapping {
            file_name: "map-5-4000-2_88-2bc-2bc".to_owned(),
            offset: 72,
            bytes: Bytes::from(vec![7; 72]),
        }]
    );
}

#[test]
fn page_records_touch_their_pages_and_nothing_else() {
    let blocks = [(REL, 4), (REL.with_fork(ForkNumber::Fsm), 0)];
    for (rmid, info) in [
        (0, 0xb0),
        (0, 0xa0),
        (11, 0x00),
        (13, 0x20),
        (15, 0x00),
        (20, 0x00),
        (130, 0x30),
    ] {
        let effects = interpret(&with_blocks(record(rmid, info, []), &blocks)).unwrap();
        let expected = Effects {
            touched: blocks.into(),
            ..Effects::default()
        };
        assert_eq!(effects, expected);
    }
    for (rmid, info) in [
        (0, 0x20),
        (0, 0x40),
        (8, 0x00),
        (8, 0x10),
        (8, 0x20),
        (21, 0x00),
        (1, 0x60),
    ] {
        assert_eq!(
            interpret(&record(rmid, info, [1, 2, 3])).unwrap(),
            Effects::default()
        );
    }
}

#[test]
fn what_cannot_be_replayed_is_named() {
    let nobodys = interpret(&record(100, 0x30, [])).unwrap_err();
    assert_eq!(
        nobodys.to_string(),
        "record at 0/1000: there is no resource manager 100 (info 0x30)"
    );
    let unknown = interpret(&record(rmgr::STORAGE, 0x50, [])).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "record at 0/1000: resource manager Storage of Postgres 15 has no record type 0x50"
    );
    let short = interpret(&record(rmgr::TRANSACTION, 0x00, [0])).unwrap_err();
    assert_eq!(
        short.to_string(),
        "record at 0/1000 (resource manager Transaction, info 0x00): its main data is too short"
    );
    assert!(samples().iter().all(|sample| interpret(sample).is_ok()));
}
