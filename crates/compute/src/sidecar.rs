//! The stages of a compute: from nothing to a Postgres that accepts connections, and to its end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_shim_abi::region::Life;
use lakebed_types::Lsn;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::acks::Acks;
use crate::branch::Branch;
use crate::catalogue::CatalogueClient;
use crate::config::ComputeConfig;
use crate::config_files::ConfigFiles;
use crate::data_dir;
use crate::files::{Files, server};
use crate::full_page_writes::Switch;
use crate::group_commit::GroupCommit;
use crate::history_lease::HistoryLease;
use crate::local_wal::LocalWal;
use crate::metrics::Metrics;
use crate::old_wal::OldWal;
use crate::own_config::OwnConfig;
use crate::pages::{PageClient, Placement};
use crate::postgres::{self, Postgres};
use crate::programs;
use crate::quorum::{Driver, Lost, Members, Standing, Won, written};
use crate::shared_memory::SharedMemory;
use crate::spans::Spans;
use crate::wal_source::{SourceError, WalSource};

/// How long the quorum may take to give this compute its term.
const ELECTION: Duration = Duration::from_secs(60);
/// How long a fenced Postgres may take to end before it is killed.
const FENCED_PATIENCE: Duration = Duration::from_secs(1);
/// How long Postgres may take to stop in order.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long safekeepers may take to hear of the last commit.
const TELL_PATIENCE: Duration = Duration::from_secs(1);

/// Why a compute ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Another compute has the branch.
    Fenced(u64),
    /// No quorum for too long.
    LeaseExpired,
    /// Postgres ended by itself.
    Postgres(String),
    /// Its WAL could not be shipped.
    Wal(String),
    /// The pages as of its start are not kept any more.
    History(String),
}

/// What a running compute can be asked for.
#[derive(Clone, Debug)]
pub struct Inspect {
    branch: Branch,
    config: ComputeConfig,
    standing: watch::Receiver<Standing>,
    metrics: Metrics,
    pid: i32,
    boot: Duration,
    page_images: Switch,
    /// Microseconds; none if the user has set it.
    commit_delay: Option<Arc<AtomicU32>>,
    history: HistoryLease,
}

/// A compute whose Postgres accepts connections.
#[derive(Debug)]
pub struct Sidecar {
    config: ComputeConfig,
    postgres: Postgres,
    memory: SharedMemory,
    standing: watch::Receiver<Standing>,
    source: oneshot::Receiver<Result<(), SourceError>>,
    config_files: ConfigFiles,
    source_stop: Arc<AtomicBool>,
    history: HistoryLease,
    stop: CancellationToken,
    inspect: Inspect,
    _lock: File,
}

impl Sidecar {
    /// Boots a compute on a branch.
    ///
    /// # Errors
    /// The directory is in use, the quorum does not answer, shard 0 cannot serve, Postgres does not start: what was
    /// begun is ended.
    pub async fn start(
        config: ComputeConfig,
        branch: Branch,
        placement: Placement,
        members: Members,
    ) -> anyhow::Result<Sidecar> {
        config.check_directory()?;
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let sidecar = boot(config, branch, (placement, members), stop).await?;
        guard.disarm();
        Ok(sidecar)
    }

    /// For status pages and metrics.
    pub fn inspect(&self) -> Inspect {
        self.inspect.clone()
    }

    /// Serves until something ends it, and returns when Postgres is gone.
    pub async fn run(self, shutdown: CancellationToken) -> Ended {
        let mut standing = self.standing.clone();
        let mut source = self.source;
        let mut config_files = self.config_files;
        let ended = tokio::select! {
            never = config_files.follow() => match never {},
            lost = standing.wait_for(|standing| standing.lost.is_some()) => {
                match lost.map(|standing| standing.lost.clone()) {
                    Ok(Some(Lost::Fenced(term))) => Ended::Fenced(term.0),
                    Ok(Some(Lost::LeaseExpired)) => Ended::LeaseExpired,
                    Ok(Some(Lost::Stopped) | None) | Err(_) => Ended::Wal("the quorum's driver ended".to_owned()),
                }
            }
            status = self.postgres.exited() => Ended::Postgres(status),
            result = &mut source => Ended::Wal(match result {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(())) | Err(_) => "the reader of WAL ended".to_owned(),
            }),
            reason = self.history.lost() => Ended::History(reason),
            () = shutdown.cancelled() => Ended::Stopped,
        };
        match &ended {
            Ended::Stopped => {
                tracing::info!("stopping Postgres");
                // The tier goes on serving it meanwhile; should it be lost now, Postgres must not wait for it.
                tokio::select! {
                    () = self.postgres.stop(STOP_PATIENCE) => {}
                    _ = standing.wait_for(|standing| standing.lost.is_some()) => {}
                }
                self.postgres.stop_now(FENCED_PATIENCE).await;
                if tokio::time::timeout(STOP_PATIENCE, config_files.carry())
                    .await
                    .is_err()
                {
                    tracing::warn!(
                        "the tier does not take the configuration files; a change of the last second is lost"
                    );
                }
                // Nobody else will tell them: branches and pageservers would not reach the end of this compute's WAL
                // before the next compute.
                let told = standing.wait_for(|standing| standing.lost.is_some() || standing.all_told());
                if tokio::time::timeout(TELL_PATIENCE, told).await.is_err() {
                    tracing::warn!("not every safekeeper answered to be told what is committed");
                }
            }
            Ended::Fenced(_) | Ended::LeaseExpired | Ended::Wal(_) | Ended::History(_) => {
                tracing::error!(?ended, "stopping Postgres at once");
                self.memory.region().set_life(Life::Fenced);
                self.postgres.stop_now(FENCED_PATIENCE).await;
            }
            Ended::Postgres(status) => tracing::error!(status, "Postgres ended"),
        }
        self.memory.region().set_life(Life::Stopped);
        self.source_stop.store(true, Ordering::Release);
        self.stop.cancel();
        if ended == Ended::Stopped {
            self.history.release().await;
        }
        ended
    }

    /// The directory's settings.
    pub fn config(&self) -> &ComputeConfig {
        &self.config
    }
}

async fn boot(
    config: ComputeConfig,
    branch: Branch,
    (placement, members): (Placement, Members),
    stop: CancellationToken,
) -> anyhow::Result<Sidecar> {
    let began = Instant::now();
    programs::check(&config.pg_bin, &branch)?;
    let owner = data_dir::owner_of(&config.run_as)?;
    data_dir::make_directories(&config.dir, owner)
        .with_context(|| format!("creating {}", config.dir.display()))?;
    let lock = lock(&config)?;
    let data = config.data_dir();
    postgres::wait_for_predecessor(&data).await?;
    remove(&data)?;
    remove(&config.dir.join("tablespaces"))?;
    let memory =
        SharedMemory::create(&memory_name(&config), owner).context("making the shared memory in /dev/shm")?;
    let region = memory.region();
    let local = Arc::new(LocalWal::new(config.local_wal_bytes));
    let acks = Arc::new(Acks::new(region));
    let spans = Arc::new(Spans::default());
    let (written, written_to) = written();
    let (page_images, told) = watch::channel(None);
    let (tell, mut standing) = watch::channel(Standing::default());
    let safekeepers = members.told();
    let driver = Driver {
        branch: branch.clone(),
        config: config.proposer(),
        local: local.clone(),
        acks: acks.clone(),
        written: written_to,
        spans: spans.clone(),
        standing: tell,
        members,
        stop: stop.clone(),
    };
    start_driver(driver)?;
    let won = win(&mut standing).await?;
    let previous = last_record_start(&branch, &mut standing, won.start).await?;
    // Before anything is read at this position.
    let history = HistoryLease::take(&branch, (won.term, won.start), &config, &placement, &stop).await?;
    let catalogue = CatalogueClient::new(&branch, won.start, &placement);
    let chunks = catalogue.basebackup(won.term, previous).await;
    let chunks =
        chunks.map_err(|status| anyhow::anyhow!("the basebackup at {}: {}", won.start, status.message()))?;
    let on_demand = data_dir::receive(chunks, &data, &config.dir.join("tablespaces"), owner).await?;
    let config_files =
        ConfigFiles::new(&data, catalogue.clone(), won.term).context("reading the configuration")?;
    let old_wal = OldWal::new(branch.clone(), safekeepers, owner);
    if has_slots(&data) {
        let completed = old_wal
            .complete_boot_segment(&data.join("pg_wal"), won.start)
            .await;
        completed.context("WAL that replication slots may read")?;
    }
    let pages =
        PageClient::start(&branch, won.start, &placement, &stop).context("the branch has no shards")?;
    let files = Arc::new(Files::new(
        (data.clone(), on_demand),
        owner,
        won.term,
        region,
        pages,
        catalogue,
        old_wal,
    ));
    let socket = config.shim_socket();
    let listener =
        server::bind(&socket, owner).with_context(|| format!("listening on {}", socket.display()))?;
    let connected = Arc::new(Notify::new());
    tokio::spawn(server::serve(listener, files.clone(), connected, stop.clone()));
    let source_stop = Arc::new(AtomicBool::new(false));
    let source = WalSource {
        region,
        pg_wal: data.join("pg_wal"),
        format: branch.format(),
        start: won.start,
        previous,
        local: local.clone(),
        acks: acks.clone(),
        written,
        spans: spans.clone(),
        page_images,
        stop: source_stop.clone(),
    };
    let (source_ended, source_end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("wal_source".to_owned());
    let body = move || {
        // Nobody listens any more when the compute has ended.
        let _ = source_ended.send(source.run());
    };
    thread.spawn(body).context("starting a thread")?;
    let postgres = Postgres::start(&config, branch.version, memory.path(), owner).await?;
    if let Err(error) = postgres.ready(&config).await {
        region.set_life(Life::Stopped);
        source_stop.store(true, Ordering::Release);
        postgres.stop_now(FENCED_PATIENCE).await;
        return Err(error);
    }
    // Every process of this Postgres has inherited the mapping by now.
    memory.unlink();
    let boot = began.elapsed();
    tracing::info!(branch = branch.name, term = won.term.0, start = %won.start, ?boot, "Postgres accepts connections");
    let metrics = Metrics {
        region,
        files,
        local,
        acks,
        spans,
        commit_delay_us: Arc::default(),
        standing: standing.clone(),
    };
    let own = Arc::new(OwnConfig::new(data, owner, postgres.clone()));
    let commit_delay = (!is_set(&config.settings, "commit_delay")).then(|| metrics.commit_delay_us.clone());
    if let Some(delay_us) = commit_delay.clone() {
        let (spans, own) = (metrics.spans.clone(), own.clone());
        let group_commit = GroupCommit { spans, own, delay_us };
        tokio::spawn(group_commit.run(stop.clone()));
    }
    let inspect = Inspect {
        branch,
        config: config.clone(),
        standing: standing.clone(),
        metrics,
        pid: postgres.pid(),
        boot,
        page_images: Switch::new(own, told),
        commit_delay,
        history: history.clone(),
    };
    Ok(Sidecar {
        config,
        postgres,
        memory,
        standing,
        source: source_end,
        config_files,
        source_stop,
        history,
        stop,
        inspect,
        _lock: lock,
    })
}

/// Whether the user has set this one.
fn is_set(settings: &[String], name: &str) -> bool {
    let mut names = settings.iter().filter_map(|setting| setting.split('=').next());
    names.any(|set| set.trim().eq_ignore_ascii_case(name))
}

/// Whether there is a replication slot.
fn has_slots(data: &std::path::Path) -> bool {
    fs::read_dir(data.join("pg_replslot")).is_ok_and(|mut slots| slots.next().is_some())
}

/// Starts the quorum's driver on a thread and a runtime of its own: what a commit waits for goes from one task to the
/// next without waking another thread, and never queues behind the reading of pages.
///
/// # Errors
/// The system gives no thread.
pub fn start_driver(driver: Driver) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("making a runtime")?;
    let thread = std::thread::Builder::new().name("quorum".to_owned());
    thread
        .spawn(move || runtime.block_on(driver.run()))
        .context("starting a thread")?;
    Ok(())
}

/// Keeps a second compute out of the directory.
fn lock(config: &ComputeConfig) -> anyhow::Result<File> {
    let path = config.dir.join("lock");
    let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{} is in use by another compute", config.dir.display());
    }
    Ok(lock)
}

fn remove(directory: &std::path::Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// A name of its own for each directory, the same at each start.
fn memory_name(config: &ComputeConfig) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    config
        .dir
        .canonicalize()
        .unwrap_or_else(|_| config.dir.clone())
        .hash(&mut hasher);
    format!("lakebed-{:016x}", hasher.finish())
}

/// Waits for the term, and until a quorum has everything below its start.
///
/// # Errors
/// No quorum in a minute, or the term was lost again.
pub async fn win(standing: &mut watch::Receiver<Standing>) -> anyhow::Result<Won> {
    let usable = |standing: &Standing| {
        let recovered = standing.won.is_some_and(|won| standing.commit >= won.start);
        recovered || standing.lost.is_some()
    };
    let waited = tokio::time::timeout(ELECTION, standing.wait_for(usable)).await;
    let Ok(result) = waited.map(|result| result.map(|standing| standing.clone())) else {
        let peers = standing.borrow().peers.clone();
        let trouble: Vec<_> = peers
            .values()
            .map(|peer| format!("{}: {}", peer.address, peer.trouble))
            .collect();
        bail!(
            "no quorum of safekeepers within {ELECTION:?}: {}",
            trouble.join("; ")
        );
    };
    let standing = result.context("the quorum's driver ended")?;
    match (standing.won, &standing.lost) {
        (Some(won), None) => Ok(won),
        (_, lost) => bail!("the term was lost before Postgres was started: {lost:?}"),
    }
}

/// Start of the record that ends at `at`, the link that the boot checkpoint must carry.
///
/// Only safekeepers whose WAL counts for this term are asked: another one may hold other records below `at`, which
/// were never committed. All of them at once, because any may have become slow.
///
/// # Errors
/// None of them knows it.
pub async fn last_record_start(
    branch: &Branch,
    standing: &mut watch::Receiver<Standing>,
    at: Lsn,
) -> anyhow::Result<Lsn> {
    if at == branch.start {
        return Ok(branch.last_record_start);
    }
    let mut asked = BTreeSet::new();
    let (mut answers, mut trouble) = (JoinSet::new(), Vec::new());
    let deadline = tokio::time::sleep(ELECTION);
    tokio::pin!(deadline);
    loop {
        let peers = standing.borrow_and_update().peers.clone();
        for (node, peer) in &peers {
            if peer.flush >= Some(at) && asked.insert(*node) {
                let (branch, address) = (branch.clone(), peer.address.clone());
                answers.spawn(async move {
                    let found = find_boundary(&branch, &address, at).await;
                    found.map_err(|error| format!("{address}: {error:#}"))
                });
            }
        }
        tokio::select! {
            Some(answer) = answers.join_next() => match answer {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => trouble.push(error),
                Err(error) => trouble.push(error.to_string()),
            },
            changed = standing.changed() => changed.context("the quorum's driver ended")?,
            () = &mut deadline => break,
        }
        if asked.len() >= peers.len() && answers.is_empty() {
            break;
        }
    }
    bail!(
        "no safekeeper knows the record that ends at {at}: {}",
        trouble.join("; ")
    )
}

async fn find_boundary(branch: &Branch, address: &str, at: Lsn) -> anyhow::Result<Lsn> {
    let mut client = SafekeeperClient::new(connect(address).await?);
    let request = v1::FindBoundaryRequest {
        timeline: Some(convert::timeline_ref(branch.tenant, branch.timeline)),
        at_or_below: at.0,
    };
    let found = client.find_boundary(request).await?.into_inner();
    if Lsn(found.boundary_lsn) != at || found.last_record_start == 0 {
        bail!("its last boundary is {}", Lsn(found.boundary_lsn));
    }
    Ok(Lsn(found.last_record_start))
}

impl Inspect {
    /// Why it cannot do its work; none while it can.
    pub fn trouble(&self) -> Option<String> {
        let standing = self.standing.borrow();
        standing.lost.as_ref().map(|lost| format!("{lost:?}"))
    }

    /// For switching full page writes.
    pub fn page_images(&self) -> &Switch {
        &self.page_images
    }

    /// Adds its counters to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// What `/v1/status` tells.
    pub fn status_json(&self) -> serde_json::Value {
        let standing = self.standing.borrow().clone();
        let peers: Vec<_> = standing
            .peers
            .iter()
            .map(|(node, peer)| {
                json!({
                    "node_id": node,
                    "address": peer.address,
                    "learner": peer.learner,
                    "phase": peer.phase.map(|phase| format!("{phase:?}")),
                    "flush_lsn": peer.flush.map(|lsn| lsn.to_string()),
                    "commit_lsn": peer.commit.map(|lsn| lsn.to_string()),
                    "trouble": peer.trouble,
                })
            })
            .collect();
        json!({
            "role": "compute",
            "branch": self.branch.name,
            "tenant": self.branch.tenant,
            "timeline": self.branch.timeline,
            "term": standing.won.map(|won| won.term.0),
            "start_lsn": standing.won.map(|won| won.start.to_string()),
            "commit_lsn": standing.commit.to_string(),
            "lost": standing.lost.map(|lost| format!("{lost:?}")),
            "safekeepers": peers,
            "full_page_writes": self.page_images.status_json(),
            "commit_delay_us": self.commit_delay.as_ref().map(|delay| delay.load(Ordering::Relaxed)),
            "history_lease": self.history.status_json(),
            "safekeepers_generation": standing.generation.0,
            "safekeepers_settled": standing.settled.0,
            "postgres": {
                "pid": self.pid,
                "listen": self.config.pg_listen,
                "port": self.config.pg_port,
                "boot_ms": self.boot.as_secs_f64() * 1e3,
            },
        })
    }
}
