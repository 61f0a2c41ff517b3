//! A stopped cluster's or a base backup's data directory: what is in it, where replay begins on it.
//!
//! Contents are not read here but for a few small files. Symbolic links of `pg_tblspc` are followed, and where a backup
//! has a `tablespace_map` instead, its lines are (`CreateTablespaceSymlinks` is what a server would do with them).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lakebed_types::data_directory::{DEFAULT_TABLESPACE, FileKind, GLOBAL_TABLESPACE, classify};
use lakebed_types::{Lsn, PAGE_SIZE, PgVersion, RelTag, SlruKind};
use lakebed_wal::control::ControlFile;

use crate::error::{VerifyError, io_error};
use crate::label::{BackupLabel, parse_label, parse_tablespace_map};

/// Tablespace and database.
pub type Place = (u32, u32);

/// Relation segments have this many blocks.
pub use lakebed_types::data_directory::RELATION_SEGMENT_BLOCKS;

/// A data directory.
#[derive(Debug)]
pub struct DataDirectory {
    /// Where it is.
    pub root: PathBuf,
    /// Its major version.
    pub version: PgVersion,
    /// Its control file.
    pub control: ControlFile,
    /// Position up to which WAL must be replayed on a copy of a standby (`minRecoveryPoint`); 0 for others.
    pub minimum_recovery_point: Lsn,
    /// `backup_label`, if it is a base backup that no server has started on.
    pub label: Option<BackupLabel>,
    /// Segments of each relation fork with their length in blocks, by number.
    pub forks: BTreeMap<RelTag, BTreeMap<u32, (PathBuf, u32)>>,
    /// Segments of each SLRU with their length in pages, by number.
    pub slrus: BTreeMap<(SlruKind, u64), (PathBuf, u32)>,
    /// `pg_filenode.map` files.
    pub relation_maps: BTreeMap<Place, Bytes>,
    /// `PG_VERSION` files of databases.
    pub database_versions: BTreeMap<Place, Bytes>,
    /// Files of `pg_twophase`, by transaction id.
    pub two_phase: BTreeMap<u32, Bytes>,
    /// Tablespaces other than the two that every cluster has.
    pub tablespaces: BTreeSet<u32>,
}

/// Files of a tablespace's version directory that every database directory has besides relations.
const RELATION_MAP: &str = "pg_filenode.map";
const VERSION_FILE: &str = "PG_VERSION";
/// Longest small file that is read whole, in bytes.
const MAX_SMALL_FILE_BYTES: u64 = 64 << 20;

impl DataDirectory {
    /// Looks at a data directory.
    ///
    /// # Errors
    /// It is none, of a version or layout that is not supported, or cannot be read.
    pub fn open(root: &Path) -> Result<DataDirectory, VerifyError> {
        let refuse = |reason: String| VerifyError::Directory {
            directory: root.to_owned(),
            reason,
        };
        let control_path = root.join("global/pg_control");
        let bytes = fs::read(&control_path).map_err(io_error(&control_path))?;
        let control =
            ControlFile::decode(&bytes).map_err(|error| refuse(format!("global/pg_control: {error}")))?;
        let version = catalog_version(&bytes)
            .and_then(PgVersion::from_catalog_version)
            .ok_or_else(|| {
                refuse(
                    "global/pg_control names a catalogue version that no supported Postgres has".to_owned(),
                )
            })?;
        if root.join("postmaster.pid").exists() {
            return Err(refuse(
                "it has a postmaster.pid: stop the server first, or take a base backup with pg_basebackup"
                    .to_owned(),
            ));
        }
        let label = match read_text(&root.join("backup_label"))? {
            Some(text) => Some(parse_label(&text).map_err(refuse)?),
            None => None,
        };
        let map = match read_text(&root.join("tablespace_map"))? {
            Some(text) => parse_tablespace_map(&text).map_err(refuse)?,
            None => Vec::new(),
        };
        let mut directory = DataDirectory {
            root: root.to_owned(),
            version,
            control,
            minimum_recovery_point: minimum_recovery_point(&bytes),
            label,
            forks: BTreeMap::new(),
            slrus: BTreeMap::new(),
            relation_maps: BTreeMap::new(),
            database_versions: BTreeMap::new(),
            two_phase: BTreeMap::new(),
            tablespaces: BTreeSet::new(),
        };
        directory.files_of("global", root.join("global"))?;
        directory.subdirectories("base", root.join("base"))?;
        for kind in SlruKind::ALL {
            directory.files_of(kind.directory(), root.join(kind.directory()))?;
        }
        directory.files_of("pg_twophase", root.join("pg_twophase"))?;
        directory.read_tablespaces(&map)?;
        Ok(directory)
    }

    /// Where replay begins: the redo position of the backup's checkpoint, or of the last one.
    pub fn start(&self) -> Lsn {
        match &self.label {
            Some(label) => label.start,
            None => self.control.checkpoint().redo,
        }
    }

    /// Timeline of the WAL there.
    pub fn timeline(&self) -> u32 {
        match &self.label {
            Some(label) => label.timeline,
            None => self.control.checkpoint().timeline,
        }
    }

    /// Blocks of a fork as Postgres counts them: segments up to the first that is not full.
    pub fn blocks(segments: &BTreeMap<u32, (PathBuf, u32)>) -> u32 {
        let mut blocks = 0u32;
        for (number, (_, length)) in segments {
            if u64::from(*number) * u64::from(RELATION_SEGMENT_BLOCKS) != u64::from(blocks) {
                break;
            }
            blocks = blocks.saturating_add(*length);
        }
        blocks
    }

    fn read_tablespaces(&mut self, map: &[(u32, String)]) -> Result<(), VerifyError> {
        let links = self.root.join("pg_tblspc");
        let mut targets: BTreeMap<u32, PathBuf> = BTreeMap::new();
        for name in names(&links)? {
            if let Ok(oid) = name.parse() {
                targets.insert(oid, links.join(name));
            }
        }
        for (oid, path) in map {
            targets.entry(*oid).or_insert_with(|| PathBuf::from(path));
        }
        let wanted = format!("PG_{}_{}", self.version.major(), self.version.catalog_version());
        for (oid, target) in targets {
            self.tablespaces.insert(oid);
            // A tablespace that was dropped while the backup ran may be gone.
            let directory = target.join(&wanted);
            if directory.is_dir() {
                self.subdirectories(&format!("pg_tblspc/{oid}/{wanted}"), directory)?;
            }
        }
        Ok(())
    }

    /// Takes note of the files of each database directory.
    fn subdirectories(&mut self, logical: &str, directory: PathBuf) -> Result<(), VerifyError> {
        for name in names(&directory)? {
            let path = directory.join(&name);
            if path.is_dir() {
                self.files_of(&format!("{logical}/{name}"), path)?;
            }
        }
        Ok(())
    }

    /// Takes note of the files of one directory; `logical` is its path as a server sees it.
    fn files_of(&mut self, logical: &str, directory: PathBuf) -> Result<(), VerifyError> {
        for name in names(&directory)? {
            let path = directory.join(&name);
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => return Err(io_error(&path)(error)),
            };
            if !metadata.is_file() {
                continue;
            }
            // Half a page at the end is not there, for Postgres neither (`_mdnblocks`).
            let pages = metadata.len() / PAGE_SIZE as u64;
            let pages = u32::try_from(pages).map_err(|_| VerifyError::Directory {
                directory: path.clone(),
                reason: "it is larger than any file of Postgres".to_owned(),
            })?;
            match classify(&format!("{logical}/{name}")) {
                FileKind::Relation { rel, segment } => {
                    self.forks.entry(rel).or_default().insert(segment, (path, pages));
                }
                FileKind::Slru { kind, segment } => {
                    self.slrus.insert((kind, segment), (path, pages));
                }
                FileKind::Carried => self.small_file(logical, &name, &path, metadata.len())?,
                FileKind::Control | FileKind::Wal | FileKind::Transient => {}
            }
        }
        Ok(())
    }

    fn small_file(&mut self, logical: &str, name: &str, path: &Path, bytes: u64) -> Result<(), VerifyError> {
        let place = place_of(logical);
        let xid = (logical == "pg_twophase").then(|| two_phase_xid(name)).flatten();
        if (place.is_none() || (name != RELATION_MAP && name != VERSION_FILE)) && xid.is_none() {
            return Ok(());
        }
        if bytes > MAX_SMALL_FILE_BYTES {
            return Err(VerifyError::Directory {
                directory: path.to_owned(),
                reason: format!("it has {bytes} bytes, more than Postgres ever writes there"),
            });
        }
        let content = Bytes::from(fs::read(path).map_err(io_error(path))?);
        if let Some(xid) = xid {
            self.two_phase.insert(xid, content);
        } else if let Some(place) = place {
            if name == RELATION_MAP {
                self.relation_maps.insert(place, content);
            } else {
                self.database_versions.insert(place, content);
            }
        }
        Ok(())
    }
}

/// `CATALOG_VERSION_NO` of a control file, at the same place in all versions.
fn catalog_version(control: &[u8]) -> Option<u32> {
    let bytes = control.get(12..16)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// `minRecoveryPoint` of a control file, which decoded and hence is long enough, at the same place in all versions.
fn minimum_recovery_point(control: &[u8]) -> Lsn {
    let bytes = control.get(136..144).and_then(|bytes| bytes.try_into().ok());
    Lsn(bytes.map_or(0, u64::from_le_bytes))
}

/// Tablespace and database of a directory below the data directory.
fn place_of(logical: &str) -> Option<Place> {
    let parts: Vec<&str> = logical.split('/').collect();
    match parts.as_slice() {
        ["global"] => Some((GLOBAL_TABLESPACE, 0)),
        ["base", db] => Some((DEFAULT_TABLESPACE, db.parse().ok()?)),
        ["pg_tblspc", tablespace, _, db] => Some((tablespace.parse().ok()?, db.parse().ok()?)),
        _ => None,
    }
}

/// The transaction id of a name in `pg_twophase`: 8 hexadecimal digits, since Postgres 17 the epoch before them.
fn two_phase_xid(name: &str) -> Option<u32> {
    let digits = name.len() == 8 || name.len() == 16;
    let xid = name.get(name.len().checked_sub(8)?..)?;
    digits.then(|| u32::from_str_radix(xid, 16).ok()).flatten()
}

fn names(directory: &Path) -> Result<Vec<String>, VerifyError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error(directory))? {
        let entry = entry.map_err(io_error(directory))?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| VerifyError::Directory {
                directory: entry.path(),
                reason: "its name is not text".to_owned(),
            })?;
        names.push(name);
    }
    names.sort();
    Ok(names)
}

fn read_text(path: &Path) -> Result<Option<String>, VerifyError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path)(error)),
    }
}
