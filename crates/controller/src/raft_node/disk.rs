//! Errors of the disk, and the ritual that makes names durable.

use std::fs::File;
use std::path::{Path, PathBuf};

/// Why raft's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system refused. What was being written may or may not be durable: stop, and open it anew.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The content fails its check.
    #[error(
        "{} is damaged: {reason}; restore the controller's directory from a copy, or let this member join anew",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
}

impl DiskError {
    pub(super) fn damaged(path: &Path, reason: impl ToString) -> DiskError {
        DiskError::Damaged {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { path, source }
}

/// Makes names in a directory (files created, renamed or removed) durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), DiskError> {
    let synced = File::open(directory).and_then(|handle| handle.sync_all());
    synced.map_err(io(directory))
}

/// Takes the directory for this process, until the returned file is dropped.
pub(super) fn lock(directory: &Path) -> Result<File, DiskError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DiskError::InUse(directory.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(DiskError::Io { path, source }),
    }
}
