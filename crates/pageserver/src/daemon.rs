//! The pageserver as a process: its directory, its services, its end.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use lakebed_blobstore::BlobStore;
use lakebed_proto::stream::{self, door::Door};
use lakebed_proto::v1::pageserver_server::PageserverServer;
pub use lakebed_redo::Managers;
use lakebed_types::{ForkNumber, Lsn, PageKey, TimelineId};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::catalogue::Catalogue;
use crate::config::PageserverConfig;
use crate::hot::{Heat, Order, PageName};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::readers::Readers;
use crate::receive::remove_spools;
use crate::service::PageService;
use crate::timeline::history::Lease;

/// Format of the data directory.
const FORMAT: &str = "lakebed pageserver 2\n";
const OLD_FORMAT: &str = "lakebed pageserver 1\n";
/// Largest message: a chunk of a file.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A pageserver that is ready to serve.
pub struct Pageserver {
    node: Arc<Node>,
    listener: TcpListener,
    shutdown: CancellationToken,
    _lock: File,
}

impl Pageserver {
    /// Takes the data directory and the port, and attaches again what was attached before. `managers` replay records
    /// of extensions; a timeline with records of any other custom resource manager stops in front of the first one.
    ///
    /// # Errors
    /// The directory belongs to another process, has a newer format or cannot be written; the port is taken; object
    /// storage cannot be opened.
    pub async fn start(
        config: PageserverConfig,
        managers: Managers,
        registry: &mut Registry,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Pageserver> {
        let lock = open_directory(&config)?;
        let store = BlobStore::open(&config.store)?;
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("listening on {}", config.listen))?;
        let metrics = Metrics::register(registry);
        store.metrics().register(registry);
        let node = Node::new(config, managers, store, metrics, shutdown.clone());
        node.make_images();
        node.keep_disk_within_bounds();
        node.disk.metrics.register(registry);
        node.resume().await;
        Ok(Pageserver {
            node,
            listener,
            shutdown,
            _lock: lock,
        })
    }

    /// The address that it really listens on.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// For status and tests.
    pub fn node(&self) -> Arc<Node> {
        self.node.clone()
    }

    /// Serves until the shutdown token is cancelled, then ends its tasks and stores what is in memory.
    ///
    /// # Errors
    /// The transport failed.
    pub async fn serve(self) -> anyhow::Result<()> {
        let service = PageserverServer::new(PageService::new(self.node.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let stop = self.shutdown.clone();
        let (readers, readers_ended) = Readers::start(&self.node, &stop)?;
        let door = Door {
            stream: stream::PAGES,
            ending: stop.clone(),
            tasks: TaskTracker::new(),
        };
        let connections = door.open(self.listener, move |socket| readers.clone().take(socket));
        let served = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .initial_connection_window_size(16 << 20)
            .initial_stream_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .add_service(service)
            .serve_with_incoming(connections);
        // Calls of others may have no end, so there is nothing to wait for.
        tokio::select! {
            served = served => served.context("serving gRPC")?,
            () = stop.cancelled() => {}
        }
        // Streams have been told, and say why they end to readers who listen.
        readers_ended.wait().await;
        self.node.close().await;
        Ok(())
    }
}

/// Locks the directory against a second process and checks its format.
fn open_directory(config: &PageserverConfig) -> anyhow::Result<File> {
    let directory = &config.data_dir;
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let path = directory.join("lock");
    let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{} is in use by another pageserver", directory.display());
    }
    let path = directory.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => {}
        Ok(found) if found == OLD_FORMAT => bail!(
            "{} is of a lakebed from before the first release, whose layers this version does not read: create its \
             tenants anew, with an empty directory",
            directory.display()
        ),
        Ok(found) => bail!(
            "{} has the format `{}`; this version knows `{}`. Use a newer lakebed",
            directory.display(),
            found.trim_end(),
            FORMAT.trim_end()
        ),
        Err(_) => fs::write(&path, FORMAT).with_context(|| format!("writing {}", path.display()))?,
    }
    remove_spools(directory).with_context(|| format!("removing old imports from {}", directory.display()))?;
    Ok(lock)
}

/// What `/v1/layers` tells: the layers of every timeline, as its manifest has them, and which of them are on local disk.
pub fn layers_json(node: &Node) -> serde_json::Value {
    let layers = |timeline: &Arc<crate::timeline::Timeline>| {
        let identity = &timeline.identity;
        json!({
            "tenant": identity.tenant,
            "timeline": identity.timeline,
            "shard": identity.shard.to_string(),
            "map": *timeline.layer_map(),
            "local": timeline.local_layers(),
        })
    };
    json!({ "timelines": node.timelines().iter().map(layers).collect::<Vec<_>>() })
}

/// What `/v1/pages/hot` is asked.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HotQuery {
    /// By what pages are compared.
    pub order: Order,
    /// Most pages in the answer.
    pub limit: usize,
    /// Of this timeline alone.
    pub timeline: Option<TimelineId>,
}

impl Default for HotQuery {
    fn default() -> HotQuery {
        HotQuery {
            order: Order::default(),
            limit: 20,
            timeline: None,
        }
    }
}

/// What `/v1/pages/hot` tells: the pages that reads of the last one to two minutes had most trouble with.
pub fn hot_json(node: &Node, query: &HotQuery) -> serde_json::Value {
    let page = |(name, heat): &(PageName, Heat)| {
        let (relation, fork, block) = match name.key {
            PageKey::Rel { rel, block } => (
                Some(rel.with_fork(ForkNumber::Main).to_string()),
                Some(rel.fork.name()),
                Some(block),
            ),
            _ => (None, None, None),
        };
        json!({
            "tenant": name.tenant,
            "timeline": name.timeline,
            "shard": name.shard.to_string(),
            "page": name.key.to_string(),
            "relation": relation,
            "fork": fork,
            "block": block,
            "reads": heat.reads,
            "longest_chain": heat.longest_chain,
            "redo_us": heat.redo.as_micros() as u64,
            "longest_redo_us": heat.longest_redo.as_nanos() as f64 / 1000.0,
            "lsn": heat.lsn.to_string(),
        })
    };
    let of = |name: &PageName| query.timeline.is_none_or(|timeline| name.timeline == timeline);
    let top = node.hot.top(query.order, query.limit, of);
    json!({ "order": query.order, "pages": top.iter().map(page).collect::<Vec<_>>() })
}

/// What `/v1/status` tells.
pub fn status_json(node: &Node) -> serde_json::Value {
    let timelines: Vec<_> = node
        .timelines()
        .iter()
        .map(|timeline| {
            let identity = &timeline.identity;
            let sizes = timeline.sizes();
            let history = timeline.kept_history();
            let commit = timeline.catalogue(|catalogue| catalogue.commit_at(history.horizon));
            let lease = |lease: &Lease| {
                json!({
                    "lsn": lease.lsn.to_string(),
                    "holder": lease.holder,
                    "left_s": lease.left.as_secs_f64(),
                })
            };
            let branch = |(id, lsn): (&TimelineId, &Lsn)| json!({ "timeline": id, "lsn": lsn.to_string() });
            json!({
                "horizon_lsn": history.horizon.to_string(),
                "horizon_unix_micros": commit.map(|(_, time)| time),
                "horizon_allowed_lsn": history.allowed.to_string(),
                "branches": history.branches.iter().map(branch).collect::<Vec<_>>(),
                "leases": history.leases.iter().map(lease).collect::<Vec<_>>(),
                "history_bytes": sizes.history_bytes,
                "tenant": identity.tenant,
                "timeline": identity.timeline,
                "shard": identity.shard.to_string(),
                "generation": identity.generation,
                "parent": timeline.parent().map(|link| json!({
                    "timeline": link.timeline.identity.timeline,
                    "lsn": link.lsn.to_string(),
                })),
                "start_lsn": identity.start.to_string(),
                "last_record_lsn": timeline.last_record().to_string(),
                "disk_consistent_lsn": timeline.disk_consistent().to_string(),
                "memory_bytes": sizes.memory_bytes,
                "layers": sizes.layers,
                "layer_bytes": sizes.layer_bytes,
                "local_layers": timeline.local_layers().len(),
                "level0_layers": sizes.level0,
                "history_layers": sizes.history,
                "merges_are_late": timeline.merges_are_late(),
                "partitions": sizes.partitions,
                "copied_layers": sizes.copies,
                "dead_bytes": sizes.dead_bytes,
                "catalogue_versions": timeline.catalogue(Catalogue::versions),
                "stopped": timeline.stopped(),
            })
        })
        .collect();
    let used = node.disk.used();
    let disk = json!({
        "local_layers": used.layers,
        "local_bytes": used.bytes,
        "budget_bytes": node.config.disk_budget_bytes,
        "free_bytes": used.free_bytes,
        "reserve_bytes": node.config.disk_reserve_bytes,
    });
    json!({
        "role": "pageserver",
        "node_id": node.config.node_id,
        "disk": disk,
        "images_wanted": node.images.len(),
        "compaction_paused": node.turns.is_paused(),
        "timelines": timelines,
    })
}
