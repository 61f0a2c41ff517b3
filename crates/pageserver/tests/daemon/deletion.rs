//! A timeline that is given up leaves nothing behind, and goes only when nothing needs it.

use std::path::Path;
use std::sync::Arc;

use lakebed_blobstore::{BlobStore, paths};
use lakebed_pageserver::daemon::Managers;
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::manifest::{Cluster, Parent, Place};
use lakebed_pageserver::metrics::Metrics;
use lakebed_pageserver::node::{Attachment, Node, NodeError, TimelineSpec};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_types::{Generation, Lsn, ShardIdentity, TenantId, TimelineId};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::node::{TENANT, TIMELINE as ROOT, config, shard};

const CHILD: TimelineId = TimelineId([3; 16]);

fn key() -> (TenantId, ShardIdentity) {
    (TENANT, shard())
}

fn node(directory: &Path, store: &BlobStore) -> Arc<Node> {
    std::fs::create_dir_all(directory).unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let stop = CancellationToken::new();
    Node::new(
        config(directory),
        Managers::default(),
        store.clone(),
        metrics,
        stop,
    )
}

fn spec(timeline: TimelineId, parent: Option<Parent>, cluster: Cluster) -> TimelineSpec {
    TimelineSpec {
        timeline,
        parent,
        cluster,
        safekeepers: Vec::new(),
        kept: Kept::default(),
    }
}

async fn attach(node: &Arc<Node>, generation: u64, timelines: Vec<TimelineSpec>) {
    let (tenant, shard) = key();
    let attachment = Attachment {
        tenant,
        shard,
        generation: Generation(generation),
        timelines,
        retired: false,
    };
    node.attach(attachment).await.unwrap();
}

async fn objects(store: &BlobStore, timeline: TimelineId) -> usize {
    let listed = store.list(&paths::timeline(TENANT, key().1, timeline)).await;
    listed.unwrap().len()
}

async fn branches(node: &Node, store: &BlobStore) -> Vec<(TimelineId, Lsn)> {
    let place = Place::new(store, TENANT, key().1, ROOT);
    let manifest = place.latest(Generation(9)).await.unwrap().unwrap();
    let known = node.timeline(TENANT, key().1, ROOT).unwrap().kept_history();
    assert_eq!(known.branches, manifest.branches);
    manifest.branches.into_iter().collect()
}

#[tokio::test]
async fn a_timeline_goes_with_its_objects_once_nothing_branches_from_it() {
    let home = tempfile::tempdir().unwrap();
    let store = BlobStore::open("memory:").unwrap();
    let cluster = lakebed_pgtest::Cluster::init();
    let first = node(&home.path().join("1"), &store);
    let data = cluster.data_dir();
    let imported = first.import(key(), Generation(1), ROOT, &data, Circumstances::default());
    let taken = imported.await.unwrap();
    let at = Parent {
        timeline: ROOT,
        lsn: taken.start,
    };
    let root = || spec(ROOT, None, taken.cluster);
    let child = || spec(CHILD, Some(at), taken.cluster);
    attach(&first, 1, vec![root(), child()]).await;
    assert_eq!(branches(&first, &store).await, [(CHILD, at.lsn)]);

    let refused = first.delete_timeline(key(), Generation(1), ROOT).await;
    let hangs = matches!(&refused, Err(NodeError::HasBranch { child, .. }) if *child == CHILD);
    assert!(hangs, "{refused:?}");
    let refused = first.delete_timeline(key(), Generation(2), CHILD).await;
    assert!(
        matches!(refused, Err(NodeError::StaleGeneration { .. })),
        "{refused:?}"
    );

    // After a restart the child is not attached any more, since it is being deleted; its parent remembers it.
    let second = node(&home.path().join("2"), &store);
    attach(&second, 2, vec![root()]).await;
    let refused = second.delete_timeline(key(), Generation(2), ROOT).await;
    assert!(matches!(refused, Err(NodeError::HasBranch { .. })), "{refused:?}");
    // The owner before deletes nothing.
    let served = first.timeline(TENANT, key().1, CHILD).unwrap();
    attach(&second, 2, vec![root(), child()]).await;
    let refused = first.delete_timeline(key(), Generation(1), CHILD).await;
    assert!(matches!(refused, Err(NodeError::Timeline(_))), "{refused:?}");
    assert!(objects(&store, CHILD).await > 0);
    assert!(
        served.check_kept(at.lsn).is_err(),
        "it is not read any more either way"
    );

    second.delete_timeline(key(), Generation(2), CHILD).await.unwrap();
    assert_eq!(objects(&store, CHILD).await, 0);
    assert_eq!(branches(&second, &store).await, []);
    // A repeat, as after a lost answer.
    second.delete_timeline(key(), Generation(2), CHILD).await.unwrap();
    second.delete_timeline(key(), Generation(2), ROOT).await.unwrap();
    assert_eq!(objects(&store, ROOT).await, 0);
    assert!(second.timelines().is_empty());
}
