//! Which safekeeper a feed goes to. The safekeepers here accept connections and never say a word, as frozen ones do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_blobstore::BlobStore;
use lakebed_pageserver::config::PageserverConfig;
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::manifest::Cluster;
use lakebed_pageserver::metrics::Metrics;
use lakebed_pageserver::node::{Attachment, Node, TimelineSpec, wait_for};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_redo::Managers;
use lakebed_types::{Generation, Lsn, ShardCount, ShardIdentity, TenantId, TimelineId};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);
/// Less than the silence after which any feed looks elsewhere.
const SOON: Duration = Duration::from_secs(7);

struct Silent {
    listener: TcpListener,
    address: String,
}

impl Silent {
    async fn new() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Silent { listener, address }
    }

    /// Waits for a connection, and keeps it.
    async fn connection(&self, why: &str) -> tokio::net::TcpStream {
        let accepted = tokio::time::timeout(SOON, self.listener.accept()).await;
        accepted.expect(why).unwrap().0
    }
}

fn shard() -> ShardIdentity {
    ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap()
}

async fn node_with_timeline(directory: &Path) -> (Arc<Node>, Cluster) {
    let cluster = lakebed_pgtest::Cluster::init();
    let config = PageserverConfig {
        node_id: 1,
        data_dir: directory.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        store: "memory:".to_owned(),
        flush_bytes: 1 << 20,
        image_deltas: 24,
        image_bytes: 16 << 10,
        index_cache_bytes: 1 << 20,
        rewind_s: 3600,
        lease_s: 900,
        page_cache_bytes: 1 << 20,
        disk_budget_bytes: None,
        disk_reserve_bytes: 0,
    };
    let store = BlobStore::open(&config.store).unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let node = Node::new(
        config,
        Managers::default(),
        store,
        metrics,
        CancellationToken::new(),
    );
    let files = cluster.data_dir();
    let imported = node.import(
        (TENANT, shard()),
        Generation(1),
        TIMELINE,
        &files,
        Circumstances::default(),
    );
    let cluster = imported.await.unwrap().cluster;
    (node, cluster)
}

async fn attach(node: &Arc<Node>, cluster: Cluster, safekeepers: &[&Silent]) {
    let spec = TimelineSpec {
        timeline: TIMELINE,
        parent: None,
        cluster,
        safekeepers: safekeepers.iter().map(|one| one.address.clone()).collect(),
        kept: Kept::default(),
    };
    let attachment = Attachment {
        tenant: TENANT,
        shard: shard(),
        generation: Generation(1),
        timelines: vec![spec],
        retired: false,
    };
    node.attach(attachment).await.unwrap();
}

#[tokio::test]
async fn a_running_feed_goes_where_the_safekeepers_are_now() {
    let directory = tempfile::tempdir().unwrap();
    let (node, cluster) = node_with_timeline(directory.path()).await;
    let (old, new) = (Silent::new().await, Silent::new().await);
    attach(&node, cluster, &[&old]).await;
    let _kept = old.connection("the feed begins").await;
    attach(&node, cluster, &[&new]).await;
    let _kept = new.connection("the feed follows the new address").await;
}

#[tokio::test]
async fn a_waiting_reader_sends_the_feed_to_the_next_safekeeper() {
    let directory = tempfile::tempdir().unwrap();
    let (node, cluster) = node_with_timeline(directory.path()).await;
    let (frozen, other) = (Silent::new().await, Silent::new().await);
    attach(&node, cluster, &[&frozen, &other]).await;
    let _kept = frozen.connection("the feed begins").await;
    let timeline = node.timeline(TENANT, shard(), TIMELINE).unwrap();
    let reader = tokio::spawn(async move { wait_for(&timeline, Lsn::MAX, SOON).await });
    let _kept = other.connection("the feed tries the next one").await;
    reader.abort();
}
