//! The safekeeper as a whole: its timelines, and their start, service and end.
//!
//! [`Safekeeper::open`] takes the data directory and starts every timeline in it; [`Safekeeper::serve`] answers
//! until it is told to end; [`run`] does both. A process that has more to offer (metrics, status pages) opens,
//! registers, and serves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use lakebed_proto::stream::{self, door::Door};
use lakebed_proto::v1;
use lakebed_proto::v1::safekeeper_server::SafekeeperServer;
use lakebed_quorum::acceptor::Durable;
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::membership::Membership;
use lakebed_types::{Generation, Lsn, NodeId, Term};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::backup::archive::Archive;
use crate::backup::objects;
use crate::backup::peers::Peers;
use crate::backup::uploader::{self, Backup};
use crate::config::SafekeeperConfig;
use crate::data_dir::{DataDir, Name};
use crate::metrics::Metrics;
use crate::owner::Order;
use crate::propose;
use crate::scrub;
use crate::service::Service;
use crate::timeline::{self, LoadError, Loaded, Timeline};
use crate::wire;

/// Timelines that are read from disk at the same time at the start: each waits for some fsyncs, which a file system serves
/// together, and needs a few MiB meanwhile.
const LOADS_AT_A_TIME: usize = 32;
/// How long calls may take to end after they were told to.
const END_GRACE: Duration = Duration::from_secs(5);
/// A peer that does not answer for this long and as long again is taken for dead.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Bytes that a peer may send ahead of what is read here, on a stream and on a connection.
const WINDOW_BYTES: u32 = 8 << 20;
/// Room in a message for what is not WAL.
const MESSAGE_OVERHEAD_BYTES: usize = 1 << 20;

/// Serves until `shutdown`; tells the address once requests are answered.
pub async fn run(
    config: SafekeeperConfig,
    shutdown: CancellationToken,
    on_ready: oneshot::Sender<SocketAddr>,
) -> anyhow::Result<()> {
    Safekeeper::open(config).await?.serve(shutdown, on_ready).await
}

/// A safekeeper; see the module header.
#[derive(Debug)]
pub struct Safekeeper {
    config: SafekeeperConfig,
    data_dir: Arc<DataDir>,
    timelines: RwLock<BTreeMap<Name, Arc<Timeline>>>,
    /// Held while a timeline is made or removed.
    changing: Mutex<()>,
    metrics: Metrics,
    /// Its way to object storage, if it has one.
    backup: Option<Arc<Backup>>,
    /// Where the other safekeepers are.
    peers: Arc<Peers>,
    scrub: scrub::Passes,
    ending: CancellationToken,
    /// Streams that are being served.
    streams: TaskTracker,
}

impl Safekeeper {
    /// Takes the data directory and starts every timeline in it. One that is damaged is there all the same, stopped.
    pub async fn open(config: SafekeeperConfig) -> anyhow::Result<Arc<Safekeeper>> {
        let data_dir = Arc::new(DataDir::open(&config.data_dir, config.node_id)?);
        let metrics = Metrics::default();
        let backup = config.backup.clone().map(Backup::open).transpose()?.map(Arc::new);
        let mut timelines = BTreeMap::new();
        let mut opening = tokio::task::JoinSet::new();
        for name in data_dir.list()? {
            if opening.len() >= LOADS_AT_A_TIME
                && let Some(opened) = opening.join_next().await
            {
                let timeline: Arc<Timeline> = opened?;
                timelines.insert(timeline.name, timeline);
            }
            let (directory, metrics) = (data_dir.path(name), metrics.clone());
            opening.spawn(async move { Timeline::open(name, directory, &metrics).await });
        }
        while let Some(opened) = opening.join_next().await {
            let timeline = opened?;
            timelines.insert(timeline.name, timeline);
        }
        Ok(Arc::new(Safekeeper {
            config,
            data_dir,
            timelines: RwLock::new(timelines),
            changing: Mutex::default(),
            metrics,
            peers: backup
                .as_ref()
                .map(|backup| backup.peers.clone())
                .unwrap_or_default(),
            backup,
            scrub: scrub::Passes::default(),
            ending: CancellationToken::new(),
            streams: TaskTracker::new(),
        }))
    }

    /// Answers gRPC and proposers until `shutdown`, then ends every timeline. Tells the address once requests are answered.
    pub async fn serve(
        self: Arc<Self>,
        shutdown: CancellationToken,
        on_ready: oneshot::Sender<SocketAddr>,
    ) -> anyhow::Result<()> {
        let listen = self.config.listen;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}: choose another address for `listen`"))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, node_id = self.config.node_id, "safekeeper ready");
        let _ = on_ready.send(address);
        if let Some(backup) = self.backup.clone() {
            self.serve_stream(uploader::run(self.clone(), backup));
        }
        self.serve_stream(scrub::run(self.clone()));
        self.serve_stream(scrub::mending::run(self.clone()));
        let service = SafekeeperServer::new(Service::new(self.clone()))
            .max_decoding_message_size(wire::MAX_APPEND_BYTES + MESSAGE_OVERHEAD_BYTES);
        let door = Door {
            stream: stream::PROPOSE,
            ending: self.ending.clone(),
            tasks: self.streams.clone(),
        };
        let safekeeper = self.clone();
        let connections = door.open(listener, move |socket| propose::greet(safekeeper.clone(), socket));
        let ending = self.ending.clone();
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .add_service(service)
            .serve_with_incoming_shutdown(connections, async move {
                shutdown.cancelled().await;
                // Streams have no end of their own, and the server waits for them.
                ending.cancel();
            });
        let overdue = async {
            self.ending.cancelled().await;
            tokio::time::sleep(END_GRACE).await;
        };
        let served = tokio::select! {
            served = server => served,
            () = overdue => {
                tracing::warn!("peers did not let go of their connections, which are cut now");
                Ok(())
            }
        };
        self.ending.cancel();
        for timeline in self.timelines() {
            timeline.end("the safekeeper is shutting down").await;
        }
        self.streams.close();
        self.streams.wait().await;
        served.context("the gRPC server failed")
    }

    /// Serves a stream beside the call that began it; the safekeeper's end waits for it.
    pub(crate) fn serve_stream(&self, stream: impl Future<Output = ()> + Send + 'static) {
        self.streams.spawn(stream);
    }

    /// Registers this safekeeper's counters.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        if let Some(backup) = &self.backup {
            backup.store.metrics().register(registry);
        }
    }

    /// Its way to object storage, if it has one.
    pub fn backup(&self) -> Option<&Arc<Backup>> {
        self.backup.as_ref()
    }

    /// Where the other safekeepers are, for whoever knows it to say.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The scrubber's passes, for whoever wants one now.
    pub fn scrub_passes(&self) -> &scrub::Passes {
        &self.scrub
    }

    /// A timeline's WAL in object storage, if it has a way there.
    pub(crate) fn archive(&self, name: Name) -> Option<Archive> {
        self.backup.as_ref().map(|backup| backup.archive(name))
    }

    /// Where a timeline's files are.
    pub(crate) fn directory(&self, name: Name) -> PathBuf {
        self.data_dir.path(name)
    }

    /// Puts a timeline whose files were mended into the place of the one that could not work.
    pub(crate) async fn restart(&self, stopped: &Arc<Timeline>, loaded: Loaded) {
        let _changing = self.changing.lock().await;
        let there = self.timeline(stopped.name);
        // It may have been deleted meanwhile.
        if self.ending.is_cancelled() || !there.is_ok_and(|there| Arc::ptr_eq(&there, stopped)) {
            return;
        }
        stopped.end("it starts again").await;
        let timeline = Timeline::start(stopped.name, loaded, &self.metrics);
        self.write().insert(stopped.name, timeline);
    }

    /// All timelines.
    pub(crate) fn timelines(&self) -> Vec<Arc<Timeline>> {
        self.read().values().cloned().collect()
    }

    /// The state of all timelines, for people and scripts.
    pub fn status_json(&self) -> serde_json::Value {
        let timelines: Vec<_> = self
            .read()
            .values()
            .map(|timeline| timeline.status_json())
            .collect();
        serde_json::json!({
            "node_id": self.config.node_id,
            "scrub": self.scrub.status_json(),
            "timelines": timelines,
        })
    }

    /// A timeline that has stopped or takes no WAL, and why; none while all work.
    pub fn stopped(&self) -> Option<String> {
        let timelines = self.read();
        timelines.values().find_map(|timeline| {
            let view = timeline.view().borrow().clone();
            let reason = view.stopped.or(view.full)?;
            Some(format!(
                "timeline {}/{}: {reason}",
                timeline.name.0, timeline.name.1
            ))
        })
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &SafekeeperConfig {
        &self.config
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    pub(crate) fn unavailable() -> Status {
        Status::unavailable("this safekeeper is shutting down: try again later")
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Name, Arc<Timeline>>> {
        self.timelines.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Name, Arc<Timeline>>> {
        self.timelines.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A timeline, working or stopped.
    pub(crate) fn timeline(&self, name: Name) -> Result<Arc<Timeline>, Status> {
        let found = self.read().get(&name).cloned();
        found.ok_or_else(|| {
            Status::not_found(format!(
                "there is no timeline {}/{} on this safekeeper",
                name.0, name.1
            ))
        })
    }

    /// Makes a timeline, or finds the equal one that is there.
    pub(crate) async fn create(
        &self,
        name: Name,
        request: &v1::CreateSafekeeperTimelineRequest,
    ) -> Result<Arc<Timeline>, Status> {
        let state = new_state(request)?;
        let _changing = self.changing.lock().await;
        if self.ending.is_cancelled() {
            return Err(Self::unavailable());
        }
        if let Ok(timeline) = self.timeline(name) {
            let generation = check_equal(&timeline, &state)?;
            if state.membership.generation > generation && !request.learner {
                // The answer to an earlier request was lost, and the members have changed since.
                self.change_membership(&timeline, state.membership).await?;
            }
            return Ok(timeline);
        }
        if !request.learner {
            self.check_member(&state.membership)?;
        }
        let data_dir = self.data_dir.clone();
        let made = tokio::task::spawn_blocking(move || {
            let loaded = Loaded::just_created(&data_dir.path(name), &state)?;
            data_dir.create::<LoadError>(name, |directory| timeline::create(directory, &state))?;
            Ok::<_, LoadError>(loaded)
        });
        let loaded = made
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::internal(format!("the timeline could not be created: {error}")))?;
        let timeline = Timeline::start(name, loaded, &self.metrics);
        self.write().insert(name, timeline.clone());
        Ok(timeline)
    }

    /// Has a timeline's acceptor adopt these members.
    pub(crate) async fn change_membership(
        &self,
        timeline: &Timeline,
        membership: Membership,
    ) -> Result<(), Status> {
        self.check_member(&membership)?;
        let stopped = || propose::stopped_status(timeline);
        let working = timeline.working.as_ref().ok_or_else(stopped)?;
        let (answer, said) = oneshot::channel();
        let order = Order { membership, answer };
        working.orders.send(order).await.map_err(|_| stopped())?;
        let said = said.await.map_err(|_| stopped())?;
        said.map_err(|here| {
            Status::failed_precondition(format!(
                "the members here are those of generation {}, which is later or another set",
                here.generation
            ))
        })
    }

    /// Whether this safekeeper is one of the members: nobody else has to keep the timeline.
    fn check_member(&self, membership: &Membership) -> Result<(), Status> {
        let node = NodeId(self.config.node_id);
        if membership.contains(node) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "safekeeper {node} is no member in generation {}",
            membership.generation
        )))
    }

    /// Ends and removes a timeline that is given up for ever, and what object storage has of its WAL. Each of its safekeepers
    /// is told; what one of them uploads in its last moment is deleted by those that are told later.
    pub(crate) async fn give_up(&self, name: Name) -> Result<(), Status> {
        self.delete(name).await?;
        let Some(backup) = &self.backup else {
            return Ok(());
        };
        let delete = async {
            let objects = backup.store.list(&objects::directory(name.0, name.1)).await?;
            backup.store.delete_all(objects).await
        };
        delete.await.map_err(|error| {
            Status::unavailable(format!(
                "WAL of a timeline that is given up stays in object storage: {error}; try again"
            ))
        })
    }

    /// Ends and removes a timeline, if it is there.
    pub(crate) async fn delete(&self, name: Name) -> Result<(), Status> {
        let _changing = self.changing.lock().await;
        let timeline = self.timeline(name).ok();
        if let Some(timeline) = &timeline {
            timeline.end("it was deleted").await;
        }
        let data_dir = self.data_dir.clone();
        let deleted = tokio::task::spawn_blocking(move || data_dir.delete(name)).await;
        deleted
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| {
                Status::internal(format!("the timeline could not be deleted: {error}; try again"))
            })?;
        self.write().remove(&name);
        Ok(())
    }
}

fn new_state(request: &v1::CreateSafekeeperTimelineRequest) -> Result<Durable, Status> {
    let cluster = wire::cluster(request.cluster.as_ref()).map_err(wire::refused)?;
    let membership = wire::membership(request.membership.as_ref()).map_err(wire::refused)?;
    let start = Lsn(request.start_lsn);
    wire::check_start(start, cluster.segment_bytes).map_err(wire::refused)?;
    let (begin, term_history) = match Lsn(request.begin_lsn) {
        Lsn::INVALID => {
            let fresh = TermHistory::new(vec![(Term(0), start)]);
            (start, fresh.map_err(|error| Status::internal(error.to_string()))?)
        }
        begin => {
            let history = wire::history_below(begin, start, &request.history, cluster.segment_bytes);
            (begin, history.map_err(wire::refused)?)
        }
    };
    Ok(Durable {
        // Rule 11: what it has of a term's WAL it has under that term's promise.
        term: term_history.last().0,
        term_history,
        membership,
        commit: begin,
        truncate: begin,
        backup: begin,
        timeline_start: start,
        system_id: cluster.system_id,
        pg_version: cluster.pg_version,
        segment_bytes: u64::from(cluster.segment_bytes),
    })
}

/// Whether a request to create is the one that made the timeline; the generation there. Its membership may have moved on
/// since, also beyond what this safekeeper has heard of, and then another member may have had another begin.
fn check_equal(timeline: &Timeline, asked: &Durable) -> Result<Generation, Status> {
    let there = timeline.view().borrow().state.clone();
    let Some(there) = there else {
        return Err(propose::stopped_status(timeline));
    };
    let different = if there.timeline_start != asked.timeline_start {
        format!("start {}", there.timeline_start)
    } else if (there.system_id, there.pg_version, there.segment_bytes)
        != (asked.system_id, asked.pg_version, asked.segment_bytes)
    {
        format!("system identifier {} or another version", there.system_id)
    } else if asked.membership.generation == there.membership.generation
        && asked.membership != there.membership
    {
        format!("membership of generation {}", there.membership.generation)
    } else {
        return Ok(there.membership.generation);
    };
    Err(Status::already_exists(format!(
        "the timeline is here already, with another {different}"
    )))
}
