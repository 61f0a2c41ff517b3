//! One timeline of one shard: versions of pages, in memory and in layers, and the catalogue.
//!
//! ```text
//! ingest ──► active table ──flush──► level-0 layers ──compaction──► current and history layers
//!                 ▲ newest                                                    ▲ oldest
//!                 └──────────── a read goes this way ─────────────────────────┘ and on into the parent at the branch point
//! ```
//!
//! * `read`: a page at an LSN, its [`read::Cost`]. `image`: images of pages that reads found with long chains.
//! * `flush`: what is in memory becomes layers. `commit`: a change of the layers becomes durable, in object storage.
//! * `history`: what is kept of what was, for whom.
//! * `compaction`: layers are merged; [`crate::compaction`] is the task.
//! * `changes`: what ingest publishes of a record, and how it gets into memory.
//! * `obtain`: layers that are not on local disk, or damaged there, are fetched. `warm_up`: before they are missed.
//!
//! One task ingests; any number read. Positions: `remote_consistent == disk_consistent <= last_record`: a layer counts
//! once its manifest is stored. A record that cannot be ingested stops the timeline: it serves what it has and says
//! why it went no further.

mod changes;
mod commit;
pub mod compaction;
pub mod detach;
mod error;
pub mod explain;
mod flush;
pub mod history;
pub mod image;
pub mod obtain;
pub mod read;
pub(crate) mod warm_up;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_blobstore::BlobStore;
use lakebed_layer::format::IndexCache;
use lakebed_layer::{DeadBytes, ImagePolicy, LayerId, LayerKind, LayerMap, Memtable, PlanPolicy};
use lakebed_redo::Managers;
use lakebed_types::{Generation, Lsn, RelTag, ShardIdentity, TenantId, Term, TimelineId};
use tokio::sync::{Notify, watch};

use crate::catalogue::below::Shared;
use crate::catalogue::{self, Catalogue, Entry};
use crate::fill::NewestFiles;
use crate::layer_disk::LayerDisk;
use crate::layer_handle::LayerHandle;
use crate::layer_store::LayerStore;
use crate::manifest::log::Log;
use crate::manifest::{Cluster, Manifest, Parent, Place};
pub use changes::Changes;
use commit::{Commits, Said};
pub use error::{NotTaken, TimelineError};
use flush::Frozen;
use history::History;

/// Catalogue files that are the tier's own and never part of a basebackup begin with this.
pub const OWN_FILES: &str = ".lakebed/";

/// What never changes about a timeline.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// This node's shard.
    pub shard: ShardIdentity,
    /// Generation of the ownership.
    pub generation: Generation,
    /// Whose WAL it is.
    pub cluster: Cluster,
    /// First LSN of its own history.
    pub start: Lsn,
    /// First LSN that may be read: `start`, but for a timeline that was made of a base backup of a running server,
    /// which is consistent only once the WAL up to the backup's end is replayed.
    pub consistent: Lsn,
}

/// Sizes and rules of storage.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Bytes in memory that make a flush.
    pub flush_bytes: usize,
    /// When a page gets an image.
    pub images: ImagePolicy,
    /// When layers are merged.
    pub plan: PlanPolicy,
    /// Bytes of index blocks that are kept in memory.
    pub index_cache_bytes: usize,
    /// Manifests are kept for so long after there is a newer one.
    pub rewind_seconds: u64,
    /// A lease is granted for so long.
    pub lease: Duration,
    /// The resident catalogue is thinned when it has so many versions more than twice what was left the last time.
    pub catalogue_versions: usize,
}

impl Thresholds {
    /// The usual rules for tables and layers of this size.
    pub fn of_size(flush_bytes: usize) -> Thresholds {
        Thresholds {
            flush_bytes,
            images: ImagePolicy::default(),
            plan: PlanPolicy {
                layer_bytes: flush_bytes as u64,
                ..PlanPolicy::default()
            },
            index_cache_bytes: 64 << 20,
            rewind_seconds: 3600,
            lease: Duration::from_secs(900),
            catalogue_versions: 10_000,
        }
    }
}

/// What the write path changes and every read sees.
#[derive(Debug)]
struct State {
    active: Memtable,
    /// Values that are not in the active table are at or below.
    begin: Lsn,
    /// Catalogue entries that are in no layer yet.
    pending: Vec<(Lsn, Entry)>,
    /// Being flushed.
    frozen: Option<Frozen>,
    layers: Arc<Layers>,
    /// Where a read goes on that the layers do not end, for a branch that is not detached.
    parent: Option<Arc<Link>>,
    /// Values were half taken: nothing more may be stored.
    broken: bool,
    /// Another shard is about to take over: see [`Timeline::retire`].
    retired: bool,
    stopped: Option<String>,
}

/// What a branch hangs on. Who reads there holds it: a branch that is detached waits for them.
#[derive(Debug)]
pub struct Link {
    /// The parent.
    pub timeline: Arc<Timeline>,
    /// The branch point.
    pub lsn: Lsn,
}

/// Layers as of one change, each of them wherever it is.
#[derive(Clone, Debug, Default)]
struct Layers {
    map: Arc<LayerMap>,
    open: BTreeMap<LayerId, Arc<LayerHandle>>,
}

/// What a timeline has, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes in memory tables.
    pub memory_bytes: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of them.
    pub layer_bytes: u64,
    /// Layers of level 0.
    pub level0: usize,
    /// Layers of history.
    pub history: usize,
    /// Bytes of those.
    pub history_bytes: u64,
    /// Partitions.
    pub partitions: usize,
    /// Layers that were copied when the shard was split off, and are still to be rewritten without what is another shard's.
    pub copies: usize,
    /// Bytes of pages that are gone and that the window does not need any more, as far as they are still in layers.
    pub dead_bytes: u64,
}

/// One timeline of one shard.
#[derive(Debug)]
pub struct Timeline {
    /// What never changes.
    pub identity: Identity,
    files: Arc<LayerStore>,
    manifests: Place,
    thresholds: Thresholds,
    /// Redo of extensions' records.
    managers: Managers,
    index_cache: IndexCache,
    state: RwLock<State>,
    /// What the write path adds to while it holds `state`; branches look here too, and keep nobody from that.
    catalogue: Shared,
    last_record: watch::Sender<Lsn>,
    /// Rung by readers whose WAL does not come.
    stalled: Notify,
    disk_consistent: watch::Sender<Lsn>,
    /// What is kept of history. Taken after `commits` where both are.
    history: RwLock<History>,
    /// Rung when more of it may be given up.
    history_news: Notify,
    /// Held through a change of the layers, so that there is one at a time.
    commits: tokio::sync::Mutex<Commits>,
    detaching: detach::Progress,
    /// What compaction found of pages that are gone.
    dead: Mutex<DeadBytes>,
}

/// Where a timeline is to be kept, and how.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Local directory for its layers.
    pub directory: PathBuf,
    /// The disk that it is on.
    pub disk: Arc<LayerDisk>,
    /// Object storage.
    pub store: BlobStore,
    /// Sizes and rules.
    pub thresholds: Thresholds,
    /// Redo of extensions' records.
    pub managers: Managers,
}

impl Timeline {
    /// A timeline that is not stored anywhere yet. [`Timeline::flush`] stores it.
    pub fn create(
        identity: Identity,
        parent: Option<(Arc<Timeline>, Lsn)>,
        storage: Storage,
    ) -> Arc<Timeline> {
        let said = Said {
            horizon: identity.start,
            parent: parent.as_ref().map(hangs_on),
            ..Said::default()
        };
        let commits = Commits {
            said,
            ..Commits::default()
        };
        // There is no manifest yet that could number what is stored before the first one; the clock does.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let micros = since.map_or(0, |since| since.as_micros() as u64);
        let first_number = 1 << 63 | micros << 11;
        let catalogue = inherited(&parent);
        Arc::new(Self::build(
            identity,
            parent,
            storage,
            first_number,
            catalogue,
            commits,
        ))
    }

    fn build(
        identity: Identity,
        parent: Option<(Arc<Timeline>, Lsn)>,
        storage: Storage,
        first_number: u64,
        catalogue: Catalogue,
        commits: Commits,
    ) -> Timeline {
        let Storage {
            directory,
            disk,
            store,
            thresholds,
            managers,
        } = storage;
        let manifests = Place::new(&store, identity.tenant, identity.shard, identity.timeline);
        let numbers = (identity.generation, first_number);
        let files = Arc::new(LayerStore::new(
            (directory, disk),
            store,
            manifests.directory(),
            numbers,
        ));
        let state = State {
            active: empty_table(),
            begin: identity.start,
            pending: Vec::new(),
            frozen: None,
            layers: Arc::default(),
            parent: parent.map(|(timeline, lsn)| Arc::new(Link { timeline, lsn })),
            broken: false,
            retired: false,
            stopped: None,
        };
        Timeline {
            last_record: watch::Sender::new(identity.start),
            disk_consistent: watch::Sender::new(identity.start),
            identity,
            files,
            manifests,
            thresholds,
            managers,
            index_cache: IndexCache::new(thresholds.index_cache_bytes),
            state: RwLock::new(state),
            catalogue: Shared::new(catalogue),
            stalled: Notify::new(),
            history: RwLock::default(),
            history_news: Notify::new(),
            commits: tokio::sync::Mutex::new(commits),
            detaching: detach::Progress::default(),
            dead: Mutex::default(),
        }
    }

    /// Opens a stored timeline, of which `claimed` is what [`crate::manifest::claim`] gave. Layers of pages stay where they
    /// are; those of the catalogue, which is kept in memory, are fetched if they are missing on local disk.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub async fn open(
        identity: Identity,
        parent: Option<(Arc<Timeline>, Lsn)>,
        storage: Storage,
        claimed: (Manifest, u64),
    ) -> Result<Arc<Timeline>, TimelineError> {
        let (manifest, sequence) = claimed;
        let log = Log::claimed((identity.generation, sequence), &manifest)?;
        let catalogue = inherited(&parent);
        let commits = Commits {
            sequence,
            log: Some(log),
            gone: manifest.gone,
            said: Said {
                parent: manifest.parent,
                based: manifest.based,
                branches: manifest.branches,
                horizon: manifest.horizon,
            },
            superseded: None,
            deleted: false,
        };
        // Who was there when the owner before ended is given the time to come back.
        let quiet_until = Instant::now() + storage.thresholds.lease;
        let given_up = if commits.said.horizon > identity.start {
            commits.said.horizon
        } else {
            Lsn(0)
        };
        let history = History::restored(
            given_up,
            commits.said.branches.clone(),
            manifest.leases,
            quiet_until,
        );
        // Nobody else has this sequence number, so nobody else gives these numbers to layers.
        let first_number = sequence << 24;
        let mut timeline = Self::build(identity, parent, storage, first_number, catalogue, commits);
        timeline.history = RwLock::new(history);
        timeline.files.remove_strangers(&manifest.map);
        let handles = manifest.map.layers();
        let open = handles.map(|desc| (desc.id, LayerHandle::of_stored(desc, &timeline.files)));
        let open = open.collect();
        let layers = Layers {
            map: manifest.map,
            open,
        };
        // One that was split off shard 0 has layers with all of it.
        let whole = timeline.identity.shard.keeps_catalogue();
        for id in layers.map.catalogue() {
            let sections = || layers.sections(*id);
            let mut entries = catalogue::from_sections(timeline.obtaining(sections).await?)?;
            entries.retain(|(_, entry)| whole || entry.is_of_lives());
            timeline.catalogue.change(|catalogue| catalogue.add_all(&entries));
        }
        let state = timeline.state.get_mut();
        let state = state.map_err(|_| TimelineError::Internal("a lock is poisoned".to_owned()))?;
        state.begin = manifest.disk_consistent;
        state.layers = Arc::new(layers);
        timeline.last_record.send_replace(manifest.disk_consistent);
        timeline.disk_consistent.send_replace(manifest.disk_consistent);
        Ok(Arc::new(timeline))
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        // A poisoned lock means that a thread panicked in the middle of a change; the data is not trustworthy then.
        look(&self.state.read().expect("the timeline's state lock is poisoned"))
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().expect("the timeline's state lock is poisoned"))
    }

    /// Redo of extensions' records.
    pub fn managers(&self) -> &Managers {
        &self.managers
    }

    /// What it hangs on, for a branch that is not detached.
    pub fn parent(&self) -> Option<Arc<Link>> {
        self.read(|state| state.parent.clone())
    }

    /// End of the last ingested record.
    pub fn last_record(&self) -> Lsn {
        *self.last_record.borrow()
    }

    /// Everything up to here is in object storage.
    pub fn disk_consistent(&self) -> Lsn {
        *self.disk_consistent.borrow()
    }

    /// Follows [`Timeline::disk_consistent`].
    pub fn watch_disk_consistent(&self) -> watch::Receiver<Lsn> {
        self.disk_consistent.subscribe()
    }

    /// Follows [`Timeline::last_record`].
    pub fn watch_last_record(&self) -> watch::Receiver<Lsn> {
        self.last_record.subscribe()
    }

    /// A reader tells that it waits and nothing is ingested.
    pub fn complain(&self) {
        self.stalled.notify_waiters();
    }

    /// Returns when a reader complains.
    pub async fn complaint(&self) {
        self.stalled.notified().await;
    }

    /// Why ingest stopped, if it did.
    pub fn stopped(&self) -> Option<String> {
        self.read(|state| state.stopped.clone())
    }

    /// Marks the timeline as stopped at a record that it cannot ingest.
    pub fn stop(&self, reason: String) {
        self.write(|state| state.stopped.get_or_insert(reason).clone());
    }

    /// Bytes in memory and in layers.
    pub fn sizes(&self) -> Sizes {
        self.read(|state| {
            let map = &state.layers.map;
            let frozen = state.frozen.as_ref().map_or(0, |frozen| frozen.table.bytes());
            let count = |kind| map.layers().filter(|desc| desc.kind == kind).count();
            Sizes {
                memory_bytes: state.active.bytes() + frozen,
                layers: map.layers().count(),
                layer_bytes: map.layers().map(|desc| desc.bytes).sum(),
                level0: count(LayerKind::Level0),
                history: count(LayerKind::History),
                history_bytes: map
                    .layers()
                    .filter(|desc| desc.kind == LayerKind::History)
                    .map(|desc| desc.bytes)
                    .sum(),
                partitions: map.partitions().count(),
                copies: map.copies().count(),
                dead_bytes: self.dead().total(),
            }
        })
    }

    /// Bytes in memory tables.
    pub fn memory_bytes(&self) -> usize {
        self.read(|state| {
            state.active.bytes() + state.frozen.as_ref().map_or(0, |frozen| frozen.table.bytes())
        })
    }

    /// The layers, as the manifest has them.
    pub fn layer_map(&self) -> Arc<LayerMap> {
        self.read(|state| state.layers.map.clone())
    }

    /// Publishes changes and moves the last record to `end`. Memory is bounded by whoever calls this: it waits while
    /// [`Timeline::memory_bytes`] is above what it may be.
    pub fn publish(&self, mut changes: Changes, end: Lsn) {
        self.publish_from(&mut changes, end);
    }

    /// As [`Timeline::publish`]. The changes are none then, with their memory kept for those that come next.
    pub(crate) fn publish_from(&self, changes: &mut Changes, end: Lsn) {
        self.write(|state| {
            if let Err(error) = changes.store(&mut state.active) {
                // A bug. What was taken of the batch is not seen, and must not be stored.
                state.broken = true;
                state.stopped.get_or_insert(error.to_string());
            }
            if state.broken {
                return;
            }
            if !changes.entries.is_empty() {
                self.catalogue
                    .change(|catalogue| catalogue.add_all(&changes.entries));
                state.pending.append(&mut changes.entries);
            }
            // Inside the lock, so that a flush sees values and position together.
            self.last_record.send_replace(end);
        });
        changes.clear();
    }

    /// Stores a file's content (`None` removes it) as of the last record. Durable after the next [`Timeline::flush`].
    ///
    /// # Errors
    /// [`NotTaken::Retired`].
    pub fn put_file(&self, path: String, content: Option<Bytes>) -> Result<(), NotTaken> {
        self.write(|state| self.put_file_at(state, self.last_record(), path, content))
    }

    fn put_file_at(
        &self,
        state: &mut State,
        lsn: Lsn,
        path: String,
        content: Option<Bytes>,
    ) -> Result<(), NotTaken> {
        if state.retired {
            return Err(NotTaken::Retired);
        }
        let entry = (lsn, Entry::File(path, content));
        self.catalogue
            .change(|catalogue| catalogue.add(entry.0, &entry.1));
        state.pending.push(entry);
        Ok(())
    }

    /// A compute of this term boots or writes. Refused when a later one did so before.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub fn compute_term(&self, term: Term) -> Result<(), NotTaken> {
        let path = format!("{OWN_FILES}term/{}", self.identity.timeline);
        self.write(|state| {
            let lsn = self.last_record();
            let known = self.catalogue(|catalogue| catalogue.file(&path, lsn));
            let known = known.and_then(|bytes| bytes[..].try_into().ok());
            let known = Term(known.map_or(0, u64::from_le_bytes));
            if term < known {
                return Err(NotTaken::Superseded(known));
            }
            if term > known {
                let content = Bytes::copy_from_slice(&term.0.to_le_bytes());
                return self.put_file_at(state, lsn, path, Some(content));
            }
            Ok(())
        })
    }

    /// Takes no file any more that no WAL carries: another shard is about to begin with what is here, and would not have it.
    pub fn retire(&self) {
        self.write(|state| state.retired = true);
    }

    /// Takes files over that a retired shard 0 took until now, as of the last record. Those that came with WAL are known. How
    /// many there were; durable after the next [`Timeline::flush`].
    ///
    /// # Errors
    /// [`NotTaken::Retired`].
    pub fn adopt(&self, files: NewestFiles) -> Result<usize, NotTaken> {
        self.write(|state| {
            let mut adopted = 0;
            for (path, (lsn, content)) in files {
                let last = self.last_record();
                let known = self.catalogue(|catalogue| {
                    catalogue.has_version(&path, lsn, &content) || catalogue.file(&path, last) == content
                });
                if !known {
                    self.put_file_at(state, last, path, content)?;
                    adopted += 1;
                }
            }
            Ok(adopted)
        })
    }

    /// Asks the catalogue.
    pub fn catalogue<T>(&self, question: impl FnOnce(&Catalogue) -> T) -> T {
        self.catalogue.ask(question)
    }

    /// Size of a fork.
    pub fn relation_size(&self, rel: RelTag, lsn: Lsn) -> Option<u32> {
        self.catalogue(|catalogue| catalogue.size(rel, lsn))
    }
}

fn hangs_on((parent, lsn): &(Arc<Timeline>, Lsn)) -> Parent {
    Parent {
        timeline: parent.identity.timeline,
        lsn: *lsn,
    }
}

/// The catalogue that a branch begins with.
fn inherited(parent: &Option<(Arc<Timeline>, Lsn)>) -> Catalogue {
    let parent = parent.as_ref();
    let branch = parent.map(|(parent, lsn)| Catalogue::branch(parent.catalogue.clone(), *lsn));
    branch.unwrap_or_default()
}

/// Its bound is [`Thresholds::flush_bytes`] and who publishes: a table cannot end in the middle of a batch.
fn empty_table() -> Memtable {
    Memtable::new(usize::MAX)
}
