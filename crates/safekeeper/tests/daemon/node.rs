//! Safekeepers under test: their directories, starts and stops, and calls to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_blobstore::BlobStore;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_safekeeper::{Safekeeper, SafekeeperConfig};
use lakebed_types::{Lsn, NodeId, TenantId, TimelineId};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use crate::sample::{SEGMENT, sample};

pub const TENANT: TenantId = TenantId([7; 16]);
pub const TIMELINE: TimelineId = TimelineId([8; 16]);
/// How long anything that is waited for may take.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for a future that must be done before the deadline.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain: {what}"),
    }
}

/// Asks again and again until the answer is yes.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let begin = Instant::now();
    while !ask().await {
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Where safekeepers are reached; one that is down is not in it.
pub type Addresses = Arc<Mutex<BTreeMap<u64, String>>>;

struct Running {
    safekeeper: Arc<Safekeeper>,
    shutdown: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

/// Safekeepers 1 to n with the timeline of the tests.
pub struct Nodes {
    home: TempDir,
    /// The table `backup` of their configuration.
    backup: Option<serde_json::Value>,
    pub addresses: Addresses,
    running: BTreeMap<u64, Running>,
}

impl Nodes {
    /// Starts them, and creates the timeline on each with all of them as members.
    pub async fn start(count: u64) -> Nodes {
        Nodes::start_with(count, None).await
    }

    /// As [`Nodes::start`], with a data directory that is made so.
    pub async fn start_at(count: u64, make: &mut dyn FnMut(&Path)) -> Nodes {
        Nodes::make(count, None, make).await
    }

    /// As [`Nodes::start`], with WAL in the directory `objects` as this table says beside its `store`.
    pub async fn start_with(count: u64, backup: Option<serde_json::Value>) -> Nodes {
        Nodes::make(count, backup, &mut |_| {}).await
    }

    async fn make(count: u64, backup: Option<serde_json::Value>, make: &mut dyn FnMut(&Path)) -> Nodes {
        let home = lakebed_pgtest::temp_dir();
        let backup = backup.map(|mut table| {
            table["store"] = store(&home).into();
            table
        });
        let mut nodes = Nodes {
            home,
            backup,
            addresses: Addresses::default(),
            running: BTreeMap::new(),
        };
        let members: Vec<u64> = (1..=count).collect();
        for id in 1..=count {
            make(&nodes.data_dir(id));
            nodes.up(id).await;
            let created = nodes
                .client(id)
                .await
                .create_timeline(create_request(&members))
                .await;
            created.unwrap();
        }
        nodes
    }

    /// Where their WAL goes.
    pub fn store(&self) -> BlobStore {
        BlobStore::open(&store(&self.home)).unwrap()
    }

    fn data_dir(&self, id: u64) -> PathBuf {
        self.home.path().join(format!("safekeeper-{id}"))
    }

    /// Where a node keeps the timeline of the tests.
    pub fn timeline_dir(&self, id: u64) -> PathBuf {
        self.data_dir(id)
            .join("timelines")
            .join(format!("{TENANT}-{TIMELINE}"))
    }

    pub async fn up(&mut self, id: u64) {
        let mut config = serde_json::json!({
            "data_dir": self.data_dir(id),
            "listen": "127.0.0.1:0",
            "node_id": id,
            "scrub": {"interval_ms": 100},
        });
        if let Some(backup) = &self.backup {
            config["backup"] = backup.clone();
        }
        let config: SafekeeperConfig = serde_json::from_value(config).unwrap();
        let safekeeper = Safekeeper::open(config).await.unwrap();
        let shutdown = CancellationToken::new();
        let (ready, address) = oneshot::channel::<SocketAddr>();
        let served = tokio::spawn(safekeeper.clone().serve(shutdown.clone(), ready));
        let address = soon("a safekeeper to be ready", address).await.unwrap();
        self.addresses.lock().unwrap().insert(id, address.to_string());
        let running = Running {
            safekeeper,
            shutdown,
            served,
        };
        self.running.insert(id, running);
        self.introduce();
    }

    /// Tells all that run where the others are, as a controller would.
    fn introduce(&self) {
        let addresses = self.addresses.lock().unwrap().clone();
        let known: BTreeMap<NodeId, String> =
            addresses.into_iter().map(|(id, at)| (NodeId(id), at)).collect();
        for running in self.running.values() {
            running.safekeeper.peers().set(known.clone());
        }
    }

    /// What a node tells people.
    pub fn status_json(&self, id: u64) -> serde_json::Value {
        self.running[&id].safekeeper.status_json()
    }

    /// Ends a node; its directory is free when this returns.
    pub async fn down(&mut self, id: u64) {
        self.addresses.lock().unwrap().remove(&id);
        let running = self.running.remove(&id).unwrap();
        running.shutdown.cancel();
        self.introduce();
        soon("a safekeeper to end", running.served)
            .await
            .unwrap()
            .unwrap();
    }

    pub fn address(&self, id: u64) -> String {
        self.addresses.lock().unwrap()[&id].clone()
    }

    pub async fn client(&self, id: u64) -> SafekeeperClient<Channel> {
        SafekeeperClient::new(connect(&self.address(id)).await.unwrap())
    }

    pub async fn status(&self, id: u64) -> v1::SafekeeperTimelineStatus {
        let answer = self.client(id).await.get_timeline_status(timeline_ref()).await;
        answer.unwrap().into_inner()
    }

    /// Waits until a node has flushed this much.
    pub async fn flushed(&self, id: u64, lsn: Lsn) {
        let what = format!("safekeeper {id} to flush up to {lsn}");
        eventually(&what, async || self.status(id).await.flush_lsn >= lsn.0).await;
    }

    pub async fn read(&self, id: u64, from: Lsn, to: Lsn, term: u64) -> Result<Bytes, Status> {
        read_wal(&mut self.client(id).await, from, to, term).await
    }
}

fn store(home: &TempDir) -> String {
    format!("file://{}/objects", home.path().display())
}

pub fn timeline_ref() -> v1::TimelineRef {
    convert::timeline_ref(TENANT, TIMELINE)
}

pub fn create_request(members: &[u64]) -> v1::CreateSafekeeperTimelineRequest {
    v1::CreateSafekeeperTimelineRequest {
        timeline: Some(timeline_ref()),
        start_lsn: sample().start.0,
        cluster: Some(v1::ClusterIdentity {
            system_identifier: sample().system_id,
            postgres_major: 15,
            wal_segment_bytes: SEGMENT,
            data_checksums: false,
        }),
        membership: Some(v1::Membership {
            generation: 1,
            current: members.to_vec(),
            next: Vec::new(),
        }),
        begin_lsn: 0,
        history: Vec::new(),
        learner: false,
    }
}

/// Reads flushed WAL on behalf of a proposer, in chunks that have to follow each other.
pub async fn read_wal(
    client: &mut SafekeeperClient<Channel>,
    from: Lsn,
    to: Lsn,
    term: u64,
) -> Result<Bytes, Status> {
    let request = v1::ReadWalRequest {
        timeline: Some(timeline_ref()),
        begin_lsn: from.0,
        end_lsn: to.0,
        committed_only: false,
        term,
    };
    let mut chunks = client.read_wal(request).await?.into_inner();
    let mut wal = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        assert_eq!(chunk.begin_lsn, from.0 + wal.len() as u64);
        assert!(
            chunk.wal.len() < 1_000_000,
            "{} bytes in a chunk",
            chunk.wal.len()
        );
        wal.extend_from_slice(&chunk.wal);
    }
    Ok(wal.into())
}
