//! Reads of layers that are not there: what a read misses is fetched, and the read made again.
//!
//! A read ([`super::read`]) goes through layers that are open in memory, without waiting for anything. What it cannot have so,
//! because the layer is not on local disk, or because its file is damaged, is a [`Miss`] in its error. Here is who waits for
//! the remedy: [`Timeline::obtaining`] in tasks, [`Timeline::obtaining_here`] in threads that may block. Layers that came are
//! held until the read is through, so that one that needs several gets them all, however small the disk is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lakebed_layer::LayerId;
use lakebed_layer::format::ReadError;
use tokio::time::Instant;

use super::{Layers, Timeline, TimelineError};
use crate::layer_disk::Urgency;
use crate::layer_handle::Miss;
use crate::layer_store::{Layer, LayerStoreError};

/// How long a read waits for all layers that it misses together.
pub const OBTAIN_WAIT: Duration = Duration::from_secs(30);

/// An error that may be about layers that can be had.
pub trait MayMiss: From<TimelineError> {
    /// What is missing.
    fn miss(&self) -> Option<&Miss>;
}

impl MayMiss for TimelineError {
    fn miss(&self) -> Option<&Miss> {
        match self {
            TimelineError::Missing(miss) => Some(miss),
            _ => None,
        }
    }
}

impl TimelineError {
    /// Whether the same may succeed later, here or at a newer owner: nothing is said about the data.
    pub fn may_pass(&self) -> bool {
        match self {
            TimelineError::Missing(_) | TimelineError::Blob(_) | TimelineError::Manifest(_) => true,
            TimelineError::Unobtainable(error) => !error.is_damage(),
            _ => false,
        }
    }
}

impl Layers {
    /// An open layer.
    pub(super) fn reader(&self, id: LayerId) -> Result<Arc<Layer>, TimelineError> {
        let found = self.open.get(&id);
        let handle = found.ok_or_else(|| TimelineError::Internal(format!("layer {id} is not known")))?;
        handle.local().map_err(TimelineError::Missing)
    }

    /// The sections of a layer of the catalogue.
    pub(super) fn sections(&self, id: LayerId) -> Result<Vec<Bytes>, TimelineError> {
        let sections = self.reader(id)?.sections();
        sections.map_err(|error| self.blame(error.into()))
    }

    /// An error of reading these layers, with a remedy if it is the fault of one of their files.
    pub(super) fn blame(&self, error: TimelineError) -> TimelineError {
        let TimelineError::Read(error) = error else {
            return error;
        };
        let id = match &error {
            ReadError::Damaged(damage) => damage.layer,
            ReadError::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock => {
                return TimelineError::Cold;
            }
            ReadError::Io { layer, .. } => *layer,
        };
        match self.open.get(&id) {
            Some(handle) => TimelineError::Missing(handle.miss(error)),
            None => TimelineError::Read(error),
        }
    }
}

impl Timeline {
    /// Makes a read, as often as it takes until all layers that it needs are there.
    ///
    /// # Errors
    /// The read's own, or why a layer is not to be had.
    pub async fn obtaining<T, E: MayMiss>(&self, mut read: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        let error = match read() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        self.obtaining_after(error, read).await
    }

    /// As [`Timeline::obtaining`], when the read was made once already.
    ///
    /// # Errors
    /// As [`Timeline::obtaining`].
    pub async fn obtaining_after<T, E: MayMiss>(
        &self,
        mut error: E,
        mut read: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let (deadline, mut held) = (Instant::now() + OBTAIN_WAIT, Vec::new());
        loop {
            let Some(miss) = error.miss() else {
                return Err(error);
            };
            held.extend(self.cure(miss, deadline).await?);
            error = match read() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
        }
    }

    /// As [`Timeline::obtaining`], on a thread of the runtime that may block.
    ///
    /// # Errors
    /// As [`Timeline::obtaining`].
    pub fn obtaining_here<T, E: MayMiss>(&self, mut read: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        match read() {
            Err(error) if error.miss().is_some() => {
                tokio::runtime::Handle::current().block_on(self.obtaining_after(error, read))
            }
            done => done,
        }
    }

    async fn cure(&self, miss: &Miss, deadline: Instant) -> Result<Option<Arc<Layer>>, TimelineError> {
        match miss.cure(Urgency::Read, deadline).await {
            Ok(layer) => Ok(layer),
            Err(error) => Err(self.unobtainable(error).await),
        }
    }

    /// Why a layer is not to be had. An object that is gone was deleted by a newer owner, if there is one.
    async fn unobtainable(&self, error: Arc<LayerStoreError>) -> TimelineError {
        if error.is_missing_object()
            && let Err(superseded) = self.manifests.current(self.identity.generation).await
        {
            return superseded.into();
        }
        TimelineError::Unobtainable(error)
    }
}
