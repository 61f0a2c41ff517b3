//! Reading WAL that is on disk, beside the one task that writes it.
//!
//! A reader opens segment files itself and shares nothing with the writer. Which positions it may ask for is its
//! caller's affair: below `commit` bytes never change; between `commit` and `flush` a truncation may replace them, so
//! a caller that reads there looks afterwards whether one happened.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lakebed_types::Lsn;
use lakebed_wal::page::WalFormat;

use crate::wal_store::{WalStoreError, segment_path};

/// The segment files of one timeline.
#[derive(Clone, Debug)]
pub struct WalFiles {
    directory: PathBuf,
    format: WalFormat,
    /// Shared by all clones.
    start: Arc<AtomicU64>,
}

impl WalFiles {
    /// Files in `directory`, with WAL from `start` on.
    pub fn new(directory: &Path, format: WalFormat, start: Lsn) -> WalFiles {
        WalFiles {
            directory: directory.to_owned(),
            format,
            start: Arc::new(AtomicU64::new(start.0)),
        }
    }

    /// First position held. It rises when WAL is removed, so a reader looks at it after it read, too.
    pub fn start(&self) -> Lsn {
        Lsn(self.start.load(Ordering::Acquire))
    }

    /// The timeline's directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// WAL below is about to be removed.
    pub(crate) fn raise_start(&self, start: Lsn) {
        self.start.fetch_max(start.0, Ordering::AcqRel);
    }

    /// Format of the WAL.
    pub fn format(&self) -> WalFormat {
        self.format
    }

    /// Says that bytes which were read are not the WAL they should be.
    pub(crate) fn damaged(&self, near: Lsn, error: &dyn std::fmt::Display) -> WalStoreError {
        let segment_bytes = u64::from(self.format.segment_bytes);
        WalStoreError::Damaged {
            path: segment_path(&self.directory, segment_bytes, near.segment_number(segment_bytes)),
            reason: error.to_string(),
        }
    }

    /// Exactly `length` bytes from `begin` on, across segments.
    pub fn read(&self, begin: Lsn, length: usize) -> Result<Vec<u8>, WalStoreError> {
        let segment_bytes = u64::from(self.format.segment_bytes);
        let mut bytes = vec![0; length];
        let (mut at, mut rest) = (begin, bytes.as_mut_slice());
        while !rest.is_empty() {
            let offset = at.segment_offset(segment_bytes);
            let room = usize::try_from(segment_bytes - offset).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(room.min(rest.len()));
            let path = segment_path(&self.directory, segment_bytes, at.segment_number(segment_bytes));
            let read = File::open(&path).and_then(|file| file.read_exact_at(now, offset));
            read.map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => WalStoreError::Damaged {
                    path: path.clone(),
                    reason: format!("WAL at {at} is missing"),
                },
                _ => WalStoreError::Io {
                    path: path.clone(),
                    source,
                },
            })?;
            at = Lsn(at.0 + now.len() as u64);
            rest = later;
        }
        Ok(bytes)
    }
}
