//! The first images of a timeline: what `initdb` made, or a cluster that was shut down cleanly.
//!
//! Every page becomes an image at L0, the end of the shutdown checkpoint; a page of zeros needs none. Each shard keeps
//! its own pages, shard 0 also sizes, files and the control state.
//!
//! **A base backup of a running server** ([`Running`]) is made of pages of different moments, some of them torn. Its
//! pages become images at the LSN where the backup's checkpoint begins to replay, although some are newer: the server
//! wrote a full image of each page before its first change after that LSN (it does during every backup), so replay to
//! the backup's end repairs what is newer or torn, as Postgres recovery does. Before that end nothing is read.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lakebed_ingest::ControlState;
use lakebed_layer::{Value, ValueKind};
use lakebed_redo::{checksum, page};
use lakebed_types::{Lsn, PageKey, ShardIdentity};
use lakebed_wal::boot::first_record_position;
use lakebed_wal::control::{ControlError, ControlFile};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;

use crate::catalogue::Entry;
use crate::data_directory::{DataDirectoryError, Item, visit};
use crate::manifest::Cluster;
use crate::timeline::Changes;

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

/// What an import found.
#[derive(Debug)]
pub struct Imported {
    /// Whose WAL it is.
    pub cluster: Cluster,
    /// L0: end of the shutdown checkpoint, first LSN of the timeline.
    pub start: Lsn,
    /// Start of that checkpoint record: `xl_prev` of the next one.
    pub last_record_start: Lsn,
    /// First LSN that may be read.
    pub consistent: Lsn,
    /// Images and entries of this shard, all at L0.
    pub changes: Changes,
}

/// Reads a data directory: of a cluster that was shut down, or a base backup of a `running` one.
///
/// # Errors
/// See [`ImportError`].
pub fn import(root: &Path, shard: ShardIdentity, running: Option<Running>) -> Result<Imported, ImportError> {
    let control_path = root.join(CONTROL_FILE);
    let read = fs::read(&control_path).map_err(|source| ImportError::Io {
        path: control_path,
        source,
    })?;
    let control = ControlFile::decode(&read)?;
    let data_checksums = control.has_data_checksums();
    let (last_record_start, start, consistent) = match running {
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
    let keeps = shard.keeps_catalogue();
    let mut changes = Changes::default();
    let mut sizes = std::collections::BTreeMap::new();
    visit(root, &mut |item| {
        match item {
            Item::Page(key, bytes) => {
                if let (PageKey::Rel { block, .. }, true) = (key, data_checksums)
                    && !checksum::is_right(bytes, block)
                    // Torn by a write during the backup: the server has logged a full image of it since.
                    && !(running.is_some() && page::lsn(bytes) > start)
                {
                    return Err(DataDirectoryError::Checksum { key });
                }
                if let (PageKey::Slru { kind, page }, true) = (key, keeps) {
                    changes.entries.push((start, Entry::SlruPage(kind, page, true)));
                }
                if shard.owns(&key) && bytes.iter().any(|&byte| byte != 0) {
                    let body = Bytes::copy_from_slice(bytes);
                    changes.values.push((
                        key,
                        start,
                        Value {
                            kind: ValueKind::Image,
                            body,
                        },
                    ));
                }
            }
            Item::Fork { rel, blocks } => {
                let size = sizes.entry(rel).or_insert(0);
                *size = blocks.max(*size);
            }
            Item::File(path, content) => {
                if keeps {
                    let content = Bytes::copy_from_slice(content);
                    changes
                        .entries
                        .push((start, Entry::File(path.to_owned(), Some(content))));
                }
            }
            Item::Directory(_) => {}
        }
        Ok(())
    })?;
    if keeps {
        changes.entries.extend(
            sizes
                .into_iter()
                .map(|(rel, blocks)| (start, Entry::Size(rel, blocks))),
        );
        let body = Bytes::copy_from_slice(&ControlState::from_checkpoint(&control.checkpoint()).encode());
        changes.values.push((
            PageKey::Control,
            start,
            Value {
                kind: ValueKind::State,
                body,
            },
        ));
    }
    let cluster = Cluster {
        system_identifier: control.system_identifier(),
        postgres_major: control.version(),
        wal_segment_bytes: control.segment_bytes(),
        data_checksums,
    };
    Ok(Imported {
        cluster,
        start,
        last_record_start,
        consistent,
        changes,
    })
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
