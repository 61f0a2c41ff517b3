//! The end of a timeline's WAL after a crash.
//!
//! The control file tells a record boundary up to which the WAL was durable at some time. Behind it lie records that
//! were flushed later, and behind those perhaps a torn tail: pieces of appends that no fsync covered. The end is
//! found as Postgres finds it: records are decoded until one is missing or fails its CRC or its link to the one
//! before. What lies behind is discarded when [`WalStore::open`](crate::wal_store::WalStore::open) is given that end.
//!
//! A record that is whole but was never flushed may be kept: nobody was told that it is durable, nor that it is not.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use lakebed_types::Lsn;
use lakebed_wal::boot::preamble;
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;

use crate::wal_store::{WalStore, WalStoreError, segment_path};

/// Bytes that are read and decoded at a time.
const SCAN_BYTES: usize = 1 << 20;

/// A position between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// End of a record, aligned.
    pub lsn: Lsn,
    /// Start of the record that ends there, or [`Lsn::INVALID`] when that is not known.
    pub record_start: Lsn,
}

/// The end of the WAL in `directory`, scanned from a boundary that is known to be valid.
pub fn find_end(directory: &Path, format: WalFormat, known: Boundary) -> Result<Boundary, WalStoreError> {
    let segment_bytes = u64::from(format.segment_bytes);
    let mut decoder = WalDecoder::new(format, known.lsn, known.record_start);
    let mut buffer = vec![0; SCAN_BYTES];
    'segments: loop {
        let at = decoder.fed_to();
        let path = segment_path(directory, segment_bytes, at.segment_number(segment_bytes));
        let failed = |source| WalStoreError::Io {
            path: path.clone(),
            source,
        };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(failed(error)),
        };
        file.seek(SeekFrom::Start(at.segment_offset(segment_bytes)))
            .map_err(failed)?;
        loop {
            let length = file.read(&mut buffer).map_err(failed)?;
            decoder.feed(&buffer[..length]);
            loop {
                match decoder.next_raw() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    // Not damage to report: where WAL ends, anything may follow.
                    Err(_) => break 'segments,
                }
            }
            if length == 0 {
                break;
            }
        }
        if decoder.fed_to().segment_offset(segment_bytes) != 0 {
            break; // a short file
        }
    }
    Ok(Boundary {
        lsn: decoder.position(),
        record_start: decoder.last_record_start(),
    })
}

/// Creates the WAL of a timeline that starts at `start`, a record boundary, with what makes its first segment
/// readable for Postgres's tools: the segment's long page header, and the header of the page that holds `start`.
pub fn create(directory: &Path, format: WalFormat, start: Lsn) -> Result<WalStore, WalStoreError> {
    let segment_bytes = u64::from(format.segment_bytes);
    let mut store = WalStore::open(directory, segment_bytes, start, start)?;
    for (at, header) in preamble(format, start) {
        store.write_preamble(at, &header)?;
    }
    Ok(store)
}
