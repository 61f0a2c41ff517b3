//! An object from segment files.
//!
//! Every record is decoded on the way, so that its CRC and its link to the one before are checked: damaged WAL is never
//! uploaded over the chance that another member's is good.

use lakebed_types::Lsn;
use lakebed_wal::stream::WalDecoder;
use lakebed_walframe::build::{Cut, cuts};
use lakebed_walframe::{Header, ObjectBuilder, TARGET_FRAME_BYTES};

use super::BackupError;
use crate::control_file;
use crate::timeline::wal_format;
use crate::wal_files::WalFiles;
use lakebed_quorum::acceptor::Durable;

const READ_BYTES: u64 = 1 << 20;

/// Reads the WAL between two record boundaries, which is committed, and makes an object of it; `state` goes into it.
/// Blocks.
pub fn pack(files: &WalFiles, state: &Durable, begin: Lsn, end: Lsn) -> Result<Vec<u8>, BackupError> {
    let (wal, ends) = read_records(files, begin, end)?;
    let format = wal_format(state);
    let mut builder = ObjectBuilder::new(Header {
        pg_version: format.version,
        segment_bytes: format.segment_bytes,
        system_id: format.system_identifier,
        begin,
        end,
    });
    for cut in cuts(begin, &ends, TARGET_FRAME_BYTES) {
        builder.frame(&cut, part(&wal, begin, &cut));
    }
    Ok(builder.finish(&control_file::encode(state)))
}

fn part<'a>(wal: &'a [u8], begin: Lsn, cut: &Cut) -> &'a [u8] {
    let at = |lsn: Lsn| (lsn.0 - begin.0) as usize;
    wal.get(at(cut.range.start)..at(cut.range.end))
        .unwrap_or_default()
}

/// The bytes of a range, and where its records end.
fn read_records(files: &WalFiles, begin: Lsn, end: Lsn) -> Result<(Vec<u8>, Vec<Lsn>), BackupError> {
    let mut decoder = WalDecoder::new(files.format(), begin, Lsn::INVALID);
    let (mut wal, mut ends) = (Vec::new(), Vec::new());
    while decoder.fed_to() < end {
        let from = decoder.fed_to();
        let bytes = files.read(from, (end.0 - from.0).min(READ_BYTES) as usize)?;
        decoder.feed(&bytes);
        wal.extend(bytes);
        loop {
            match decoder.next_raw() {
                Ok(Some(record)) => ends.push(record.end),
                Ok(None) => break,
                Err(error) => return Err(files.damaged(from, &error).into()),
            }
        }
    }
    match ends.last() {
        Some(last) if *last != end => Err(BackupError::NotWal(format!(
            "the record after {last} does not end at {end}"
        ))),
        None if begin < end => Err(BackupError::NotWal(format!(
            "no record ends between {begin} and {end}"
        ))),
        _ => Ok((wal, ends)),
    }
}
