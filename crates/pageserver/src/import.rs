//! The first images of a timeline: what `initdb` made, or a cluster that was shut down cleanly.
//!
//! Every page becomes an image at L0, the end of the shutdown checkpoint; a page of zeros needs none. Each shard keeps
//! its own pages, shard 0 also sizes, files, places of tablespaces and the control state. Images are stored in portions,
//! as layers of the same LSN, so that memory does not grow with the cluster.
//!
//! **A base backup of a running server** ([`Running`]) is made of pages of different moments, some of them torn. Its
//! pages become images at the LSN where the backup's checkpoint begins to replay, although some are newer: the server
//! wrote a full image of each page before its first change after that LSN (it does during every backup), so replay to
//! the backup's end repairs what is newer or torn, as Postgres recovery does. Before that end nothing is read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lakebed_ingest::ControlState;
use lakebed_layer::ValueKind;
use lakebed_redo::{checksum, page};
use lakebed_types::data_directory::tablespace_directory;
use lakebed_types::{Lsn, PAGE_SIZE, PageKey, RelTag, ShardIdentity};
use lakebed_wal::boot::first_record_position;
use lakebed_wal::control::{ControlError, ControlFile};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;

use crate::catalogue::Entry;
use crate::data_directory::{DataDirectoryError, Item, visit};
use crate::manifest::Cluster;
use crate::timeline::{Changes, TimelineError};

/// Path of the control file, relative to the data directory.
pub const CONTROL_FILE: &str = "global/pg_control";

/// Why a data directory cannot become a timeline.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is odd or unreadable.
    #[error(transparent)]
    Directory(#[from] DataDirectoryError),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The control file does not decode.
    #[error("global/pg_control: {0}")]
    Control(#[from] ControlError),
    /// The cluster is not one that the tier can take over.
    #[error("the cluster cannot be imported: {0}")]
    Unsuitable(&'static str),
    /// A portion of it could not be stored.
    #[error(transparent)]
    Store(#[from] TimelineError),
}

/// Which WAL makes a base backup of a running server consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Record boundary at which replay begins. The backup's control file holds the checkpoint whose redo LSN this is.
    pub start: Lsn,
    /// Start of the record that ends there.
    pub last_record_start: Lsn,
    /// End of the backup.
    pub consistent: Lsn,
}

/// What comes with the files of a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// Set for a base backup of a running server.
    pub running: Option<Running>,
    /// Tablespaces by oid, with the place that each had on its server; empty for one inside of the data directory
    /// (`allow_in_place_tablespaces`).
    pub tablespaces: BTreeMap<u32, Bytes>,
}

/// A data directory that can become a timeline.
#[derive(Debug)]
pub struct Import {
    /// Whose WAL it is.
    pub cluster: Cluster,
    /// L0: end of the shutdown checkpoint, first LSN of the timeline.
    pub start: Lsn,
    /// Start of that checkpoint record: `xl_prev` of the next one.
    pub last_record_start: Lsn,
    /// First LSN that may be read.
    pub consistent: Lsn,
    root: PathBuf,
    shard: ShardIdentity,
    circumstances: Circumstances,
    control: ControlFile,
}

impl Import {
    /// Looks at the control file of a data directory: of a cluster that was shut down, or a base backup of a running
    /// one.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn open(
        root: &Path,
        shard: ShardIdentity,
        circumstances: Circumstances,
    ) -> Result<Import, ImportError> {
        let control_path = root.join(CONTROL_FILE);
        let read = fs::read(&control_path).map_err(|source| ImportError::Io {
            path: control_path,
            source,
        })?;
        let control = ControlFile::decode(&read)?;
        let (last_record_start, start, consistent) = match circumstances.running {
            Some(running) => {
                check_positions(&control, &running)?;
                (running.last_record_start, running.start, running.consistent)
            }
            None if !control.is_shut_down() => {
                return Err(ImportError::Unsuitable("it was not shut down cleanly"));
            }
            None => {
                let (last_record_start, start) = shutdown_checkpoint(root, &control)?;
                (last_record_start, start, start)
            }
        };
        Ok(Import {
            cluster: Cluster {
                system_identifier: control.system_identifier(),
                postgres_major: control.version(),
                wal_segment_bytes: control.segment_bytes(),
                data_checksums: control.has_data_checksums(),
            },
            start,
            last_record_start,
            consistent,
            root: root.to_owned(),
            shard,
            circumstances,
            control,
        })
    }

    /// Reads every file. Images go to `store` as soon as they have `portion_bytes`, so that no more is in memory,
    /// whatever the cluster's size; what is left is returned, with all entries. Everything is as of the start.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn read(
        &self,
        portion_bytes: usize,
        store: &mut impl FnMut(Changes) -> Result<(), TimelineError>,
    ) -> Result<Changes, ImportError> {
        let mut reading = Reading {
            import: self,
            changes: Changes::default(),
            bytes: 0,
            sizes: BTreeMap::new(),
        };
        visit(&self.root, &mut |item| {
            reading.take(item)?;
            if reading.bytes >= portion_bytes {
                reading.bytes = 0;
                let entries = std::mem::take(&mut reading.changes.entries);
                store(std::mem::take(&mut reading.changes))?;
                reading.changes.entries = entries;
            }
            Ok::<(), ImportError>(())
        })?;
        Ok(reading.end())
    }

    /// Whether the checksum of a relation's page is right, or may be wrong.
    fn is_sound(&self, key: PageKey, bytes: &[u8; PAGE_SIZE]) -> bool {
        match key {
            PageKey::Rel { block, .. } if self.cluster.data_checksums => {
                checksum::is_right(bytes, block)
                    // Torn by a write during the backup: the server has logged a full image of it since.
                    || (self.circumstances.running.is_some() && page::lsn(bytes) > self.start)
            }
            _ => true,
        }
    }
}

/// An import under way.
struct Reading<'a> {
    import: &'a Import,
    changes: Changes,
    /// Of the images among them.
    bytes: usize,
    /// Blocks of each fork.
    sizes: BTreeMap<RelTag, u32>,
}

impl Reading<'_> {
    fn take(&mut self, item: Item<'_>) -> Result<(), ImportError> {
        let keeps = self.import.shard.keeps_catalogue();
        match item {
            Item::Page(key, bytes) => {
                if !self.import.is_sound(key, bytes) {
                    return Err(DataDirectoryError::Checksum { key }.into());
                }
                if let (PageKey::Slru { kind, page }, true) = (key, keeps) {
                    self.entry(Entry::SlruPage(kind, page, true));
                }
                if self.import.shard.owns(&key) && bytes.iter().any(|&byte| byte != 0) {
                    self.value(key, ValueKind::Image, bytes);
                }
            }
            Item::Fork { rel, blocks } => {
                let size = self.sizes.entry(rel).or_insert(0);
                *size = blocks.max(*size);
            }
            Item::File(path, content) => {
                if keeps {
                    let content = Bytes::copy_from_slice(content);
                    self.entry(Entry::File(path.to_owned(), Some(content)));
                }
            }
            Item::Directory(_) => {}
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) {
        self.changes.entries.push((self.import.start, entry));
    }

    fn value(&mut self, key: PageKey, kind: ValueKind, body: &[u8]) {
        self.bytes += body.len();
        let start = self.import.start;
        self.changes
            .value(key, start, kind, |out| out.extend_from_slice(body));
    }

    fn end(mut self) -> Changes {
        if self.import.shard.keeps_catalogue() {
            for (rel, blocks) in std::mem::take(&mut self.sizes) {
                self.entry(Entry::Size(rel, blocks));
            }
            for (oid, place) in &self.import.circumstances.tablespaces {
                self.entry(Entry::File(tablespace_directory(*oid), Some(place.clone())));
            }
            let control = ControlState::from_checkpoint(&self.import.control.checkpoint());
            self.value(PageKey::Control, ValueKind::State, &control.encode());
        }
        self.changes
    }
}

/// Whether what the sender says of a base backup fits its control file.
fn check_positions(control: &ControlFile, running: &Running) -> Result<(), ImportError> {
    let redo = control.checkpoint().redo;
    let fits = running.last_record_start < running.start
        && first_record_position(running.start, control.segment_bytes()) == redo
        && running.consistent > redo;
    match fits {
        true => Ok(()),
        false => Err(ImportError::Unsuitable(
            "the positions of the base backup do not fit the checkpoint in its control file",
        )),
    }
}

/// Start and end of the last checkpoint record, read from the directory's own WAL.
fn shutdown_checkpoint(root: &Path, control: &ControlFile) -> Result<(Lsn, Lsn), ImportError> {
    let start = control.checkpoint_lsn();
    let segment = u64::from(control.segment_bytes());
    let format = WalFormat {
        version: control.version(),
        timeline: control.checkpoint().timeline,
        system_identifier: control.system_identifier(),
        segment_bytes: control.segment_bytes(),
    };
    let mut decoder = WalDecoder::new(format, start, Lsn(0));
    for number in start.0 / segment..=start.0 / segment + 1 {
        let path = root.join("pg_wal").join(format.segment_file_name(number));
        let bytes = fs::read(&path).map_err(|source| ImportError::Io { path, source })?;
        let skip = if number == start.0 / segment {
            (start.0 % segment) as usize
        } else {
            0
        };
        decoder.feed(bytes.get(skip..).unwrap_or_default());
        match decoder.next_raw() {
            Ok(Some(record)) => return Ok((start, record.end)),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    Err(ImportError::Unsuitable(
        "its WAL does not hold the checkpoint that its control file names",
    ))
}
