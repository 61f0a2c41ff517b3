//! Small segments make borders frequent; the sizes are otherwise like real ones.

use super::*;
use crate::wal_files::WalFiles;
use lakebed_types::PgVersion;
use lakebed_wal::page::WalFormat;

const SEGMENT: u64 = 1 << 16;

fn pattern(begin: Lsn, length: usize) -> Vec<u8> {
    (begin.0..)
        .take(length)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1)
        .collect()
}

fn read_all(store: &WalStore) -> Vec<u8> {
    let format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: 5,
        segment_bytes: SEGMENT as u32,
    };
    let length = store.write_lsn().0 - store.start().0;
    let files = WalFiles::new(&store.directory, format, store.start());
    files.read(store.start(), length as usize).unwrap()
}

#[test]
fn appended_wal_is_read_back_across_segments_and_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT * 300 - 40); // the name's middle part changes nothing at this segment size
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    let mut end = start;
    for length in [1, 39, 8, SEGMENT as usize, 3 * SEGMENT as usize + 5, 0, 77] {
        store.append(end, &pattern(end, length)).unwrap();
        end = Lsn(end.0 + length as u64);
        assert_eq!(store.write_lsn(), end);
        assert!(store.flush_lsn() <= end);
    }
    assert_eq!(store.flush().unwrap(), end);
    let expected = pattern(start, (end.0 - start.0) as usize);
    assert!(read_all(&store) == expected);
    drop(store);
    let store = WalStore::open(dir.path(), SEGMENT, start, end).unwrap();
    assert!(read_all(&store) == expected);
}

#[test]
fn what_lies_beyond_the_known_end_is_zeros_after_opening_and_truncation() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT + 100);
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    store
        .append(start, &pattern(start, 3 * SEGMENT as usize))
        .unwrap();
    store.flush().unwrap();

    let middle = Lsn(2 * SEGMENT + 500);
    store.truncate(middle).unwrap();
    assert_eq!((store.write_lsn(), store.flush_lsn()), (middle, middle));
    let names = || fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names(), 2);
    let raw = fs::read(store.segment_path(2)).unwrap();
    let marked = [
        pattern(Lsn(2 * SEGMENT), 500),
        flush_mark::encode(middle, middle).to_vec(),
    ]
    .concat();
    let as_marked =
        |raw: &[u8]| raw.starts_with(&marked) && raw[marked.len()..].iter().all(|&byte| byte == 0);
    assert!(as_marked(&raw));

    store.append(middle, &pattern(middle, 10)).unwrap();
    drop(store); // never flushed: a crash may keep any part of it
    let store = WalStore::open(dir.path(), SEGMENT, start, middle).unwrap();
    let raw = fs::read(store.segment_path(2)).unwrap();
    assert!(as_marked(&raw));
    assert_eq!(store.write_lsn(), middle);
}

#[test]
fn calls_that_would_leave_a_gap_or_touch_foreign_wal_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT + 100);
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    for begin in [Lsn(start.0 - 1), Lsn(start.0 + 1)] {
        assert!(matches!(
            store.append(begin, b"x"),
            Err(WalStoreError::NotContiguous { .. })
        ));
    }
    for lsn in [Lsn(start.0 - 1), Lsn(start.0 + 1)] {
        assert!(matches!(
            store.truncate(lsn),
            Err(WalStoreError::OutOfRange { .. })
        ));
    }
    assert_eq!(store.write_lsn(), start);
}

#[test]
fn what_was_created_is_as_if_it_had_been_opened() {
    for (offset, headers) in [(0, 0), (8, 0), (100, 1), (20_000, 2), (SEGMENT - 40, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let start = Lsn(7 * SEGMENT + offset);
        let page = Lsn(start.0 - start.0 % 8192);
        let headers = [(Lsn(7 * SEGMENT), vec![1; 40]), (page, vec![2; 24])][..headers].to_vec();
        let created = WalStore::create(dir.path(), SEGMENT, start, &headers).unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names(), usize::from(offset > 0));
        let raw = |store: &WalStore| fs::read(store.segment_path(7)).ok();
        let before = raw(&created);
        let opened = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
        assert_eq!(raw(&opened), before, "offset {offset}");
        // Where there is no room for a mark there are zeros instead.
        assert_eq!(format!("{created:?}"), format!("{opened:?}"));
        if let Some(raw) = before {
            assert_eq!(raw.len() as u64, SEGMENT);
            for (at, header) in &headers {
                assert!(raw[at.segment_offset(SEGMENT) as usize..].starts_with(header));
            }
        }
    }
}

#[test]
fn nothing_is_placed_beside_the_first_segment_or_over_wal() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT + 100);
    for at in [SEGMENT + 80, SEGMENT - 80] {
        let headers = [(Lsn(at), vec![1; 40])];
        assert!(matches!(
            WalStore::create(dir.path(), SEGMENT, start, &headers),
            Err(WalStoreError::OutOfRange { .. })
        ));
    }
    let mut store = WalStore::create(dir.path(), SEGMENT, start, &[]).unwrap();
    store.append(start, &pattern(start, 100)).unwrap();
    store.flush().unwrap();
    assert!(WalStore::create(dir.path(), SEGMENT, start, &[]).is_err());
    assert!(read_all(&store) == pattern(start, 100));
}

#[test]
fn a_crash_in_the_middle_of_a_truncation_is_repaired_when_opened() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT);
    let end = Lsn(SEGMENT + 1000);
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    store.append(start, &pattern(start, 2000)).unwrap();
    store.flush().unwrap();
    let segment = OpenOptions::new()
        .write(true)
        .open(store.segment_path(1))
        .unwrap();
    segment.set_len(1000).unwrap(); // cut, and not yet extended again
    let store = WalStore::open(dir.path(), SEGMENT, start, end).unwrap();
    assert!(read_all(&store) == pattern(start, 1000));
    assert_eq!(segment.metadata().unwrap().len(), SEGMENT);
    segment.set_len(999).unwrap();
    assert!(matches!(
        WalStore::open(dir.path(), SEGMENT, start, end),
        Err(WalStoreError::Damaged { .. })
    ));
}

#[test]
fn removal_takes_whole_segments_also_those_that_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT + 100);
    let end = Lsn(6 * SEGMENT + 9);
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    store
        .append(start, &pattern(start, (end.0 - start.0) as usize))
        .unwrap();
    store.flush().unwrap();
    let left = |dir: &Path| {
        let there = |number: &u64| segment_path(dir, SEGMENT, *number).exists();
        (1..=6).filter(there).collect::<Vec<_>>()
    };
    store.remove_below(Lsn(2 * SEGMENT - 1)).unwrap();
    assert_eq!(left(dir.path()), [1, 2, 3, 4, 5, 6]);
    store.remove_below(Lsn(3 * SEGMENT)).unwrap();
    assert_eq!(left(dir.path()), [3, 4, 5, 6]);
    assert!(store.remove_below(Lsn(end.0 + 1)).is_err());
    drop(store);
    // The control file names a later start than the removal got to.
    let at = Lsn(5 * SEGMENT + 8);
    let mut store = WalStore::open(dir.path(), SEGMENT, at, end).unwrap();
    store.remove_below(at).unwrap();
    assert_eq!(left(dir.path()), [5, 6]);
    assert!(read_all(&store) == pattern(at, (end.0 - at.0) as usize));
}

#[test]
fn a_missing_or_short_segment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT);
    let end = Lsn(4 * SEGMENT + 9);
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    store
        .append(start, &pattern(start, (end.0 - start.0) as usize))
        .unwrap();
    store.flush().unwrap();
    let victim = store.segment_path(2);
    drop(store);
    OpenOptions::new()
        .write(true)
        .open(&victim)
        .unwrap()
        .set_len(5)
        .unwrap();
    let error = WalStore::open(dir.path(), SEGMENT, start, end).unwrap_err();
    assert!(
        matches!(&error, WalStoreError::Damaged { path, .. } if *path == victim),
        "{error}"
    );
    fs::remove_file(&victim).unwrap();
    let error = WalStore::open(dir.path(), SEGMENT, start, end).unwrap_err();
    assert!(
        matches!(&error, WalStoreError::Damaged { path, .. } if *path == victim),
        "{error}"
    );
}

#[test]
fn after_a_failed_write_nothing_is_reported_durable() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT);
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    store.append(start, b"kept").unwrap();
    let flushed = store.flush().unwrap();
    // The next segment cannot be created: its name is taken by a directory.
    fs::create_dir(store.segment_path(2)).unwrap();
    let long = pattern(flushed, SEGMENT as usize);
    assert!(matches!(
        store.append(flushed, &long),
        Err(WalStoreError::Io { .. })
    ));
    assert_eq!(store.flush_lsn(), flushed);
    assert!(matches!(store.flush(), Err(WalStoreError::Stopped { .. })));
    assert!(matches!(
        store.append(flushed, b"x"),
        Err(WalStoreError::Stopped { .. })
    ));
    assert_eq!(store.flush_lsn(), flushed);
}

#[test]
fn a_mark_follows_the_end_of_the_wal_and_tells_what_was_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT + 104);
    let marked = |end| flush_mark::find(dir.path(), SEGMENT, end).unwrap();
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    assert_eq!(marked(start), Some(start));
    let mut end = start;
    // Below, at and above what a mark takes, and across a segment.
    for length in [24, 96, 200, 40_000, 30_000, 48] {
        let before = end;
        store.append(end, &pattern(end, length)).unwrap();
        end = Lsn(end.0 + length as u64);
        // What a power cut leaves of the flush: the mark that went with the WAL.
        assert_eq!(marked(end), Some(before));
        assert_eq!(marked(before), Some(before), "found from below as well");
        assert_eq!(store.flush().unwrap(), end);
        assert_eq!(
            marked(end),
            Some(before),
            "nobody has waited for the other one yet"
        );
        store.after_flush().unwrap();
        assert_eq!(marked(end), Some(end));
        assert_eq!(marked(start), Some(end));
    }
    // No room for one: the zeros that cover the last one go to the end of the segment.
    let before = end;
    // Pieces in one page, with their mark or without room for it there, and over several.
    for lengths in [&[8, 16, 24][..], &[4000 - 48, 40], &[1; 100], &[5000, 3, 0, 5000]] {
        let mut pieces = Vec::new();
        let begin = end;
        for length in lengths {
            pieces.push(pattern(end, *length));
            end = Lsn(end.0 + *length as u64);
        }
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
        store.append_all(begin, &pieces).unwrap();
        assert_eq!(marked(end), Some(before), "{lengths:?}");
        assert_eq!(store.write_lsn(), end);
    }
    assert!(read_all(&store) == pattern(start, (end.0 - start.0) as usize));
    assert_eq!(store.flush().unwrap(), end);
    store.after_flush().unwrap();
    let border = Lsn(end.0.next_multiple_of(SEGMENT));
    let near = Lsn(border.0 - 40);
    store
        .append(end, &pattern(end, (near.0 - end.0) as usize - 8))
        .unwrap();
    store.flush().unwrap();
    let end = store.write_lsn();
    assert_eq!(marked(end), None);
    store.append(end, &pattern(end, 8)).unwrap();
    store.flush().unwrap();
    let raw = fs::read(store.segment_path(near.segment_number(SEGMENT))).unwrap();
    assert!(raw[SEGMENT as usize - 40..].iter().all(|&byte| byte == 0));
    store.truncate(Lsn(start.0 + 24)).unwrap();
    assert_eq!(marked(start), Some(Lsn(start.0 + 24)));
}

#[test]
fn zeros_ahead_never_cover_wal_or_its_mark() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT * 5 + 4000);
    let mut store = WalStore::open(dir.path(), SEGMENT, start, start).unwrap();
    let mut end = start;
    let mut zeroed = 0;
    for turn in 0..700_usize {
        // Now and then one that is too large for zeros, or cuts what was written.
        let length = match turn % 50 {
            49 => 20_000,
            _ => turn * 37 % 900 + 1,
        };
        store.append(end, &pattern(end, length)).unwrap();
        end = Lsn(end.0 + length as u64);
        assert_eq!(store.flush().unwrap(), end);
        let before = store.zeroed;
        store.after_flush().unwrap();
        zeroed += usize::from(store.zeroed > before);
        assert!(length <= SMALL_FLUSH as usize || store.zeroed == before);
        if turn % 90 == 89 {
            end = Lsn(end.0 - 300);
            store.truncate(end).unwrap();
        }
        assert_eq!(flush_mark::find(dir.path(), SEGMENT, end).unwrap().is_some(), {
            let room = SEGMENT - end.segment_offset(SEGMENT);
            room > flush_mark::TAIL_BYTES as u64 && room < SEGMENT
        });
        let raw = fs::read(store.segment_path(end.segment_number(SEGMENT)));
        if let Ok(raw) = raw {
            let behind = end.segment_offset(SEGMENT) as usize + flush_mark::TAIL_BYTES;
            assert!(raw.iter().skip(behind).all(|&byte| byte == 0), "turn {turn}");
            assert_eq!(raw.len() as u64, SEGMENT);
        }
    }
    assert!(zeroed > 10, "{zeroed}");
    assert!(read_all(&store) == pattern(start, (end.0 - start.0) as usize));
}
