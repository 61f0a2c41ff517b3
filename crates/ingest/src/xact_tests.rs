use super::*;
use crate::rmgr;
use crate::testing::{REL, full_commit, record, words};

fn interpreted(record: &DecodedRecord) -> Effects {
    crate::interpret(record).unwrap()
}

fn clog(page: u64, status: u8, slots: &[u16]) -> (PageKey, SlruDelta) {
    let kind = SlruKind::Clog;
    let slots = slots.to_vec();
    (
        PageKey::Slru { kind, page },
        SlruDelta::ClogSetStatus { status, slots },
    )
}

#[test]
fn a_commit_with_all_parts() {
    for version in PgVersion::ALL {
        check_commit(&interpreted(&full_commit(version)));
    }
}

fn check_commit(effects: &Effects) {
    assert_eq!(
        effects.slru,
        [
            clog(0, CLOG_COMMITTED, &[700, 701]),
            clog(1, CLOG_COMMITTED, &[0])
        ]
    );
    let commit_ts = |page, slots: &[u16]| {
        let key = PageKey::Slru {
            kind: SlruKind::CommitTs,
            page,
        };
        // The time at the origin, not here.
        let delta = SlruDelta::CommitTsSet {
            pg_time: 9_000_000,
            origin: 3,
            slots: slots.to_vec(),
        };
        (key, delta)
    };
    assert_eq!(
        effects.commit_ts,
        [commit_ts(0, &[700, 701]), commit_ts(40, &[8])]
    );
    assert_eq!(
        effects.catalogue,
        [
            CatalogueChange::OriginAdvanced {
                origin: 3,
                remote: Lsn(0x77),
                local: Lsn(0x1100),
                force: false,
            },
            CatalogueChange::RelationDropped { rel: REL },
            CatalogueChange::TransactionEnd {
                xid: 700,
                time_micros: 946_684_805_000_000,
                committed: true,
            },
        ]
    );
}

#[test]
fn plain_ends_of_transactions() {
    let commit = interpreted(&record(rmgr::TRANSACTION, 0x00, 0i64.to_le_bytes()));
    assert_eq!(
        (commit.slru, commit.commit_ts.len(), commit.catalogue.len()),
        (vec![clog(0, 1, &[700])], 1, 1)
    );
    let abort = interpreted(&record(rmgr::TRANSACTION, 0x20, 0i64.to_le_bytes()));
    assert_eq!((abort.slru, abort.commit_ts.len()), (vec![clog(0, 2, &[700])], 0));
    assert!(matches!(
        abort.catalogue[..],
        [CatalogueChange::TransactionEnd { committed: false, .. }]
    ));
}

#[test]
fn prepared_transactions_end_under_their_own_id() {
    let mut data = 0i64.to_le_bytes().to_vec();
    data.extend(words(&[0x10, 650]));
    for (info, status) in [(0xb0, CLOG_COMMITTED), (0xc0, CLOG_ABORTED)] {
        let effects = interpreted(&record(rmgr::TRANSACTION, info, data.clone()));
        assert_eq!(effects.slru, [clog(0, status, &[650])]);
        assert_eq!(
            effects.catalogue[0],
            CatalogueChange::TwoPhaseFinished { xid: 650 }
        );
    }
    // A plain commit may be told the id as well: it stays what it is.
    let effects = interpreted(&record(rmgr::TRANSACTION, 0x80, data));
    assert_eq!(effects.slru, [clog(0, CLOG_COMMITTED, &[700])]);
}

#[test]
fn what_no_server_writes_is_refused() {
    let with = |flags: u32, rest: &[u32]| {
        let data = [0i64.to_le_bytes().to_vec(), words(&[flags]), words(rest)].concat();
        record(rmgr::TRANSACTION, 0x80, data)
    };
    let abort = |flags, rest: &[u32]| DecodedRecord {
        info: 0xa0,
        ..with(flags, rest)
    };
    let no_xid = DecodedRecord {
        xid: 0,
        ..with(0, &[])
    };
    let no_prepared = DecodedRecord {
        info: 0xb0,
        ..with(0, &[])
    };
    let table = [
        (with(1 << 9, &[]), "it has a flag that Postgres does not know"),
        (with(2, &[u32::MAX]), "a count in its main data is negative"),
        (with(2, &[0x7fff_ffff, 1]), "its main data is too short"),
        (with(4, &[0x2aaa_aaab, 1, 2, 3]), "its main data is too short"),
        (with(2, &[1, 0]), "a transaction id is zero"),
        (
            with(0x90, &[5, 0x0101_0101]),
            "a string in its main data has no end",
        ),
        (
            with(0x20, &[1, 2, 3, 4]),
            "it has a replication origin's position and no origin",
        ),
        (with(0, &[1]), "its main data is longer than its contents"),
        (abort(8, &[0]), "an abort carries invalidations"),
        (no_xid, "a transaction id is zero"),
        (no_prepared, "it does not name its prepared transaction"),
    ];
    for (record, rule) in table {
        let error = crate::interpret(&record).unwrap_err().to_string();
        assert!(error.ends_with(rule), "{error} instead of {rule}");
    }
}

#[test]
fn an_origin_that_is_not_tracked_and_times_at_the_ends() {
    let record = DecodedRecord {
        origin: Some(u16::MAX),
        ..full_commit(PgVersion::V15)
    };
    let effects = interpreted(&record);
    assert!(
        !effects
            .catalogue
            .iter()
            .any(|change| matches!(change, CatalogueChange::OriginAdvanced { .. }))
    );
}
