//! Damaged WAL replaced by the same bytes from elsewhere.
//!
//! What arrives is decoded from the last good boundary on, with its link to the record before, and written only as far
//! as whole records go. A source whose own copy is damaged cannot pass that.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;

use lakebed_types::Lsn;
use lakebed_wal::stream::WalDecoder;

use super::check::whole;
use crate::durable_file::sync_directory;
use crate::recovery::Boundary;
use crate::wal_files::WalFiles;
use crate::wal_store::segment_path;

/// What to do about a segment file that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing: the timeline works, and the file may just have been removed.
    Refuse,
    /// Make it: nobody else touches the timeline.
    Create,
}

/// Writes the whole records of `wal`, which follow the boundary `after`, over what is there, durably. Blocks.
///
/// # Errors
/// In words: there was no whole record, or the files could not be written.
pub fn replace(files: &WalFiles, after: Boundary, wal: &[u8], missing: Missing) -> Result<(), String> {
    let mut decoder = WalDecoder::new(files.format(), after.lsn, after.record_start);
    decoder.feed(wal);
    let last = match whole(&mut decoder, after) {
        Ok(last) | Err((last, _)) => last,
    };
    let good = wal.get(..(last.lsn.0 - after.lsn.0) as usize).unwrap_or_default();
    if good.is_empty() {
        return Err("it sent no whole record".to_owned());
    }
    let segment_bytes = u64::from(files.format().segment_bytes);
    let (mut at, mut rest) = (after.lsn, good);
    while !rest.is_empty() {
        let offset = at.segment_offset(segment_bytes);
        let room = usize::try_from(segment_bytes - offset).unwrap_or(usize::MAX);
        let (now, later) = rest.split_at(room.min(rest.len()));
        let path = segment_path(files.directory(), segment_bytes, at.segment_number(segment_bytes));
        let create = missing == Missing::Create;
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(create).truncate(false).open(&path);
        let written = opened.and_then(|file| {
            if create && file.metadata()?.len() < segment_bytes {
                file.set_len(segment_bytes)?;
            }
            file.write_all_at(now, offset)?;
            file.sync_all()
        });
        written.map_err(|error: io::Error| format!("{}: {error}", path.display()))?;
        at = Lsn(at.0 + now.len() as u64);
        rest = later;
    }
    sync_directory(files.directory()).map_err(|error| error.to_string())
}
