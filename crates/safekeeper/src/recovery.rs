//! The end of a timeline's WAL after a crash.
//!
//! The control file tells a record boundary up to which the WAL was durable at some time. Behind it lie records that
//! were flushed later, and behind those perhaps a torn tail: pieces of appends that no fsync covered. The end is
//! found as Postgres finds it: records are decoded until one is missing or fails its CRC or its link to the one
//! before. What lies behind is discarded when [`WalStore::open`](crate::wal_store::WalStore::open) is given that end.
//!
//! An end below what was durable is none. The control file's commit position and the [mark](crate::flush_mark) behind the
//! last flush tell that, and so does a process that reads its own timeline again. [`end`] then reports [`Damage`].
//!
//! A record that is whole but was never flushed may be kept: nobody was told that it is durable, nor that it is not.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use lakebed_types::Lsn;
use lakebed_wal::boot::preamble;
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;

use crate::boundary;
use crate::flush_mark;
use crate::scrub::check::{self, Finding};
use crate::timeline::LoadError;
use crate::wal_files::WalFiles;
use crate::wal_store::{WalStore, WalStoreError, segment_path};

/// Bytes that are read and decoded at a time.
const SCAN_BYTES: usize = 256 << 10;

/// A position between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// End of a record, aligned.
    pub lsn: Lsn,
    /// Start of the record that ends there, or [`Lsn::INVALID`] when that is not known.
    pub record_start: Lsn,
}

/// WAL that was durable once, perhaps acknowledged, and does not read as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("WAL that was durable up to {below} is readable up to {after} only: {reason}", after = after.lsn)]
pub struct Damage {
    /// The last boundary before the damage.
    pub after: Boundary,
    /// WAL was durable up to here, a boundary.
    pub below: Lsn,
    /// What is wrong, for people.
    pub reason: String,
}

/// Where the WAL ends, and the boundary `commit` below with the record before it. WAL up to `at_least` is known to have
/// been durable by other means than the files.
///
/// # Errors
/// [`LoadError::Damaged`] when it ends before what was durable, or nothing ends at `commit`. Others: files could not be read.
pub fn end(files: &WalFiles, commit: Lsn, at_least: Lsn) -> Result<(Boundary, Boundary), LoadError> {
    let known = match boundary::at_or_below(files, commit) {
        Ok(known) if known.lsn == commit => known,
        Ok(_) | Err(WalStoreError::Damaged { .. }) => {
            check_committed(files, commit, at_least)?;
            return Err(LoadError::Positions(commit));
        }
        Err(error) => return Err(error.into()),
    };
    let end = find_end(files.directory(), files.format(), known)?;
    let marked = flush_mark::find(
        files.directory(),
        u64::from(files.format().segment_bytes),
        end.lsn,
    )?;
    let below = at_least.max(marked.unwrap_or(Lsn::INVALID));
    if end.lsn < below {
        return Err(LoadError::Damaged(Damage {
            after: end,
            below,
            reason: "what follows is no WAL".to_owned(),
        }));
    }
    Ok((known, end))
}

/// Reads all WAL below `commit`, from the start on, and reports the first damage.
pub(crate) fn check_committed(files: &WalFiles, commit: Lsn, at_least: Lsn) -> Result<(), LoadError> {
    let mut at = Boundary {
        lsn: files.start(),
        record_start: Lsn::INVALID,
    };
    loop {
        let to = Lsn(commit.0.min(at.lsn.0.saturating_add(check::STRETCH_BYTES)));
        let (after, reason) = match check::check(files, at, to, commit) {
            Ok(next) if next.lsn < commit => {
                at = next;
                continue;
            }
            Ok(_) => return Ok(()),
            Err(Finding::Damage { after, reason }) => (after, reason),
            Err(Finding::Files(WalStoreError::Damaged { path, reason })) => {
                (at, format!("{}: {reason}", path.display()))
            }
            Err(Finding::Files(error)) => return Err(error.into()),
        };
        let below = commit.max(at_least);
        return Err(LoadError::Damaged(Damage { after, below, reason }));
    }
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
            // Most of a segment may be zeros, which would all be kept in memory.
            if decoder.is_at_zeros() {
                break 'segments;
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

/// Creates the WAL of a timeline that starts at `start`, a record boundary, in a directory that has none, with what makes its
/// first segment readable for Postgres's tools: the segment's long page header, and the header of the page that holds
/// `start`. The name of the segment is durable with the control file, which is what makes this a timeline.
pub fn create(directory: &Path, format: WalFormat, start: Lsn) -> Result<WalStore, WalStoreError> {
    let headers = preamble(format, start);
    WalStore::create(directory, u64::from(format.segment_bytes), start, &headers)
}
