//! A tenant gets more shards: what a node does for it.
//!
//! ```text
//!  old owner     serving, ingesting ──────────────────────► retire ─────────────────► dropped
//!  new owner         filled with copies ──► attached, ingesting ──► caught up, files ──► serving
//!  controllers   Split ───────────────────────────────────────────────────────► computes are sent to the new ones
//! ```
//!
//! Each step is asked for by the controllers, may be repeated, and is asked for again when an owner has begun anew. Old and
//! new shards ingest side by side and share nothing; what a shard 0 has and no WAL carries, configuration files and the like,
//! is what [`Node::retire_shard`] and [`Node::take_over`] are for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lakebed_blobstore::paths;
use lakebed_layer::LayerId;
use lakebed_types::{Generation, Lsn, TimelineId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Node, NodeError, Running, Shard, ShardKey, owned, wait_for};
use crate::deletion;
use crate::fill::{self, FillError, NewestFiles, Progress, Stored};
use crate::manifest::{Parent, Place};
use crate::timeline::{Timeline, TimelineError};

/// How long a new shard may take to catch up, before the controllers ask again.
const CATCH_UP: Duration = Duration::from_secs(30);

/// A shard that is being filled. The task ends with the node, or when it is cancelled.
#[derive(Debug)]
pub(super) struct Filling {
    generation: Generation,
    progress: Arc<Progress>,
    /// What came of it.
    outcome: watch::Receiver<Option<Result<(), Arc<FillError>>>>,
    stop: CancellationToken,
}

/// How far a shard is that is being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// It has everything that it begins with, durably.
    pub done: bool,
    /// Layers that are copied. Counted since the start of this process.
    pub layers_done: u64,
    /// Layers that are known to be needed.
    pub layers_known: u64,
}

impl Node {
    /// Has a new shard filled with copies of timelines of the one that it is a part of, parents first, in the background; tells
    /// how far that is. After a failure the next call begins again.
    ///
    /// # Errors
    /// The shard is owned at a higher generation, or why filling it failed.
    pub async fn fill_shard(
        self: &Arc<Self>,
        key: ShardKey,
        generation: Generation,
        from: ShardKey,
        timelines: Vec<TimelineId>,
    ) -> Result<Filled, NodeError> {
        let _one = self.changing.lock().await;
        self.claim(key, generation).await?;
        let mut filling = self.filling.lock().await;
        if let Some(running) = filling.get(&key)
            && running.generation == generation
        {
            let outcome = running.outcome.borrow().clone();
            if let Some(Err(error)) = outcome {
                filling.remove(&key);
                return Err(NodeError::NotFilled(error));
            }
            let layers_done = running.progress.done.load(Ordering::Relaxed);
            let layers_known = running.progress.known.load(Ordering::Relaxed);
            return Ok(Filled {
                done: outcome.is_some(),
                layers_done,
                layers_known,
            });
        }
        let (tell, outcome) = watch::channel(None);
        let progress = Arc::new(Progress {
            copied: self.metrics.layers_copied.clone(),
            ..Progress::default()
        });
        let stop = self.shutdown.child_token();
        let (node, counts, ended) = (self.clone(), progress.clone(), stop.clone());
        self.tasks.spawn(async move {
            let fill = async {
                for timeline in timelines {
                    let from = Place::new(&node.store, from.0, from.1, timeline);
                    let to = Place::new(&node.store, key.0, key.1, timeline);
                    let begin = Instant::now();
                    let found = fill::fill(&node.store, (&from, &to), generation, &counts, &ended).await?;
                    let seconds = begin.elapsed().as_secs_f64();
                    tracing::info!(tenant = %key.0, shard = %key.1, %timeline, found, seconds, "a timeline of a new shard is filled");
                }
                Ok(())
            };
            tell.send_replace(Some(fill.await.map_err(Arc::new)));
        });
        let former = filling.insert(
            key,
            Filling {
                generation,
                progress,
                outcome,
                stop,
            },
        );
        former.into_iter().for_each(|former| former.stop.cancel());
        Ok(Filled {
            done: false,
            layers_done: 0,
            layers_known: 0,
        })
    }

    /// A shard takes nothing any more that no WAL carries, also after a restart, and everything that it took is durable.
    /// Reads and ingest go on.
    ///
    /// # Errors
    /// The shard is not owned at `generation`, or something cannot be stored: repeat it.
    pub async fn retire_shard(&self, key: ShardKey, generation: Generation) -> Result<(), NodeError> {
        let _one = self.changing.lock().await;
        let timelines = self.with_shards(|shards| {
            let shard = owned(shards, key, generation)?;
            shard.retired = true;
            let timelines = shard.timelines.values();
            Ok::<_, NodeError>(
                timelines
                    .map(|running| running.timeline.clone())
                    .collect::<Vec<_>>(),
            )
        })?;
        for timeline in timelines {
            timeline.retire();
            timeline.flush().await?;
        }
        self.remember()
    }

    /// A new shard has ingested everything that the one it is a part of has stored, and, if it is shard 0, takes over what
    /// that one has and no WAL carries: which was retired before.
    ///
    /// # Errors
    /// The shard is not owned at `generation`, or it has not caught up yet: repeat it.
    pub async fn take_over(
        &self,
        key: ShardKey,
        generation: Generation,
        from: ShardKey,
    ) -> Result<(), NodeError> {
        let (timelines, before) = self.with_shards(|shards| {
            let shard = owned(shards, key, generation)?;
            let timelines = shard.timelines.values();
            let timelines: Vec<_> = timelines.map(|running| running.timeline.clone()).collect();
            Ok::<_, NodeError>((timelines, shard.took_over))
        })?;
        // What is taken over twice would overwrite what came since.
        if before {
            return Ok(());
        }
        for timeline in timelines {
            let mut files = NewestFiles::new();
            let stored = self
                .stored_files((key, from), &timeline, Lsn::MAX, &mut files)
                .await?;
            // A branch that was made since may not be stored there yet; it begins like its parent, on both.
            let Some(Stored { upto, .. }) = stored else {
                continue;
            };
            wait_for(&timeline, upto, CATCH_UP).await?;
            let adopted = timeline
                .adopt(files)
                .map_err(|error| TimelineError::Internal(error.to_string()))?;
            timeline.flush().await?;
            tracing::info!(tenant = %key.0, shard = %key.1, timeline = %timeline.identity.timeline, upto = %upto, adopted, "a new shard has caught up");
        }
        self.with_shards(|shards| owned(shards, key, generation).map(|shard| shard.took_over = true))
    }

    /// What the old shard has stored of a timeline, and the files of it that the new shard does not have: those of its ancestors
    /// too, since a branch that was made meanwhile began on each shard with what its parent had there.
    async fn stored_files(
        &self,
        (key, from): (ShardKey, ShardKey),
        timeline: &Timeline,
        limit: Lsn,
        files: &mut NewestFiles,
    ) -> Result<Option<Stored>, NodeError> {
        let place = Place::new(&self.store, from.0, from.1, timeline.identity.timeline);
        if !key.1.keeps_catalogue() {
            let manifest = place.latest(Generation(u64::MAX)).await;
            let manifest = manifest.map_err(TimelineError::from)?;
            return Ok(manifest.map(|manifest| Stored {
                upto: manifest.disk_consistent,
                parent: None,
            }));
        }
        let copied = timeline.layer_map();
        let known = |id: LayerId| copied.get(id).is_some();
        let mut own = NewestFiles::new();
        let stored = fill::newest_files(&self.store, &place, limit, known, &mut own).await?;
        if let Some(Parent { timeline, lsn }) = stored.and_then(|stored| stored.parent)
            && let Ok(parent) = self.timeline(key.0, key.1, timeline)
        {
            let ancestors = self.stored_files((key, from), &parent, lsn.min(limit), files);
            Box::pin(ancestors).await?;
        }
        // What is its own is newer.
        files.extend(own);
        Ok(stored)
    }

    /// Gives a shard up for ever, with everything that object storage has of it: others have taken its place, or it was not to
    /// be. Repeating it is harmless, and needed after an error.
    ///
    /// # Errors
    /// The shard is owned at a higher generation, or object storage fails.
    pub async fn drop_shard(&self, key: ShardKey, generation: Generation) -> Result<(), NodeError> {
        let _one = self.changing.lock().await;
        let running = self.with_shards(|shards| {
            let found = shards
                .get_mut(&key)
                .filter(|shard| shard.generation <= generation);
            found.map_or_else(HashMap::new, |shard| {
                shard.dropped = false;
                std::mem::take(&mut shard.timelines)
            })
        });
        self.claim(key, generation).await?;
        let filling = self.filling.lock().await.remove(&key);
        if let Some(filling) = filling {
            filling.stop.cancel();
            // The task has ended when nobody can tell any more.
            let mut outcome = filling.outcome;
            while outcome.changed().await.is_ok() {}
        }
        for Running { timeline, stop, .. } in running.values() {
            // First what is being stored is through: given up in the middle it may take effect later.
            timeline.end().await;
            stop.cancel();
            self.pages.forget(timeline.identity.timeline);
        }
        let (tenant, shard) = key;
        let listed = self.store.list(&paths::shard(tenant, shard)).await;
        let listed = listed.map_err(TimelineError::from)?;
        let mut left: BTreeSet<TimelineId> = listed
            .iter()
            .filter_map(|path| paths::timeline_in(path))
            .collect();
        // Branches before what they hang on.
        while !left.is_empty() {
            let before = left.len();
            let mut held_up = None;
            for timeline in left.clone() {
                let place = Place::new(&self.store, tenant, shard, timeline);
                match deletion::delete(&self.store, &place, key, generation).await {
                    Ok(()) => {
                        left.remove(&timeline);
                    }
                    Err(error @ NodeError::HasBranch { .. }) => held_up = Some(error),
                    Err(error) => return Err(error),
                }
            }
            if let (Some(error), true) = (held_up, left.len() == before) {
                return Err(error);
            }
        }
        self.with_shards(|shards| owned(shards, key, generation).map(|shard| shard.dropped = true))?;
        let _ = std::fs::remove_dir_all(self.shard_directory(key));
        self.remember()
    }
}

impl Shard {
    pub(super) fn new(generation: Generation, retired: bool) -> Shard {
        Shard {
            generation,
            timelines: Default::default(),
            retired,
            took_over: false,
            dropped: false,
        }
    }
}
