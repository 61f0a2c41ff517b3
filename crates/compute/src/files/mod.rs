//! What the shim asks about files: which exist, their pages, their removal, and what no WAL carries.
//!
//! Each managed path has a state with a lock of its own:
//!
//! ```text
//! unknown ──► slotted   a sparse local file, its blocks fetched on demand
//!        ├──► local     a whole local file: made by Postgres, an SLRU segment, a reset unlogged relation
//!        └──► gone      in the tier at the boot position, removed since; also what never was
//! ```
//!
//! The tier is asked *as of the boot position* throughout: whatever this compute changed since, it has locally. So the
//! answers never change while it runs, whatever is ingested meanwhile.

pub mod server;
mod slots;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lakebed_shim_abi::message::{Blocks, Outcome};
use lakebed_shim_abi::path::{self as shim_path, PathKind, WalSegment};
use lakebed_shim_abi::region::{Region, SlotRef};
use lakebed_types::data_directory::{FileKind, RELATION_SEGMENT_BLOCKS, SLRU_SEGMENT_PAGES, classify};
use lakebed_types::{ForkNumber, PAGE_SIZE, PageKey, RelTag, Term};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use crate::catalogue::CatalogueClient;
use crate::data_dir::{Owner, give, make_directories};
use crate::old_wal::OldWal;
use crate::pages::{PageClient, PageError};
use slots::{Pages, SlotFile, Slots};

/// Pages fetched at a time when a file is made whole.
const WHOLE_BATCH: u32 = 256;
/// Prefetches under way.
const PREFETCHES: usize = 32;

/// Why a question is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The local disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What happened.
        source: io::Error,
    },
    /// A page.
    #[error(transparent)]
    Page(#[from] PageError),
    /// Shard 0.
    #[error("asking shard 0 about {0}: {1}")]
    Catalogue(String, String),
    /// A segment of old WAL.
    #[error("{0}: {1}")]
    Wal(String, String),
    /// The shim asked for what it should not.
    #[error("{0}")]
    Protocol(String),
}

#[derive(Clone, Copy, Debug)]
enum PathState {
    Unknown,
    Slotted(SlotRef),
    Local,
    Gone,
}

/// Counters.
#[derive(Debug, Default)]
pub struct FileCounters {
    /// Pages written into local files.
    pub filled: AtomicU64,
    /// Pages fetched ahead of being asked for.
    pub prefetched: AtomicU64,
    /// Files fetched whole.
    pub whole: AtomicU64,
}

/// See the module header.
#[derive(Debug)]
pub struct Files {
    data: PathBuf,
    owner: Owner,
    /// Segments of SLRUs that the basebackup only told of, with their sizes in bytes.
    on_demand: HashMap<String, u64>,
    term: Term,
    slots: Slots,
    pages: PageClient,
    catalogue: CatalogueClient,
    old_wal: OldWal,
    paths: Mutex<HashMap<String, Arc<AsyncMutex<PathState>>>>,
    listed: AsyncMutex<HashSet<String>>,
    prefetches: Arc<Semaphore>,
    counters: FileCounters,
}

impl Files {
    /// Serves the files of one data directory, `on_demand` being those that the basebackup only told of, with their sizes
    /// in bytes.
    pub fn new(
        (data, on_demand): (PathBuf, HashMap<String, u64>),
        owner: Owner,
        term: Term,
        region: Region,
        pages: PageClient,
        catalogue: CatalogueClient,
        old_wal: OldWal,
    ) -> Files {
        Files {
            data,
            owner,
            on_demand,
            term,
            slots: Slots::new(region),
            pages,
            catalogue,
            old_wal,
            paths: Mutex::default(),
            listed: AsyncMutex::default(),
            prefetches: Arc::new(Semaphore::new(PREFETCHES)),
            counters: FileCounters::default(),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> &FileCounters {
        &self.counters
    }

    /// What the page client counted.
    pub fn pages(&self) -> &PageClient {
        &self.pages
    }

    /// Files with block states.
    pub fn slots_given(&self) -> usize {
        self.slots.given()
    }

    fn state(&self, path: &str) -> Arc<AsyncMutex<PathState>> {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let state = paths
            .entry(path.to_owned())
            .or_insert_with(|| Arc::new(AsyncMutex::new(PathState::Unknown)));
        state.clone()
    }

    fn io(&self, path: &str) -> impl Fn(io::Error) -> FileError {
        let path = path.to_owned();
        move |source| FileError::Io {
            path: path.clone(),
            source,
        }
    }

    /// See [`lakebed_shim_abi::message::Question::Open`].
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn open(&self, path: &str, create: bool) -> Result<(Outcome, SlotRef), FileError> {
        let state = self.state(path);
        let mut state = state.lock().await;
        if let PathKind::Wal(segment) = shim_path::classify(path.as_bytes()) {
            // Postgres removes and makes segments by itself, so nothing is remembered of them.
            let there = self.data.join(path).exists() || self.fetch_wal(path, segment).await?;
            let outcome = if there {
                Outcome::Existing
            } else {
                Outcome::Missing
            };
            return Ok((outcome, SlotRef::default()));
        }
        if matches!(*state, PathState::Unknown) {
            *state = self.look_up(path).await?;
        }
        match *state {
            PathState::Slotted(of) => Ok((Outcome::Existing, of)),
            PathState::Local => Ok((Outcome::Existing, SlotRef::default())),
            PathState::Unknown | PathState::Gone if create => {
                self.create(path, 0)?;
                *state = PathState::Local;
                Ok((Outcome::Created, SlotRef::default()))
            }
            PathState::Unknown | PathState::Gone => Ok((Outcome::Missing, SlotRef::default())),
        }
    }

    async fn fetch_wal(&self, path: &str, segment: WalSegment) -> Result<bool, FileError> {
        let fetched = self.old_wal.fetch(&self.data.join("pg_wal"), segment).await;
        fetched.map_err(|error| FileError::Wal(path.to_owned(), format!("{error:#}")))
    }

    /// Makes the local file, this many bytes long.
    fn create(&self, path: &str, bytes: u64) -> Result<File, FileError> {
        let local = self.data.join(path);
        let failed = self.io(path);
        if let Some(directory) = local.parent()
            && !directory.exists()
        {
            make_directories(directory, self.owner).map_err(&failed)?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&local).map_err(&failed)?;
        file.set_len(bytes).map_err(&failed)?;
        give(&local, self.owner).map_err(&failed)?;
        Ok(file)
    }

    /// Finds out what a path is at the boot position.
    async fn look_up(&self, path: &str) -> Result<PathState, FileError> {
        let (rel, segment) = match classify(path) {
            FileKind::Relation { rel, segment } => (rel, segment),
            // All of them came with the basebackup, or were named in it.
            FileKind::Slru { .. } if self.data.join(path).exists() => return Ok(PathState::Local),
            FileKind::Slru { .. } => {
                return match self.on_demand.get(path) {
                    Some(bytes) => self.attach_slru(path, *bytes).await,
                    None => Ok(PathState::Gone),
                };
            }
            FileKind::Wal | FileKind::Control | FileKind::Transient | FileKind::Carried => {
                return Err(FileError::Protocol(format!("{path} is not a managed file")));
            }
        };
        let found = self.catalogue.relation(rel).await;
        let found =
            found.map_err(|status| FileError::Catalogue(rel.to_string(), status.message().to_owned()))?;
        if found.unlogged {
            return self.reset_unlogged(path, rel, segment).await;
        }
        let first = segment.saturating_mul(RELATION_SEGMENT_BLOCKS);
        match segment_blocks(found.blocks, segment) {
            Some(blocks) => self.attach(path, Pages::Relation { rel, first }, blocks).await,
            None => Ok(PathState::Gone),
        }
    }

    /// A segment that the basebackup only told of.
    async fn attach_slru(&self, path: &str, bytes: u64) -> Result<PathState, FileError> {
        let blocks = u32::try_from(bytes / PAGE_SIZE as u64).ok();
        let (FileKind::Slru { kind, segment }, Some(blocks)) = (classify(path), blocks) else {
            return Err(FileError::Protocol(format!("{path} cannot be had page by page")));
        };
        let first = segment * SLRU_SEGMENT_PAGES;
        self.attach(path, Pages::Slru { kind, first }, blocks).await
    }

    async fn attach(&self, path: &str, pages: Pages, blocks: u32) -> Result<PathState, FileError> {
        let file = self.create(path, u64::from(blocks) * PAGE_SIZE as u64)?;
        if blocks == 0 {
            return Ok(PathState::Local);
        }
        let copy = file.try_clone().map_err(self.io(path))?;
        let slot_file = SlotFile { pages, blocks, file };
        match self.slots.give(slot_file) {
            Some(of) => Ok(PathState::Slotted(of)),
            None => {
                self.fetch_whole(path, pages, blocks, &copy).await?;
                Ok(PathState::Local)
            }
        }
    }

    async fn fetch_whole(&self, path: &str, pages: Pages, blocks: u32, file: &File) -> Result<(), FileError> {
        for batch in (0..blocks).step_by(WHOLE_BATCH as usize) {
            let until = blocks.min(batch + WHOLE_BATCH);
            let keys: Vec<PageKey> = (batch..until).map(|block| pages.key(block)).collect();
            for (block, page) in (batch..).zip(self.pages.get(&keys).await?) {
                let offset = u64::from(block) * PAGE_SIZE as u64;
                file.write_all_at(&page, offset).map_err(self.io(path))?;
            }
        }
        self.counters.whole.fetch_add(1, Ordering::Relaxed);
        self.counters
            .filled
            .fetch_add(u64::from(blocks), Ordering::Relaxed);
        Ok(())
    }

    /// An unlogged relation is empty after a start: its main fork is a copy of its init fork, others are absent. A
    /// clean start skips what `ResetUnloggedRelations` would do (`storage/file/reinit.c`).
    async fn reset_unlogged(&self, path: &str, rel: RelTag, segment: u32) -> Result<PathState, FileError> {
        if rel.fork != ForkNumber::Main || segment > 0 {
            return Ok(PathState::Gone);
        }
        let init = rel.with_fork(ForkNumber::Init);
        let found = self.catalogue.relation(init).await;
        let found =
            found.map_err(|status| FileError::Catalogue(init.to_string(), status.message().to_owned()))?;
        let blocks = found.blocks.unwrap_or(0);
        let file = self.create(path, u64::from(blocks) * PAGE_SIZE as u64)?;
        let pages = Pages::Relation { rel: init, first: 0 };
        self.fetch_whole(path, pages, blocks, &file).await?;
        Ok(PathState::Local)
    }

    /// Makes every relation of a database directory, or every segment of an SLRU, exist locally.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn list_dir(&self, path: &str) -> Result<(), FileError> {
        let mut listed = self.listed.lock().await;
        if listed.contains(path) {
            return Ok(());
        }
        let Some((tablespace, database)) = database_of(path) else {
            let directory = format!("{}/", path.trim_end_matches('/'));
            for named in self
                .on_demand
                .keys()
                .filter(|named| named.starts_with(&directory))
            {
                self.open(named, false).await?;
            }
            listed.insert(path.to_owned());
            return Ok(());
        };
        let relations = self.catalogue.list(tablespace, database).await;
        let relations =
            relations.map_err(|status| FileError::Catalogue(path.to_owned(), status.message().to_owned()))?;
        let directory = path.trim_end_matches('/');
        for (rel, blocks) in relations {
            let suffix = ["", "_fsm", "_vm", "_init"][rel.fork as usize];
            for segment in 0..=(blocks / RELATION_SEGMENT_BLOCKS) {
                let name = match segment {
                    0 => format!("{directory}/{}{suffix}", rel.relnode),
                    _ => format!("{directory}/{}{suffix}.{segment}", rel.relnode),
                };
                self.open(&name, false).await?;
            }
            // The main fork of an unlogged relation is not in the tier, but it exists.
            if rel.fork == ForkNumber::Init {
                self.open(&format!("{directory}/{}", rel.relnode), false).await?;
            }
        }
        listed.insert(path.to_owned());
        Ok(())
    }

    /// Removes a managed or carried file; tells whether it existed.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn unlink(&self, path: &str) -> Result<bool, FileError> {
        let local = self.data.join(path);
        let remove = || match fs::remove_file(&local) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.io(path)(error)),
        };
        if classify(path) == FileKind::Carried {
            let existed = remove()?;
            if existed {
                self.put(path, None).await?;
            }
            return Ok(existed);
        }
        let state = self.state(path);
        let mut state = state.lock().await;
        if matches!(*state, PathState::Unknown) {
            *state = match classify(path) {
                // Its pages are not wanted any more.
                FileKind::Relation { rel, segment } => {
                    let found = self.catalogue.relation(rel).await;
                    let found = found.map_err(|status| {
                        FileError::Catalogue(rel.to_string(), status.message().to_owned())
                    })?;
                    let unlogged = found.unlogged && rel.fork == ForkNumber::Main && segment == 0;
                    match segment_blocks(found.blocks, segment) {
                        Some(_) => PathState::Local,
                        None if unlogged => PathState::Local,
                        None => PathState::Gone,
                    }
                }
                _ if local.exists() || self.on_demand.contains_key(path) => PathState::Local,
                _ => PathState::Gone,
            };
        }
        let existed = match *state {
            PathState::Slotted(of) => {
                remove()?;
                self.slots.remove(of);
                true
            }
            PathState::Local => {
                remove()?;
                true
            }
            PathState::Unknown | PathState::Gone => false,
        };
        *state = PathState::Gone;
        Ok(existed)
    }

    /// Carries what a rename changed to the tier.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn renamed(&self, from: &str, to: &str) -> Result<(), FileError> {
        let local = self.data.join(to);
        if local.is_dir() {
            for entry in fs::read_dir(&local).map_err(self.io(to))? {
                let entry = entry.map_err(self.io(to))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let (old, new) = (format!("{from}/{name}"), format!("{to}/{name}"));
                if is_carried(&new) {
                    let content = fs::read(entry.path()).map_err(self.io(&new))?;
                    self.put(&new, Some(content)).await?;
                }
                if is_carried(&old) {
                    self.put(&old, None).await?;
                }
            }
            return Ok(());
        }
        if is_carried(to) {
            let content = fs::read(&local).map_err(self.io(to))?;
            self.put(to, Some(content)).await?;
        }
        if is_carried(from) {
            self.put(from, None).await?;
        }
        Ok(())
    }

    async fn put(&self, path: &str, content: Option<Vec<u8>>) -> Result<(), FileError> {
        let stored = self.catalogue.put_file(self.term, path, content).await;
        stored.map_err(|status| FileError::Catalogue(path.to_owned(), status.message().to_owned()))
    }

    /// Puts pages into a local file; the asker holds their words.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn fill(&self, blocks: Blocks) -> Result<(), FileError> {
        let Some(file) = self.slots.get(blocks.of) else {
            return Ok(()); // Removed meanwhile: what the asker reads does not matter.
        };
        self.fetch(&file, blocks.first, blocks.count).await
    }

    async fn fetch(&self, file: &SlotFile, first: u32, count: u32) -> Result<(), FileError> {
        let end = first.saturating_add(count).min(file.blocks);
        let keys: Vec<PageKey> = (first..end).map(|block| file.pages.key(block)).collect();
        let pages = self.pages.get(&keys).await?;
        for (block, page) in (first..).zip(&pages) {
            let written = file.file.write_all_at(page, u64::from(block) * PAGE_SIZE as u64);
            written.map_err(|source| FileError::Io {
                path: file.pages.key(block).to_string(),
                source,
            })?;
        }
        self.counters
            .filled
            .fetch_add(pages.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Fetches absent blocks that will be asked for soon. When many prefetches are under way this one is dropped.
    pub fn prefetch(self: &Arc<Self>, blocks: Blocks) {
        let Ok(permit) = self.prefetches.clone().try_acquire_owned() else {
            return;
        };
        let files = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let Some(file) = files.slots.get(blocks.of) else {
                return;
            };
            let end = blocks.first.saturating_add(blocks.count).min(file.blocks);
            let claimed: Vec<u32> = (blocks.first..end)
                .filter(|block| files.slots.claim(blocks.of, *block))
                .collect();
            for run in claimed.chunk_by(|a, b| a + 1 == *b) {
                let (Some(first), count) = (run.first().copied(), run.len() as u32) else {
                    continue;
                };
                let fetched = files.fetch(&file, first, count).await;
                if fetched.is_ok() {
                    files
                        .counters
                        .prefetched
                        .fetch_add(u64::from(count), Ordering::Relaxed);
                }
                for block in run {
                    files.slots.release(blocks.of, *block, fetched.is_ok());
                }
            }
        });
    }
}

/// Blocks of a segment of a relation that is this long; none if the segment does not exist.
fn segment_blocks(blocks: Option<u32>, segment: u32) -> Option<u32> {
    let blocks = blocks?;
    let before = segment.checked_mul(RELATION_SEGMENT_BLOCKS)?;
    if segment > 0 && blocks <= before {
        return None;
    }
    Some((blocks - before).min(RELATION_SEGMENT_BLOCKS))
}

fn is_carried(path: &str) -> bool {
    shim_path::classify(path.as_bytes()) == PathKind::Carried
}

/// Tablespace and database whose directory this is.
fn database_of(path: &str) -> Option<(u32, u32)> {
    use lakebed_types::data_directory::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    match parts.as_slice() {
        ["global"] => Some((GLOBAL_TABLESPACE, 0)),
        ["base", database] => Some((DEFAULT_TABLESPACE, database.parse().ok()?)),
        ["pg_tblspc", tablespace, _, database] => Some((tablespace.parse().ok()?, database.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_a_relation() {
        let full = RELATION_SEGMENT_BLOCKS;
        let table = [
            ((None, 0), None),
            ((Some(0), 0), Some(0)),
            ((Some(0), 1), None),
            ((Some(7), 0), Some(7)),
            ((Some(full), 0), Some(full)),
            ((Some(full), 1), None),
            ((Some(full + 1), 0), Some(full)),
            ((Some(full + 1), 1), Some(1)),
            ((Some(3 * full), 1), Some(full)),
            ((Some(1), u32::MAX), None),
        ];
        for ((blocks, segment), expected) in table {
            assert_eq!(
                segment_blocks(blocks, segment),
                expected,
                "{blocks:?} segment {segment}"
            );
        }
    }

    #[test]
    fn directories_of_databases() {
        let table = [
            ("base/5", Some((1663, 5))),
            ("base/5/", Some((1663, 5))),
            ("global", Some((1664, 0))),
            ("pg_tblspc/16400/PG_15_202209061/5", Some((16400, 5))),
            ("pg_xact", None),
            ("base/pgsql_tmp", None),
        ];
        for (path, expected) in table {
            assert_eq!(database_of(path), expected, "{path}");
        }
    }
}
