//! A tenant's timelines on one pageserver, and what each page must be at each LSN.
//!
//! Everything is done by the pageserver's own timelines, with layers on a real disk and object storage that fails
//! ([`crate::faulty`]). What safekeepers have is a list of records, of which those go that a timeline said to be in object storage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lakebed_blobstore::{BlobStore, paths};
use lakebed_layer::{ImagePolicy, PlanPolicy, ValueKind};
use lakebed_pageserver::ingest::Ingestor;
use lakebed_pageserver::manifest::{self, Cluster, Place};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_pageserver::timeline::{Changes, Identity, Storage, Thresholds, Timeline, TimelineError};
use lakebed_pageserver::{deletion, fill};
use lakebed_types::{Generation, Lsn, PageKey, ShardCount, ShardIdentity, TenantId, TimelineId};
use lakebed_wal::record::DecodedRecord;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use tempfile::TempDir;

use crate::faulty::{Faults, Faulty};
use crate::records::{Expected, Numbers, make_some};
use crate::sabotage::Sabotage;
use crate::toy::{REL, imported_pages, managers};

pub const BLOCKS: u32 = 24;
const RECORDS: u64 = 60;
const TENANT: TenantId = TenantId([1; 16]);
/// Of [`imported_pages`].
const ROOT: TimelineId = TimelineId([2; 16]);

/// What must not be.
pub type Violation = String;

/// A branch, the first one included.
#[derive(Clone)]
pub struct Branch {
    pub id: TimelineId,
    /// Number of the parent, and the branch point.
    pub parent: Option<(usize, Lsn)>,
    pub start: Lsn,
    /// What safekeepers have.
    records: Vec<DecodedRecord>,
    expected: Expected,
    /// Ends of all records ever, and the start.
    pub ends: Vec<Lsn>,
    /// Below it only branch points must be kept.
    pub horizon: Lsn,
    /// Of those that are there.
    pub children: BTreeMap<TimelineId, Lsn>,
    /// The timeline said that so much is in object storage.
    durable: Lsn,
    pub timeline: Arc<Timeline>,
    pub deleting: bool,
}

pub struct World {
    pub numbers: Numbers,
    pub branches: Vec<Branch>,
    pub faulty: Faulty,
    store: BlobStore,
    /// The one shard that is looked at, of as many as the tenant has.
    shard: ShardIdentity,
    generation: Generation,
    cluster: Cluster,
    home: TempDir,
    directory: PathBuf,
    made: u64,
    /// Branches that were detached.
    pub detached: u64,
    /// Times that the tenant got more shards.
    pub splits: u64,
    pub sabotage: Option<Sabotage>,
    /// What was done, for a report.
    pub log: Vec<String>,
    pub reads: Arc<AtomicU64>,
}

/// The shard of so many that has the pages: they are all in one stripe.
fn shard_of_pages(count: u8) -> ShardIdentity {
    let count = ShardCount::new(count).unwrap();
    ShardIdentity::new(lakebed_types::shard::shard_of(&key(0), count), count).unwrap()
}

fn id(number: u64) -> TimelineId {
    let mut bytes = [0xAA; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    TimelineId(bytes)
}

fn key(block: u32) -> PageKey {
    PageKey::Rel { rel: REL, block }
}

/// Small layers, so that there are many, and nothing is kept for longer than it must be.
fn storage(directory: &Path, store: &BlobStore, timeline: TimelineId) -> Storage {
    Storage {
        directory: directory.join(timeline.to_string()),
        disk: Arc::default(),
        store: store.clone(),
        thresholds: Thresholds {
            images: ImagePolicy {
                deltas: 5,
                bytes: 2048,
            },
            plan: PlanPolicy {
                level0: 2,
                layer_bytes: 9_000,
                history: 2,
                waste: 8,
                catalogue: 3,
            },
            rewind_seconds: 0,
            lease: std::time::Duration::ZERO,
            catalogue_versions: 10,
            ..Thresholds::of_size(1 << 20)
        },
        managers: managers(),
    }
}

/// Goes on with it so many times, and then gives it up wherever it is.
async fn in_steps<T>(mut steps: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(move |context| match steps {
        0 => std::task::Poll::Ready(None),
        _ => {
            steps -= 1;
            work.as_mut().poll(context).map(Some)
        }
    })
    .await
}

/// A new owner's view.
fn owner(inner: &Arc<InMemory>, seed: u64, sabotage: Option<Sabotage>) -> Faulty {
    let faults = Faults {
        numbers: Numbers(seed),
        failing: 0,
        dies_in: None,
        dead: false,
        sabotage,
        hidden: None,
    };
    Faulty {
        inner: inner.clone(),
        faults: Arc::new(Mutex::new(faults)),
    }
}

impl World {
    /// On an `initdb`, of which only the catalogue is taken.
    pub async fn new(initdb: &Path, seed: u64, sabotage: Option<Sabotage>) -> World {
        let home = tempfile::tempdir().unwrap();
        let faulty = owner(&Arc::new(InMemory::new()), seed, sabotage);
        let directory = home.path().join("1");
        let store = faulty.store();
        let storage = storage(&directory, &store, ROOT);
        let few = |key: &PageKey| !matches!(key, PageKey::Rel { .. });
        let timeline = imported_pages(initdb, storage, few).await;
        let start = timeline.identity.start;
        let cluster = timeline.identity.cluster;
        let root = Branch {
            id: ROOT,
            parent: None,
            start,
            records: Vec::new(),
            expected: Expected::default(),
            ends: vec![start],
            horizon: start,
            children: BTreeMap::new(),
            durable: start,
            timeline,
            deleting: false,
        };
        World {
            numbers: Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            branches: vec![root],
            store,
            faulty,
            shard: shard_of_pages(1),
            generation: Generation(1),
            cluster,
            directory,
            home,
            made: 0,
            detached: 0,
            splits: 0,
            sabotage,
            log: Vec::new(),
            reads: Arc::default(),
        }
    }

    fn identity(&self, timeline: TimelineId, start: Lsn) -> Identity {
        Identity {
            tenant: TENANT,
            timeline,
            shard: self.shard,
            generation: self.generation,
            cluster: self.cluster,
            start,
            consistent: start,
        }
    }

    fn storage(&self, timeline: TimelineId) -> Storage {
        storage(&self.directory, &self.store, timeline)
    }

    pub fn does(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    fn excuse(&self) -> bool {
        self.faulty.faults.lock().unwrap().excuse()
    }

    /// An error is one only when nothing was made to fail.
    fn judge<T, E: std::fmt::Display>(&self, what: &str, done: Result<T, E>) -> Result<Option<T>, Violation> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(_) if self.excuse() => Ok(None),
            Err(error) => Err(format!("{what}: {error}")),
        }
    }

    /// Any branch that is there.
    pub fn any(&mut self) -> usize {
        let live: Vec<usize> = (0..self.branches.len())
            .filter(|at| !self.branches[*at].deleting)
            .collect();
        live[self.numbers.below(live.len() as u64) as usize]
    }

    pub async fn ingest(&mut self, at: usize) -> Result<(), Violation> {
        let last = *self.branches[at].ends.last().unwrap();
        let count = 1 + self.numbers.below(RECORDS);
        let branch = &mut self.branches[at];
        let new = make_some(&mut self.numbers, last, &mut branch.expected, (count, BLOCKS));
        branch.ends.extend(new.iter().map(|record| record.end));
        branch.records.extend(new);
        self.feed(at).await
    }

    /// What safekeepers have and the timeline has not.
    async fn feed(&mut self, at: usize) -> Result<(), Violation> {
        let (branch, dropping) = (&self.branches[at], self.does(Sabotage::DroppedRecord));
        let timeline = &branch.timeline;
        let ingestor = timeline.obtaining(|| Ingestor::new(timeline.clone())).await;
        let Some(mut ingestor) = self.judge("ingest", ingestor)? else {
            return Ok(());
        };
        let last = timeline.last_record();
        let new = branch.records.iter().filter(|record| record.end > last);
        let mut end = last;
        for (number, record) in new.enumerate() {
            if !(dropping && number == 7) {
                ingestor.record(record).map_err(|error| error.to_string())?;
            }
            end = record.end;
        }
        ingestor.publish(end);
        Ok(())
    }

    pub async fn flush(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = self.branches[at].timeline.clone();
        self.judge("flush", timeline.flush().await)?;
        self.durable_now(at);
        Ok(())
    }

    /// Safekeepers remove WAL that is in layers.
    fn durable_now(&mut self, at: usize) {
        let branch = &mut self.branches[at];
        branch.durable = branch.timeline.disk_consistent();
        let durable = branch.durable;
        branch.records.retain(|record| record.end > durable);
    }

    pub async fn compact(&mut self, at: usize) -> Result<(), Violation> {
        let done = self.compacted(&self.branches[at].timeline).await;
        self.hear_of_detachment(at);
        self.judge("compaction", done).map(drop)
    }

    /// A merge that meets damage has it repaired and is given up; the task begins another.
    async fn compacted(&self, timeline: &Arc<Timeline>) -> Result<(), TimelineError> {
        let mut done = timeline.compact().await;
        for _ in 0..8 {
            if done.is_ok() || self.excuse() {
                break;
            }
            done = timeline.compact().await;
        }
        done.map(drop)
    }

    /// A branch is to hang on its parent no more; from now on compaction sees to it.
    pub async fn detach(&mut self, at: usize) -> Result<(), Violation> {
        self.branches[at].timeline.detach();
        self.compact(at).await
    }

    /// The process is told to stop in the middle of a detachment, stores what is in memory, and is started again.
    pub async fn stop_in_the_middle(&mut self, at: usize) -> Result<(), Violation> {
        self.compact(at).await?;
        let timeline = self.branches[at].timeline.clone();
        timeline.detach();
        let steps = self.numbers.below(40);
        if let Some(done) = in_steps(steps, timeline.compact()).await {
            self.judge("compaction", done)?;
        }
        self.ingest(at).await?;
        self.flush(at).await?;
        self.take_over(false).await.map(drop)
    }

    /// The controllers hear that a branch is detached.
    fn hear_of_detachment(&mut self, at: usize) {
        let branch = &mut self.branches[at];
        let id = branch.id;
        if !branch.timeline.detached().done {
            return;
        }
        if let Some((of, _)) = branch.parent.take() {
            self.branches[of].children.remove(&id);
            self.detached += 1;
        }
    }

    pub async fn sweep(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = self.branches[at].timeline.clone();
        self.judge("sweep", timeline.sweep().await).map(drop)
    }

    pub async fn image(&mut self, at: usize) -> Result<(), Violation> {
        let timeline = self.branches[at].timeline.clone();
        for _ in 0..4 {
            let key = key(self.numbers.below(u64::from(BLOCKS)) as u32);
            let added = timeline.obtaining(|| timeline.add_image(&key)).await;
            self.judge("image", added)?;
        }
        Ok(())
    }

    /// Branches of a branch that are not being deleted.
    fn live_children(&self, at: usize) -> impl Iterator<Item = (TimelineId, Lsn)> {
        let live = |id: &TimelineId| {
            let mut all = self.branches.iter();
            all.any(|branch| branch.id == *id && !branch.deleting)
        };
        let children = self.branches[at].children.iter();
        children
            .filter(move |(id, _)| live(id))
            .map(|(id, lsn)| (*id, *lsn))
    }

    /// LSNs that must be readable.
    fn kept(&self, at: usize) -> Vec<Lsn> {
        let branch = &self.branches[at];
        let points: BTreeSet<Lsn> = self.live_children(at).map(|(_, lsn)| lsn).collect();
        let ends = branch.ends.iter().copied();
        ends.filter(|lsn| *lsn >= branch.horizon || points.contains(lsn))
            .collect()
    }

    pub async fn branch(&mut self, at: usize) -> Result<(), Violation> {
        let kept = self.kept(at);
        let lsn = kept[self.numbers.below(kept.len() as u64) as usize];
        let parent = self.branches[at].timeline.clone();
        if lsn > parent.last_record() {
            return Ok(());
        }
        self.made += 1;
        let child = id(self.made);
        let begins = match self.does(Sabotage::WrongBranchPoint) {
            true => Lsn(lsn.0.saturating_sub(64).max(self.branches[at].start.0)),
            false => lsn,
        };
        if self.judge("branch", parent.flush().await)?.is_none() {
            return Ok(());
        }
        self.durable_now(at);
        let timeline = Timeline::create(
            self.identity(child, lsn),
            Some((parent.clone(), begins)),
            self.storage(child),
        );
        // Who asks for it may go away, and asks again.
        let steps = self.numbers.below(12);
        let _ = in_steps(steps, parent.add_branch(child, lsn)).await;
        let made = async {
            parent.add_branch(child, lsn).await?;
            timeline.flush().await
        };
        let made = made.await;
        // One that did not come about, as far as is known, is deleted: nobody knows what is there of it.
        let deleting = self.judge("branch", made)?.is_none();
        if deleting {
            timeline.end().await;
        }
        let of = &mut self.branches[at];
        of.children.insert(child, lsn);
        let mut expected = of.expected.clone();
        for versions in expected.0.values_mut() {
            versions.retain(|(at, _)| *at <= lsn);
        }
        self.branches.push(Branch {
            id: child,
            parent: Some((at, lsn)),
            start: lsn,
            records: Vec::new(),
            expected,
            ends: vec![lsn],
            horizon: lsn,
            children: BTreeMap::new(),
            durable: lsn,
            timeline,
            deleting,
        });
        Ok(())
    }

    /// The controllers have decided that a branch without branches goes; not the last one.
    pub async fn delete(&mut self) -> Result<(), Violation> {
        let live = self.branches.iter().filter(|branch| !branch.deleting).count();
        let leaf = self
            .branches
            .iter()
            .position(|branch| !branch.deleting && live > 1 && branch.children.is_empty());
        if let Some(at) = leaf {
            self.branches[at].deleting = true;
            self.branches[at].timeline.end().await;
        }
        self.go_on_deleting().await
    }

    async fn go_on_deleting(&mut self) -> Result<(), Violation> {
        let Some(at) = self.branches.iter().position(|branch| branch.deleting) else {
            return Ok(());
        };
        let (id, parent) = (self.branches[at].id, self.branches[at].parent);
        let place = Place::new(&self.store, TENANT, self.shard, id);
        let done = deletion::delete(&self.store, &place, (TENANT, self.shard), self.generation).await;
        if self.judge("deletion", done)?.is_none() {
            return Ok(());
        }
        let left = self
            .faulty
            .inner
            .list(Some(&paths::timeline(TENANT, self.shard, id).into()));
        let left: Vec<_> = futures::StreamExt::collect::<Vec<_>>(left).await;
        if !left.is_empty() {
            return Err(format!("a deleted timeline left {left:?}"));
        }
        if let Some((of, _)) = parent {
            let parent = self.branches[of].timeline.clone();
            let steps = self.numbers.below(12);
            let _ = in_steps(steps, parent.remove_branch(id)).await;
            let forgotten = parent.remove_branch(id).await;
            if self.judge("deletion", forgotten)?.is_none() {
                return Ok(());
            }
            self.branches[of].children.remove(&id);
        }
        // Numbers of those behind it, in what refers to them.
        self.branches.remove(at);
        for branch in &mut self.branches {
            if let Some((parent, _)) = branch.parent.as_mut()
                && *parent > at
            {
                *parent -= 1;
            }
        }
        Ok(())
    }

    /// The window moves on.
    pub fn raise_horizon(&mut self, at: usize) {
        let choice = self.numbers.below(self.branches[at].ends.len() as u64) as usize;
        let branch = &mut self.branches[at];
        let horizon = branch.ends[choice].max(branch.horizon);
        if horizon > branch.timeline.last_record() {
            return;
        }
        branch.horizon = horizon;
        let beyond = branch.timeline.last_record();
        let (forget, high) = (
            self.does(Sabotage::ForgottenBranch),
            self.does(Sabotage::HighHorizon),
        );
        let kept = Kept {
            horizon: if high { beyond } else { horizon },
            branches: match forget {
                true => Default::default(),
                false => self.live_children(at).map(|(id, _)| id).collect(),
            },
        };
        let branch = &self.branches[at];
        branch.timeline.allow(kept);
    }

    /// For a sabotage.
    pub async fn forget_branches(&mut self, at: usize) {
        for child in self.branches[at].children.clone().into_keys() {
            let _ = self.branches[at].timeline.clone().remove_branch(child).await;
        }
    }

    /// For a sabotage: a page as it was before, as its newest version.
    pub async fn wrong_image(&mut self, at: usize, early: bool) {
        let branch = &self.branches[at];
        let timeline = branch.timeline.clone();
        let end = timeline.last_record();
        if end < Lsn(branch.start.0 + 640) {
            return;
        }
        let half = Lsn(branch.start.0 + (end.0 - branch.start.0) / 128 * 64);
        let (of, lsn) = if early { (end, half) } else { (half, end) };
        let page = branch.expected.page(7, of);
        // In the order of LSNs that a table takes, images of the newest version come last.
        let lsn = lsn.max(Lsn(timeline.disk_consistent().0 + 8));
        if lsn > end {
            return;
        }
        let mut changes = Changes::default();
        changes.value(key(7), lsn, ValueKind::Image, |out| {
            out.extend_from_slice(&page[..])
        });
        timeline.publish(changes, end);
    }

    /// An object of a layer that the newest manifest names.
    pub async fn harm_object(&mut self, at: usize, delete: bool) {
        let branch = &self.branches[at];
        let map = branch.timeline.layer_map();
        let layers: Vec<_> = map
            .layers()
            .filter(|desc| desc.pages > 0)
            .map(|desc| desc.id)
            .collect();
        if layers.is_empty() {
            return;
        }
        let id = layers[self.numbers.below(layers.len() as u64) as usize];
        let directory = paths::timeline(TENANT, self.shard, branch.id);
        let path = object_store::path::Path::from(format!("{directory}/layers/{id}"));
        if delete {
            self.faulty.inner.delete(&path).await.unwrap();
        } else {
            let object = self.faulty.inner.get(&path).await.unwrap();
            let mut bytes = object.bytes().await.unwrap().to_vec();
            // The first block's bytes are used by each read of one of its pages.
            let at = bytes.len() / 3;
            bytes[at] ^= 0x55;
            self.faulty.inner.put(&path, bytes.into()).await.unwrap();
        }
    }

    /// Layers go from local disk.
    pub fn evict(&mut self, at: usize) {
        for handle in self.branches[at].timeline.handles() {
            if self.numbers.below(2) == 0 {
                handle.evict();
            }
        }
    }

    /// A byte of a local file changes.
    pub fn rot(&mut self, at: usize) {
        let directory = self.directory.join(self.branches[at].id.to_string());
        let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        if files.is_empty() {
            return;
        }
        let file = &files[self.numbers.below(files.len() as u64) as usize];
        let mut bytes = std::fs::read(file).unwrap();
        if !bytes.is_empty() {
            let at = self.numbers.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.numbers.below(8);
            // In place, as a disk does it: who has it open sees it.
            use std::os::unix::fs::FileExt;
            let open = std::fs::OpenOptions::new().write(true).open(file).unwrap();
            open.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
    }

    /// Object storage fails this often from now on.
    pub fn failing(&mut self, of_a_thousand: u64) {
        self.faulty.faults.lock().unwrap().failing = of_a_thousand;
    }

    /// The owner dies at one of its next calls.
    pub fn doom(&mut self) {
        let calls = self.numbers.below(14);
        self.faulty.faults.lock().unwrap().dies_in = Some(calls);
    }

    /// Another owner, which may find the disk of the one before. Gives back the one before.
    pub async fn take_over(&mut self, new_disk: bool) -> Result<Vec<Branch>, Violation> {
        let before = self.branches.clone();
        let seed = self.numbers.below(u64::MAX >> 33);
        self.faulty = owner(&self.faulty.inner, seed, self.sabotage);
        self.store = self.faulty.store();
        self.generation = Generation(self.generation.0 + 1);
        if new_disk {
            self.directory = self.home.path().join(self.generation.0.to_string());
        }
        for at in 0..self.branches.len() {
            if self.branches[at].deleting {
                continue;
            }
            let branch = &self.branches[at];
            let place = Place::new(&self.store, TENANT, self.shard, branch.id);
            if self.does(Sabotage::StaleManifest) {
                let listed = place.list().await.map_err(|error| error.to_string())?;
                let newest = listed.last().filter(|_| listed.len() > 1);
                let newest = newest.map(|(_, listed)| listed.path.as_str().into());
                self.faulty.faults.lock().unwrap().hidden = newest;
            }
            let claimed = manifest::claim(&place, self.generation).await;
            self.faulty.faults.lock().unwrap().hidden = None;
            let claimed = claimed.map_err(|error| format!("takeover: {error}"))?;
            let claimed = claimed.ok_or_else(|| format!("{} is not there", branch.id))?;
            let mut parent = branch
                .parent
                .map(|(of, lsn)| (self.branches[of].timeline.clone(), lsn));
            if claimed.0.parent.is_none() || self.does(Sabotage::NoParent) {
                // As a node does when whoever detached it did not live to have the parent forget it.
                if let Some((former, _)) = parent.take() {
                    let forgotten = former.remove_branch(branch.id).await;
                    forgotten.map_err(|error| format!("takeover: {error}"))?;
                }
            }
            let identity = self.identity(branch.id, branch.start);
            let opened = Timeline::open(identity, parent, self.storage(branch.id), claimed).await;
            let timeline = opened.map_err(|error| format!("takeover: {error}"))?;
            if timeline.last_record() < branch.durable {
                return Err(format!(
                    "{} was in object storage up to {} and is up to {}",
                    branch.id,
                    branch.durable,
                    timeline.last_record()
                ));
            }
            self.branches[at].timeline = timeline;
            self.hear_of_detachment(at);
            self.feed(at).await?;
        }
        Ok(before)
    }

    /// The tenant gets more shards, and the one that has the pages gets another owner. Nothing is left of the one before.
    pub async fn split(&mut self) -> Result<(), Violation> {
        let (old, count) = (self.shard, self.shard.count().get());
        if count > 16 {
            return Ok(());
        }
        let new = shard_of_pages(count * (2 + self.numbers.below(2) as u8));
        let own = Generation(self.generation.0 + 1);
        for at in 0..self.branches.len() {
            if self.branches[at].deleting {
                continue;
            }
            let [from, to] = [old, new].map(|of| Place::new(&self.store, TENANT, of, self.branches[at].id));
            // It is interrupted, and begins again.
            let (steps, progress, stop) = (
                self.numbers.below(60),
                fill::Progress::default(),
                Default::default(),
            );
            let fill = || fill::fill(&self.store, (&from, &to), own, &progress, &stop);
            let _ = in_steps(steps, fill()).await;
            // It goes on meanwhile; what it stores counts for the one that is filled, too, or comes again from safekeepers.
            let timeline = self.branches[at].timeline.clone();
            self.ingest(at).await?;
            self.judge("flush", timeline.flush().await)?;
            self.judge("compaction", self.compacted(&timeline).await)?;
            self.judge("sweep", timeline.sweep().await)?;
            let filled = fill::fill(&self.store, (&from, &to), own, &progress, &stop).await;
            match self.judge("fill", filled)? {
                Some(true) => {}
                Some(false) => return Err(format!("{} is not there to be copied", from.directory())),
                // It is called off.
                None => {
                    self.drop_shard(new).await;
                    return Ok(());
                }
            }
            self.ingest(at).await?;
        }
        self.shard = new;
        drop(self.take_over(true).await?);
        self.splits += 1;
        self.drop_shard(old).await;
        Ok(())
    }

    /// Nothing is left of a shard.
    async fn drop_shard(&self, shard: ShardIdentity) {
        let left = self.faulty.inner.list(Some(&paths::shard(TENANT, shard).into()));
        for object in futures::StreamExt::collect::<Vec<_>>(left).await {
            self.faulty.inner.delete(&object.unwrap().location).await.unwrap();
        }
    }

    /// Reads some pages, or all, where they must be readable.
    pub async fn check(&mut self, at: usize, most: Option<usize>) -> Result<(), Violation> {
        let kept = self.kept(at);
        let mut wanted: Vec<(Lsn, u32)> = Vec::new();
        match most {
            Some(most) => {
                for _ in 0..most {
                    let lsn = kept[self.numbers.below(kept.len() as u64) as usize];
                    wanted.push((lsn, self.numbers.below(u64::from(BLOCKS)) as u32));
                }
            }
            None => {
                // Every LSN, and all blocks at some of them.
                for (number, lsn) in kept.iter().enumerate() {
                    let blocks =
                        (0..BLOCKS).filter(|block| number % 16 == 0 || block % 8 == (number % 8) as u32);
                    wanted.extend(blocks.map(|block| (*lsn, block)));
                }
            }
        }
        let branch = &self.branches[at];
        let timeline = &branch.timeline;
        for (lsn, block) in wanted {
            if lsn > timeline.last_record() {
                continue;
            }
            let page = timeline
                .obtaining(|| timeline.page_and_cost(&key(block), lsn))
                .await;
            let what = format!("block {block} of {} at {lsn}", branch.id);
            if let Some((page, _)) = self.judge(&what, page)? {
                self.reads.fetch_add(1, Ordering::Relaxed);
                if page != branch.expected.page(block, lsn) {
                    return Err(format!("{what} is not what it must be"));
                }
            }
        }
        Ok(())
    }

    /// Every layer that a newest manifest names is there.
    pub async fn check_references(&self) -> Result<(), Violation> {
        for branch in self.branches.iter().filter(|branch| !branch.deleting) {
            let place = Place::new(&self.store, TENANT, self.shard, branch.id);
            let manifest = place.latest(self.generation).await;
            let manifest = manifest.map_err(|error| error.to_string())?;
            let manifest = manifest.ok_or_else(|| format!("{} has no manifest", branch.id))?;
            for desc in manifest.map.layers() {
                let path = format!("{}/layers/{}", place.directory(), desc.id);
                let owns = |key: PageKey| self.shard.owns(&key);
                if desc
                    .pages_span
                    .is_some_and(|(low, high)| !owns(low) || !owns(high))
                {
                    return Err(format!("{path} has pages of another shard"));
                }
                if manifest.map.copies().any(|copy| copy.id == desc.id) {
                    return Err(format!(
                        "{path} is a copy from before a split, and was not rewritten"
                    ));
                }
                if self.faulty.inner.head(&path.as_str().into()).await.is_err() {
                    return Err(format!("{path} is named and not there"));
                }
            }
        }
        Ok(())
    }
}
