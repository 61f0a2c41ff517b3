//! Images that reads ask for: a page with a long chain becomes short to read, stays what it was at every LSN, also while
//! its WAL comes in and tables are flushed, and gets no more images than its deltas pay for.

mod toy;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_blobstore::BlobStore;
use lakebed_layer::{ImagePolicy, PlanPolicy};
use lakebed_pageserver::hot::PageName;
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::ingest::Ingestor;
use lakebed_pageserver::metrics::Metrics;
use lakebed_pageserver::node::{Attachment, Node, TimelineSpec};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_pageserver::timeline::image::Added;
use lakebed_pageserver::timeline::{Storage, Thresholds, Timeline};
use lakebed_pgtest::{Cluster, temp_dir};
use lakebed_redo::{PageBytes, page};
use lakebed_types::{Generation, Lsn, PageKey, PgVersion, ShardCount, ShardIdentity, TenantId, TimelineId};
use lakebed_wal::record::{BlockRef, DecodedRecord};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use toy::{REL, RMID, imported, managers, taken_over};

const DELTAS: u32 = 6;

/// Nothing is merged, and a flush alone makes no images: no table has that many deltas of a page.
fn storage(directory: &Path, store: &BlobStore) -> Storage {
    Storage {
        directory: directory.to_owned(),
        store: store.clone(),
        thresholds: Thresholds {
            images: ImagePolicy {
                deltas: DELTAS,
                bytes: 1 << 20,
            },
            plan: PlanPolicy {
                level0: 1000,
                ..PlanPolicy::default()
            },
            ..Thresholds::of_size(1 << 20)
        },
        managers: managers(),
        disk: Arc::default(),
    }
}

fn key(block: u32) -> PageKey {
    PageKey::Rel { rel: REL, block }
}

/// One block, and all that it ever was.
struct Written {
    block: u32,
    versions: Vec<(Lsn, Box<PageBytes>)>,
}

impl Written {
    fn new(block: u32) -> Written {
        Written {
            block,
            versions: Vec::new(),
        }
    }

    /// The next record of the page, which begins at `start`.
    fn record(&mut self, start: Lsn) -> DecodedRecord {
        let end = Lsn(start.0 + 64);
        let number = self.versions.len() as u64;
        let at = 100 + (number * 37 % 7000) as u16;
        let data = number.to_le_bytes();
        let mut page = self
            .versions
            .last()
            .map_or(Box::new([0; 8192]), |(_, page)| page.clone());
        page[usize::from(at)..][..8].copy_from_slice(&data);
        page::set_lsn(&mut page, end);
        self.versions.push((end, page));
        DecodedRecord {
            version: PgVersion::V15,
            start,
            end,
            prev: Lsn(0),
            xid: 0,
            rmid: RMID,
            info: 0x20,
            origin: None,
            toplevel_xid: None,
            blocks: vec![BlockRef {
                id: 0,
                rel: REL,
                block: self.block,
                will_init: false,
                image: None,
                data: Some(Bytes::copy_from_slice(&data)),
            }],
            main_data: Bytes::copy_from_slice(&at.to_le_bytes()),
        }
    }

    fn check(&self, timeline: &Timeline) {
        for (lsn, expected) in &self.versions {
            for lsn in [*lsn, Lsn(lsn.0 + 63)] {
                let page = timeline.page(&key(self.block), lsn).unwrap();
                assert!(page == *expected, "block {} at {lsn}", self.block);
            }
        }
    }
}

/// Takes in so many records of each page.
fn write(timeline: &Arc<Timeline>, pages: &mut [Written], records: u32) {
    let mut ingestor = Ingestor::new(timeline.clone()).unwrap();
    for _ in 0..records {
        for page in &mut *pages {
            let record = page.record(ingestor.last());
            ingestor.record(&record).unwrap();
        }
    }
    ingestor.publish(ingestor.last());
}

fn chain(timeline: &Timeline, block: u32) -> usize {
    let head = timeline.last_record();
    timeline.page_and_cost(&key(block), head).unwrap().1.values
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_chain_in_layers_gets_short_and_stays_what_it_was() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let timeline = imported(&cluster.data_dir(), storage(&local.path().join("0"), &store)).await;
    let mut pages = [Written::new(0), Written::new(1)];
    for _ in 0..4 {
        write(&timeline, &mut pages, DELTAS / 2);
        timeline.flush().await.unwrap();
    }
    let head = timeline.last_record();
    let (_, cost) = timeline.page_and_cost(&key(0), head).unwrap();
    assert_eq!(cost.values as u32, 2 * DELTAS);
    assert!(timeline.wants_image(&cost));

    // Nothing is in memory: the image stands at the end of what is in layers.
    assert_eq!(timeline.add_image(&key(0)).unwrap(), Added::Yes);
    assert_eq!(
        (chain(&timeline, 0), chain(&timeline, 1)),
        (1, 2 * DELTAS as usize)
    );
    assert_eq!(timeline.add_image(&key(0)).unwrap(), Added::NotDue);
    pages.iter().for_each(|page| page.check(&timeline));

    // No record came: there is nothing to flush, and the image stays.
    timeline.flush().await.unwrap();
    assert_eq!((chain(&timeline, 0), timeline.disk_consistent()), (1, head));
    timeline.put_file("a".to_owned(), Some(Bytes::new())).unwrap();
    timeline.flush().await.unwrap();
    assert_eq!(chain(&timeline, 0), 1);

    // With the next ones it becomes part of a layer, also for who takes over.
    write(&timeline, &mut pages, 2);
    timeline.flush().await.unwrap();
    let next = taken_over(&timeline, &store, storage(&local.path().join("1"), &store)).await;
    assert_eq!((chain(&next, 0), chain(&next, 1)), (3, 2 * DELTAS as usize + 2));
    pages.iter().for_each(|page| page.check(&next));

    // In memory and in layers: the image stands at the last change.
    write(&next, &mut pages, DELTAS - 2);
    assert_eq!(next.add_image(&key(0)).unwrap(), Added::Yes);
    assert_eq!(next.add_image(&key(1)).unwrap(), Added::Yes);
    assert_eq!((chain(&next, 0), chain(&next, 1)), (1, 1));
    write(&next, &mut pages, 1);
    next.flush().await.unwrap();
    assert_eq!((chain(&next, 0), chain(&next, 1)), (2, 2));
    pages.iter().for_each(|page| page.check(&next));

    // Merged, nothing changes.
    let merging = Storage {
        thresholds: Thresholds {
            plan: PlanPolicy {
                level0: 1,
                layer_bytes: 20_000,
                ..PlanPolicy::default()
            },
            ..storage(local.path(), &store).thresholds
        },
        ..storage(&local.path().join("2"), &store)
    };
    let merged = taken_over(&next, &store, merging).await;
    assert!(merged.compact().await.unwrap().pages > 0);
    assert_eq!((chain(&merged, 0), chain(&merged, 1)), (2, 2));
    pages.iter().for_each(|page| page.check(&merged));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_beside_ingest_and_flushes_hide_nothing_and_are_bounded() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let timeline = imported(&cluster.data_dir(), storage(local.path(), &store)).await;
    let mut pages: Vec<Written> = (0..3).map(Written::new).collect();
    let done = Arc::new(AtomicBool::new(false));
    let (images, stop) = (timeline.clone(), done.clone());
    let images = std::thread::spawn(move || {
        let mut added = [0u32; 3];
        while !stop.load(Ordering::Relaxed) {
            for block in 0..3 {
                let made = images.add_image(&key(block)).unwrap();
                added[block as usize] += u32::from(made == Added::Yes);
            }
        }
        added
    });
    for round in 0..200 {
        write(&timeline, &mut pages, 1);
        if round % 3 == 0 {
            timeline.flush().await.unwrap();
        }
    }
    done.store(true, Ordering::Relaxed);
    let added = images.join().unwrap();
    println!("{added:?} images for 200 deltas each");
    for (page, added) in pages.iter().zip(added) {
        let last = u32::from(timeline.add_image(&key(page.block)).unwrap() == Added::Yes);
        page.check(&timeline);
        assert!((1..=200 / DELTAS).contains(&(added + last)), "{added} and {last}");
        assert!(chain(&timeline, page.block) <= DELTAS as usize);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_offered_gets_its_image_and_the_task_ends() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let config = serde_json::from_value(serde_json::json!({
        "node_id": 1,
        "data_dir": local.path(),
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "store": "memory:",
        "image_deltas": DELTAS,
    }));
    let metrics = Metrics::register(&mut Registry::default());
    let store = BlobStore::open("memory:").unwrap();
    let stop = CancellationToken::new();
    let node = Node::new(config.unwrap(), managers(), store, metrics, stop);
    let shard = ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap();
    let (tenant, id) = (TenantId([1; 16]), TimelineId([2; 16]));
    let files = cluster.data_dir();
    let taken = node.import(
        (tenant, shard),
        Generation(1),
        id,
        &files,
        Circumstances::default(),
    );
    let spec = TimelineSpec {
        timeline: id,
        parent: None,
        cluster: taken.await.unwrap().cluster,
        safekeepers: Vec::new(),
        kept: Kept::default(),
    };
    let attachment = Attachment {
        tenant,
        shard,
        generation: Generation(1),
        timelines: vec![spec],
        retired: false,
    };
    node.attach(attachment).await.unwrap();
    let timeline = node.timeline(tenant, shard, id).unwrap();
    let mut pages = [Written::new(0)];
    write(&timeline, &mut pages, 3 * DELTAS);
    assert_eq!(chain(&timeline, 0), 3 * DELTAS as usize);

    // What is not here any more, and what is short, does no harm.
    let name = |timeline, block| PageName {
        tenant,
        timeline,
        shard,
        key: key(block),
    };
    for page in [name(TimelineId([9; 16]), 0), name(id, 1), name(id, 0)] {
        assert!(node.images.offer(page));
    }
    node.make_images();
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.metrics.read_images.get() == 0 {
        assert!(Instant::now() < deadline, "no image was made");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((chain(&timeline, 0), node.images.len()), (1, 0));
    pages[0].check(&timeline);
    let ended = tokio::time::timeout(Duration::from_secs(60), node.stop());
    ended.await.expect("all tasks end");
}
