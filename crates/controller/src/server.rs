//! The controller as a whole: its start, service and end.
//!
//! [`Controller::open`] takes the data directory and starts the raft member; [`Controller::serve`] answers gRPC and
//! drives the nodes until it is told to end; [`run`] does both. A process that has more to offer (metrics, status
//! pages) opens, registers, and serves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use lakebed_admin::Health;
use lakebed_placement::{Observed, State};
use lakebed_proto::v1::controller_server::ControllerServer;
use lakebed_types::NodeId;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::server::TcpIncoming;

use crate::config::ControllerConfig;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::raft_node::{RaftConfig, RaftNode, RaftStatus};
use crate::service::Service;
use crate::{history, reconciler};

/// The largest request: every message of the schema is small.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// How long a proposal may take, an election included.
pub(crate) const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A node that has not registered for so long is not chosen to take the place of another; it does every few seconds.
const LATELY: Duration = Duration::from_secs(15);
/// How long a call waits for a leader.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `shutdown`; tells the address once requests are answered.
pub async fn run(
    config: ControllerConfig,
    shutdown: CancellationToken,
    on_ready: oneshot::Sender<SocketAddr>,
) -> anyhow::Result<()> {
    Controller::open(config)?.serve(shutdown, on_ready).await
}

/// A controller; see the module header.
pub struct Controller {
    pub(crate) config: ControllerConfig,
    pub(crate) raft: RaftNode,
    pub(crate) nodes: Nodes,
    /// What nodes confirmed to this member since it took charge.
    pub(crate) observed: watch::Sender<Observed>,
    /// What the reconciler could not do yet, and why.
    pub(crate) waiting: RwLock<Vec<String>>,
    /// When each node told last that it is there.
    seen: Mutex<BTreeMap<NodeId, Instant>>,
    pub(crate) metrics: Metrics,
    pub(crate) ending: CancellationToken,
}

impl Controller {
    /// Takes the data directory and starts the raft member in it.
    ///
    /// # Errors
    /// The configuration is not valid; the directory belongs to another process, or its files fail their checks.
    pub fn open(config: ControllerConfig) -> anyhow::Result<Arc<Controller>> {
        config.validate()?;
        let raft = RaftConfig {
            node_id: config.node_id,
            voters: vec![config.node_id],
            directory: config.data_dir.join("raft"),
            tick: Duration::from_millis(config.raft_tick_ms),
            snapshot_every_entries: config.snapshot_every_entries,
        };
        // The only member has nobody to send to.
        let raft = RaftNode::start(raft, Box::new(drop))
            .with_context(|| format!("opening the controller in {}", config.data_dir.display()))?;
        Ok(Arc::new(Controller {
            config,
            raft,
            nodes: Nodes::default(),
            observed: watch::Sender::new(Observed::default()),
            waiting: RwLock::default(),
            seen: Mutex::default(),
            metrics: Metrics::default(),
            ending: CancellationToken::new(),
        }))
    }

    /// Answers gRPC and drives the nodes until `shutdown`. Tells the address once requests are answered. The data
    /// directory is free once the last handle to the controller is gone.
    ///
    /// # Errors
    /// The port is taken, or the transport failed.
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
        let reconciler = tokio::spawn(reconciler::run(self.clone(), self.ending.clone()));
        let history = tokio::spawn(history::run(self.clone(), self.ending.clone()));
        tracing::info!(%address, node_id = self.config.node_id, "controller ready");
        let _ = on_ready.send(address);
        let service =
            ControllerServer::new(Service::new(self.clone())).max_decoding_message_size(MAX_REQUEST_BYTES);
        let ending = self.ending.clone();
        let served = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async move {
                shutdown.cancelled().await;
                // Calls that wait for their effect end now, and the server waits for them.
                ending.cancel();
            })
            .await;
        self.ending.cancel();
        reconciler.await.context("the reconciler's task failed")?;
        history.await.context("the task of retention failed")?;
        served.context("the gRPC server failed")
    }

    /// Registers this controller's counters.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Whether it can do its work.
    pub fn health(&self) -> Health {
        let status = self.raft.status().borrow().clone();
        match (status.failed, status.leader) {
            (Some(reason), _) => {
                Health::Unavailable(format!("the raft member stopped: {reason}; restart it"))
            }
            (None, 0) => Health::Unavailable("the controllers have no leader at the moment".to_owned()),
            (None, _) => Health::Ok,
        }
    }

    /// Everything the control plane knows, for people and scripts.
    pub fn status_json(&self) -> serde_json::Value {
        let raft = self.raft.status().borrow().clone();
        let waiting = self.waiting();
        let state = self.raft.state();
        json!({
            "role": "controller",
            "node_id": self.config.node_id,
            "leader_id": raft.leader,
            "in_charge": raft.in_charge,
            "term": raft.term,
            "applied_index": raft.applied,
            "failed": raft.failed,
            "waiting_for": waiting,
            "state": &*state,
        })
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &ControllerConfig {
        &self.config
    }

    /// A node tells that it is there, as it does every few seconds.
    pub(crate) fn is_there(&self, node: NodeId) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(node, Instant::now());
    }

    /// Whether a node told lately that it is there, to this controller.
    pub(crate) fn was_there_lately(&self, node: NodeId) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&node).is_some_and(|at| at.elapsed() < LATELY)
    }

    pub(crate) fn waiting(&self) -> Vec<String> {
        self.waiting
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_waiting(&self, waiting: Vec<String>) {
        *self.waiting.write().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// Waits until `look` finds what it looks for, in the applied state and in what nodes confirmed.
    pub(crate) async fn wait_until<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&State, &Observed) -> Result<Option<T>, Status>,
    ) -> Result<T, Status> {
        let patience = Duration::from_millis(self.config.wait_ms);
        let deadline = tokio::time::Instant::now() + patience;
        let (mut applied, mut observed) = (self.raft.status(), self.observed.subscribe());
        loop {
            // Marked as seen before the look, so that a change after it wakes the wait below.
            let failed = applied.borrow_and_update().failed.clone();
            observed.mark_unchanged();
            if let Some(found) = look(&self.raft.state(), &observed.borrow())? {
                return Ok(found);
            }
            if let Some(reason) = failed {
                return Err(Status::unavailable(format!(
                    "the controller's raft member stopped: {reason}"
                )));
            }
            let stopping = || Status::unavailable("this controller is stopping; ask again");
            tokio::select! {
                changed = applied.changed() => changed.map_err(|_| stopping())?,
                changed = observed.changed() => changed.map_err(|_| stopping())?,
                () = self.ending.cancelled() => return Err(stopping()),
                () = tokio::time::sleep_until(deadline) => {
                    let obstacles = self.waiting().join("; ");
                    return Err(Status::deadline_exceeded(format!(
                        "{what} is recorded and not ready after {patience:?}; it goes on in the background ({obstacles})"
                    )));
                }
            }
        }
    }

    /// Who leads, once somebody does and, if that is this member, it is up to date: right after a start an election
    /// is under way.
    pub(crate) async fn leader(&self) -> Result<u64, Status> {
        let own = self.config.node_id;
        let mut status = self.raft.status();
        let settled = |status: &RaftStatus| {
            status.failed.is_some() || (status.leader != 0 && (status.leader != own || status.in_charge))
        };
        let settled = tokio::time::timeout(LEADER_TIMEOUT, status.wait_for(settled));
        let status = match settled.await {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => self.raft_status(),
            Err(_) => {
                let text = "the controllers have no leader at the moment; try again";
                return Err(Status::unavailable(text));
            }
        };
        match status.failed {
            Some(reason) => Err(Status::unavailable(format!(
                "the controller's raft member stopped: {reason}"
            ))),
            None => Ok(status.leader),
        }
    }

    /// Everything committed before the call is applied afterwards.
    pub(crate) async fn read_barrier(&self) -> Result<(), Status> {
        self.leader().await?;
        let read = self.raft.read_barrier(PROPOSE_TIMEOUT).await;
        read.map_err(|error| Status::unavailable(format!("{error}; try again")))
    }

    pub(crate) fn raft_status(&self) -> RaftStatus {
        self.raft.status().borrow().clone()
    }
}
