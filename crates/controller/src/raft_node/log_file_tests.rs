//! The log file against tears and damage at every byte.

use super::*;

fn entry(index: u64, term: u64, data: &str) -> Entry {
    let mut entry = Entry {
        term,
        index,
        ..Entry::default()
    };
    entry.data = data.as_bytes().to_vec().into();
    entry.context = vec![1, 2].into();
    entry
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote: 1,
        commit,
        ..HardState::default()
    }
}

/// A file of three appends; returns the sizes after each.
fn three_appends(path: &Path) -> Vec<u64> {
    let (mut log, replayed) = LogFile::open(path).unwrap();
    assert_eq!(replayed, Replayed::default());
    let mut sizes = Vec::new();
    for (state, entries) in [
        (hard_state(1, 1), vec![entry(2, 1, "a"), entry(3, 1, "b")]),
        (hard_state(2, 2), vec![entry(3, 2, "c"), entry(4, 2, "d")]),
        (hard_state(2, 4), vec![entry(5, 2, "")]),
    ] {
        log.append(&state, &entries).unwrap();
        sizes.push(log.bytes());
    }
    sizes
}

fn indexes(replayed: &Replayed) -> Vec<(u64, u64)> {
    replayed
        .entries
        .iter()
        .map(|entry| (entry.index, entry.term))
        .collect()
}

#[test]
fn appends_are_read_back_and_later_ones_replace_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    three_appends(&path);
    let (mut log, replayed) = LogFile::open(&path).unwrap();
    assert_eq!(indexes(&replayed), [(2, 1), (3, 2), (4, 2), (5, 2)]);
    assert_eq!(replayed.entries[1], entry(3, 2, "c"));
    assert_eq!(replayed.hard_state, Some(hard_state(2, 4)));
    log.append(&hard_state(3, 5), &[]).unwrap();
    assert_eq!(LogFile::open(&path).unwrap().1.hard_state, Some(hard_state(3, 5)));
}

#[test]
fn a_torn_last_append_is_cut_off_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let sizes = three_appends(&path);
    let whole = fs::read(&path).unwrap();
    for length in sizes[1] as usize + 1..whole.len() {
        // Either the file is short, or its end was never written and reads as zeros.
        for torn in [whole[..length].to_vec(), {
            let mut zeros = whole[..length].to_vec();
            zeros.resize(whole.len() + 4096, 0);
            zeros
        }] {
            fs::write(&path, &torn).unwrap();
            // A last byte that happens to be zero makes the frame whole again.
            let zeros_behind = torn.len() > whole.len() && whole[length..].iter().all(|&byte| byte == 0);
            let (mut log, replayed) = LogFile::open(&path).unwrap();
            assert!(replayed.cut_bytes > 0);
            let expected = if zeros_behind { 5 } else { 4 };
            assert_eq!(indexes(&replayed).last().unwrap().0, expected, "length {length}");
            if expected == 4 {
                log.append(&hard_state(2, 4), &[entry(5, 2, "again")]).unwrap();
            }
            assert_eq!(LogFile::open(&path).unwrap().1.entries.len(), 4);
        }
    }
}

#[test]
fn damage_before_the_last_append_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let sizes = three_appends(&path);
    let good = fs::read(&path).unwrap();
    for byte in 0..sizes[1] as usize {
        let mut bad = good.clone();
        bad[byte] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        let error = LogFile::open(&path)
            .expect_err(&format!("byte {byte}"))
            .to_string();
        assert!(error.contains("log is damaged"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bad, "a refused file is left as it is");
    }
    for length in 0..HEADER_BYTES {
        fs::write(&path, &good[..length]).unwrap();
        assert!(LogFile::open(&path).is_err());
    }
}
