//! The files that a compute boots from, at an LSN: everything but relations.
//!
//! Postgres finds a control file in state "shut down" whose checkpoint is a record that is synthesized here, at the
//! boot LSN, so it starts without recovery. Relation files are absent: the compute's shim asks for them page by page.

mod slru;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use bytes::{BufMut, Bytes};
use lakebed_ingest::ControlState;
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::boot::{boot_segment_pieces, shutdown_checkpoint};
use lakebed_wal::control::{Checkpoint, ControlError, ControlFile};
use lakebed_wal::page::WalFormat;

use crate::import::CONTROL_FILE;
use crate::ingest::ORIGINS;
use crate::layer_handle::Miss;
use crate::timeline::obtain::MayMiss;
use crate::timeline::{OWN_FILES, Timeline, TimelineError};

/// Directories that Postgres expects and does not make (`initdb.c`, `subdirs`).
const DIRECTORIES: [&str; 24] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
    "base/1",
    "base/pgsql_tmp",
];

/// Further ones, from version 17 on.
const DIRECTORIES_17: [&str; 1] = ["pg_wal/summaries"];

fn directories(version: PgVersion) -> impl Iterator<Item = String> {
    let later = DIRECTORIES_17.iter().filter(move |_| version >= PgVersion::V17);
    DIRECTORIES.iter().chain(later).map(|path| (*path).to_owned())
}

/// WAL timeline of every compute: branches are the tier's timelines, not Postgres's.
pub const WAL_TIMELINE: u32 = 1;

/// Why a basebackup cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BasebackupError {
    /// Reading pages or state failed.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// The control state does not decode.
    #[error("control state at {0}: {1}")]
    State(Lsn, String),
    /// The stored control file does not decode.
    #[error("the stored control file: {0}")]
    Control(#[from] ControlError),
    /// The catalogue has no control file.
    #[error("the timeline has no control file at {0}")]
    NoControlFile(Lsn),
}

impl MayMiss for BasebackupError {
    fn miss(&self) -> Option<&Miss> {
        match self {
            BasebackupError::Timeline(error) => error.miss(),
            _ => None,
        }
    }
}

/// One entry of a basebackup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupItem {
    /// An empty directory; parents come first.
    Directory(String),
    /// A file: pieces at offsets, the rest up to the size is zeros.
    File {
        /// Path relative to the data directory.
        path: String,
        /// Final size in bytes.
        bytes: u64,
        /// Content by offset.
        pieces: Vec<(u64, Bytes)>,
    },
    /// A file whose pages a compute asks for when it reads them.
    OnDemand {
        /// Path relative to the data directory.
        path: String,
        /// Size in bytes, whole pages.
        bytes: u64,
    },
    /// A symbolic link (a tablespace).
    Link {
        /// Path relative to the data directory.
        path: String,
        /// Where it points to.
        target: std::path::PathBuf,
    },
}

impl BackupItem {
    fn whole(path: impl Into<String>, content: Bytes) -> BackupItem {
        BackupItem::File {
            path: path.into(),
            bytes: content.len() as u64,
            pieces: vec![(0, content)],
        }
    }
}

/// Makes the basebackup at `lsn`, a record boundary that the timeline has ingested. `last_record_start` is the start of
/// the record that ends there. With `slru_on_demand` there may be [`BackupItem::OnDemand`].
///
/// # Errors
/// See [`BasebackupError`].
pub fn basebackup(
    timeline: &Timeline,
    lsn: Lsn,
    last_record_start: Lsn,
    slru_on_demand: bool,
) -> Result<Vec<BackupItem>, BasebackupError> {
    let version = timeline.identity.cluster.postgres_major;
    let mut directories: Vec<String> = directories(version).collect();
    let mut items: Vec<BackupItem> = directories.iter().cloned().map(BackupItem::Directory).collect();
    let files: Vec<(String, Bytes)> = timeline.catalogue(|catalogue| {
        catalogue
            .files(lsn)
            .map(|(path, content)| (path.to_owned(), content.clone()))
            .collect()
    });
    let mut control_file = None;
    let mut origins = BTreeMap::new();
    for (path, content) in files {
        if path.starts_with(OWN_FILES) {
            continue;
        } else if path == CONTROL_FILE {
            control_file = Some(content);
        } else if let Some(id) = path.strip_prefix(ORIGINS) {
            let remote = content[..].try_into().map_or(0, u64::from_le_bytes);
            origins.insert(id.parse::<u16>().unwrap_or_default(), remote);
        } else if path.starts_with("pg_tblspc/") && path.matches('/').count() == 1 {
            // An empty location: a developer's tablespace inside the data directory.
            items.push(if content.is_empty() {
                BackupItem::Directory(path)
            } else {
                let target = std::ffi::OsStr::from_bytes(&content).into();
                BackupItem::Link { path, target }
            });
        } else {
            if let Some((directory, _)) = path.rsplit_once('/') {
                make_directories(&mut items, &mut directories, directory);
            }
            items.push(BackupItem::whole(path, content));
        }
    }
    let state = ControlState::decode(&timeline.control(lsn)?);
    let state = state.map_err(|error| BasebackupError::State(lsn, error.to_string()))?;
    let next = state.to_checkpoint();
    items.extend(slru::items(timeline, lsn, &next, slru_on_demand)?);
    if !origins.is_empty() {
        items.push(BackupItem::whole(
            "pg_logical/replorigin_checkpoint",
            origin_checkpoint(&origins),
        ));
    }
    let control_file = control_file.ok_or(BasebackupError::NoControlFile(lsn))?;
    boot_files(
        timeline,
        (lsn, last_record_start),
        next,
        &control_file,
        &mut items,
    )?;
    Ok(items)
}

fn make_directories(items: &mut Vec<BackupItem>, known: &mut Vec<String>, directory: &str) {
    let mut end = 0;
    while end < directory.len() {
        end = directory[end + 1..]
            .find('/')
            .map_or(directory.len(), |next| end + 1 + next);
        let part = &directory[..end];
        // A tablespace's link is a directory already.
        let is_link = part.starts_with("pg_tblspc/") && part.matches('/').count() == 1;
        if !is_link && !known.iter().any(|path| path == part) {
            known.push(part.to_owned());
            items.push(BackupItem::Directory(part.to_owned()));
        }
    }
}

/// `pg_logical/replorigin_checkpoint` (`replication/logical/origin.c`): magic, per origin id and remote LSN in 16
/// bytes, CRC.
fn origin_checkpoint(origins: &BTreeMap<u16, u64>) -> Bytes {
    let mut out = Vec::new();
    out.put_u32_le(0x1257_DADE);
    for (id, remote) in origins {
        out.put_u16_le(*id);
        out.put_bytes(0, 6);
        out.put_u64_le(*remote);
    }
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out.into()
}

/// The control file and the WAL segments around the boot position.
fn boot_files(
    timeline: &Timeline,
    (lsn, last_record_start): (Lsn, Lsn),
    next: Checkpoint,
    control_file: &[u8],
    items: &mut Vec<BackupItem>,
) -> Result<(), BasebackupError> {
    let mut control = ControlFile::decode(control_file)?;
    let cluster = timeline.identity.cluster;
    let format = WalFormat {
        version: cluster.postgres_major,
        timeline: WAL_TIMELINE,
        system_identifier: cluster.system_identifier,
        segment_bytes: cluster.wal_segment_bytes,
    };
    let checkpoint = Checkpoint {
        // What every compute starts with. Postgres believes this record, and if it differs from the configuration it
        // does not say so before its first checkpoint: its own record of a change is not written while it recovers
        // (`UpdateFullPageWrites` of `access/transam/xlog.c`).
        full_page_writes: false,
        ..next
    };
    let wal = shutdown_checkpoint(format, lsn, last_record_start, checkpoint);
    control.shut_down_at(wal.record_start, &wal.checkpoint);
    items.push(BackupItem::whole(CONTROL_FILE, control.encode().into()));
    let segment_bytes = u64::from(cluster.wal_segment_bytes);
    let mut segments: BTreeMap<u64, Vec<(u64, Bytes)>> = BTreeMap::new();
    for (at, bytes) in boot_segment_pieces(format, lsn, &wal) {
        let mut rest = Bytes::from(bytes);
        let mut at = at.0;
        while !rest.is_empty() {
            let room = (segment_bytes - at % segment_bytes) as usize;
            let now = rest.split_to(room.min(rest.len()));
            let length = now.len() as u64;
            segments
                .entry(at / segment_bytes)
                .or_default()
                .push((at % segment_bytes, now));
            at += length;
        }
    }
    for (number, pieces) in segments {
        items.push(BackupItem::File {
            path: format!("pg_wal/{}", format.segment_file_name(number)),
            bytes: segment_bytes,
            pieces,
        });
    }
    Ok(())
}
