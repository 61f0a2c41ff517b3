//! Why a verification cannot start or go on. A difference is never an error: it is counted and shown.

use std::io;
use std::path::{Path, PathBuf};

use lakebed_ingest::IngestError;
use lakebed_types::Lsn;
use lakebed_wal::stream::StreamError;

/// See the module header. Whoever calls shows the message; nothing can be retried before its cause is gone.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A data directory that nothing can be verified on, or against.
    #[error("{directory}: {reason}")]
    Directory {
        /// The data directory.
        directory: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A segment that is needed is not there.
    #[error("the WAL segment {name} is missing in {directory}; it is needed from {lsn} on")]
    MissingSegment {
        /// Its file name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
        /// First position that is needed from it.
        lsn: Lsn,
    },
    /// A segment file does not have a segment's size.
    #[error("{path} has {found} bytes, a WAL segment of this cluster has {expected}")]
    SegmentSize {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// Bytes of a segment.
        expected: u64,
    },
    /// Bytes that are not this cluster's WAL, in front of WAL that is, or where nothing else can be meant.
    #[error("the WAL is damaged: {0}")]
    Wal(#[from] StreamError),
    /// The WAL ends in front of the position that was asked for.
    #[error("the WAL ends at {end}, in front of {to}")]
    EndsEarly {
        /// Where it ends.
        end: Lsn,
        /// What was asked for.
        to: Lsn,
    },
    /// A position that does not fit what is there.
    #[error("{0}")]
    Position(String),
    /// A record of a resource manager that is not built in and was not registered.
    #[error(
        "the record at {lsn} belongs to the custom resource manager {rmid} (info {info:#04x}), which an extension \
         brings: its pages cannot be replayed without a plug-in (lakebed_redo::ResourceManager)"
    )]
    CustomManager {
        /// Start of the record.
        lsn: Lsn,
        /// Number of the resource manager.
        rmid: u8,
        /// `xl_info`.
        info: u8,
    },
    /// A record that is not understood.
    #[error("cannot replay: {0}")]
    Record(#[from] IngestError),
    /// A record that cannot be replayed on its page.
    #[error("{0}")]
    Redo(String),
}

/// Turns an error of the operating system on `path` into ours.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> VerifyError + '_ {
    move |source| VerifyError::Io {
        path: path.to_owned(),
        source,
    }
}
