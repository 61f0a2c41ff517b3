//! What a pageserver owns: shards at generations, with their timelines.
//!
//! The controller attaches shards. What is attached is also kept in a local file, so that a pageserver that restarts
//! while the controller is down goes on; with the disk lost, the controller attaches again.
//!
//! * `attachments`: what the controllers say, and the local file. `attach`: shards are taken over, timelines opened and branches made.
//! * `split`: a tenant gets more shards. `turns`: who of several timelines works next.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lakebed_blobstore::BlobStore;
use lakebed_layer::ImagePolicy;
use lakebed_redo::Managers;
use lakebed_types::{Generation, Lsn, ShardIdentity, TenantId, TimelineId};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::PageserverConfig;
use crate::deletion;
use crate::hot::HotPages;
use crate::image_queue::{self, ImageQueue};
use crate::import::{Circumstances, Import};
use crate::layer_disk::{DiskPolicy, LayerDisk};
use crate::manifest::{Cluster, Place};
use crate::metrics::Metrics;
use crate::page_cache::PageCache;
use crate::timeline::detach::Detached;
use crate::timeline::{Identity, Storage, Thresholds, Timeline, TimelineError};

mod attach;
mod attachments;
mod error;
pub mod split;
mod turns;

pub use attachments::{Attachment, TimelineSpec, parents_first};
pub use error::NodeError;
pub use turns::Turns;

/// Pause between two looks at how much is kept.
const TELL_KEPT: Duration = Duration::from_secs(5);
/// A reader that sees nothing ingested for this long says so: a safekeeper that has the WAL needs no second to send it.
const STALL: Duration = Duration::from_secs(1);
/// See [`Node::disk_reads`].
const DISK_READS: usize = 64;

/// What an import found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whose WAL it is.
    pub cluster: Cluster,
    /// First LSN of the timeline.
    pub start: Lsn,
    /// Start of the record that ends there.
    pub last_record_start: Lsn,
    /// First LSN that may be read.
    pub consistent: Lsn,
}

/// A timeline with its running feed.
#[derive(Debug)]
struct Running {
    timeline: Arc<Timeline>,
    spec: TimelineSpec,
    /// Tells the feed of other safekeepers.
    safekeepers: watch::Sender<Vec<String>>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shard {
    generation: Generation,
    timelines: HashMap<TimelineId, Running>,
    /// It is about to be replaced: see [`Node::retire_shard`].
    retired: bool,
    /// It has taken the place of another one: see [`Node::take_over`].
    took_over: bool,
    /// It was given up for ever at this generation: a request that comes late must not bring it back.
    dropped: bool,
}

type ShardKey = (TenantId, ShardIdentity);

/// The pageserver's state, shared by its services and tasks.
pub struct Node {
    /// As configured.
    pub config: PageserverConfig,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Pages that were built before.
    pub pages: PageCache,
    /// What reads of each page cost.
    pub hot: HotPages,
    /// Pages that want an image.
    pub images: ImageQueue,
    /// Layers on local disk.
    pub disk: Arc<LayerDisk>,
    store: BlobStore,
    /// Redo of extensions' records.
    managers: Managers,
    shards: RwLock<HashMap<ShardKey, Shard>>,
    /// One attach, import, create or delete at a time.
    changing: tokio::sync::Mutex<()>,
    /// Reads of pages that wait for the disk at the same time.
    pub disk_reads: Semaphore,
    /// Turns of compaction.
    pub turns: Turns,
    /// Shards that are being filled.
    filling: tokio::sync::Mutex<HashMap<ShardKey, split::Filling>>,
    /// When the gauges of what is kept were brought up to date last.
    told_kept: Mutex<Option<Instant>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Node {
    /// A node without shards. `managers` replay records of extensions.
    pub fn new(
        config: PageserverConfig,
        managers: Managers,
        store: BlobStore,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Arc<Node> {
        let disk = LayerDisk::new(DiskPolicy {
            directory: config.data_dir.clone(),
            budget_bytes: config.disk_budget_bytes,
            reserve_bytes: config.disk_reserve_bytes,
        });
        Arc::new(Node {
            disk: Arc::new(disk),
            pages: PageCache::new(config.page_cache_bytes),
            hot: HotPages::default(),
            images: ImageQueue::default(),
            config,
            metrics,
            store,
            managers,
            shards: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            disk_reads: Semaphore::new(DISK_READS),
            turns: Turns::default(),
            filling: tokio::sync::Mutex::default(),
            told_kept: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown,
        })
    }

    /// Makes images of pages that reads found with long chains, until the shutdown.
    pub fn make_images(self: &Arc<Self>) {
        let stop = self.shutdown.child_token();
        self.tasks.spawn(image_queue::run(self.clone(), stop));
    }

    /// Starts the task that evicts local layers when there are too many.
    pub fn keep_disk_within_bounds(&self) {
        self.tasks
            .spawn(self.disk.clone().run(self.shutdown.child_token()));
    }

    fn with_shards<T>(&self, look: impl FnOnce(&mut HashMap<ShardKey, Shard>) -> T) -> T {
        look(&mut self.shards.write().expect("the shard table's lock is poisoned"))
    }

    /// A timeline of a shard.
    ///
    /// # Errors
    /// [`NodeError::NotAttached`], [`NodeError::NoTimeline`].
    pub fn timeline(
        &self,
        tenant: TenantId,
        shard: ShardIdentity,
        id: TimelineId,
    ) -> Result<Arc<Timeline>, NodeError> {
        let shards = self.shards.read().expect("the shard table's lock is poisoned");
        let found = shards
            .get(&(tenant, shard))
            .ok_or(NodeError::NotAttached { tenant, shard })?;
        found
            .timelines
            .get(&id)
            .map(|running| running.timeline.clone())
            .ok_or(NodeError::NoTimeline(id))
    }

    /// The timeline's shard 0. While shards are being replaced there may be two: who asks was sent to the one of the lower
    /// count, until that one is dropped.
    ///
    /// # Errors
    /// [`NodeError::NoTimeline`].
    pub fn catalogue_of(&self, tenant: TenantId, id: TimelineId) -> Result<Arc<Timeline>, NodeError> {
        let shards = self.shards.read().expect("the shard table's lock is poisoned");
        let own = shards
            .iter()
            .filter(|((of, shard), _)| *of == tenant && shard.keeps_catalogue());
        let found =
            own.filter_map(|((_, shard), found)| Some((shard.count().get(), found.timelines.get(&id)?)));
        found
            .min_by_key(|(count, _)| *count)
            .map(|(_, running)| running.timeline.clone())
            .ok_or(NodeError::NoTimeline(id))
    }

    /// All timelines, for status.
    pub fn timelines(&self) -> Vec<Arc<Timeline>> {
        let shards = self.shards.read().expect("the shard table's lock is poisoned");
        shards
            .values()
            .flat_map(|shard| shard.timelines.values())
            .map(|running| running.timeline.clone())
            .collect()
    }

    /// Brings the gauges of what is kept up to date, now and then: every timeline's task calls this.
    pub fn tell_kept(&self) {
        let now = Instant::now();
        let due = {
            let mut told = self.told_kept.lock().unwrap_or_else(PoisonError::into_inner);
            let due = told.is_none_or(|at| now - at >= TELL_KEPT);
            if due {
                *told = Some(now);
            }
            due
        };
        if due {
            self.metrics.keeps(&self.timelines());
        }
    }

    fn shard_directory(&self, (tenant, shard): ShardKey) -> PathBuf {
        let shards = self.config.data_dir.join("shards");
        shards.join(format!("{tenant}-{shard}"))
    }

    fn directory(&self, key: ShardKey, timeline: TimelineId) -> PathBuf {
        self.shard_directory(key).join(timeline.to_string())
    }

    fn storage(&self, key: ShardKey, timeline: TimelineId) -> Storage {
        let usual = Thresholds::of_size(self.config.flush_bytes);
        Storage {
            directory: self.directory(key, timeline),
            disk: self.disk.clone(),
            store: self.store.clone(),
            thresholds: Thresholds {
                images: ImagePolicy {
                    deltas: self.config.image_deltas,
                    bytes: self.config.image_bytes,
                },
                index_cache_bytes: self.config.index_cache_bytes,
                rewind_seconds: self.config.rewind_s,
                lease: Duration::from_secs(self.config.lease_s),
                ..usual
            },
            managers: self.managers.clone(),
        }
    }

    /// Imports a data directory as a timeline of a shard and stores it. An unfinished earlier import is forgotten.
    /// Memory: twice [`PageserverConfig::flush_bytes`], pages and the layer that is made of them.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn import(
        self: &Arc<Self>,
        key: ShardKey,
        generation: Generation,
        timeline: TimelineId,
        directory: &Path,
        circumstances: Circumstances,
    ) -> Result<Taken, NodeError> {
        {
            // Only for this: an import may take hours, in which other shards come and go.
            let _one = self.changing.lock().await;
            self.claim(key, generation).await?;
        }
        let (root, shard) = (directory.to_owned(), key.1);
        let import = blocking(move || Import::open(&root, shard, circumstances)).await??;
        let taken = Taken {
            cluster: import.cluster,
            start: import.start,
            last_record_start: import.last_record_start,
            consistent: import.consistent,
        };
        let current = Place::new(&self.store, key.0, key.1, timeline)
            .current(generation)
            .await;
        if current.map_err(TimelineError::from)?.is_some() {
            return Ok(taken);
        }
        let identity = Identity {
            tenant: key.0,
            timeline,
            shard,
            generation,
            cluster: import.cluster,
            start: import.start,
            consistent: import.consistent,
        };
        let new = Timeline::create(identity, None, self.storage(key, timeline));
        let (portions, portion_bytes) = (new.clone(), self.config.flush_bytes);
        let runtime = tokio::runtime::Handle::current();
        let rest = blocking(move || {
            import.read(portion_bytes, &mut |portion| {
                runtime.block_on(portions.store_portion(portion))
            })
        })
        .await??;
        new.publish(rest, taken.start);
        new.flush().await?;
        Ok(taken)
    }

    /// Has a branch detached from its parent, in the background, and tells how far that is.
    ///
    /// # Errors
    /// The shard is not owned at `generation`, or the timeline is not known.
    pub fn detach_timeline(
        &self,
        key: ShardKey,
        generation: Generation,
        timeline: TimelineId,
    ) -> Result<Detached, NodeError> {
        self.with_shards(|shards| owned(shards, key, generation).map(drop))?;
        let timeline = self.timeline(key.0, key.1, timeline)?;
        timeline.detach();
        Ok(timeline.detached())
    }

    /// Gives a timeline up for ever: stops serving it, has its parent forget it, deletes its local files and its objects.
    /// Repeating it is harmless, and needed after an error.
    ///
    /// # Errors
    /// The shard is not owned at `generation`, something still branches from the timeline, or see [`NodeError`].
    pub async fn delete_timeline(
        &self,
        key: ShardKey,
        generation: Generation,
        timeline: TimelineId,
    ) -> Result<(), NodeError> {
        let _one = self.changing.lock().await;
        let (running, others) = self.with_shards(|shards| {
            let found = owned(shards, key, generation)?;
            let hangs_here = |other: &&Running| other.timeline.hangs_on(timeline);
            if let Some(child) = found.timelines.values().find(hangs_here) {
                let child = child.spec.timeline;
                return Err(NodeError::HasBranch { timeline, child });
            }
            let running = found.timelines.remove(&timeline);
            let others = found.timelines.values().map(|other| other.timeline.clone());
            Ok((running, others.collect::<Vec<_>>()))
        })?;
        if let Some(running) = running {
            // First what is being stored is through: given up in the middle it may take effect later.
            running.timeline.end().await;
            running.stop.cancel();
        }
        // Before the parent forgets it: from then on what is left could not be read, and nobody would look for it.
        let place = Place::new(&self.store, key.0, key.1, timeline);
        deletion::delete(&self.store, &place, key, generation).await?;
        // Also when it did not run here: the parent remembers it over a restart.
        for other in others {
            if other.has_branch(timeline).await {
                other.remove_branch(timeline).await?;
            }
        }
        let _ = std::fs::remove_dir_all(self.directory(key, timeline));
        self.pages.forget(timeline);
        self.remember()
    }

    /// Ends all tasks and stores what is in memory.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.close().await;
    }

    /// Waits for all tasks to end, after the shutdown token was cancelled, and stores what is in memory.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        for timeline in self.timelines() {
            if let Err(error) = timeline.flush().await {
                let id = timeline.identity.timeline;
                tracing::warn!(timeline = %id, %error, "could not store the last changes; they come again from the safekeepers");
            }
        }
        self.disk.close().await;
    }
}

/// The shard, if it is owned at just this generation.
fn owned(
    shards: &mut HashMap<ShardKey, Shard>,
    key: ShardKey,
    generation: Generation,
) -> Result<&mut Shard, NodeError> {
    let (tenant, shard) = key;
    let found = shards
        .get_mut(&key)
        .ok_or(NodeError::NotAttached { tenant, shard })?;
    let known = found.generation;
    if known != generation {
        return Err(NodeError::StaleGeneration {
            tenant,
            shard,
            known,
            asked: generation,
        });
    }
    Ok(found)
}

/// Runs what reads files where it may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TimelineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| TimelineError::Internal(format!("import: {error}")))
}

/// Waits until a timeline has ingested `lsn`. When nothing is ingested meanwhile the feed hears of it.
///
/// # Errors
/// [`NodeError::ParentBehind`] after the time is over.
pub async fn wait_for(timeline: &Timeline, lsn: Lsn, patience: Duration) -> Result<(), NodeError> {
    let mut last_record = timeline.watch_last_record();
    let reached = tokio::time::timeout(patience, async {
        loop {
            let before = timeline.last_record();
            let waited = tokio::time::timeout(STALL, last_record.wait_for(|last| *last >= lsn)).await;
            match waited {
                Ok(reached) => return reached.is_ok(),
                Err(_) if timeline.last_record() == before => timeline.complain(),
                Err(_) => {}
            }
        }
    });
    match reached.await {
        Ok(true) => Ok(()),
        _ => Err(NodeError::ParentBehind {
            parent: timeline.identity.timeline,
            reached: timeline.last_record(),
            lsn,
        }),
    }
}
