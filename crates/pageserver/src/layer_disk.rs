//! The local disk as a cache of layers: how much may be there, what goes when it is too much, and how many downloads run.
//!
//! One for a node; the layers of all its timelines are [`LayerHandle`]s that it knows. What takes space is counted when a
//! layer's file comes or goes. A layer is a candidate for eviction only as a handle, and a layer has a handle only once
//! object storage has it, so one that was not uploaded stays, whatever the budget says.
//!
//! **What goes**: the layers that were read longest ago, until there is room. Time is a *tick* of about a second, so that a
//! read of a layer costs no clock: it stores the tick that it sees. A layer that somebody holds (a merge, or a read that waits
//! for another layer) stays, so that a read always gets on; the budget may be passed by what is held.
//!
//! **Downloads**: a fixed number at a time for reads, and one for warming up, which begins only while no read waits.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::layer_handle::LayerHandle;

/// Downloads for reads at a time. Each takes three parts of memory ([`lakebed_blobstore::PART_BYTES`]).
const DOWNLOADS: usize = 4;
/// How often the free space is looked at, and the length of a tick.
const TICK: Duration = Duration::from_secs(1);

/// Ticks below it are of reads before the start.
const FIRST_TICK: u64 = 1 << 32;

/// How much of the disk layers may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPolicy {
    /// Where it is looked how much is free.
    pub directory: PathBuf,
    /// Bytes of local layers; `None` is no bound.
    pub budget_bytes: Option<u64>,
    /// Bytes that are left free on the file system, whoever took the rest.
    pub reserve_bytes: u64,
}

/// Who waits for a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A read, or what else cannot go on without.
    Read,
    /// Nobody yet.
    WarmUp,
}

/// Handles to counters and gauges.
#[derive(Clone, Debug)]
pub struct DiskMetrics {
    /// Layers fetched.
    pub downloads: Counter,
    /// Bytes of them.
    pub download_bytes: Counter,
    /// Layers that could not be fetched.
    pub download_failures: Counter,
    /// Time of a download.
    pub download_seconds: Histogram,
    /// Times that a read waited for a layer.
    pub waits: Counter,
    /// How long it waited.
    pub wait_seconds: Histogram,
    /// Layers evicted.
    pub evictions: Counter,
    /// Bytes of them.
    pub evicted_bytes: Counter,
    /// Damaged local layers that were fetched anew and are whole.
    pub repairs: Counter,
    /// Damaged local layers whose object is damaged or lost, too.
    pub repair_failures: Counter,
    /// Layers that were fetched before anybody asked.
    pub warmed: Counter,
    local_layers: Gauge,
    local_bytes: Gauge,
}

impl Default for DiskMetrics {
    fn default() -> DiskMetrics {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        DiskMetrics {
            downloads: Counter::default(),
            download_bytes: Counter::default(),
            download_failures: Counter::default(),
            download_seconds: seconds(),
            waits: Counter::default(),
            wait_seconds: seconds(),
            evictions: Counter::default(),
            evicted_bytes: Counter::default(),
            repairs: Counter::default(),
            repair_failures: Counter::default(),
            warmed: Counter::default(),
            local_layers: Gauge::default(),
            local_bytes: Gauge::default(),
        }
    }
}

impl DiskMetrics {
    /// Registers all under `pageserver_local_…`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("pageserver_local");
        let counters = [
            ("downloads", "Layers fetched from object storage", &self.downloads),
            ("download_bytes", "Bytes of layers fetched", &self.download_bytes),
            (
                "download_failures",
                "Layers that could not be fetched",
                &self.download_failures,
            ),
            (
                "waits",
                "Times that a read waited for a layer: not a hit",
                &self.waits,
            ),
            ("evictions", "Local layers removed to make room", &self.evictions),
            ("evicted_bytes", "Bytes of them", &self.evicted_bytes),
            ("repairs", "Damaged local layers fetched anew", &self.repairs),
            (
                "repair_failures",
                "Damaged local layers of which object storage has no good copy",
                &self.repair_failures,
            ),
            (
                "warmed",
                "Layers fetched before anybody asked for them",
                &self.warmed,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
        r.register(
            "download_seconds",
            "Time to fetch a layer",
            self.download_seconds.clone(),
        );
        r.register(
            "wait_seconds",
            "Time that a read waited for a layer",
            self.wait_seconds.clone(),
        );
        r.register("layers", "Layers on local disk", self.local_layers.clone());
        r.register("bytes", "Bytes of them", self.local_bytes.clone());
    }
}

/// What is on local disk, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Layers that are local and in object storage.
    pub layers: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that the file system has free, if it says so.
    pub free_bytes: Option<u64>,
}

/// See the module header.
#[derive(Debug)]
pub struct LayerDisk {
    policy: Option<DiskPolicy>,
    /// Counters.
    pub metrics: DiskMetrics,
    tick: AtomicU64,
    used_bytes: AtomicU64,
    used_layers: AtomicUsize,
    handles: Mutex<Vec<Weak<LayerHandle>>>,
    /// One eviction at a time: two would both free what one needs.
    evicting: Mutex<()>,
    downloads: Semaphore,
    /// Reads that wait for a download.
    reading: AtomicUsize,
    warming: Semaphore,
    /// Rung when the last read has what it waited for.
    quiet: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Default for LayerDisk {
    /// Without bounds.
    fn default() -> LayerDisk {
        LayerDisk::of(None)
    }
}

impl LayerDisk {
    /// A disk that is kept within bounds.
    pub fn new(policy: DiskPolicy) -> LayerDisk {
        LayerDisk::of(Some(policy))
    }

    fn of(policy: Option<DiskPolicy>) -> LayerDisk {
        LayerDisk {
            policy,
            metrics: DiskMetrics::default(),
            tick: AtomicU64::new(FIRST_TICK),
            used_bytes: AtomicU64::new(0),
            used_layers: AtomicUsize::new(0),
            handles: Mutex::default(),
            evicting: Mutex::default(),
            downloads: Semaphore::new(DOWNLOADS),
            reading: AtomicUsize::new(0),
            warming: Semaphore::new(1),
            quiet: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// The time, as reads note it.
    pub fn tick(&self) -> u64 {
        self.tick.load(Ordering::Relaxed)
    }

    /// Lets time pass: what is read from now on was read later than all before.
    pub fn advance(&self) -> u64 {
        self.tick.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn add(&self, handle: &Arc<LayerHandle>) {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are gone make room when there are as many as there were left the last time.
        if handles.len() == handles.capacity() {
            handles.retain(|known| known.strong_count() > 0);
        }
        handles.push(Arc::downgrade(handle));
    }

    /// A layer's file is there.
    pub(crate) fn came(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.used_layers.fetch_add(1, Ordering::Relaxed);
        self.metrics.local_bytes.inc_by(bytes as i64);
        self.metrics.local_layers.inc();
    }

    /// It is not there any more.
    pub(crate) fn went(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.used_layers.fetch_sub(1, Ordering::Relaxed);
        self.metrics.local_bytes.dec_by(bytes as i64);
        self.metrics.local_layers.dec();
    }

    /// What is there now.
    pub fn used(&self) -> DiskUse {
        let directory = self.policy.as_ref().map(|policy| policy.directory.as_path());
        DiskUse {
            layers: self.used_layers.load(Ordering::Relaxed),
            bytes: self.used_bytes.load(Ordering::Relaxed),
            free_bytes: directory.and_then(free_bytes),
        }
    }

    /// The bounds.
    pub fn policy(&self) -> Option<&DiskPolicy> {
        self.policy.as_ref()
    }

    /// Whether `bytes` more fit without anything going.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.too_much(bytes) == 0
    }

    /// Bytes that have to go before `bytes` more may come.
    fn too_much(&self, bytes: u64) -> u64 {
        let Some(policy) = &self.policy else { return 0 };
        let used = self.used_bytes.load(Ordering::Relaxed);
        let of_budget = policy
            .budget_bytes
            .map_or(0, |budget| (used + bytes).saturating_sub(budget));
        // A file system that does not say how much is free is not the reason to give up a cache.
        let free = free_bytes(&policy.directory).unwrap_or(u64::MAX);
        let of_reserve = (policy.reserve_bytes.saturating_add(bytes)).saturating_sub(free);
        of_budget.max(of_reserve)
    }

    /// Evicts layers until `bytes` more fit, or nothing is left that may go. Reads and removes files: not for a thread that
    /// others wait for.
    pub fn make_room(&self, bytes: u64) {
        if self.too_much(bytes) == 0 {
            return;
        }
        let _one = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = self.too_much(bytes);
        if needed == 0 {
            return;
        }
        let handles: Vec<Arc<LayerHandle>> = {
            let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            handles.iter().filter_map(Weak::upgrade).collect()
        };
        let local = handles.iter().filter(|handle| handle.is_local());
        let mut local: Vec<(u64, &Arc<LayerHandle>)> =
            local.map(|handle| (handle.last_read(), handle)).collect();
        local.sort_by_key(|(read, handle)| (*read, handle.desc.id));
        let mut freed = 0;
        for (_, handle) in local {
            if freed >= needed {
                break;
            }
            if handle.evict() {
                freed += handle.desc.bytes;
                self.metrics.evictions.inc();
                self.metrics.evicted_bytes.inc_by(handle.desc.bytes);
            }
        }
        if freed < needed {
            tracing::debug!(
                needed,
                freed,
                "local layers are more than they should be, and in use"
            );
        }
    }

    /// Waits for the turn to download; it is over when what is returned is dropped. `None` when the disk is closed.
    pub(crate) async fn turn(&self, urgency: Urgency) -> Option<SemaphorePermit<'_>> {
        match urgency {
            Urgency::Read => self.downloads.acquire().await.ok(),
            Urgency::WarmUp => {
                let turn = self.warming.acquire().await.ok();
                loop {
                    let quiet = self.quiet.notified();
                    if self.reading.load(Ordering::Relaxed) == 0 {
                        return turn;
                    }
                    // Looked at again, should the bell have been rung in between.
                    let _ = tokio::time::timeout(TICK, quiet).await;
                }
            }
        }
    }

    /// A read waits, until what is returned is dropped.
    pub(crate) fn reading(&self) -> Reading<'_> {
        self.reading.fetch_add(1, Ordering::Relaxed);
        Reading(self)
    }

    /// Runs a download to its end, whoever still waits for it.
    pub(crate) fn spawn(&self, download: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { stop.run_until_cancelled_owned(download).await });
    }

    /// The task that lets time pass and keeps the disk within its bounds, until stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(TICK)).await.is_some() {
            self.advance();
            let disk = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || disk.make_room(0)).await {
                tracing::error!(%error, "eviction of local layers failed");
            }
        }
    }

    /// Ends all downloads.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// See [`LayerDisk::reading`].
pub(crate) struct Reading<'a>(&'a LayerDisk);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if self.0.reading.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}

fn free_bytes(directory: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(directory).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}
