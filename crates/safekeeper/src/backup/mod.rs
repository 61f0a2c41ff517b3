//! WAL in object storage: committed WAL goes there, and comes back from there.
//!
//! ```text
//!             members' reports ──► elect ──► this node?          pure: plan, objects
//!                                              │ yes             │ no: take over the uploader's position
//! segment files ──► pack ──► put_if_absent ──► backup position ──► acceptor core, made durable
//!                                              │
//!                                              └► parts that are superfluous, objects that expired: deleted
//! ```
//!
//! * [`objects`]: names of objects, and what a set of them covers. * [`plan`]: the decisions. * [`pack`]: an object from
//!   segment files. * [`peers`]: what the other members say. * [`uploader`]: the one task of a safekeeper that does it for
//!   all timelines. * [`archive`]: reading what was uploaded. * [`restore`]: a timeline from object storage alone.
//!
//! What is uploaded was committed, so it never changes and any member's object is as good as another's: the election
//! saves work and decides nothing. A commit is in object storage at most [`BackupConfig::upload_interval_ms`] later, as
//! long as that can be reached; what is local is removed only when object storage was seen to have it as whole segments,
//! every shard has it in layers of its own, and every member had flushed it.

pub mod archive;
pub mod objects;
pub mod pack;
pub mod peers;
pub mod plan;
pub mod restore;
pub mod uploader;

use lakebed_blobstore::BlobError;
use lakebed_walframe::FrameError;
use serde::{Deserialize, Serialize};

use crate::control_file::ControlFileError;
use crate::intake::IntakeError;
use crate::timeline::LoadError;
use crate::wal_store::WalStoreError;

/// Where WAL goes, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupConfig {
    /// Address of the object store, the one that pageservers use.
    pub store: String,
    /// A commit is in object storage this many milliseconds later: what the loss of all safekeepers costs at most.
    #[serde(default = "default_upload_interval_ms")]
    pub upload_interval_ms: u64,
    /// WAL segments that are kept locally before the current one, when nobody needs them any more.
    #[serde(default = "default_local_segments")]
    pub local_segments: u64,
    /// WAL is kept in object storage for this many seconds, and until pageservers have it in layers.
    #[serde(default = "default_retention_s")]
    pub retention_s: u64,
}

fn default_upload_interval_ms() -> u64 {
    10_000
}

fn default_local_segments() -> u64 {
    4
}

fn default_retention_s() -> u64 {
    7 * 24 * 3600
}

/// Why WAL did not get to object storage, or back. What was under way is tried again by whoever asked for it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Object storage.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The local files.
    #[error(transparent)]
    Files(#[from] WalStoreError),
    /// What was read back is not what was stored.
    #[error("{path}: {source}")]
    Frame {
        /// The object.
        path: String,
        /// What is wrong with it.
        source: FrameError,
    },
    /// What is to be uploaded, or was read back, is no WAL.
    #[error("this is not the WAL that it should be: {0}")]
    NotWal(String),
    /// WAL that was read back does not decode.
    #[error(transparent)]
    Decode(#[from] IntakeError),
    /// Object storage does not have what is asked for.
    #[error("object storage has no WAL at {at}: {why}")]
    Gap {
        /// The first byte that is missing.
        at: lakebed_types::Lsn,
        /// What it has.
        why: String,
    },
    /// The control state that came with an object.
    #[error(transparent)]
    Control(#[from] ControlFileError),
    /// A timeline could not be made of it.
    #[error(transparent)]
    Timeline(#[from] LoadError),
    /// A worker thread ended.
    #[error("reading or writing files failed: {0}")]
    Worker(String),
}

impl From<tokio::task::JoinError> for BackupError {
    fn from(error: tokio::task::JoinError) -> BackupError {
        BackupError::Worker(error.to_string())
    }
}
