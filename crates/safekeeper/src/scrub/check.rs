//! WAL on disk, decoded: is every record what was written?

use lakebed_types::Lsn;
use lakebed_wal::page::{WAL_PAGE_BYTES, header_bytes};
use lakebed_wal::stream::WalDecoder;

use crate::boundary;
use crate::recovery::Boundary;
use crate::wal_files::WalFiles;
use crate::wal_store::WalStoreError;

/// WAL that is looked at in one go, in bytes; a longer record is looked at as a whole.
pub const STRETCH_BYTES: u64 = 1 << 20;

/// Why a stretch is not good.
#[derive(Debug)]
pub enum Finding {
    /// The bytes are not those that were written.
    Damage {
        /// The last boundary before the damage.
        after: Boundary,
        /// What the decoder says.
        reason: String,
    },
    /// They cannot be read.
    Files(WalStoreError),
}

/// Decodes from a boundary to at least `to`, and at most `commit`, a boundary behind it. Returns the last boundary.
pub fn check(files: &WalFiles, from: Boundary, to: Lsn, commit: Lsn) -> Result<Boundary, Finding> {
    let mut decoder = WalDecoder::new(files.format(), from.lsn, from.record_start);
    let mut last = from;
    if from.lsn < commit && record_length(files, from.lsn).map_err(Finding::Files)? == 0 {
        // A decoder would wait for WAL that is still to be written.
        return Err(Finding::Damage {
            after: from,
            reason: "zeros where a record should begin".to_owned(),
        });
    }
    while decoder.fed_to() < to || (last == from && decoder.fed_to() < commit) {
        let at = decoder.fed_to();
        let goal = if at < to { to } else { commit };
        let length = (goal.0 - at.0).min(STRETCH_BYTES);
        decoder.feed(&files.read(at, length as usize).map_err(Finding::Files)?);
        last = whole(&mut decoder, last).map_err(|(after, reason)| Finding::Damage { after, reason })?;
    }
    if last.lsn < commit && decoder.fed_to() >= commit {
        return Err(Finding::Damage {
            after: last,
            reason: "no whole record".to_owned(),
        });
    }
    Ok(last)
}

/// Length that the record tells which begins at a boundary.
fn record_length(files: &WalFiles, at: Lsn) -> Result<u32, WalStoreError> {
    let header = match at.0.is_multiple_of(WAL_PAGE_BYTES) {
        true => header_bytes(at, files.format().segment_bytes),
        false => 0,
    };
    let bytes = files.read(Lsn(at.0 + header as u64), 4)?;
    Ok(bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word)))
}

/// Takes all whole records that the decoder has; the last boundary then, also of what is not WAL behind it.
pub fn whole(decoder: &mut WalDecoder, mut last: Boundary) -> Result<Boundary, (Boundary, String)> {
    loop {
        match decoder.next_raw() {
            Ok(Some(record)) => {
                last = Boundary {
                    lsn: record.end,
                    record_start: record.start,
                };
            }
            Ok(None) => return Ok(last),
            Err(error) => return Err((last, error.to_string())),
        }
    }
}

/// Where to go on behind damage that stays: the first page behind it on which a record begins.
pub fn skip(files: &WalFiles, damage: Boundary, commit: Lsn) -> Boundary {
    let mut page = Lsn(damage.lsn.0 - damage.lsn.0 % WAL_PAGE_BYTES);
    let record_start = Lsn::INVALID;
    loop {
        page = Lsn(page.0.saturating_add(WAL_PAGE_BYTES));
        if page >= commit {
            return Boundary {
                lsn: commit,
                record_start,
            };
        }
        // A page that cannot be read, or makes no sense, is part of the damage.
        if let Ok(Some(lsn)) = boundary::first_record(files, page, commit) {
            return Boundary { lsn, record_start };
        }
    }
}
