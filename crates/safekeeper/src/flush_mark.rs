//! A mark behind the end of the WAL that says how far it was durable.
//!
//! After a crash a record that does not decode is either the torn tail of a write that nobody acknowledged, or rot in one
//! that was. The control file tells the two apart only up to the commit position in it, which follows in large steps. The
//! mark does for the rest. It lies in the segment file, so the flush of the WAL before it is also its own:
//!
//! | bytes behind the end of the WAL | content |
//! |---|---|
//! | 0..64 | zeros: a reader of the WAL stops here |
//! | 64..72 | magic `LKBDMARK` |
//! | 72..76 | version, little-endian |
//! | 76..80 | CRC32C of all other bytes from 64 on |
//! | 80..88 | end of the WAL that the mark follows |
//! | 88..96 | all WAL below was durable when the mark was written |
//!
//! It is written twice. With each append, before the bytes that cover the mark before, when it can only tell what the last
//! flush made durable; and again when the flush of that append is done and answered, telling its end, without a flush of its
//! own: a process that ends leaves that one with the kernel, and a power cut takes it back to the first. The next mark covers what
//! is left of the last. Near the end of a segment there is no room for one, and a power cut in the middle of a flush may
//! take it away: without a mark the control file's position holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lakebed_types::Lsn;

use crate::wal_store::{WalStoreError, segment_path};

const MAGIC: &[u8; 8] = b"LKBDMARK";
const VERSION: u32 = 1;
/// Zeros before the mark: more than the longest page header and a record's length.
const GAP_BYTES: usize = 64;
const MARK_BYTES: usize = 32;
/// Room that a mark takes behind the end of the WAL, in bytes.
pub const TAIL_BYTES: usize = GAP_BYTES + MARK_BYTES;
/// Bytes that are searched at a time.
const SCAN_BYTES: usize = 1 << 20;

/// What to write at `end`, the end of the WAL, when it is durable up to `durable`.
pub fn encode(end: Lsn, durable: Lsn) -> [u8; TAIL_BYTES] {
    let mut tail = [0; TAIL_BYTES];
    let mark = &mut tail[GAP_BYTES..];
    mark[..8].copy_from_slice(MAGIC);
    mark[8..12].copy_from_slice(&VERSION.to_le_bytes());
    mark[16..24].copy_from_slice(&end.0.to_le_bytes());
    mark[24..].copy_from_slice(&durable.0.to_le_bytes());
    let crc = checksum(mark);
    mark[12..16].copy_from_slice(&crc.to_le_bytes());
    tail
}

fn checksum(mark: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&mark[..12]), &mark[16..])
}

/// What the mark at `at` says is durable; `None` when there is none.
fn decode(mark: &[u8; MARK_BYTES], at: Lsn) -> Option<Lsn> {
    let word = |from: usize| {
        mark.get(from..)?
            .first_chunk()
            .map(|word| u64::from_le_bytes(*word))
    };
    let versioned = mark.get(8..12)? == VERSION.to_le_bytes();
    let checked = mark.get(12..16)? == checksum(mark).to_le_bytes();
    let (end, durable) = (word(16)?, word(24)?);
    let here = end.checked_add(GAP_BYTES as u64) == Some(at.0);
    (mark.starts_with(MAGIC) && versioned && checked && here && durable <= end).then_some(Lsn(durable))
}

/// The highest position that a mark at or behind `end`, the end of what decodes, says was durable.
///
/// # Errors
/// A segment could not be read. One that is missing or short ends the search.
pub fn find(directory: &Path, segment_bytes: u64, end: Lsn) -> Result<Option<Lsn>, WalStoreError> {
    let mut best = None;
    let mut at = end;
    loop {
        let path = segment_path(directory, segment_bytes, at.segment_number(segment_bytes));
        let failed = |source| WalStoreError::Io {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(best),
            Err(error) => return Err(failed(error)),
        };
        if at == end
            && let Some(durable) = at_end(&file, segment_bytes, end).map_err(failed)?
        {
            return Ok(Some(durable));
        }
        let next = Lsn((at.0 / segment_bytes + 1) * segment_bytes);
        best = best.max(scan(&file, segment_bytes, (at, next)).map_err(failed)?);
        at = next;
    }
}

/// The mark right behind the end, where it is unless a write was torn or a record has rotted.
fn at_end(file: &File, segment_bytes: u64, end: Lsn) -> io::Result<Option<Lsn>> {
    let mut mark = [0; MARK_BYTES];
    let offset = end.segment_offset(segment_bytes) + GAP_BYTES as u64;
    match file.read_exact_at(&mut mark, offset) {
        Ok(()) => Ok(decode(&mark, Lsn(end.0 + GAP_BYTES as u64))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The best of all marks in this part of a segment.
fn scan(file: &File, segment_bytes: u64, (from, to): (Lsn, Lsn)) -> io::Result<Option<Lsn>> {
    let mut best = None;
    // Ends of records are aligned to 8 bytes, and so are marks.
    let mut at = Lsn(from.0.next_multiple_of(8));
    let mut bytes = vec![0; SCAN_BYTES];
    while at.0 + MARK_BYTES as u64 <= to.0 {
        let length = usize::try_from(to.0 - at.0).unwrap_or(SCAN_BYTES).min(SCAN_BYTES);
        let Some(window) = bytes.get_mut(..length) else {
            return Ok(best);
        };
        match file.read_exact_at(window, at.segment_offset(segment_bytes)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(best),
            Err(error) => return Err(error),
        }
        let mut step = 0;
        while let Some(mark) = window.get(step..).and_then(<[u8]>::first_chunk) {
            best = best.max(decode(mark, Lsn(at.0 + step as u64)));
            step += 8;
        }
        // The first place at which a mark did not fit.
        at = Lsn(at.0 + step as u64);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 21;

    #[test]
    fn a_mark_counts_only_where_it_was_written_and_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = segment_path(dir.path(), SEGMENT, 3);
        let begin = Lsn(3 * SEGMENT);
        let found = |end| find(dir.path(), SEGMENT, end).unwrap();
        assert_eq!(found(begin), None, "no file");
        let mut wal = vec![0x5a; SEGMENT as usize];
        // Across the border of what is read at a time.
        let end = Lsn(begin.0 + SCAN_BYTES as u64 - 80);
        let at = (end.0 - begin.0) as usize;
        wal[at..at + TAIL_BYTES].copy_from_slice(&encode(end, Lsn(end.0 - 800)));
        std::fs::write(&path, &wal).unwrap();
        for from in [begin, Lsn(end.0 - 8), end] {
            assert_eq!(found(from), Some(Lsn(end.0 - 800)), "from {from}");
        }
        for bit in ((at + GAP_BYTES) * 8..(at + TAIL_BYTES) * 8).step_by(5) {
            let mut bad = wal.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(found(end), None, "bit {bit}");
        }
        wal.copy_within(at..at + TAIL_BYTES, 4096);
        wal[at..].fill(0);
        std::fs::write(&path, &wal).unwrap();
        assert_eq!(found(begin), None, "a copy elsewhere");
    }
}
