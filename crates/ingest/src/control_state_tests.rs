use super::*;
use crate::testing::{checkpoint, full_commit, prepare, record, words, written_by};

fn state() -> ControlState {
    ControlState::from_checkpoint(&checkpoint())
}

fn after(mut state: ControlState, record: &DecodedRecord) -> Checkpoint {
    state.apply(record).unwrap();
    state.to_checkpoint()
}

#[test]
fn ids_advance_and_the_epoch_rises_at_the_end() {
    let end = u64::from(u32::MAX);
    let table = [
        (700, 700, 701),
        (700, 699, 700),
        (700, 0, 700),
        (700, 2, 700),
        (700, 5000, 5001),
        (end - 5, u32::MAX, 1 << 32 | 3),
        (end - 5, 10, 1 << 32 | 11),
        (5 << 32 | 700, 700, 5 << 32 | 701),
        (5 << 32 | 700, u32::MAX, 5 << 32 | 700),
    ];
    for (next, seen, expected) in table {
        let mut state = ControlState::from_checkpoint(&Checkpoint {
            next_xid: next,
            ..checkpoint()
        });
        assert_eq!(state.see_xid(seen), next != expected, "{next:x} {seen:x}");
        assert_eq!(state.next_xid(), expected, "{next:x} {seen:x}");
    }
}

#[test]
fn each_record_moves_what_recovery_moves() {
    let before = checkpoint();
    let next_xid = 701; // the records' own
    let table = [
        (record(8, 0x00, []), Checkpoint { next_xid, ..before }),
        (
            full_commit(PgVersion::V15),
            Checkpoint {
                next_xid: 32_769,
                ..before
            },
        ),
        (
            prepare(PgVersion::V15),
            Checkpoint {
                next_xid: 702,
                ..before
            },
        ),
        (
            record(rmgr::TRANSACTION, 0x50, words(&[700, 1, 800])),
            Checkpoint {
                next_xid: 801,
                ..before
            },
        ),
        (
            record(rmgr::XLOG, 0x30, words(&[5])),
            Checkpoint {
                next_xid,
                next_oid: 5,
                ..before
            },
        ),
        (
            record(rmgr::MULTIXACT, 0x20, words(&[12, 40, 2, 700, 1, 900, 1])),
            Checkpoint {
                next_xid: 901,
                next_multi: 13,
                next_multi_offset: 42,
                ..before
            },
        ),
        (
            record(rmgr::MULTIXACT, 0x20, words(&[5, 10, 1, 700, 1])),
            Checkpoint { next_xid, ..before },
        ),
        (
            record(rmgr::MULTIXACT, 0x30, words(&[7, 5, 9, 1, 2])),
            Checkpoint {
                next_xid,
                oldest_multi: 9,
                oldest_multi_db: 7,
                ..before
            },
        ),
        (
            record(rmgr::CLOG, 0x10, words(&[0, 650, 7])),
            Checkpoint {
                next_xid,
                oldest_xid: 650,
                oldest_xid_db: 7,
                ..before
            },
        ),
        (
            record(rmgr::CLOG, 0x10, words(&[0, 550, 7])),
            Checkpoint { next_xid, ..before },
        ),
        (
            record(rmgr::XLOG, 0x80, [0]),
            Checkpoint {
                next_xid,
                full_page_writes: false,
                ..before
            },
        ),
        (
            record(rmgr::XLOG, 0x90, [words(&[0, 0]), words(&[3, 2])].concat()),
            Checkpoint {
                next_xid,
                timeline: 3,
                previous_timeline: 2,
                ..before
            },
        ),
    ];
    for (record, expected) in table {
        assert_eq!(after(state(), &record), expected, "{record:?}");
    }
}

#[test]
fn since_17_the_wal_level_is_in_the_checkpoint() {
    let level = |version, record| after(state(), &written_by(version, record)).wal_level;
    let parameters = || record(rmgr::XLOG, 0x60, words(&[100, 8, 10, 0, 64, 2, 0]));
    let redo = || record(rmgr::XLOG, 0xe0, words(&[2]));
    let end_of_recovery = || record(rmgr::XLOG, 0x90, words(&[0, 0, 2, 1, 2, 0]));
    assert_eq!(level(PgVersion::V16, parameters()), 0);
    for version in [PgVersion::V17, PgVersion::V18] {
        for record in [parameters(), redo(), end_of_recovery()] {
            assert_eq!(level(version, record), 2);
        }
    }
    let impossible = written_by(PgVersion::V17, record(rmgr::XLOG, 0xe0, words(&[3])));
    assert!(state().apply(&impossible).is_err());
}

#[test]
fn a_shutdown_checkpoint_is_believed_and_an_online_one_is_a_minimum() {
    let told = Checkpoint {
        redo: Lsn(0x900),
        next_xid: 690,
        next_oid: 100,
        next_multi: 9,
        next_multi_offset: 100,
        oldest_xid: 599,
        oldest_xid_db: 2,
        oldest_multi: 4,
        oldest_multi_db: 2,
        time: 1_700_000_100,
        oldest_commit_ts_xid: 650,
        newest_commit_ts_xid: 660,
        full_page_writes: false,
        ..checkpoint()
    };
    let no_xid = |info| DecodedRecord {
        xid: 0,
        ..record(rmgr::XLOG, info, told.encode())
    };
    let both = Checkpoint {
        redo: told.redo,
        time: told.time,
        full_page_writes: false,
        ..checkpoint()
    };
    let shutdown = Checkpoint {
        next_xid: 690,
        next_oid: 100,
        next_multi: 9,
        next_multi_offset: 100,
        oldest_xid: 599,
        oldest_xid_db: 2,
        ..both
    };
    assert_eq!(after(state(), &no_xid(0x00)), shutdown);
    let online = Checkpoint {
        next_multi_offset: 100,
        ..both
    };
    assert_eq!(after(state(), &no_xid(0x10)), online);
}

#[test]
fn commit_timestamps_are_followed_from_when_they_are_switched_on() {
    let switch = |on: u32| record(rmgr::XLOG, 0x60, words(&[100, 8, 10, 0, 64, 1, on << 8]));
    let horizons = |state: &ControlState| {
        let checkpoint = state.to_checkpoint();
        (checkpoint.oldest_commit_ts_xid, checkpoint.newest_commit_ts_xid)
    };
    let mut state = state();
    state.apply(&full_commit(PgVersion::V15)).unwrap();
    assert_eq!((horizons(&state), state.commit_ts_active()), ((0, 0), false));
    assert_eq!(state.apply(&switch(1)), Ok(true));
    assert_eq!(
        (horizons(&state), state.commit_ts_active()),
        ((32_769, 32_769), true)
    );
    assert_eq!(state.apply(&switch(1)), Ok(false));
    let commit = DecodedRecord {
        xid: 32_780,
        ..record(rmgr::TRANSACTION, 0x00, 0i64.to_le_bytes())
    };
    assert_eq!(state.apply(&commit), Ok(true));
    assert_eq!(horizons(&state), (32_769, 32_780));
    assert_eq!(state.apply(&commit), Ok(false));
    state
        .apply(&record(rmgr::COMMIT_TS, 0x10, words(&[40, 32_775])))
        .unwrap();
    assert_eq!(horizons(&state), (32_775, 32_780));
    assert_eq!(ControlState::from_checkpoint(&state.to_checkpoint()), state);
    state.apply(&switch(0)).unwrap();
    assert_eq!((horizons(&state), state.commit_ts_active()), ((0, 0), false));
}

#[test]
fn stored_form_round_trips_and_other_bytes_are_refused() {
    let mut state = state();
    state.see_xid(5_000_000);
    state.commit_ts_active = true;
    let bytes = state.encode();
    assert_eq!(ControlState::decode(&bytes), Ok(state));
    assert_eq!(bytes[..2], [1, 1]);
    for length in 0..bytes.len() {
        assert!(ControlState::decode(&bytes[..length]).is_err());
    }
    for (at, value) in [(0, 2), (1, 2), (2 + 17, 1), (2 + 60, 1), (2 + 84, 1)] {
        let mut other = bytes;
        other[at] = value;
        assert!(ControlState::decode(&other).is_err(), "byte {at}");
    }
}

#[test]
fn a_refused_record_changes_nothing() {
    let mut state = state();
    let before = state;
    assert!(state.apply(&record(rmgr::XLOG, 0x30, [1])).is_err());
    assert!(state.apply(&record(100, 0x30, [1])).is_err());
    assert_eq!(state, before);
}
