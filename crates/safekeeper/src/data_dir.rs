//! The data directory of a safekeeper: who may use it, and which timelines are in it.
//!
//! | name | content |
//! |---|---|
//! | `lock` | locked (`flock`) by the process that uses the directory |
//! | `format` | version of this layout, and the node it belongs to |
//! | `timelines/<tenant>-<timeline>/` | one timeline |
//! | `timelines/….creating`, `….deleting` | left by a crash in between; removed at the next start |
//!
//! A timeline comes and goes by the rename of its directory, so it is either there as a whole or not at all.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use lakebed_types::{TenantId, TimelineId};

use crate::durable_file::{self, DurableFileError, sync_directory};

/// Version of the layout in the module header.
pub const FORMAT_VERSION: u32 = 1;

/// Names a timeline.
pub type Name = (TenantId, TimelineId);

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "{0} is in use by another safekeeper process: stop that one first, or give this one its own data_dir"
    )]
    InUse(PathBuf),
    /// A newer version of Lakebed wrote it.
    #[error("{path} has format {found}, this version knows up to {FORMAT_VERSION}: start a newer version")]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It belongs to another node.
    #[error("{path} belongs to node {found}, the configuration says node_id = {configured}")]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who asks.
        configured: u64,
    },
    /// A file in it could not be read or written.
    #[error(transparent)]
    File(#[from] DurableFileError),
}

fn io_error(path: &Path, source: io::Error) -> DataDirError {
    DurableFileError::io(path)(source).into()
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDir {
    timelines: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens or creates the directory and locks it until this value is dropped.
    pub fn open(path: &Path, node_id: u64) -> Result<DataDir, DataDirError> {
        fs::create_dir_all(path).map_err(|error| io_error(path, error))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(|error| io_error(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io_error(&lock_path, error)),
        }
        let format = path.join("format");
        match durable_file::read(&format)? {
            None => durable_file::replace(&format, FORMAT_VERSION, &node_id.to_le_bytes())?,
            Some((FORMAT_VERSION, payload)) => {
                let found = payload.first_chunk().map_or(0, |id| u64::from_le_bytes(*id));
                if found != node_id {
                    return Err(DataDirError::OtherNode {
                        path: path.to_owned(),
                        found,
                        configured: node_id,
                    });
                }
            }
            Some((found, _)) => {
                return Err(DataDirError::Newer {
                    path: path.to_owned(),
                    found,
                });
            }
        }
        let timelines = path.join("timelines");
        fs::create_dir_all(&timelines).map_err(|error| io_error(&timelines, error))?;
        sync_directory(path)?;
        Ok(DataDir {
            timelines,
            _lock: lock,
        })
    }

    /// Every timeline that is there as a whole. What a crash left half made or half removed is removed.
    pub fn list(&self) -> Result<Vec<Name>, DataDirError> {
        let failed = |error| io_error(&self.timelines, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.timelines).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file_name = entry.file_name();
            let text = file_name.to_str().unwrap_or_default();
            if text.ends_with(".creating") || text.ends_with(".deleting") {
                fs::remove_dir_all(entry.path()).map_err(|error| io_error(&entry.path(), error))?;
            } else if let Some(name) = parse(text) {
                names.push(name);
            } else {
                tracing::warn!(path = %entry.path().display(), "not a timeline, ignored");
            }
        }
        names.sort();
        Ok(names)
    }

    /// Where a timeline is.
    pub fn path(&self, name: Name) -> PathBuf {
        self.timelines.join(format!("{}-{}", name.0, name.1))
    }

    /// Makes a timeline: `fill` puts its files, durably, into the directory it is given.
    pub fn create<E: From<DataDirError>>(
        &self,
        name: Name,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let beside = self.path(name).with_extension("creating");
        if beside.exists() {
            fs::remove_dir_all(&beside).map_err(|error| io_error(&beside, error))?;
        }
        fs::create_dir(&beside).map_err(|error| io_error(&beside, error))?;
        fill(&beside)?;
        fs::rename(&beside, self.path(name)).map_err(|error| io_error(&beside, error))?;
        sync_directory(&self.timelines).map_err(DataDirError::from)?;
        Ok(())
    }

    /// Removes a timeline, if it is there; gone for good when this returns.
    pub fn delete(&self, name: Name) -> Result<(), DataDirError> {
        let (path, beside) = (self.path(name), self.path(name).with_extension("deleting"));
        match fs::rename(&path, &beside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(&path, error)),
        }
        sync_directory(&self.timelines)?;
        fs::remove_dir_all(&beside).map_err(|error| io_error(&beside, error))
    }
}

fn parse(text: &str) -> Option<Name> {
    let (tenant, timeline) = text.split_once('-')?;
    Some((tenant.parse().ok()?, timeline.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = (TenantId([7; 16]), TimelineId([8; 16]));

    #[test]
    fn one_process_one_node_and_no_newer_format() {
        let home = tempfile::tempdir().unwrap();
        let first = DataDir::open(home.path(), 1).unwrap();
        assert!(matches!(
            DataDir::open(home.path(), 1),
            Err(DataDirError::InUse(_))
        ));
        drop(first);
        let other = DataDir::open(home.path(), 2).unwrap_err();
        assert!(other.to_string().contains("belongs to node 1"), "{other}");
        durable_file::replace(&home.path().join("format"), 2, &[]).unwrap();
        assert!(matches!(
            DataDir::open(home.path(), 1),
            Err(DataDirError::Newer { found: 2, .. })
        ));
    }

    #[test]
    fn a_timeline_is_there_as_a_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let dir = DataDir::open(home.path(), 1).unwrap();
        let interrupted = dir.create(NAME, |path| {
            fs::write(path.join("half"), b"x").unwrap();
            Err(DataDirError::InUse(path.to_owned()))
        });
        assert!(interrupted.is_err());
        assert_eq!(dir.list().unwrap(), []);
        dir.create::<DataDirError>(NAME, |_| Ok(())).unwrap();
        assert_eq!(dir.list().unwrap(), [NAME]);
        fs::create_dir(dir.path(NAME).with_extension("deleting")).unwrap();
        dir.list().unwrap();
        dir.delete(NAME).unwrap();
        dir.delete(NAME).unwrap();
        assert_eq!(fs::read_dir(home.path().join("timelines")).unwrap().count(), 0);
    }
}
