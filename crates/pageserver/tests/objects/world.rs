//! A timeline with many layers of known content, in a directory as object storage.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lakebed_blobstore::BlobStore;
use lakebed_layer::{ImagePolicy, LayerKind, PlanPolicy};
use lakebed_pageserver::ingest::Ingestor;
use lakebed_pageserver::layer_disk::LayerDisk;
use lakebed_pageserver::timeline::{Storage, Thresholds, Timeline, TimelineError};
use lakebed_pgtest::{Cluster, temp_dir};
use lakebed_redo::page;
use lakebed_types::{Lsn, PageKey, PgVersion};
use lakebed_wal::record::{BlockRef, DecodedRecord};
use tempfile::TempDir;

use crate::toy::{REL, RMID, imported_pages, managers, reopened};

/// Blocks of the relation.
pub const BLOCKS: u32 = 40;
/// Flushes.
const ROUNDS: u8 = 12;

/// See the module header.
pub struct World {
    pub timeline: Arc<Timeline>,
    pub store: BlobStore,
    pub dir: TempDir,
    /// An LSN after each flush.
    pub lsns: Vec<Lsn>,
}

/// The key of a block.
pub fn key(block: u32) -> PageKey {
    PageKey::Rel { rel: REL, block }
}

/// Storage with layers in this directory.
pub fn storage(directory: &Path, store: &BlobStore, disk: &Arc<LayerDisk>) -> Storage {
    Storage {
        directory: directory.to_owned(),
        disk: disk.clone(),
        store: store.clone(),
        thresholds: Thresholds {
            images: ImagePolicy {
                deltas: 2,
                bytes: 4096,
            },
            plan: PlanPolicy {
                level0: 3,
                layer_bytes: 4_000,
                history: 2,
                waste: 8,
                catalogue: 3,
            },
            ..Thresholds::of_size(1 << 20)
        },
        managers: managers(),
    }
}

/// What the block holds at 100 + 10 * round after a flush.
fn mark(block: u32, round: u8) -> [u8; 10] {
    let number = u64::from(block) << 8 | u64::from(round);
    let mut bytes = [round + 1; 10];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes
}

fn records(start: Lsn, round: u8) -> Vec<DecodedRecord> {
    let record = |number: u32| {
        let lsn = Lsn(start.0 + u64::from(number) * 64);
        DecodedRecord {
            version: PgVersion::V15,
            start: lsn,
            end: Lsn(lsn.0 + 64),
            prev: Lsn(0),
            xid: 0,
            rmid: RMID,
            info: 0x20,
            origin: None,
            toplevel_xid: None,
            blocks: vec![BlockRef {
                id: 0,
                rel: REL,
                block: number % BLOCKS,
                will_init: round == 0,
                image: None,
                data: Some(Bytes::copy_from_slice(&mark(number % BLOCKS, round))),
            }],
            main_data: Bytes::copy_from_slice(&(100 + 10 * u16::from(round)).to_le_bytes()),
        }
    };
    (0..BLOCKS).map(record).collect()
}

impl World {
    /// Makes one, with its layers in `owner` of its directory, merged or as they were flushed.
    pub async fn new(disk: &Arc<LayerDisk>) -> World {
        let (cluster, dir) = (Cluster::init(), temp_dir());
        let address = format!("file://{}", dir.path().join("store").display());
        let store = BlobStore::open(&address).unwrap();
        let storage = storage(&dir.path().join("owner"), &store, disk);
        // Few layers, so that damage of all of them is tried soon.
        let few = |key: &PageKey| !matches!(key, PageKey::Rel { .. });
        let timeline = imported_pages(&cluster.data_dir(), storage, few).await;
        let mut world = World {
            timeline,
            store,
            dir,
            lsns: Vec::new(),
        };
        for round in 0..ROUNDS {
            world.round(round).await;
        }
        let kinds: Vec<LayerKind> = world.timeline.layer_map().layers().map(|d| d.kind).collect();
        let all = [
            LayerKind::Level0,
            LayerKind::Current,
            LayerKind::History,
            LayerKind::Catalogue,
        ];
        assert!(all.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
        world
    }

    async fn round(&mut self, round: u8) {
        let timeline = &self.timeline;
        let ingestor = timeline.obtaining(|| Ingestor::new(timeline.clone())).await;
        let mut ingestor = ingestor.unwrap();
        let records = records(timeline.last_record(), round);
        for record in &records {
            ingestor.record(record).unwrap();
        }
        ingestor.publish(records[records.len() - 1].end);
        timeline.flush().await.unwrap();
        if round != ROUNDS - 1 {
            timeline.compact().await.unwrap();
        }
        self.lsns.push(timeline.last_record());
    }

    /// A new owner with nothing on its disk.
    pub async fn reopened(&self, directory: &str, disk: &Arc<LayerDisk>) -> Arc<Timeline> {
        let storage = storage(&self.dir.path().join(directory), &self.store, disk);
        reopened(&self.timeline, &self.store, storage).await
    }

    /// Files of layers in a directory of this world.
    pub fn files(&self, directory: &str) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.dir.path().join(directory))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    }

    /// Objects of one kind, `layers` or `manifests`.
    pub fn objects(&self, kind: &str) -> Vec<PathBuf> {
        let shard = self.dir.path().join("store/tenants").join("01".repeat(16));
        let timeline = shard.join("shards/0-1/timelines").join("02".repeat(16));
        let found = fs::read_dir(timeline.join(kind)).unwrap();
        let mut found: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
        found.sort();
        found
    }

    /// Checks what a read of a block after some flush gave, if it gave anything.
    pub fn check(&self, block: u32, round: usize, page: &[u8]) {
        for written in 0..ROUNDS {
            let at = 100 + 10 * usize::from(written);
            let expected = match usize::from(written) <= round {
                true => mark(block, written),
                false => [0; 10],
            };
            assert_eq!(
                page[at..at + 10],
                expected,
                "block {block}, round {round}, of {written}"
            );
        }
        let whole: &[u8; 8192] = page.try_into().unwrap();
        assert!(page::lsn(whole) <= self.lsns[round]);
    }

    /// Reads all pages after each flush; the errors with block and round.
    pub async fn read_all(&self, timeline: &Timeline) -> Vec<(u32, usize, TimelineError)> {
        let mut errors = Vec::new();
        for (round, lsn) in self.lsns.iter().enumerate() {
            for block in 0..BLOCKS {
                match timeline.obtaining(|| timeline.page(&key(block), *lsn)).await {
                    Ok(page) => self.check(block, round, &page[..]),
                    Err(error) => errors.push((block, round, error)),
                }
            }
        }
        errors
    }
}

/// Changes one byte.
pub fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x41;
    fs::write(path, bytes).unwrap();
}

/// Positions of a file of `bytes` bytes: all of its ends, where header and footer are, and a sample of what is between.
pub fn positions(bytes: u64, salt: u64) -> Vec<u64> {
    let ends = (0..40).chain(bytes.saturating_sub(150)..bytes);
    let step = (bytes / 40).max(1) as usize;
    let between = (salt % step as u64..bytes).step_by(step);
    let mut all: Vec<u64> = ends.chain(between).filter(|at| *at < bytes).collect();
    all.sort_unstable();
    all.dedup();
    all
}
