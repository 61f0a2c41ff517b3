//! A node takes over shards, and opens or creates their timelines.

use std::sync::Arc;
use std::time::Duration;

use lakebed_types::Generation;
use tokio::sync::watch;

use super::{Attachment, Node, NodeError, Running, Shard, ShardKey, TimelineSpec, owned, wait_for};
use crate::manifest::{self, Parent, Place};
use crate::timeline::{Identity, Timeline, TimelineError, warm_up};
use crate::{compaction, feed};

/// How long creating a branch waits for the parent to ingest the branch point.
const BRANCH_WAIT: Duration = Duration::from_secs(30);

impl Node {
    /// Takes over a shard, or adds to one that is owned at the same generation. Repeating it is harmless.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn attach(self: &Arc<Self>, attachment: Attachment) -> Result<(), NodeError> {
        let _one = self.changing.lock().await;
        let key = (attachment.tenant, attachment.shard);
        self.claim(key, attachment.generation).await?;
        if attachment.retired {
            self.with_shards(|shards| {
                owned(shards, key, attachment.generation).map(|shard| shard.retired = true)
            })?;
        }
        for spec in attachment.timelines {
            if !self.update(key, &spec) {
                self.open(key, attachment.generation, spec).await?;
            }
        }
        self.remember()
    }

    /// Tells a running timeline who its safekeepers are and what it may give up; false if it does not run.
    fn update(&self, key: ShardKey, spec: &TimelineSpec) -> bool {
        self.with_shards(|shards| {
            let timelines = shards.get_mut(&key).map(|shard| &mut shard.timelines);
            let Some(running) = timelines.and_then(|timelines| timelines.get_mut(&spec.timeline)) else {
                return false;
            };
            running.spec.parent = spec.parent;
            if running.spec.kept != spec.kept {
                running.spec.kept = spec.kept.clone();
                running.timeline.allow(spec.kept.clone());
            }
            if running.spec.safekeepers != spec.safekeepers {
                running.spec.safekeepers.clone_from(&spec.safekeepers);
                running.safekeepers.send_replace(spec.safekeepers.clone());
            }
            true
        })
    }

    /// Makes this node the owner at `generation`; a higher one than known closes what runs under the old one.
    pub(super) async fn claim(&self, key: ShardKey, generation: Generation) -> Result<(), NodeError> {
        let (tenant, shard) = key;
        let closed = self.with_shards(|shards| match shards.get(&key).map(|found| found.generation) {
            Some(known) if known > generation => Err(NodeError::StaleGeneration {
                tenant,
                shard,
                known,
                asked: generation,
            }),
            Some(known) if known == generation => match shards.get(&key).is_some_and(|shard| shard.dropped) {
                true => Err(NodeError::NotAttached { tenant, shard }),
                false => Ok(None),
            },
            _ => Ok(shards.insert(key, Shard::new(generation, false))),
        })?;
        for running in closed.into_iter().flat_map(|shard| shard.timelines.into_values()) {
            running.stop.cancel();
        }
        Ok(())
    }

    async fn open(
        self: &Arc<Self>,
        key: ShardKey,
        generation: Generation,
        spec: TimelineSpec,
    ) -> Result<(), NodeError> {
        let (tenant, shard) = key;
        let place = Place::new(&self.store, tenant, shard, spec.timeline);
        let current = manifest::claim(&place, generation).await;
        let current = current.map_err(TimelineError::from)?;
        let hangs_on = match &current {
            Some((manifest, _)) => manifest.parent,
            None => spec.parent,
        };
        let parent = match (hangs_on, spec.parent) {
            (Some(Parent { timeline, lsn }), Some(_)) => Some((self.timeline(tenant, shard, timeline)?, lsn)),
            (Some(Parent { timeline, .. }), None) => {
                let (timeline, parent) = (spec.timeline, timeline);
                return Err(NodeError::StillHangs { timeline, parent });
            }
            // Detached, and whoever did it may not have lived to have the parent forget it.
            (None, Some(Parent { timeline, .. })) => {
                if let Ok(former) = self.timeline(tenant, shard, timeline) {
                    former.remove_branch(spec.timeline).await?;
                }
                None
            }
            (None, None) => None,
        };
        if let Some((parent, lsn)) = &parent {
            if current.is_none() {
                wait_for(parent, *lsn, BRANCH_WAIT).await?;
                // The branch begins with the parent's catalogue, so that must survive a loss of memory.
                parent.flush().await?;
            } else {
                parent.add_branch(spec.timeline, *lsn).await?;
            }
        }
        let stored = current
            .as_ref()
            .map(|(manifest, _)| (manifest.start, manifest.consistent));
        let bounds = stored.or(spec.parent.map(|parent| (parent.lsn, parent.lsn)));
        let (start, consistent) = bounds.ok_or(NodeError::NeverStored(spec.timeline))?;
        let identity = Identity {
            tenant,
            timeline: spec.timeline,
            shard,
            generation,
            cluster: spec.cluster,
            start,
            consistent: consistent.max(start),
        };
        let storage = self.storage(key, spec.timeline);
        let timeline = match (current, parent) {
            (Some(current), parent) => Timeline::open(identity, parent, storage, current).await?,
            (None, Some((parent, lsn))) => {
                let timeline = Timeline::create(identity, Some((parent.clone(), lsn)), storage);
                // At the same time, since each takes some durable writes. Whoever finds the branch stored opens it, and has
                // the parent note it first.
                let (noted, stored) = tokio::join!(parent.add_branch(spec.timeline, lsn), timeline.flush());
                noted.and(stored)?;
                timeline
            }
            (None, None) => return Err(NodeError::NeverStored(spec.timeline)),
        };
        self.start(key, timeline, spec);
        Ok(())
    }

    /// Runs a timeline: feed, flush and compaction.
    pub(super) fn start(self: &Arc<Self>, key: ShardKey, timeline: Arc<Timeline>, spec: TimelineSpec) {
        let stop = self.shutdown.child_token();
        let (tell, safekeepers) = watch::channel(spec.safekeepers.clone());
        timeline.allow(spec.kept.clone());
        let running = Running {
            timeline: timeline.clone(),
            spec,
            safekeepers: tell,
            stop: stop.clone(),
        };
        self.with_shards(|shards| {
            if let Some(shard) = shards.get_mut(&key) {
                if shard.retired {
                    timeline.retire();
                }
                shard.timelines.insert(timeline.identity.timeline, running);
            }
        });
        self.tasks
            .spawn(compaction::run(self.clone(), timeline.clone(), stop.clone()));
        self.tasks.spawn(warm_up::run(timeline.clone(), stop.clone()));
        self.tasks
            .spawn(feed::run(self.clone(), timeline, safekeepers, stop));
    }
}
