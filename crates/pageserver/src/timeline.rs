//! One timeline of one shard: versions of pages, in memory and in layers, and the catalogue.
//!
//! ```text
//! ingest ──► active memory layer ──flush──► layer file ──► object storage, then manifest
//!                    ▲ newest                                   ▲ oldest
//!                    └──────────── a read goes this way ────────┘ and on into the parent at the branch point
//! ```
//!
//! One task ingests; any number read. Positions: `remote_consistent == disk_consistent <= last_record`: a layer counts
//! once its manifest is stored. A record that cannot be ingested stops the timeline: it serves what it has and says
//! why it went no further.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use lakebed_blobstore::{BlobError, BlobStore, paths};
use lakebed_layer::file::LayerBuilder;
use lakebed_layer::{Chain, MemoryLayer, Value, ValueKind};
use lakebed_redo::{Managers, PageBytes, checksum};
use lakebed_types::{Generation, Lsn, PageKey, RelTag, ShardIdentity, TenantId, Term, TimelineId};
use tokio::sync::{Notify, watch};

use crate::catalogue::{self, Catalogue, CatalogueError, Entry};
use crate::layer_file::{LayerFile, LayerFileError};
use crate::manifest::{self, Cluster, LayerEntry, Manifest, ManifestError, Parent};
use crate::page_cache::PageCache;
use crate::reconstruct::{self, ReconstructError};

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

/// When a page gets an image, and when memory goes to a file.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Bytes of the memory layer that make a flush.
    pub flush_bytes: usize,
    /// Deltas of one page since its last image that make a new one.
    pub image_deltas: usize,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            flush_bytes: 64 << 20,
            image_deltas: 24,
        }
    }
}

/// Why a read or a flush failed.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// A layer on disk is unreadable.
    #[error(transparent)]
    Layer(#[from] LayerFileError),
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
    /// The control state has no version at this LSN.
    #[error("there is no control state at {0}")]
    NoControl(Lsn),
    /// Something ran into its own bug.
    #[error("internal: {0}")]
    Internal(String),
}

/// What the write path changes and every read sees.
#[derive(Debug)]
struct State {
    active: MemoryLayer,
    /// Catalogue entries that are in no layer yet.
    pending: Vec<(Lsn, Entry)>,
    /// Being flushed.
    frozen: Option<Frozen>,
    /// Oldest first.
    layers: Vec<Arc<LayerFile>>,
    catalogue: Catalogue,
    stopped: Option<String>,
}

/// What one flush stores. After a failure the next flush stores the same again.
#[derive(Clone, Debug)]
struct Frozen {
    memory: Arc<MemoryLayer>,
    /// How many of the pending entries belong to it.
    entries: usize,
    last: Lsn,
}

/// Changes of one or more records, to be published together.
#[derive(Debug, Default)]
pub struct Changes {
    /// Versions of pages, in LSN order.
    pub values: Vec<(PageKey, Lsn, Value)>,
    /// Catalogue entries, in LSN order.
    pub entries: Vec<(Lsn, Entry)>,
}

/// One timeline of one shard.
#[derive(Debug)]
pub struct Timeline {
    /// What never changes.
    pub identity: Identity,
    /// The parent and the branch point, for a branch.
    pub parent: Option<(Arc<Timeline>, Lsn)>,
    directory: PathBuf,
    store: BlobStore,
    thresholds: Thresholds,
    /// Redo of extensions' records.
    managers: Managers,
    state: RwLock<State>,
    last_record: watch::Sender<Lsn>,
    /// Rung by readers whose WAL does not come.
    stalled: Notify,
    disk_consistent: watch::Sender<Lsn>,
    /// Manifest sequence and its layers; held through a flush, so that there is one at a time.
    flushing: tokio::sync::Mutex<(u64, Vec<LayerEntry>)>,
}

impl Timeline {
    /// A timeline that is not stored anywhere yet. [`Timeline::flush`] stores it.
    pub fn create(
        identity: Identity,
        parent: Option<(Arc<Timeline>, Lsn)>,
        directory: PathBuf,
        store: BlobStore,
        thresholds: Thresholds,
        managers: Managers,
    ) -> Arc<Timeline> {
        let catalogue = parent
            .as_ref()
            .map(|(parent, lsn)| parent.read(|state| state.catalogue.branch(*lsn)));
        Self::build(
            identity,
            parent,
            directory,
            store,
            thresholds,
            managers,
            catalogue.unwrap_or_default(),
            Vec::new(),
            (0, Vec::new()),
        )
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one private constructor for two ways to begin"
    )]
    fn build(
        identity: Identity,
        parent: Option<(Arc<Timeline>, Lsn)>,
        directory: PathBuf,
        store: BlobStore,
        thresholds: Thresholds,
        managers: Managers,
        catalogue: Catalogue,
        layers: Vec<Arc<LayerFile>>,
        flushed: (u64, Vec<LayerEntry>),
    ) -> Arc<Timeline> {
        let at = layers
            .last()
            .map_or(identity.start, |layer| layer.last().max(identity.start));
        let state = State {
            active: MemoryLayer::default(),
            pending: Vec::new(),
            frozen: None,
            layers,
            catalogue,
            stopped: None,
        };
        Arc::new(Timeline {
            identity,
            parent,
            directory,
            store,
            thresholds,
            managers,
            state: RwLock::new(state),
            last_record: watch::Sender::new(at),
            stalled: Notify::new(),
            disk_consistent: watch::Sender::new(at),
            flushing: tokio::sync::Mutex::new(flushed),
        })
    }

    /// Opens a stored timeline: its manifest, with the layers that are missing on local disk fetched.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub async fn open(
        identity: Identity,
        parent: Option<(Arc<Timeline>, Lsn)>,
        directory: PathBuf,
        store: BlobStore,
        thresholds: Thresholds,
        managers: Managers,
        (manifest, sequence): (Manifest, u64),
    ) -> Result<Arc<Timeline>, TimelineError> {
        let mut catalogue = match &parent {
            Some((parent, lsn)) => parent.read(|state| state.catalogue.branch(*lsn)),
            None => Catalogue::default(),
        };
        make_directory(&directory)?;
        let remote = paths::timeline(identity.tenant, identity.shard, identity.timeline);
        let mut layers = Vec::new();
        for entry in &manifest.layers {
            let path = directory.join(&entry.name);
            let layer = match LayerFile::open(&path) {
                Ok(layer) => layer,
                Err(error) => {
                    if path.exists() {
                        tracing::warn!(%error, "local layer is unusable; fetching it again");
                    }
                    let bytes = store.get(&format!("{remote}/layers/{}", entry.name)).await?;
                    LayerFile::create(&path, &bytes)?
                }
            };
            for (lsn, entry) in catalogue::decode(layer.catalogue()?)? {
                catalogue.add(lsn, &entry);
            }
            layers.push(Arc::new(layer));
        }
        let timeline = Self::build(
            identity,
            parent,
            directory,
            store,
            thresholds,
            managers,
            catalogue,
            layers,
            (sequence, manifest.layers),
        );
        timeline.last_record.send_replace(manifest.disk_consistent);
        timeline.disk_consistent.send_replace(manifest.disk_consistent);
        Ok(timeline)
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

    /// End of the last ingested record.
    pub fn last_record(&self) -> Lsn {
        *self.last_record.borrow()
    }

    /// Everything up to here is in object storage.
    pub fn disk_consistent(&self) -> Lsn {
        *self.disk_consistent.borrow()
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

    /// Bytes in the memory layers, number of layer files.
    pub fn sizes(&self) -> (usize, usize) {
        self.read(|state| {
            (
                state.active.bytes() + state.frozen.as_ref().map_or(0, |frozen| frozen.memory.bytes()),
                state.layers.len(),
            )
        })
    }

    /// Publishes changes and moves the last record to `end`.
    pub fn publish(&self, changes: Changes, end: Lsn) {
        self.write(|state| {
            for (key, lsn, value) in changes.values {
                state.active.push(key, lsn, value);
            }
            for (lsn, entry) in &changes.entries {
                state.catalogue.add(*lsn, entry);
            }
            state.pending.extend(changes.entries);
            // Inside the lock, so that a flush sees values and position together.
            self.last_record.send_replace(end);
        });
    }

    /// Stores a file's content (`None` removes it) as of the last record. Durable after the next [`Timeline::flush`].
    pub fn put_file(&self, path: String, content: Option<Bytes>) {
        self.write(|state| {
            let entry = (self.last_record(), Entry::File(path, content));
            state.catalogue.add(entry.0, &entry.1);
            state.pending.push(entry);
        });
    }

    /// A compute of this term boots or writes. Refused, with the known term, when a later one did so before.
    ///
    /// # Errors
    /// The higher term.
    pub fn compute_term(&self, term: Term) -> Result<(), Term> {
        let path = format!("{OWN_FILES}term/{}", self.identity.timeline);
        self.write(|state| {
            let lsn = self.last_record();
            let known = state
                .catalogue
                .file(&path, lsn)
                .and_then(|bytes| bytes[..].try_into().ok());
            let known = Term(known.map_or(0, u64::from_le_bytes));
            if term < known {
                return Err(known);
            }
            if term > known {
                let entry = (
                    lsn,
                    Entry::File(path, Some(Bytes::copy_from_slice(&term.0.to_le_bytes()))),
                );
                state.catalogue.add(entry.0, &entry.1);
                state.pending.push(entry);
            }
            Ok(())
        })
    }

    /// Asks the catalogue.
    pub fn catalogue<T>(&self, question: impl FnOnce(&Catalogue) -> T) -> T {
        self.read(|state| question(&state.catalogue))
    }

    /// Whether enough is in memory for a flush.
    pub fn wants_flush(&self) -> bool {
        self.read(|state| state.active.bytes() >= self.thresholds.flush_bytes)
    }

    /// Versions that a read of `key` in `(floor, upto]` needs, through this timeline and its ancestors.
    fn chain(&self, key: &PageKey, floor: Lsn, upto: Lsn) -> Result<Chain, TimelineError> {
        let mut chain = Chain::new(floor, upto);
        let mut timeline = self;
        loop {
            let layers = timeline.read(|state| {
                chain.offer(state.active.get(key));
                if let Some(frozen) = &state.frozen {
                    chain.offer(frozen.memory.get(key));
                }
                state.layers.clone()
            });
            for layer in layers.iter().rev() {
                chain.reached(layer.last());
                if chain.is_complete() {
                    return Ok(chain);
                }
                if layer.first() < upto || layer.first() == layer.last() {
                    chain.offer(&layer.read(key)?);
                }
                chain.reached(layer.first());
            }
            match &timeline.parent {
                Some((parent, lsn)) if !chain.is_complete() => {
                    chain.limit(*lsn);
                    timeline = parent;
                }
                _ => return Ok(chain),
            }
        }
    }

    /// A relation's or SLRU's page at an LSN: zeros if it has no version.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn page(&self, key: &PageKey, lsn: Lsn) -> Result<Box<PageBytes>, TimelineError> {
        if !self.identity.shard.owns(key) {
            return Err(TimelineError::WrongShard(*key));
        }
        self.page_of_life(key, lsn).map(|(page, _)| page)
    }

    /// As [`Timeline::page`], starting from what was built before, and with the number of values that were replayed:
    /// an image alone is 1, an unchanged page 0.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn page_with(
        &self,
        cache: &PageCache,
        key: &PageKey,
        lsn: Lsn,
    ) -> Result<(Bytes, usize), TimelineError> {
        if !self.identity.shard.owns(key) {
            return Err(TimelineError::WrongShard(*key));
        }
        let id = self.identity.timeline;
        // Of an earlier life of the page it is of no use.
        let known = cache
            .get(id, key, lsn)
            .filter(|(at, _)| *at >= self.life_floor(key, lsn));
        let (page, length) = match known {
            Some((at, page)) => self.page_since(key, at, page, lsn)?,
            None => {
                let (page, length) = self.page_of_life(key, lsn)?;
                (self.sealed(key, page), length)
            }
        };
        cache.put(id, key, lsn, page.clone());
        Ok((page, length))
    }

    /// The page at `lsn`, from the same page at `at` in the same life.
    fn page_since(
        &self,
        key: &PageKey,
        at: Lsn,
        known: Bytes,
        lsn: Lsn,
    ) -> Result<(Bytes, usize), TimelineError> {
        let chain = self.chain(key, at, lsn)?;
        if chain.is_empty() {
            return Ok((known, 0));
        }
        let mut page = reconstruct::zeros();
        if !chain.has_base() {
            page.copy_from_slice(&known);
        }
        let length = chain.len();
        self.replay(key, chain, &mut page)?;
        Ok((self.sealed(key, page), length))
    }

    /// A page as it is handed out: with its checksum, if the cluster's pages carry one. Redo leaves that alone, as
    /// Postgres does until it writes the page.
    fn sealed(&self, key: &PageKey, mut page: Box<PageBytes>) -> Bytes {
        if let (PageKey::Rel { block, .. }, true) = (key, self.identity.cluster.data_checksums) {
            checksum::set(&mut page, *block);
        }
        Bytes::from(page as Box<[u8]>)
    }

    /// Values at or below it belong to an earlier life of the page.
    fn life_floor(&self, key: &PageKey, lsn: Lsn) -> Lsn {
        match key {
            PageKey::Rel { rel, block } => {
                self.catalogue(|catalogue| catalogue.life(*rel, *block, lsn))
                    .floor
            }
            _ => Lsn(0),
        }
    }

    fn page_of_life(&self, key: &PageKey, lsn: Lsn) -> Result<(Box<PageBytes>, usize), TimelineError> {
        let (floor, copied_from) = match key {
            PageKey::Rel { rel, block } => {
                let life = self.catalogue(|catalogue| catalogue.life(*rel, *block, lsn));
                let source = life.copied_from.map(|rel| PageKey::Rel { rel, block: *block });
                (life.floor, source)
            }
            _ => (Lsn(0), None),
        };
        let chain = self.chain(key, floor, lsn)?;
        let (mut page, before) = match copied_from.filter(|_| !chain.has_base()) {
            // The copy was made of the template's files as of this record, which is after everything before it.
            Some(source) => self.page_of_life(&source, floor)?,
            None => (reconstruct::zeros(), 0),
        };
        let length = before + chain.len();
        self.replay(key, chain, &mut page)?;
        Ok((page, length))
    }

    fn replay(&self, key: &PageKey, chain: Chain, page: &mut PageBytes) -> Result<(), TimelineError> {
        let cluster = &self.identity.cluster;
        let replayed = reconstruct::replay(cluster, &self.managers, key, page, chain.values());
        replayed.map_err(|source| TimelineError::Reconstruct { key: *key, source })
    }

    /// Number of values that a read of the page replays: an image alone is 1.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn chain_length(&self, key: &PageKey, lsn: Lsn) -> Result<usize, TimelineError> {
        Ok(self.chain(key, self.life_floor(key, lsn), lsn)?.len())
    }

    /// The control state's bytes at an LSN.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn control(&self, lsn: Lsn) -> Result<Bytes, TimelineError> {
        let chain = self.chain(&PageKey::Control, Lsn(0), lsn)?;
        let newest = chain.into_values().last();
        newest
            .map(|(_, value)| value.body)
            .ok_or(TimelineError::NoControl(lsn))
    }

    /// Size of a fork.
    pub fn relation_size(&self, rel: RelTag, lsn: Lsn) -> Option<u32> {
        self.catalogue(|catalogue| catalogue.size(rel, lsn))
    }

    /// Moves what is in memory into a layer file, then to object storage. Returns when the manifest is stored. A
    /// timeline that is not stored yet is stored by its first flush, also when there is nothing in memory.
    ///
    /// # Errors
    /// See [`TimelineError`]. Nothing is lost: what was in memory stays readable, and the next flush tries again.
    pub async fn flush(self: &Arc<Self>) -> Result<(), TimelineError> {
        let mut flushing = self.flushing.lock().await;
        let first = self.disk_consistent();
        let (Frozen { memory, last, .. }, entries) = self.write(|state| {
            let State {
                active,
                pending,
                frozen,
                ..
            } = state;
            let frozen = frozen.get_or_insert_with(|| Frozen {
                memory: Arc::new(std::mem::take(active)),
                entries: pending.len(),
                last: self.last_record(),
            });
            (frozen.clone(), pending[..frozen.entries].to_vec())
        });
        let stored = flushing.0 > 0;
        if stored && memory.is_empty() && entries.is_empty() && last == first {
            self.write(|state| state.frozen = None);
            return Ok(());
        }
        let sequence = next_sequence(&flushing);
        let mut layers = flushing.1.clone();
        let mut new_layer = None;
        if !memory.is_empty() || !entries.is_empty() {
            let count = entries.len();
            let (layer, entry) = self.store_layer(memory, entries, (first, last), sequence).await?;
            layers.push(entry);
            new_layer = Some((layer, count));
        }
        let manifest = Manifest {
            format: manifest::FORMAT,
            cluster: self.identity.cluster,
            parent: self.parent.as_ref().map(|(parent, lsn)| Parent {
                timeline: parent.identity.timeline,
                lsn: *lsn,
            }),
            start: self.identity.start,
            consistent: self.identity.consistent,
            disk_consistent: last,
            layers: layers.clone(),
        };
        let Identity {
            tenant,
            shard,
            timeline,
            generation,
            ..
        } = self.identity;
        manifest::write(
            &self.store,
            tenant,
            shard,
            timeline,
            (generation, sequence),
            &manifest,
        )
        .await?;
        *flushing = (sequence, layers);
        self.write(|state| {
            if let Some((layer, entries)) = new_layer {
                state.layers.push(Arc::new(layer));
                state.pending.drain(..entries);
            }
            state.frozen = None;
        });
        self.disk_consistent.send_replace(last);
        Ok(())
    }

    /// Stores images of an import, all at the start, as a layer of its own. Nobody sees it before the first
    /// [`Timeline::flush`] has stored the manifest that names it.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub async fn store_portion(self: &Arc<Self>, portion: Changes) -> Result<(), TimelineError> {
        let mut flushing = self.flushing.lock().await;
        let mut memory = MemoryLayer::default();
        for (key, lsn, value) in portion.values {
            memory.push(key, lsn, value);
        }
        let start = self.identity.start;
        let sequence = next_sequence(&flushing);
        let (layer, entry) = self
            .store_layer(Arc::new(memory), portion.entries, (start, start), sequence)
            .await?;
        flushing.1.push(entry);
        self.write(|state| state.layers.push(Arc::new(layer)));
        Ok(())
    }

    /// Writes a layer to local disk and to object storage.
    async fn store_layer(
        self: &Arc<Self>,
        memory: Arc<MemoryLayer>,
        entries: Vec<(Lsn, Entry)>,
        (first, last): (Lsn, Lsn),
        sequence: u64,
    ) -> Result<(LayerFile, LayerEntry), TimelineError> {
        let name = paths::layer_name(first, last, self.identity.generation, sequence);
        let timeline = self.clone();
        let path = self.directory.join(&name);
        let build = move || timeline.write_layer(&memory, &entries, first, last, &path);
        let (layer, object) = tokio::task::spawn_blocking(build)
            .await
            .map_err(|error| TimelineError::Internal(format!("writing a layer: {error}")))??;
        let remote = paths::timeline(self.identity.tenant, self.identity.shard, self.identity.timeline);
        let bytes = object.len() as u64;
        self.store.put(&format!("{remote}/layers/{name}"), object).await?;
        let entry = LayerEntry {
            name,
            first,
            last,
            bytes,
        };
        Ok((layer, entry))
    }

    fn write_layer(
        &self,
        memory: &MemoryLayer,
        entries: &[(Lsn, Entry)],
        first: Lsn,
        last: Lsn,
        path: &std::path::Path,
    ) -> Result<(LayerFile, Bytes), TimelineError> {
        make_directory(&self.directory)?;
        let mut builder = LayerBuilder::new();
        for (key, values) in memory.sorted() {
            match self.image_for(key, values)? {
                Some(image) => {
                    let mut values = values.to_vec();
                    values.push(image);
                    builder.add(key, &values);
                }
                None => builder.add(key, values),
            }
        }
        let bytes = builder.finish(first, last, &catalogue::encode(entries));
        Ok((LayerFile::create(path, &bytes)?, bytes.into()))
    }

    /// An image of the page's newest version, if its chain has become long.
    fn image_for(
        &self,
        key: &PageKey,
        values: &[(Lsn, Value)],
    ) -> Result<Option<(Lsn, Value)>, TimelineError> {
        let since = values
            .iter()
            .rev()
            .take_while(|(_, value)| !value.kind.stands_alone())
            .count();
        let (Some((lsn, _)), true) = (values.last(), since >= self.thresholds.image_deltas) else {
            return Ok(None);
        };
        let (page, _) = self.page_of_life(key, *lsn)?;
        Ok(Some((
            *lsn,
            Value {
                kind: ValueKind::Image,
                body: Bytes::copy_from_slice(&page[..]),
            },
        )))
    }
}

/// Of the next manifest and a layer that it names. An import stores layers before its first manifest; none of them may
/// have the name of another.
fn next_sequence((manifest, layers): &(u64, Vec<LayerEntry>)) -> u64 {
    (*manifest).max(layers.len() as u64) + 1
}

fn make_directory(directory: &std::path::Path) -> Result<(), TimelineError> {
    let made = std::fs::create_dir_all(directory);
    made.map_err(|source| {
        LayerFileError::Io {
            path: directory.to_owned(),
            source,
        }
        .into()
    })
}
