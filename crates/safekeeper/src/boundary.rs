//! The last record boundary at or below a position.
//!
//! Records are chained backwards only by `xl_prev`, which is of no use from the middle of one. Page headers tell how
//! much of an earlier record a page begins with, so the search goes back page by page to one where a record begins,
//! and from there forward by decoding.

use lakebed_types::Lsn;
use lakebed_wal::page::{FLAG_CONTINUATION, WAL_PAGE_BYTES, header_bytes};
use lakebed_wal::stream::WalDecoder;

use crate::recovery::Boundary;
use crate::wal_files::WalFiles;
use crate::wal_store::WalStoreError;

const SCAN_BYTES: u64 = 256 << 10;

/// The last boundary at or below `at`, which must lie between the start of the files and the end of valid WAL. Its
/// `record_start` is invalid when it is the start of the timeline.
pub fn at_or_below(files: &WalFiles, at: Lsn) -> Result<Boundary, WalStoreError> {
    let mut page = Lsn(at.0 - at.0 % WAL_PAGE_BYTES);
    while page > files.start() {
        if let Some(begin) = first_record(files, page, at)?
            && let Some(found) = last_before(files, begin, at)?
        {
            return Ok(found);
        }
        page = Lsn(page.0 - WAL_PAGE_BYTES);
    }
    let nothing = Boundary {
        lsn: files.start(),
        record_start: Lsn::INVALID,
    };
    Ok(last_before(files, files.start(), at)?.unwrap_or(nothing))
}

/// Where decoding can begin on a page, when a record begins there below `at`.
pub(crate) fn first_record(files: &WalFiles, page: Lsn, at: Lsn) -> Result<Option<Lsn>, WalStoreError> {
    let header = header_bytes(page, files.format().segment_bytes);
    if at.0 < page.0 + header as u64 + 4 {
        return Ok(None);
    }
    let bytes = files.read(page, header)?;
    // After a segment switch a page may hold anything.
    let Ok(parsed) = files.format().check_header(page, &bytes) else {
        return Ok(None);
    };
    let remaining = if parsed.flags & FLAG_CONTINUATION != 0 {
        u64::from(parsed.remaining)
    } else {
        0
    };
    let first = (page.0 + header as u64 + remaining).next_multiple_of(8);
    if first + 4 > at.0 || first >= page.0 + WAL_PAGE_BYTES || files.read(Lsn(first), 4)? == [0; 4] {
        return Ok(None);
    }
    // From the header on when nothing is continued: a decoder takes it for part of the stream.
    Ok(Some(if remaining == 0 { page } else { Lsn(first) }))
}

/// The end of the last record that begins at or after `begin` and ends at or below `at`.
fn last_before(files: &WalFiles, begin: Lsn, at: Lsn) -> Result<Option<Boundary>, WalStoreError> {
    let mut decoder = WalDecoder::new(files.format(), begin, Lsn::INVALID);
    let mut found = None;
    while decoder.fed_to() < at {
        let from = decoder.fed_to();
        let length = (at.0 - from.0).min(SCAN_BYTES);
        decoder.feed(&files.read(from, length as usize)?);
        loop {
            match decoder.next_raw() {
                Ok(Some(record)) => {
                    found = Some(Boundary {
                        lsn: record.end,
                        record_start: record.start,
                    });
                }
                Ok(None) => break,
                Err(error) => return Err(files.damaged(begin, &error)),
            }
        }
    }
    Ok(found)
}
