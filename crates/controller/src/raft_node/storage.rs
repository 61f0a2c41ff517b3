//! What raft reads back: the last snapshot, the entries after it, and the hard state.
//!
//! Entries since the snapshot are also kept in memory; their number is bounded by the snapshot interval. The order of
//! writes makes every crash recoverable: a snapshot is durable before the entries that it contains are dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use lakebed_placement::State;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::disk::{self, DiskError};
use super::log_file::{LogFile, append_entry};
use super::snapshot_file;

/// The durable part of one raft member.
#[derive(Debug)]
pub struct DurableLog {
    log: LogFile,
    log_path: PathBuf,
    snapshot_path: PathBuf,
    snapshot: Snapshot,
    hard_state: HardState,
    entries: Vec<Entry>,
    _lock: File,
}

impl DurableLog {
    /// Opens a member's directory. A fresh one starts with an empty state and `voters` as members, which every
    /// first member must be given alike; in an existing one, `voters` is not looked at.
    pub fn open(directory: &Path, voters: &[u64]) -> Result<DurableLog, DiskError> {
        fs::create_dir_all(directory).map_err(disk::io(directory))?;
        let lock = disk::lock(directory)?;
        let (log_path, snapshot_path) = (directory.join("log"), directory.join("snapshot"));
        let snapshot = match snapshot_file::read(&snapshot_path)? {
            Some(snapshot) => snapshot,
            None if log_path.exists() => {
                return Err(DiskError::damaged(
                    &snapshot_path,
                    "it is missing, and the log is there",
                ));
            }
            None => {
                let first = first_snapshot(voters).map_err(|e| DiskError::damaged(&snapshot_path, e))?;
                snapshot_file::write(&snapshot_path, &first)?;
                first
            }
        };
        let (log, replayed) = LogFile::open(&log_path)?;
        let mut opened = DurableLog {
            log,
            log_path,
            snapshot_path,
            hard_state: replayed.hard_state.unwrap_or_default(),
            entries: replayed.entries,
            snapshot,
            _lock: lock,
        };
        opened.check()?;
        Ok(opened)
    }

    /// Drops entries that the snapshot contains, and checks that what is left fits together.
    fn check(&mut self) -> Result<(), DiskError> {
        let (index, term) = (
            self.snapshot.get_metadata().index,
            self.snapshot.get_metadata().term,
        );
        self.entries.retain(|entry| entry.index > index);
        if let Some(first) = self.entries.first()
            && first.index != index + 1
        {
            let reason = format!("its first entry is {}, the snapshot ends at {index}", first.index);
            return Err(DiskError::damaged(&self.log_path, reason));
        }
        let last = index + self.entries.len() as u64;
        if self.hard_state.commit > last {
            let reason = format!(
                "entries up to {} were committed, it ends at {last}",
                self.hard_state.commit
            );
            return Err(DiskError::damaged(&self.log_path, reason));
        }
        // A crash between snapshot and log leaves an older hard state behind.
        self.hard_state.commit = self.hard_state.commit.max(index);
        self.hard_state.term = self.hard_state.term.max(term);
        Ok(())
    }

    /// Makes new entries and the hard state durable.
    pub fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) -> Result<(), DiskError> {
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        self.log.append(&self.hard_state, entries)?;
        for entry in entries {
            append_entry(&mut self.entries, entry.clone())
                .map_err(|reason| DiskError::damaged(&self.log_path, reason))?;
        }
        Ok(())
    }

    /// Notes how far the log is committed. Becomes durable with the next append, which is early enough: raft finds
    /// it again.
    pub fn note_commit(&mut self, commit: u64) {
        self.hard_state.commit = self.hard_state.commit.max(commit);
    }

    /// Replaces snapshot and log; entries above the snapshot stay.
    pub fn install(&mut self, snapshot: Snapshot) -> Result<(), DiskError> {
        let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        snapshot_file::write(&self.snapshot_path, &snapshot)?;
        // Entries that follow another history than the snapshot's are worthless.
        let continues = self.term(index).is_ok_and(|known| known == term);
        self.snapshot = snapshot;
        self.entries.retain(|entry| continues && entry.index > index);
        self.hard_state.commit = self.hard_state.commit.max(index);
        self.hard_state.term = self.hard_state.term.max(term);
        self.log = LogFile::create(&self.log_path, &self.hard_state, &self.entries)?;
        Ok(())
    }

    /// A snapshot of the state as of an applied entry.
    pub fn make_snapshot(&self, index: u64, conf: ConfState, data: Vec<u8>) -> raft::Result<Snapshot> {
        let mut snapshot = Snapshot {
            data: data.into(),
            ..Snapshot::default()
        };
        let term = self.term(index)?;
        let metadata = snapshot.mut_metadata();
        metadata.index = index;
        metadata.term = term;
        metadata.set_conf_state(conf);
        Ok(snapshot)
    }

    /// The last snapshot.
    pub fn last_snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Size of the log file.
    pub fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }
}

/// Index and term 1, so that a member that has it differs from one that never had anything.
fn first_snapshot(voters: &[u64]) -> Result<Snapshot, serde_json::Error> {
    let mut snapshot = Snapshot {
        data: State::default().encode()?.into(),
        ..Snapshot::default()
    };
    let metadata = snapshot.mut_metadata();
    metadata.index = 1;
    metadata.term = 1;
    metadata.set_conf_state(ConfState::from((voters.to_vec(), vec![])));
    Ok(snapshot)
}

impl Storage for DurableLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf = self.snapshot.get_metadata().get_conf_state().clone();
        Ok(RaftState::new(self.hard_state.clone(), conf))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let first = self.snapshot_index() + 1;
        if low < first {
            return Err(StorageError::Compacted.into());
        }
        let range = (low - first) as usize..(high.saturating_sub(first)) as usize;
        let mut entries = self.entries.get(range).ok_or(StorageError::Unavailable)?.to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let snapshot = self.snapshot_index();
        if index == snapshot {
            return Ok(self.snapshot.get_metadata().term);
        }
        if index < snapshot {
            return Err(StorageError::Compacted.into());
        }
        let entry = self.entries.get((index - snapshot - 1) as usize);
        Ok(entry.ok_or(StorageError::Unavailable)?.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.snapshot_index() + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.snapshot_index() + self.entries.len() as u64)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // Everything after the snapshot is in the log, so the last one always serves, unless a follower insists.
        if self.snapshot_index() < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(self.snapshot.clone())
    }
}
