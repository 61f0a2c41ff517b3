//! One layer of a timeline, wherever it is.
//!
//! ```text
//!            local()                      fetched
//!   absent ──── miss ──► obtain() ──────────────────► a file ──► open
//!     ▲                     ▲                                      │
//!     │                     └──────── damaged, short, unreadable ──┤
//!     └────────────────────────── evicted, retired ────────────────┘
//! ```
//!
//! A read takes an open layer and nothing else: [`LayerHandle::local`] is a look at memory, the first time an open of the
//! file. What is not to be had so is a [`Miss`], which the read gives up with; whoever asked for the read then waits in
//! [`LayerHandle::obtain`] and reads again ([`crate::timeline::obtain`]). So no lock is held across IO, and the way of a
//! read is the same whether its layers are local or not.
//!
//! **One download at a time**: it runs as a task of its own, and all who miss the layer wait for the same one.
//!
//! **Damage**: a miss says so, with the version of the file that was found damaged, so that of many readers who meet the same
//! damage the first one has it fetched, and the others find a newer version. What comes is read completely and checked before
//! it takes the place of the file. If the object is no better, that is remembered for [`REMEMBERED`]: what of the local file is
//! whole is served on, and the rest is told to be damaged at once.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lakebed_layer::LayerDesc;
use lakebed_layer::format::ReadError;
use tokio::sync::{Notify, watch};

use crate::layer_disk::Urgency;
use crate::layer_store::{Layer, LayerStore, LayerStoreError};

/// For so long it is not tried again to repair what could not be.
const REMEMBERED: Duration = Duration::from_secs(60);

/// See the module header.
pub struct LayerHandle {
    /// The layer.
    pub desc: LayerDesc,
    files: Arc<LayerStore>,
    state: RwLock<State>,
    /// The disk's tick of the last read.
    read: AtomicU64,
    /// The download that runs.
    fetching: Mutex<Option<Fetching>>,
}

#[derive(Debug)]
struct Fetching {
    outcome: watch::Receiver<Option<Outcome>>,
    /// Rung by a read that waits for it: one that began for nobody waits its turn while reads wait, also this one.
    hurry: Arc<Notify>,
}

type Outcome = Result<Option<Arc<Layer>>, Arc<LayerStoreError>>;

#[derive(Debug)]
struct State {
    local: Local,
    /// Counts up with each file.
    version: u64,
    /// No manifest of this owner names it any more.
    retired: bool,
    /// What object storage gave last, if it was damaged, and when.
    beyond_repair: Option<(Instant, Arc<LayerStoreError>)>,
}

#[derive(Debug)]
enum Local {
    Absent,
    File,
    Open(Arc<Layer>),
}

/// A layer that a read needs and cannot have as it is.
#[derive(Clone)]
pub struct Miss {
    handle: Arc<LayerHandle>,
    version: u64,
    /// What is wrong with the file that is there.
    damage: Option<Arc<LayerStoreError>>,
}

impl fmt::Debug for LayerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerHandle({})", self.desc.id)
    }
}

impl fmt::Debug for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Miss({self})")
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.damage {
            None => write!(f, "layer {} is not on local disk", self.handle.desc.id),
            Some(damage) => write!(f, "{damage}"),
        }
    }
}

impl LayerHandle {
    /// A layer that object storage has, open.
    pub fn of_new(desc: &LayerDesc, files: &Arc<LayerStore>) -> Result<Arc<LayerHandle>, LayerStoreError> {
        let local = Local::Open(files.open(desc)?);
        Ok(Self::add(desc, files, local, files.disk().tick()))
    }

    /// A layer that a manifest names. Its file counts if it is there with the right size; that it is whole is checked by
    /// those who read it.
    pub fn of_stored(desc: &LayerDesc, files: &Arc<LayerStore>) -> Arc<LayerHandle> {
        let local = match files.has_file(desc) {
            true => Local::File,
            false => Local::Absent,
        };
        Self::add(desc, files, local, 0)
    }

    fn add(desc: &LayerDesc, files: &Arc<LayerStore>, local: Local, read: u64) -> Arc<LayerHandle> {
        let disk = files.disk();
        if !matches!(local, Local::Absent) {
            disk.came(desc.bytes);
        }
        let state = State {
            local,
            version: 0,
            retired: false,
            beyond_repair: None,
        };
        let handle = Arc::new(LayerHandle {
            desc: *desc,
            files: files.clone(),
            state: RwLock::new(state),
            read: AtomicU64::new(read),
            fetching: Mutex::default(),
        });
        disk.add(&handle);
        handle
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The open layer.
    ///
    /// # Errors
    /// It is not local, or its file cannot be used: see [`LayerHandle::obtain`].
    pub fn local(self: &Arc<Self>) -> Result<Arc<Layer>, Miss> {
        let tick = self.files.disk().tick();
        if self.read.load(Ordering::Relaxed) < tick {
            self.read.store(tick, Ordering::Relaxed);
        }
        let (found, version) = self.look(|state| match &state.local {
            Local::Open(layer) => (Ok(layer.clone()), state.version),
            Local::File => (Err(true), state.version),
            Local::Absent => (Err(false), state.version),
        });
        let miss = |damage| Miss {
            handle: self.clone(),
            version,
            damage,
        };
        match found {
            Ok(layer) => Ok(layer),
            Err(false) => Err(miss(None)),
            Err(true) => {
                let layer = self.files.open(&self.desc);
                let layer = layer.map_err(|error| miss(Some(Arc::new(error))))?;
                self.change(|state| {
                    if state.version == version && matches!(state.local, Local::File) {
                        state.local = Local::Open(layer.clone());
                    }
                });
                Ok(layer)
            }
        }
    }

    /// What a reader says who could not read the layer that it got.
    pub fn miss(self: &Arc<Self>, error: ReadError) -> Miss {
        Miss {
            handle: self.clone(),
            version: self.look(|state| state.version),
            damage: Some(Arc::new(error.into())),
        }
    }

    /// Whether its file is there.
    pub fn is_local(&self) -> bool {
        self.look(|state| !matches!(state.local, Local::Absent))
    }

    /// The disk's tick of the last read; 0 for a layer that was not read since the timeline was opened.
    pub fn last_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Says when it was last read in an earlier life, if it was not yet in this one.
    pub fn was_read_before(&self, tick: u64) {
        // Who reads it just now knows better.
        let _ = self
            .read
            .compare_exchange(0, tick, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Removes its file to make room, unless somebody holds the layer or it is just coming; whether it went.
    pub fn evict(&self) -> bool {
        // Held until the file is gone, so that none comes meanwhile.
        let fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if fetching.is_some() {
            return false;
        }
        let went = self.change(|state| {
            let free = match &state.local {
                Local::Absent => false,
                Local::File => true,
                Local::Open(layer) => Arc::strong_count(layer) == 1,
            };
            if free {
                state.local = Local::Absent;
            }
            free
        });
        if went {
            self.files.disk().went(self.desc.bytes);
            self.files.remove_local(&[self.desc.id]);
        }
        went
    }

    /// The manifest does not name it any more: its file goes. Whoever reads it goes on.
    pub fn retire(&self) {
        let was = self.change(|state| {
            state.retired = true;
            std::mem::replace(&mut state.local, Local::Absent)
        });
        if !matches!(was, Local::Absent) {
            self.files.disk().went(self.desc.bytes);
        }
        self.files.remove_local(&[self.desc.id]);
    }

    /// Waits until the layer is there, or there again. While what is returned is held, it stays. `None`: it was retired, and a
    /// new look at the timeline's layers will show others.
    async fn obtain(
        self: &Arc<Self>,
        miss: &Miss,
        urgency: Urgency,
        deadline: tokio::time::Instant,
    ) -> Outcome {
        let disk = self.files.disk();
        let _reading = (urgency == Urgency::Read).then(|| disk.reading());
        let begin = Instant::now();
        let mut outcome = match self.join_or_begin(miss, urgency) {
            Ok(running) => running,
            Err(known) => return known,
        };
        let done = tokio::time::timeout_at(deadline, outcome.wait_for(Option::is_some)).await;
        if urgency == Urgency::Read {
            disk.metrics.waits.inc();
            disk.metrics.wait_seconds.observe(begin.elapsed().as_secs_f64());
        }
        match done {
            Ok(Ok(done)) => done.clone().unwrap_or(Ok(None)),
            Ok(Err(_)) => Err(Arc::new(LayerStoreError::Closing(self.desc.id))),
            Err(_) => Err(Arc::new(LayerStoreError::Slow(self.desc.id))),
        }
    }

    /// The download that runs, or a new one; or what is known without.
    fn join_or_begin(
        self: &Arc<Self>,
        miss: &Miss,
        urgency: Urgency,
    ) -> Result<watch::Receiver<Option<Outcome>>, Outcome> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetching.as_ref() {
            if urgency == Urgency::Read {
                running.hurry.notify_one();
            }
            return Ok(running.outcome.clone());
        }
        let known = self.look(|state| match (&state.local, &state.beyond_repair) {
            _ if state.retired => Some(Ok(None)),
            // It is opened by who reads it.
            (Local::File, _) if miss.damage.is_none() => Some(Ok(None)),
            (Local::Open(layer), _) if miss.damage.is_none() || state.version != miss.version => {
                Some(Ok(Some(layer.clone())))
            }
            (_, Some((since, error))) if since.elapsed() < REMEMBERED => Some(Err(miss.beyond_repair(error))),
            _ => None,
        });
        if let Some(known) = known {
            return Err(known);
        }
        let (tell, outcome) = watch::channel(None);
        let hurry = Arc::new(Notify::new());
        *fetching = Some(Fetching {
            outcome: outcome.clone(),
            hurry: hurry.clone(),
        });
        let (handle, damage) = (self.clone(), miss.damage.clone());
        // Ends before this does only when the node does; then the sender is dropped.
        self.files.disk().spawn(async move {
            let end = Ended(&handle);
            let fetched = handle.fetch(damage, urgency, &hurry).await;
            // Before it is told: who misses the layer from now on misses what came, and must not be given it once more.
            drop(end);
            tell.send_replace(Some(fetched));
        });
        Ok(outcome)
    }

    /// Fetches it, in place of what is there if that is damaged.
    async fn fetch(
        self: &Arc<Self>,
        damage: Option<Arc<LayerStoreError>>,
        urgency: Urgency,
        hurry: &Notify,
    ) -> Outcome {
        let (disk, metrics) = (self.files.disk(), &self.files.disk().metrics);
        let _turn = match urgency {
            Urgency::Read => disk.turn(Urgency::Read).await,
            Urgency::WarmUp => tokio::select! {
                turn = disk.turn(Urgency::WarmUp) => turn,
                () = hurry.notified() => disk.turn(Urgency::Read).await,
            },
        };
        let begin = Instant::now();
        let downloaded = self.files.download(&self.desc, damage.is_some()).await;
        let (fetched, whole) = match downloaded {
            Ok(downloaded) => downloaded,
            Err(error) => {
                metrics.download_failures.inc();
                return Err(self.not_fetched(damage, Arc::new(error)));
            }
        };
        metrics.downloads.inc();
        metrics.download_bytes.inc_by(self.desc.bytes);
        metrics.download_seconds.observe(begin.elapsed().as_secs_f64());
        // What is no better takes no place, unless there is nothing to lose.
        let usable = self.look(|state| matches!(state.local, Local::Open(_)));
        let whole = match whole {
            Err(error) if usable => return Err(self.not_fetched(damage, Arc::new(error))),
            whole => whole.is_ok(),
        };
        let layer = self.files.place(&self.desc, fetched).await.map_err(Arc::new)?;
        if damage.is_some() && whole {
            metrics.repairs.inc();
            tracing::warn!(layer = %self.desc.id, "a damaged local layer was fetched anew");
        }
        let was = self.change(|state| {
            state.version += 1;
            state.beyond_repair = None;
            match state.retired {
                true => None,
                false => Some(std::mem::replace(&mut state.local, Local::Open(layer.clone()))),
            }
        });
        match was {
            None => {
                self.files.remove_local(&[self.desc.id]);
                return Ok(None);
            }
            Some(Local::Absent) => disk.came(self.desc.bytes),
            Some(_) => {}
        }
        if urgency == Urgency::WarmUp {
            metrics.warmed.inc();
        }
        Ok(Some(layer))
    }

    /// Remembers that object storage has it no better, if that is so.
    fn not_fetched(
        &self,
        damage: Option<Arc<LayerStoreError>>,
        error: Arc<LayerStoreError>,
    ) -> Arc<LayerStoreError> {
        if !error.is_damage() {
            return error;
        }
        self.files.disk().metrics.repair_failures.inc();
        tracing::error!(layer = %self.desc.id, %error, "object storage has no good copy of a layer: restore the object");
        self.change(|state| state.beyond_repair = Some((Instant::now(), error.clone())));
        match damage {
            Some(local) => Arc::new(LayerStoreError::BeyondRepair { local, object: error }),
            None => error,
        }
    }
}

/// The download is over, however it ended.
struct Ended<'a>(&'a LayerHandle);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut fetching = self.0.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        *fetching = None;
    }
}

impl Drop for LayerHandle {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !matches!(state.local, Local::Absent) {
            self.files.disk().went(self.desc.bytes);
        }
    }
}

impl Miss {
    /// A layer that nobody has asked for yet.
    pub fn before_it_is_missed(handle: &Arc<LayerHandle>) -> Miss {
        Miss {
            handle: handle.clone(),
            version: 0,
            damage: None,
        }
    }

    /// Waits until there is a remedy. While what is returned is held, the layer stays; `None`: others have taken its place.
    ///
    /// # Errors
    /// Object storage does not have the layer, or not in time.
    pub async fn cure(
        &self,
        urgency: Urgency,
        deadline: tokio::time::Instant,
    ) -> Result<Option<Arc<Layer>>, Arc<LayerStoreError>> {
        self.handle.obtain(self, urgency, deadline).await
    }

    fn beyond_repair(&self, object: &Arc<LayerStoreError>) -> Arc<LayerStoreError> {
        match &self.damage {
            None => object.clone(),
            Some(local) => Arc::new(LayerStoreError::BeyondRepair {
                local: local.clone(),
                object: object.clone(),
            }),
        }
    }
}

/// A file that was fetched and has not its name yet.
#[derive(Debug)]
pub struct Fetched {
    /// Where it is.
    pub beside: PathBuf,
    /// It, open.
    pub layer: Arc<Layer>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        // After it got its name there is none of this one.
        let _ = std::fs::remove_file(&self.beside);
    }
}
