//! Why a timeline does not do what it is asked.

use std::sync::Arc;

use lakebed_blobstore::BlobError;
use lakebed_layer::MapError;
use lakebed_layer::format::{ReadError, WriteError};
use lakebed_types::{Lsn, PageKey, Term, TimelineId};

use crate::catalogue::CatalogueError;
use crate::layer_handle::Miss;
use crate::layer_store::LayerStoreError;
use crate::manifest::ManifestError;
use crate::reconstruct::ReconstructError;

/// Why a read, a flush or a merge failed.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// A layer cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A layer cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A layer's file or object is not to be had.
    #[error(transparent)]
    Layer(#[from] LayerStoreError),
    /// A layer that the read needs is not on local disk, or damaged there: it may be had by [`super::obtain`].
    #[error("{0}")]
    Missing(Miss),
    /// A layer that the read needs is not to be had from object storage either.
    #[error("{0}")]
    Unobtainable(Arc<LayerStoreError>),
    /// A block is not in memory, and the read was made where it must not wait ([`crate::local_file`]): to be made again where it may.
    #[error("a block would have to be read from disk")]
    Cold,
    /// A merge met a damaged layer, which is whole again: the merge is over, and the next one finds it so.
    #[error("a merge is given up and begins again, since a layer was damaged and is fetched anew: {0}")]
    MergeMetDamage(String),
    /// A change does not fit the layers that there are.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A chain does not replay.
    #[error("page {key:?}: {source}")]
    Reconstruct {
        /// The page.
        key: PageKey,
        /// Why not.
        source: ReconstructError,
    },
    /// A layer's catalogue does not decode.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The manifest is missing, damaged or not ours.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Object storage failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The page belongs to another shard.
    #[error("page {0:?} belongs to another shard")]
    WrongShard(PageKey),
    /// The LSN is not in this timeline's history.
    #[error("{asked} is before the start of history at {start}")]
    BeforeHistory {
        /// What was asked for.
        asked: Lsn,
        /// The oldest LSN that can be read.
        start: Lsn,
    },
    /// The LSN is in history that was given up.
    #[error(
        "{asked} is older than the history that is kept, which begins at {horizon}; below that only branch points and \
         LSNs with a lease can be read"
    )]
    NotKept {
        /// What was asked for.
        asked: Lsn,
        /// From where on every LSN can be read.
        horizon: Lsn,
    },
    /// It is being deleted.
    #[error("timeline {0} is deleted")]
    Deleted(TimelineId),
    /// Reads of the former parent do not end.
    #[error("timeline {0} is still read for a branch that was detached from it")]
    ParentIsRead(TimelineId),
    /// A lease too many.
    #[error("the timeline has {0} leases, which is the most; one has to end first")]
    TooManyLeases(usize),
    /// The control state has no version at this LSN.
    #[error("there is no control state at {0}")]
    NoControl(Lsn),
    /// Something ran into its own bug.
    #[error("internal: {0}")]
    Internal(String),
}

/// Why something was not taken that no WAL carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// A compute of a later term is or was there.
    #[error("a compute of term {} has it", .0.0)]
    Superseded(Term),
    /// The tenant's shards are being replaced by more of them: in a moment another one takes it.
    #[error("this shard is about to be replaced by the ones that it is split into; ask again")]
    Retired,
}
