//! Why a node does not do what the controllers ask.

use std::path::PathBuf;
use std::sync::Arc;

use lakebed_types::{Generation, Lsn, ShardIdentity, TenantId, TimelineId};

use crate::timeline::TimelineError;

/// Why a request of the controller was not done.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The shard is owned at a higher generation.
    #[error("shard {shard} of tenant {tenant} is attached at generation {known}; {asked} is out of date")]
    StaleGeneration {
        /// Tenant.
        tenant: TenantId,
        /// Shard.
        shard: ShardIdentity,
        /// Known generation.
        known: Generation,
        /// Generation of the request.
        asked: Generation,
    },
    /// The shard is not attached here.
    #[error("shard {shard} of tenant {tenant} is not attached to this pageserver")]
    NotAttached {
        /// Tenant.
        tenant: TenantId,
        /// Shard.
        shard: ShardIdentity,
    },
    /// No such timeline.
    #[error("timeline {0} is not known here")]
    NoTimeline(TimelineId),
    /// The timeline was never imported or created.
    #[error("timeline {0} is not in object storage and has no parent: import it first")]
    NeverStored(TimelineId),
    /// Stored layers need a parent that the controllers do not name.
    #[error(
        "timeline {timeline} reads from timeline {parent} as it is stored, and the controllers say that it was detached: \
         was it taken back to before that? It cannot be used so"
    )]
    StillHangs {
        /// Timeline.
        timeline: TimelineId,
        /// What it reads from.
        parent: TimelineId,
    },
    /// The parent does not reach the branch point.
    #[error("parent {parent} has ingested up to {reached}, not yet the branch point {lsn}")]
    ParentBehind {
        /// Parent.
        parent: TimelineId,
        /// Its last record.
        reached: Lsn,
        /// Branch point.
        lsn: Lsn,
    },
    /// A timeline could not be opened or stored.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// Something branches from a timeline that is to be deleted.
    #[error("timeline {timeline} cannot be deleted before timeline {child}, which branches from it")]
    HasBranch {
        /// Which.
        timeline: TimelineId,
        /// The branch.
        child: TimelineId,
    },
    /// A shard that is split off could not be filled.
    #[error("{0}")]
    NotFilled(Arc<crate::fill::FillError>),
    /// The import failed.
    #[error(transparent)]
    Import(#[from] crate::import::ImportError),
    /// The local list of attachments could not be written.
    #[error("{path}: {source}")]
    Local {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}
