//! Daemons of one test: each in a directory of its own, stopped and started at will, at the address it had first.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use lakebed_controller::bootstrap::{BootstrapError, Bootstrapped, NewTenant, create_tenant};
use lakebed_controller::registration::{Registration, fresh_incarnation, register, stored_incarnation};
use lakebed_controller::{Controller, ControllerConfig};
use lakebed_pageserver::config::PageserverConfig;
use lakebed_pageserver::daemon::{Managers, Pageserver};
use lakebed_pgtest::Cluster;
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, v1};
use lakebed_safekeeper::config::SafekeeperConfig;
use lakebed_safekeeper::server::Safekeeper;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub const DEADLINE: Duration = Duration::from_secs(90);

/// Fails the test when `what` takes too long.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(result) => result,
        Err(_) => panic!("waited {DEADLINE:?} in vain: {what}"),
    }
}

/// Asks until the answer is there.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    soon(what, async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// The output of one `initdb`, made once for all tests that only read it.
pub fn fresh_cluster() -> PathBuf {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::init).data_dir()
}

/// Opens a directory that another test's child process may hold for a moment: between fork and exec it has all of our
/// file handles, and the locks with them.
async fn unlocked<T, F: Future<Output = anyhow::Result<T>>>(open: impl Fn() -> F) -> T {
    until("a directory to be free", || async {
        match open().await {
            Ok(opened) => Some(opened),
            Err(error) if format!("{error:#}").contains("in use") => None,
            Err(error) => panic!("{error:#}"),
        }
    })
    .await
}

struct Daemon {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Everything that one test runs.
pub struct Tier {
    home: TempDir,
    daemons: BTreeMap<String, Daemon>,
    addresses: BTreeMap<String, SocketAddr>,
    pub wait_ms: u64,
}

impl Tier {
    /// A controller alone.
    pub async fn new() -> Tier {
        let mut tier = Tier {
            home: tempfile::tempdir().unwrap(),
            daemons: BTreeMap::new(),
            addresses: BTreeMap::new(),
            wait_ms: 30_000,
        };
        tier.start_controller().await;
        tier
    }

    /// With safekeepers 1 to `safekeepers` and pageservers 11, 12, ….
    pub async fn with_nodes(safekeepers: u64, pageservers: u64) -> Tier {
        let mut tier = Tier::new().await;
        for id in 1..=safekeepers {
            tier.start_safekeeper(id).await;
        }
        for id in 11..11 + pageservers {
            tier.start_pageserver(id).await;
        }
        tier
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn listen(&self, name: &str) -> SocketAddr {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        self.addresses.get(name).copied().unwrap_or(any)
    }

    fn started(&mut self, name: &str, address: SocketAddr, stop: CancellationToken, task: JoinHandle<()>) {
        self.addresses.insert(name.to_owned(), address);
        self.daemons.insert(name.to_owned(), Daemon { stop, task });
    }

    /// Stops a daemon in order and waits for its end; its directory and address stay.
    pub async fn stop(&mut self, name: &str) {
        let daemon = self.daemons.remove(name).unwrap();
        daemon.stop.cancel();
        soon(&format!("{name} to stop"), daemon.task).await.unwrap();
    }

    pub async fn start_controller(&mut self) {
        let config = ControllerConfig {
            node_id: 1,
            data_dir: self.directory("controller"),
            listen: self.listen("controller"),
            admin_listen: None,
            default_shards: 2,
            default_safekeepers: 3,
            raft_tick_ms: 20,
            snapshot_every_entries: 20,
            wait_ms: self.wait_ms,
        };
        let (stop, (ready, address)) = (CancellationToken::new(), oneshot::channel());
        let controller = unlocked(|| async { Controller::open(config.clone()) }).await;
        let serving = controller.serve(stop.clone(), ready);
        let task = tokio::spawn(async move { serving.await.unwrap() });
        let address = soon("the controller", address).await.unwrap();
        self.started("controller", address, stop, task);
    }

    pub async fn start_safekeeper(&mut self, id: u64) {
        let name = format!("safekeeper-{id}");
        let data_dir = self.directory(&name);
        let config = SafekeeperConfig {
            data_dir: data_dir.clone(),
            listen: self.listen(&name),
            node_id: id,
            admin_listen: None,
            backup: None,
            scrub: Default::default(),
        };
        let (stop, (ready, address)) = (CancellationToken::new(), oneshot::channel());
        let safekeeper = unlocked(|| Safekeeper::open(config.clone())).await;
        let serving = safekeeper.serve(stop.clone(), ready);
        let task = tokio::spawn(async move { serving.await.unwrap() });
        let address = soon("a safekeeper", address).await.unwrap();
        self.started(&name, address, stop, task);
        let incarnation = stored_incarnation(&data_dir.join("incarnation")).unwrap();
        self.register(id, v1::NodeRole::Safekeeper, &address.to_string(), incarnation)
            .await
            .unwrap();
    }

    pub async fn start_pageserver(&mut self, id: u64) {
        let name = format!("pageserver-{id}");
        let store = self.directory("objects");
        std::fs::create_dir_all(&store).unwrap();
        let config = PageserverConfig {
            node_id: id,
            data_dir: self.directory(&name),
            listen: self.listen(&name),
            admin_listen: self.listen(""),
            store: format!("file://{}", store.display()),
            flush_bytes: 64 << 20,
            image_deltas: 24,
            image_bytes: 16 << 10,
            index_cache_bytes: 16 << 20,
            rewind_s: 3600,
            lease_s: 900,
            page_cache_bytes: 16 << 20,
            disk_budget_bytes: None,
            disk_reserve_bytes: 0,
        };
        let stop = CancellationToken::new();
        let start = || async {
            Pageserver::start(
                config.clone(),
                Managers::default(),
                &mut Registry::default(),
                stop.clone(),
            )
            .await
        };
        let pageserver = unlocked(start).await;
        let address = pageserver.address().unwrap();
        let task = tokio::spawn(async move { pageserver.serve().await.unwrap() });
        self.started(&name, address, stop, task);
        let incarnation = fresh_incarnation().unwrap();
        self.register(id, v1::NodeRole::Pageserver, &address.to_string(), incarnation)
            .await
            .unwrap();
    }

    pub async fn register(
        &self,
        node_id: u64,
        role: v1::NodeRole,
        address: &str,
        incarnation: u64,
    ) -> Result<(), Status> {
        let registration = Registration {
            controllers: vec![self.address("controller")],
            node_id,
            role,
            address: address.to_owned(),
            incarnation,
        };
        soon("a registration", register(&registration)).await
    }

    pub fn address(&self, name: &str) -> String {
        self.addresses[name].to_string()
    }

    pub async fn channel(&self, name: &str) -> Channel {
        soon(name, connect(&self.address(name))).await.unwrap()
    }

    pub async fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel("controller").await)
    }

    pub async fn safekeeper(&self, id: u64) -> SafekeeperClient<Channel> {
        SafekeeperClient::new(self.channel(&format!("safekeeper-{id}")).await)
    }

    pub async fn pageserver(&self, id: u64) -> PageserverClient<Channel> {
        PageserverClient::new(self.channel(&format!("pageserver-{id}")).await)
    }

    /// Makes a tenant of what `initdb` made.
    pub async fn bootstrap(
        &self,
        name: &str,
        data: &std::path::Path,
    ) -> Result<Bootstrapped, BootstrapError> {
        create_tenant(&self.address("controller"), &new_tenant(name), data, DEADLINE).await
    }

    pub async fn branch(&self, tenant: &str, name: &str, at: Option<At>) -> Result<v1::BranchInfo, Status> {
        self.branch_from(tenant, name, "", at).await
    }

    pub async fn branch_from(
        &self,
        tenant: &str,
        name: &str,
        from: &str,
        at: Option<At>,
    ) -> Result<v1::BranchInfo, Status> {
        let request = v1::CreateBranchRequest {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            from: from.to_owned(),
            at,
            ttl_seconds: 0,
        };
        let mut controller = self.controller().await;
        let created = soon(name, controller.create_branch(request)).await;
        created.map(tonic::Response::into_inner)
    }

    pub async fn resolve(&self, tenant: &str, branch: &str) -> Result<v1::BranchInfo, Status> {
        let request = v1::ResolveBranchRequest {
            tenant: tenant.to_owned(),
            branch: branch.to_owned(),
        };
        let mut controller = self.controller().await;
        let resolved = soon(branch, controller.resolve_branch(request)).await;
        resolved.map(tonic::Response::into_inner)
    }

    pub async fn delete_branch(&self, tenant: &str, name: &str) -> Result<(), Status> {
        let request = v1::DeleteBranchRequest {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
        };
        let mut controller = self.controller().await;
        soon(name, controller.delete_branch(request)).await.map(drop)
    }

    pub async fn detach_branch(&self, tenant: &str, branch: &str) -> Result<v1::BranchInfo, Status> {
        let request = v1::DetachBranchRequest {
            tenant: tenant.to_owned(),
            branch: branch.to_owned(),
        };
        let mut controller = self.controller().await;
        let begun = soon(branch, controller.detach_branch(request)).await;
        begun.map(tonic::Response::into_inner)
    }

    pub async fn branch_names(&self, tenant: &str) -> Vec<String> {
        let request = v1::ListBranchesRequest {
            tenant: tenant.to_owned(),
        };
        let mut controller = self.controller().await;
        let listed = soon("branches", controller.list_branches(request)).await.unwrap();
        listed
            .into_inner()
            .branches
            .into_iter()
            .map(|branch| branch.name)
            .collect()
    }
}

pub use v1::create_branch_request::At;

pub fn new_tenant(name: &str) -> NewTenant {
    NewTenant {
        name: name.to_owned(),
        branch: String::new(),
        shards: 0,
        safekeepers: 0,
        retention: None,
    }
}

/// What a refusal looks like: code and text.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(text),
        "{:?} lacks {text:?}",
        status.message()
    );
}
