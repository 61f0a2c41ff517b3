//! What nobody may read any more goes, and nothing else: before and after it, over takeovers, on branches and under leases.

mod records;
mod toy;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_blobstore::BlobStore;
use lakebed_layer::{ImagePolicy, PlanPolicy};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_pageserver::timeline::{Identity, Storage, Thresholds, Timeline, TimelineError};
use lakebed_pgtest::{Cluster, temp_dir};
use lakebed_types::{Lsn, PageKey, TimelineId};
use records::{BLOCKS, Expected, Numbers, ingest, make};
use toy::{REL, imported, managers, taken_over};

const BRANCH: TimelineId = TimelineId([3; 16]);
const ROUNDS: usize = 12;

fn storage(directory: &Path, store: &BlobStore, lease: Duration) -> Storage {
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
                layer_bytes: 60_000,
                ..PlanPolicy::default()
            },
            rewind_seconds: 0,
            lease,
            ..Thresholds::of_size(1 << 20)
        },
        managers: managers(),
        disk: Arc::default(),
    }
}

const LONG: Duration = Duration::from_secs(3600);

fn same(timeline: &Arc<Timeline>, expected: &Expected, lsns: &[Lsn]) {
    for lsn in lsns {
        for block in 0..BLOCKS {
            let key = PageKey::Rel { rel: REL, block };
            let (page, _) = timeline.page_and_cost(&key, *lsn).unwrap();
            assert!(page == expected.page(block, *lsn), "block {block} at {lsn}");
        }
    }
}

/// No page is read at any of these, in whatever way, and no branch or lease begins there.
async fn gone(timeline: &Arc<Timeline>, lsns: &[Lsn]) {
    let key = PageKey::Rel { rel: REL, block: 7 };
    let cache = lakebed_pageserver::page_cache::PageCache::new(1 << 20);
    for lsn in lsns {
        let refused = [
            timeline.page(&key, *lsn).map(drop),
            timeline.page_with(&cache, &key, *lsn).map(drop),
            timeline.explain(&key, *lsn).map(drop),
            timeline.control(*lsn).map(drop),
            timeline.lease(*lsn, "late").map(drop),
            timeline.add_branch(TimelineId([9; 16]), *lsn).await,
        ];
        for refused in refused {
            let kept = matches!(&refused, Err(TimelineError::NotKept { asked, .. }) if asked == lsn);
            assert!(kept, "{lsn}: {refused:?}");
        }
    }
}

fn allow(timeline: &Timeline, horizon: Lsn, branches: &[TimelineId]) {
    timeline.allow(Kept {
        horizon,
        branches: branches.iter().copied().collect(),
    });
}

async fn bytes_after_compaction(timeline: &Arc<Timeline>) -> u64 {
    timeline.compact().await.unwrap();
    timeline.sizes().layer_bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_read_any_more_goes_and_nothing_else() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let directory = |name: &str| local.path().join(name);
    let timeline = imported(&cluster.data_dir(), storage(&directory("a"), &store, LONG)).await;
    let (mut numbers, mut expected, mut lsns) = (Numbers(5), Expected::default(), Vec::new());
    for _ in 0..ROUNDS {
        let new = make(&mut numbers, timeline.last_record(), &mut expected);
        lsns.push(new[new.len() / 2].end);
        ingest(&timeline, &new);
        timeline.flush().await.unwrap();
        timeline.compact().await.unwrap();
    }
    same(&timeline, &expected, &lsns);
    let all = timeline.sizes().layer_bytes;

    // A branch and a compute, in what will be given up.
    timeline.lease(lsns[1], "compute").unwrap();
    timeline.add_branch(BRANCH, lsns[3]).await.unwrap();
    let identity = Identity {
        timeline: BRANCH,
        start: lsns[3],
        consistent: lsns[3],
        ..timeline.identity.clone()
    };
    let parent = Some((timeline.clone(), lsns[3]));
    let child = Timeline::create(identity, parent, storage(&directory("child"), &store, LONG));
    child.flush().await.unwrap();

    // Nothing goes while a branch is not there that the controllers know.
    allow(&timeline, lsns[7], &[BRANCH, TimelineId([4; 16])]);
    timeline.compact().await.unwrap();
    same(&timeline, &expected, &lsns);
    allow(&timeline, lsns[7], &[BRANCH]);
    let with_both = bytes_after_compaction(&timeline).await;
    assert!(with_both < all, "{with_both} of {all}");
    same(&timeline, &expected, &[lsns[1], lsns[3]]);
    same(&timeline, &expected, &lsns[7..]);
    same(&child, &expected, &lsns[3..4]);
    gone(&timeline, &[lsns[0], lsns[2], lsns[4], lsns[6]]).await;
    // What is kept may be branched from.
    timeline.add_branch(TimelineId([5; 16]), lsns[1]).await.unwrap();
    timeline.remove_branch(TimelineId([5; 16])).await.unwrap();

    // Another owner knows the lease, and gives up nothing before whoever holds it had time to renew it.
    let second = taken_over(&timeline, &store, storage(&directory("b"), &store, LONG)).await;
    allow(&second, lsns[9], &[BRANCH]);
    second.compact().await.unwrap();
    same(&second, &expected, &[lsns[1], lsns[3]]);
    same(&second, &expected, &lsns[7..]);
    gone(&second, &[lsns[2]]).await;
    second.lease(lsns[1], "compute").unwrap();
    // It has left when the time is over.
    let third = taken_over(&second, &store, storage(&directory("c"), &store, Duration::ZERO)).await;
    let before = third.sizes().layer_bytes;
    allow(&third, lsns[9], &[BRANCH]);
    let with_branch = bytes_after_compaction(&third).await;
    assert!(with_branch < before, "{with_branch} of {before}");
    same(&third, &expected, &lsns[3..4]);
    same(&third, &expected, &lsns[9..]);
    gone(&third, &[lsns[1], lsns[2], lsns[7]]).await;

    // A branch that goes frees what only it read, although the horizon does not move.
    third.remove_branch(BRANCH).await.unwrap();
    let alone = bytes_after_compaction(&third).await;
    assert!(alone < with_branch, "{alone} of {with_branch}");
    same(&third, &expected, &lsns[9..]);
    gone(&third, &[lsns[3]]).await;
    println!(
        "{all} bytes with all history, {with_both} with two LSNs of it, {with_branch} with one, {alone} with none"
    );
    // It never falls.
    allow(&third, lsns[0], &[]);
    third.compact().await.unwrap();
    gone(&third, &[lsns[1]]).await;

    // Nobody reads a branch any more from the moment on at which it is deleted.
    child.end().await;
    let key = PageKey::Rel { rel: REL, block: 7 };
    let refused = child.page(&key, lsns[3]);
    assert!(
        matches!(refused, Err(TimelineError::Deleted(BRANCH))),
        "{refused:?}"
    );
    let refused = child.flush().await.and(child.add_branch(BRANCH, lsns[3]).await);
    assert!(
        matches!(refused, Err(TimelineError::Deleted(BRANCH))),
        "{refused:?}"
    );
}
