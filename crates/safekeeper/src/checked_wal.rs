//! WAL from disk for readers that take raw bytes, checked before it leaves.
//!
//! A CRC covers a record, and a reader may begin and end inside one. So decoding begins at the boundary below, and goes
//! on to the end of the record that the asked-for bytes end in; the bytes that leave are the very ones that were decoded.

use lakebed_types::Lsn;
use lakebed_wal::stream::WalDecoder;

use crate::boundary;
use crate::wal_files::WalFiles;
use crate::wal_store::WalStoreError;

/// Bytes that are read at a time beyond those asked for, to complete a record.
const AHEAD_BYTES: u64 = 64 << 10;

/// A sequential reader; see the module header.
#[derive(Debug)]
pub struct CheckedWal {
    decoder: WalDecoder,
    /// What was fed to the decoder and has not left yet, from `begin` on.
    bytes: Vec<u8>,
    begin: Lsn,
}

impl CheckedWal {
    /// A reader whose first [`CheckedWal::take`] is at `at`.
    pub fn new(files: &WalFiles, at: Lsn) -> Result<CheckedWal, WalStoreError> {
        let from = boundary::at_or_below(files, at)?;
        Ok(CheckedWal {
            decoder: WalDecoder::new(files.format(), from.lsn, from.record_start),
            bytes: Vec::new(),
            begin: from.lsn,
        })
    }

    /// The `length` bytes at `at`, which lies at the end of those taken before. They end at or below `limit`, a boundary.
    ///
    /// # Errors
    /// [`WalStoreError::Damaged`] when a record among them, or the last one's rest, is not what was written.
    pub fn take(
        &mut self,
        files: &WalFiles,
        at: Lsn,
        length: usize,
        limit: Lsn,
    ) -> Result<Vec<u8>, WalStoreError> {
        let end = Lsn(at.0.saturating_add(length as u64));
        while self.decoder.position() < end {
            let from = self.decoder.fed_to();
            let goal = limit.0.min(end.max(from).0.saturating_add(AHEAD_BYTES));
            let Some(more) = goal.checked_sub(from.0).filter(|more| *more > 0) else {
                return Err(files.damaged(self.decoder.position(), &"no whole record"));
            };
            let wal = files.read(from, more as usize)?;
            self.decoder.feed(&wal);
            self.bytes.extend_from_slice(&wal);
            while self
                .decoder
                .next_raw()
                .map_err(|error| files.damaged(from, &error))?
                .is_some()
            {}
        }
        let (skip, until) = (at.0.checked_sub(self.begin.0), end.0 - self.begin.0);
        let wanted = skip.and_then(|skip| self.bytes.get(skip as usize..until as usize));
        let wanted = wanted
            .ok_or_else(|| files.damaged(at, &"it was read out of order"))?
            .to_vec();
        self.bytes.drain(..until as usize);
        self.begin = end;
        Ok(wanted)
    }
}
