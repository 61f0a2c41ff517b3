//! What the disk is told to do, and the one worker that does it.
//!
//! The owner of a timeline collects operations while an earlier batch is being worked on; the next batch then
//! contains all of them. Operations take effect in the order given, and are reported in that order. A [`Batch`]
//! merges what may be merged: flushes next to each other or behind writes become one, so that one fsync serves all
//! appends that wait. None moves past a cut or a control write.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_quorum::acceptor::Durable;
use lakebed_types::Lsn;

use crate::control_file::{ControlFile, ControlFileError};
use crate::wal_store::{WalStore, WalStoreError};

/// Why the disk failed. The timeline is opened again from disk: by itself when there was [no room](DiskError::is_full),
/// else by a restart of the process.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// While WAL was written, flushed or cut.
    #[error(transparent)]
    Wal(#[from] WalStoreError),
    /// While the control file was replaced.
    #[error(transparent)]
    Control(#[from] ControlFileError),
}

impl DiskError {
    /// Whether there was no room, and nothing worse.
    pub fn is_full(&self) -> bool {
        use crate::durable_file::DurableFileError;
        matches!(
            self,
            DiskError::Wal(WalStoreError::Full { .. })
                | DiskError::Control(ControlFileError::File(DurableFileError::Full { .. }))
        )
    }
}

/// One thing to do.
#[derive(Debug, PartialEq, Eq)]
enum Operation {
    /// Pieces that follow each other.
    Write {
        begin: Lsn,
        pieces: Vec<Bytes>,
    },
    Flush,
    Truncate(Lsn),
    Control {
        seq: u64,
        state: Box<Durable>,
    },
}

/// Operations in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch(Vec<Operation>);

impl Batch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes WAL; needs a flush afterwards.
    pub fn write(&mut self, begin: Lsn, bytes: Bytes) {
        // The flush of the writes before can wait for this one.
        if let [.., Operation::Write { .. }, Operation::Flush] = self.0.as_slice() {
            self.0.pop();
        }
        match self.0.last_mut() {
            Some(Operation::Write { begin: first, pieces }) if end(*first, pieces) == Some(begin) => {
                pieces.push(bytes);
            }
            _ => self.0.push(Operation::Write {
                begin,
                pieces: vec![bytes],
            }),
        }
    }

    /// Flushes all WAL that was written.
    pub fn flush(&mut self) {
        if self.0.last() != Some(&Operation::Flush) {
            self.0.push(Operation::Flush);
        }
    }

    /// Cuts WAL off and makes that durable.
    pub fn truncate(&mut self, lsn: Lsn) {
        self.0.push(Operation::Truncate(lsn));
    }

    /// Replaces the control file.
    pub fn control(&mut self, seq: u64, state: Box<Durable>) {
        if let Some(Operation::Control { .. }) = self.0.last() {
            self.0.pop();
        }
        self.0.push(Operation::Control { seq, state });
    }
}

/// Where pieces end that follow each other.
fn end(begin: Lsn, pieces: &[Bytes]) -> Option<Lsn> {
    begin.checked_add(pieces.iter().map(|piece| piece.len() as u64).sum())
}

/// What was achieved, to be reported to the acceptor in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The WAL is on disk up to here.
    Flushed(Lsn, Duration),
    /// This control write is on disk, and all before it.
    Persisted(u64),
    /// A disk that was full has room again.
    Room,
}

/// The files of one timeline, in the hands of their one writer.
#[derive(Debug)]
pub struct Disk {
    control: ControlFile,
    store: WalStore,
}

impl Disk {
    /// The files of a timeline.
    pub fn new(control: ControlFile, store: WalStore) -> Disk {
        Disk { control, store }
    }

    /// The timeline's directory.
    pub fn directory(&self) -> &Path {
        self.control.directory()
    }

    /// Writes the control file once more: a copy of it has rotted.
    pub fn rewrite_control(&mut self) -> Result<(), DiskError> {
        Ok(self.control.rewrite()?)
    }

    /// Whether there is room again on a disk that was full; see [`WalStore::make_room`].
    pub fn make_room(&mut self) -> Result<(), DiskError> {
        Ok(self.store.make_room()?)
    }

    /// What is to follow a batch when its completions were told; see [`WalStore::after_flush`]. After an error the disk must not
    /// be used again.
    pub fn after_flush(&mut self) -> Result<(), DiskError> {
        Ok(self.store.after_flush()?)
    }

    /// Executes a batch; [`Disk::after_flush`] is to follow. After an error the disk must not be used again.
    pub fn execute(&mut self, batch: Batch) -> Result<Vec<Completion>, DiskError> {
        let mut done = Vec::new();
        for operation in batch.0 {
            match operation {
                Operation::Write { begin, pieces } => {
                    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
                    self.store.append_all(begin, &pieces)?;
                }
                Operation::Flush => {
                    let begin = Instant::now();
                    let end = self.store.flush()?;
                    done.push(Completion::Flushed(end, begin.elapsed()));
                }
                Operation::Truncate(lsn) => self.store.truncate(lsn)?,
                Operation::Control { seq, state } => {
                    self.control.store(&state)?;
                    // Not earlier: what the control file asks for must be there.
                    self.store.remove_below(state.truncate)?;
                    done.push(Completion::Persisted(seq));
                }
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_share_a_flush_and_nothing_crosses_a_cut() {
        let bytes = || Bytes::from_static(b"wal");
        let mut batch = Batch::default();
        // The last does not follow; the store refuses it.
        for begin in [3, 6, 9, 13] {
            batch.write(Lsn(begin), bytes());
            batch.flush();
            batch.flush();
        }
        batch.truncate(Lsn(6));
        batch.flush();
        batch.write(Lsn(6), bytes());
        batch.flush();
        let write = |begin, pieces| Operation::Write {
            begin: Lsn(begin),
            pieces: vec![bytes(); pieces],
        };
        let expected = [
            write(3, 3),
            write(13, 1),
            Operation::Flush,
            Operation::Truncate(Lsn(6)),
            Operation::Flush,
            write(6, 1),
            Operation::Flush,
        ];
        assert_eq!(batch.0, expected);
    }
}
