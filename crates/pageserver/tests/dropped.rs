//! What was dropped or truncated takes no space once nobody reads it: whether it was in merged layers or not, whether the
//! pageserver was there when it went, and above an old branch point too.

mod records;
mod toy;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_blobstore::BlobStore;
use lakebed_layer::{ImagePolicy, LayerKind, PlanPolicy};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_pageserver::timeline::{Storage, Thresholds, Timeline};
use lakebed_pgtest::{Cluster, temp_dir};
use lakebed_types::{Lsn, PageKey, TimelineId};
use lakebed_wal::record::DecodedRecord;
use records::{BLOCKS, Expected, Numbers, ingest, make, make_some, truncation};
use toy::{REL, imported_pages, managers, taken_over};

const BRANCH: TimelineId = TimelineId([3; 16]);
/// More than what is no page of the relation, in bytes.
const LITTLE: u64 = 5_000;

fn storage(directory: &Path, store: &BlobStore) -> Storage {
    Storage {
        directory: directory.to_owned(),
        store: store.clone(),
        thresholds: Thresholds {
            images: ImagePolicy {
                deltas: 6,
                bytes: 4096,
            },
            plan: PlanPolicy {
                level0: 3,
                layer_bytes: 100_000,
                ..PlanPolicy::default()
            },
            rewind_seconds: 0,
            lease: Duration::ZERO,
            ..Thresholds::of_size(1 << 20)
        },
        managers: managers(),
        disk: Arc::default(),
    }
}

struct World {
    timeline: Arc<Timeline>,
    numbers: Numbers,
    expected: Expected,
}

impl World {
    async fn new(local: &Path, store: &BlobStore) -> World {
        let cluster = Cluster::init();
        let pages = |key: &PageKey| !matches!(key, PageKey::Rel { .. });
        let timeline = imported_pages(&cluster.data_dir(), storage(local, store), pages).await;
        World {
            timeline,
            numbers: Numbers(3),
            expected: Expected::default(),
        }
    }

    /// Some thousand records, flushed. Returns the last one's end.
    async fn work(&mut self, rounds: usize) -> Lsn {
        for _ in 0..rounds {
            let last = self.timeline.last_record();
            let new = make(&mut self.numbers, last, &mut self.expected);
            self.ingest(&new).await;
        }
        self.timeline.last_record()
    }

    /// The relation loses all its blocks.
    async fn truncate(&mut self) -> Lsn {
        let record = truncation(self.timeline.last_record(), 0);
        self.expected.truncate(record.end, 0);
        self.ingest(&[record]).await;
        self.timeline.last_record()
    }

    async fn ingest(&self, records: &[DecodedRecord]) {
        ingest(&self.timeline, records);
        self.timeline.flush().await.unwrap();
    }

    /// Bytes of pages, once there is nothing to merge.
    async fn bytes(&self) -> u64 {
        self.timeline.compact().await.unwrap();
        let map = self.timeline.layer_map();
        let pages = map.layers().filter(|desc| desc.kind != LayerKind::Catalogue);
        pages.map(|desc| desc.bytes).sum()
    }

    fn allow(&self, horizon: Lsn, branches: &[TimelineId]) {
        self.timeline.allow(Kept {
            horizon,
            branches: branches.iter().copied().collect(),
        });
    }

    /// Every page at these LSNs.
    fn check(&self, lsns: &[Lsn]) {
        for lsn in lsns {
            for block in 0..BLOCKS {
                let key = PageKey::Rel { rel: REL, block };
                let page = self.timeline.page(&key, *lsn).unwrap();
                assert!(page == self.expected.page(block, *lsn), "block {block} at {lsn}");
            }
        }
    }
}

#[tokio::test]
async fn what_was_merged_before_it_was_dropped_goes_when_the_window_has_passed_it() {
    let (local, store) = (temp_dir(), BlobStore::open("memory:").unwrap());
    let mut world = World::new(&local.path().join("a"), &store).await;
    let before = world.work(8).await;
    let all = world.bytes().await;
    assert!(all > 100 * LITTLE, "{all}");
    let end = world.truncate().await;
    // In the window nothing goes.
    world.allow(before, &[]);
    assert!(world.bytes().await > 4 * LITTLE);
    world.check(&[before, end]);
    world.allow(end, &[]);
    // Whoever takes over knows it as well.
    let next = storage(&local.path().join("b"), &store);
    world.timeline = taken_over(&world.timeline, &store, next).await;
    world.allow(end, &[]);
    let left = world.bytes().await;
    assert!(left < LITTLE, "{left} of {all}");
    assert_eq!(world.timeline.sizes().dead_bytes, 0);
    world.check(&[end]);
    // It grows again from nothing.
    let last = world.work(4).await;
    let grown = world.bytes().await;
    assert!(grown > 4 * LITTLE, "{grown}");
    world.check(&[end, last]);
}

#[tokio::test]
async fn what_is_in_history_when_the_window_passes_its_end_goes_too() {
    let (local, store) = (temp_dir(), BlobStore::open("memory:").unwrap());
    let mut world = World::new(&local.path().join("a"), &store).await;
    let before = world.work(4).await;
    world.allow(before, &[]);
    world.bytes().await;
    let end = world.truncate().await;
    // Merged while it is in the window: with three layers of level 0, which have a few blocks.
    for _ in 0..3 {
        let last = world.timeline.last_record();
        let new = make_some(&mut world.numbers, last, &mut world.expected, (4, BLOCKS));
        world.ingest(&new).await;
    }
    let merged = world.bytes().await;
    let (merged_history, last) = (world.timeline.sizes().history_bytes, world.timeline.last_record());
    assert!(merged_history > 4 * LITTLE, "{merged_history} of {merged}");
    world.check(&[before, end]);
    // Nothing comes any more; only the window moves on.
    world.allow(Lsn(end.0 - 1), &[]);
    assert!(world.bytes().await > 4 * LITTLE);
    world.check(&[Lsn(end.0 - 1), end]);
    world.allow(end, &[]);
    let left = world.bytes().await;
    assert!(left < LITTLE, "{left} of {merged}");
    world.check(&[end, last]);
}

#[tokio::test]
async fn a_branch_point_keeps_what_it_needs_of_it() {
    let (local, store) = (temp_dir(), BlobStore::open("memory:").unwrap());
    let mut world = World::new(&local.path().join("a"), &store).await;
    let point = world.work(2).await;
    world.timeline.add_branch(BRANCH, point).await.unwrap();
    world.work(6).await;
    let all = world.bytes().await;
    let end = world.truncate().await;
    world.allow(end, &[BRANCH]);
    let kept = world.bytes().await;
    assert!(kept < all / 2 && kept > 4 * LITTLE, "{kept} of {all}");
    world.check(&[point, end]);
    world.timeline.remove_branch(BRANCH).await.unwrap();
    let left = world.bytes().await;
    assert!(left < LITTLE, "{left} of {all}");
    world.check(&[end]);
}
