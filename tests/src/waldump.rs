//! WAL as Postgres's own reader sees it.

use std::path::Path;
use std::process::Command;

use lakebed_pgtest::bin_dir;
use lakebed_types::Lsn;

use crate::recovery::SEGMENT_BYTES;

const PAGE_BYTES: u64 = 8192;

/// What `pg_waldump` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Start of the last record.
    pub last: Lsn,
    /// Where it ends and no other begins.
    pub end: Lsn,
    /// Number of records.
    pub records: usize,
}

/// Reads the segments of a directory from a record boundary to the end.
///
/// # Panics
/// When the records are not one chain from `start` on, or `pg_waldump` complains about anything but the end: where the
/// last record ends no other begins.
pub fn walk(directory: &Path, start: Lsn) -> Walk {
    let (walk, complaint) = read(directory, start);
    let Walk { last, end, .. } = walk;
    let length = format!("error in WAL record at {last}: invalid record length at {end}:");
    // Where the last record fills its page, the reader misses the next page (or segment) and not a record.
    let page = format!("error in WAL record at {last}: invalid magic number 0000");
    let whole = match end.0 {
        end if end % SEGMENT_BYTES == 0 => true,
        end if end % PAGE_BYTES == 0 => complaint.contains(&page),
        _ => complaint.contains(&length),
    };
    assert!(whole, "expected no record at {end}, found {complaint}");
    walk
}

/// Where the last whole record of a directory ends. A part of one more may follow: WAL is flushed by bytes, and a
/// process that is killed leaves what it had.
///
/// # Panics
/// When the records are not one chain from `start` on.
pub fn reach(directory: &Path, start: Lsn) -> Lsn {
    read(directory, start).0.end
}

/// The records and what the reader says at their end.
fn read(directory: &Path, start: Lsn) -> (Walk, String) {
    let mut waldump = Command::new(bin_dir().join("pg_waldump"));
    waldump
        .arg("-p")
        .arg(directory)
        .arg("-s")
        .arg(start.to_string())
        .env("LC_ALL", "C");
    let output = waldump.output().expect("pg_waldump");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    // rmgr: Heap  len (rec/tot):     54/    54, tx:  7, lsn: 0/01500028, prev 0/014FFFA0, desc: …
    let text = |line: &str, name: &str| -> String {
        let rest = line.split_once(name).unwrap_or_else(|| panic!("{line}")).1;
        rest.split(',').next().expect("a value").trim().to_owned()
    };
    let lsn = |line: &str, name: &str| -> Lsn {
        let text = text(line, name);
        text.parse().unwrap_or_else(|_| panic!("{text} in {line}"))
    };
    let mut last: Option<(Lsn, u64)> = None;
    let mut records = 0;
    for line in out.lines() {
        let (at, prev) = (lsn(line, "lsn: "), lsn(line, "prev "));
        match last {
            Some((last, _)) => assert_eq!(prev, last, "{line}"),
            // Only a page header may come in between.
            None => assert!(at.0 - start.0 <= 40, "the first record is not at {start}: {line}"),
        }
        let lengths = text(line, "(rec/tot):");
        let total = lengths.split_once('/').expect("two lengths").1.trim();
        last = Some((at, total.parse().expect("a length")));
        records += 1;
    }
    let (last, length) = last.unwrap_or_else(|| panic!("no record at {start}: {err}"));
    let complaints: Vec<&str> = err.lines().collect();
    let [complaint] = complaints.as_slice() else {
        panic!("expected one complaint, about the end, found {complaints:#?}");
    };
    let walk = Walk {
        last,
        end: end_of(last, length),
        records,
    };
    (walk, (*complaint).to_owned())
}

/// Where a record ends: its bytes, page headers in between, filled up to eight.
fn end_of(start: Lsn, length: u64) -> Lsn {
    let (mut at, mut left) = (start.0, length.next_multiple_of(8));
    loop {
        let room = PAGE_BYTES - at % PAGE_BYTES;
        if left <= room {
            return Lsn(at + left);
        }
        (at, left) = (at + room, left - room);
        at += if at % SEGMENT_BYTES == 0 { 40 } else { 24 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_behind_the_headers_of_its_pages() {
        let segment = 3 * SEGMENT_BYTES;
        for (start, length, end) in [
            (segment + 40, 30, segment + 72),
            // It fills its page: no header.
            (segment + 8152, 40, segment + 8192),
            (segment + 8152, 41, segment + 8192 + 24 + 8),
            (segment + 8152, 40 + 8168 + 8, segment + 2 * 8192 + 24 + 8),
            (segment - 24, 32, segment + 40 + 8),
        ] {
            assert_eq!(end_of(Lsn(start), length), Lsn(end), "{start} {length}");
        }
    }
}
