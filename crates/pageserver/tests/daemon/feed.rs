//! Which safekeeper a feed goes to. The safekeepers here accept connections and never say a word, as frozen ones do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_blobstore::BlobStore;
use lakebed_pageserver::manifest::Cluster;
use lakebed_pageserver::metrics::Metrics;
use lakebed_pageserver::node::{Node, wait_for};
use lakebed_redo::Managers;
use lakebed_types::Lsn;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::{TENANT, TIMELINE, attach_to, config, import, shard};

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

async fn node_with_timeline(directory: &Path) -> (Arc<Node>, Cluster) {
    let cluster = lakebed_pgtest::Cluster::init();
    let config = config(directory);
    let store = BlobStore::open(&config.store).unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let node = Node::new(
        config,
        Managers::default(),
        store,
        metrics,
        CancellationToken::new(),
    );
    let cluster = import(&node, &cluster.data_dir()).await.cluster;
    (node, cluster)
}

async fn attach(node: &Arc<Node>, cluster: Cluster, safekeepers: &[&Silent]) {
    let safekeepers = safekeepers.iter().map(|one| one.address.clone());
    attach_to(node, cluster, safekeepers.collect()).await;
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
