use super::*;
use crate::durable_file;
use std::fs;

fn state() -> Durable {
    Durable {
        term: Term(9),
        term_history: TermHistory::new(vec![(Term(0), Lsn(80)), (Term(7), Lsn(160))]).unwrap(),
        membership: Membership {
            generation: Generation(4),
            old: [NodeId(1), NodeId(2)].into(),
            new: Some([NodeId(3)].into()),
        },
        commit: Lsn(200),
        truncate: Lsn(80),
        backup: Lsn(120),
        timeline_start: Lsn(80),
        system_id: 0x1234,
        pg_version: PgVersion::V15,
        segment_bytes: 1 << 24,
    }
}

fn term(number: u64) -> Durable {
    Durable {
        term: Term(number),
        ..state()
    }
}

#[test]
fn state_round_trips_and_no_cut_is_taken_for_a_state() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(load(dir.path()), Err(ControlFileError::Missing(_))));
    ControlFile::create(dir.path(), &state()).unwrap();
    assert_eq!(load(dir.path()).unwrap(), state());
    let without_next = Durable {
        membership: Membership {
            new: None,
            ..state().membership
        },
        ..state()
    };
    assert_eq!(decode(&encode(&without_next)), Some(without_next));
    let good = encode(&state());
    assert!((0..good.len()).all(|length| decode(&good[..length]).is_none()));
    assert_eq!(decode(&[good.as_slice(), &[0]].concat()), None);
}

#[test]
fn version_1_stays_readable_and_a_newer_one_is_refused() {
    let golden = "09000000000000005000000000000000500000000000000078000000000000\
        00c80000000000000034120000000000000f00000000000001000000000400000000000000\
        020000000100000000000000020000000000000001000000030000000000000002000000\
        0000000000000000500000000000000007000000000000 00a000000000000000";
    let digits: Vec<u8> = golden.bytes().filter(u8::is_ascii_hexdigit).collect();
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    assert_eq!(decode(&bytes), Some(state()));
    let dir = tempfile::tempdir().unwrap();
    let [file, copy] = FILE_NAMES.map(|name| dir.path().join(name));
    durable_file::replace(&file, 1, &bytes).unwrap();
    let mut opened = ControlFile::open(dir.path()).unwrap();
    assert_eq!(*opened.state(), state());
    assert_eq!(
        fs::read(&file).unwrap(),
        fs::read(&copy).unwrap(),
        "it has a copy now"
    );
    opened.store(&term(10)).unwrap();
    durable_file::replace(&copy, 3, &bytes).unwrap();
    for read in [load(dir.path()).err(), ControlFile::open(dir.path()).err()] {
        assert!(
            matches!(read, Some(ControlFileError::Newer { found: 3 })),
            "{read:?}"
        );
    }
}

/// What a copy may be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    Old,
    New,
    Damaged,
    Missing,
}

#[test]
fn what_was_promised_outlives_either_copy() {
    use self::Copy::{Damaged, Missing, New, Old};
    let dir = tempfile::tempdir().unwrap();
    let paths = FILE_NAMES.map(|name| dir.path().join(name));
    let mut control = ControlFile::create(dir.path(), &term(1)).unwrap();
    let old = fs::read(&paths[0]).unwrap();
    control.store(&term(2)).unwrap();
    let new = fs::read(&paths[0]).unwrap();
    assert_eq!(fs::read(&paths[1]).unwrap(), new);
    let lay = |copies: [Copy; 2]| {
        for (path, copy) in paths.iter().zip(copies) {
            let _ = fs::remove_file(path);
            match copy {
                Old => fs::write(path, &old).unwrap(),
                New => fs::write(path, &new).unwrap(),
                Damaged => fs::write(path, [&new[..new.len() - 1], &[0x5a]].concat()).unwrap(),
                Missing => {}
            }
        }
    };
    // An old one beside a new one is a write that a crash interrupted: nobody was told of it, nor that it is void.
    let table = [
        ([New, New], Some(2)),
        ([New, Old], Some(2)),
        ([Old, New], Some(2)),
        ([New, Damaged], Some(2)),
        ([Damaged, New], Some(2)),
        ([New, Missing], Some(2)),
        ([Missing, New], Some(2)),
        ([Old, Damaged], Some(1)),
        ([Damaged, Damaged], None),
        ([Damaged, Missing], None),
        ([Missing, Damaged], None),
    ];
    for (copies, found) in table {
        lay(copies);
        assert_eq!(
            load(dir.path()).ok().map(|state| state.term.0),
            found,
            "{copies:?}"
        );
        let opened = ControlFile::open(dir.path());
        let Some(found) = found else {
            assert!(matches!(opened, Err(ControlFileError::File(_))), "{copies:?}");
            continue;
        };
        // Before anybody acts on it, it is there twice, and the next write is newer than both.
        assert_eq!(opened.unwrap().state().term, Term(found));
        assert_eq!(
            fs::read(&paths[0]).unwrap(),
            fs::read(&paths[1]).unwrap(),
            "{copies:?}"
        );
        ControlFile::open(dir.path()).unwrap().store(&term(7)).unwrap();
        assert_eq!(load(dir.path()).unwrap().term, Term(7), "{copies:?}");
    }
    // A process that has the state in memory writes it anew, whatever became of the copies.
    lay([New, New]);
    let mut control = ControlFile::open(dir.path()).unwrap();
    control.store(&term(7)).unwrap();
    for (copies, damaged) in [
        ([Damaged, New], 1),
        ([Damaged, Damaged], 2),
        ([Missing, New], 1),
        ([New, New], 0),
        ([Old, New], 0),
    ] {
        lay(copies);
        assert_eq!(damage(dir.path()).len(), damaged, "{copies:?}");
        control.rewrite().unwrap();
        assert_eq!(load(dir.path()).unwrap().term, Term(7));
        assert!(damage(dir.path()).is_empty());
    }
}
