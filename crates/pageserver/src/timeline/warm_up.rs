//! Layers that will be read are fetched before they are, after a restart or a takeover.
//!
//! Which ones those are, only the owner before knows: every [`REMEMBER`], and when it stops, it stores the names of the layers
//! that it has read, those that were read last first, as an object beside the manifests (`recent`). It is advice: it may be old,
//! of another owner or damaged, and then costs a few downloads that nobody needed, or is left alone.
//!
//! Who opens the timeline fetches those that are not local in that order, one at a time, only while no read waits for a download,
//! and only into what is free of the disk's budget: nothing is evicted for a guess. Local layers take their place in the order
//! of eviction from the same list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lakebed_layer::LayerId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Timeline;
use crate::layer_disk::Urgency;
use crate::layer_handle::{LayerHandle, Miss};

/// How often the list is stored, if it has changed.
const REMEMBER: Duration = Duration::from_secs(300);
/// Most layers in it.
const MOST: usize = 4096;
/// How long it may take to store the list at the end.
const LAST_WORD: Duration = Duration::from_secs(3);
/// How long one layer may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs until stopped.
pub(crate) async fn run(timeline: Arc<Timeline>, stop: CancellationToken) {
    let identity = &timeline.identity;
    let span = tracing::info_span!("warm up", tenant = %identity.tenant, timeline = %identity.timeline, shard = %identity.shard);
    let work = async {
        let warmed = timeline.warm_up().await;
        if warmed > 0 {
            tracing::info!(warmed, "layers that were read before the start are local again");
        }
        let mut stored = Vec::new();
        loop {
            tokio::time::sleep(REMEMBER).await;
            stored = timeline.remember_recent(stored).await;
        }
    };
    tokio::select! {
        () = work.instrument(span) => {}
        () = stop.cancelled() => {
            // An end is not held up by advice.
            let _ = tokio::time::timeout(LAST_WORD, timeline.remember_recent(Vec::new())).await;
        }
    }
}

impl Timeline {
    /// Its layers, wherever they are.
    pub fn handles(&self) -> Vec<Arc<LayerHandle>> {
        self.read(|state| state.layers.open.values().cloned().collect())
    }

    /// Fetches layers that were read lately, as far as there is room; how many.
    pub async fn warm_up(&self) -> usize {
        let recent = match self.files.recent().await {
            Ok(recent) => recent,
            Err(error) => {
                tracing::debug!(%error, "no list of layers that were read lately");
                return 0;
            }
        };
        let (disk, handles) = (self.files.disk(), self.handles());
        let known: BTreeMap<LayerId, &Arc<LayerHandle>> =
            handles.iter().map(|handle| (handle.desc.id, handle)).collect();
        let mut warmed = 0;
        for (age, handle) in (1..).zip(recent.iter().filter_map(|id| known.get(id))) {
            handle.was_read_before(disk.tick().saturating_sub(age));
            if handle.is_local() || !disk.has_room(handle.desc.bytes) {
                continue;
            }
            let miss = Miss::before_it_is_missed(handle);
            match miss.cure(Urgency::WarmUp, Instant::now() + PATIENCE).await {
                Ok(_) => warmed += 1,
                // Whoever needs it will say so louder.
                Err(error) => {
                    tracing::info!(%error, "warming up ends");
                    return warmed;
                }
            }
        }
        warmed
    }

    /// Stores which layers were read lately, unless that is about what `stored` says, which the call before gave.
    pub async fn remember_recent(&self, stored: Vec<LayerId>) -> Vec<LayerId> {
        let mut read: Vec<(u64, LayerId)> = self
            .handles()
            .iter()
            .map(|handle| (handle.last_read(), handle.desc.id))
            .filter(|(tick, _)| *tick > 0)
            .collect();
        read.sort_by(|a, b| b.cmp(a));
        read.truncate(MOST);
        let recent: Vec<LayerId> = read.iter().map(|(_, id)| *id).collect();
        // As it is in steps of this long: it changes when what is read does, and not with each read.
        read.iter_mut().for_each(|(tick, _)| *tick /= REMEMBER.as_secs());
        read.sort_by(|a, b| b.cmp(a));
        let coarse: Vec<LayerId> = read.into_iter().map(|(_, id)| id).collect();
        if coarse == stored || coarse.is_empty() {
            return stored;
        }
        // Held meanwhile, so that nothing is stored any more once the timeline has ended.
        let commits = self.commits.lock().await;
        if commits.deleted {
            return recent;
        }
        match self.files.set_recent(&recent).await {
            Ok(()) => coarse,
            Err(error) => {
                tracing::info!(%error, "could not store which layers were read lately");
                stored
            }
        }
    }

    /// Which of its layers are local.
    pub fn local_layers(&self) -> BTreeSet<LayerId> {
        let handles = self.handles();
        let local = handles.iter().filter(|handle| handle.is_local());
        local.map(|handle| handle.desc.id).collect()
    }
}
