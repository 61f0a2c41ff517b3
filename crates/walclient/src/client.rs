//! The client from its start to its end: a tenant for the server, then one session after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use lakebed_compute::Branch;
use lakebed_compute::config::{ProposerConfig, WireWal};
use lakebed_compute::control_plane::Named;
use lakebed_controller::bootstrap::{BootstrapError, NewTenant, create_tenant_from};
use lakebed_pgwire::Target;
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::{connect, v1};
use tokio_util::sync::CancellationToken;

use crate::backup::RunningServer;
use crate::connection::ConnectionError;
use crate::progress::{Inspect, Phase, Progress};
use crate::server::{Server, WrongServer, slot_name};
use crate::session::{Final, Session};

/// Pause after a session that failed, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A session that lasted this long was good: the pauses begin anew.
const GOOD: Duration = Duration::from_secs(30);
/// How long one controller may take to answer.
const CONTROLLER: Duration = Duration::from_secs(5);
/// Bound of a base backup as a whole; its silence has a bound of its own.
const BACKUP: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a client is told.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The server.
    pub from: Target,
    /// Controllers, `host:port`.
    pub controllers: Vec<String>,
    /// The tenant: made of a base backup when there is none of this name.
    pub tenant: NewTenant,
    /// What it calls itself, for `synchronous_standby_names`.
    pub standby_name: String,
    /// Its slot on the server; none: made of the names of tenant and branch.
    pub slot: Option<String>,
    /// Most KiB of the base backup that the server sends in a second (`MAX_RATE`: 32 to 1048576).
    pub backup_rate_kib: Option<u32>,
    /// Without a quorum for this long the stream begins anew, in milliseconds.
    pub lease_ms: u64,
    /// How WAL goes to safekeepers.
    pub wire_wal: WireWal,
}

/// Why a client ended.
#[derive(Debug)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// There is no use in going on.
    Failed(anyhow::Error),
}

/// See the module header.
#[derive(Debug)]
pub struct WalClient {
    config: ClientConfig,
    slot: String,
    progress: Arc<Progress>,
}

impl WalClient {
    /// A client that does nothing yet.
    pub fn new(config: ClientConfig) -> WalClient {
        let slot = config.slot.clone();
        let slot = slot.unwrap_or_else(|| slot_name(&config.tenant.name, &config.tenant.branch));
        WalClient {
            config,
            slot,
            progress: Arc::default(),
        }
    }

    /// For status pages and metrics.
    pub fn inspect(&self) -> Inspect {
        Inspect {
            progress: self.progress.clone(),
            server: self.config.from.to_string(),
            branch: format!("{}/{}", self.config.tenant.name, self.config.tenant.branch),
            slot: self.slot.clone(),
            standby: self.config.standby_name.clone(),
        }
    }

    /// Works until it is told to stop, or cannot go on.
    pub async fn run(&self, stop: CancellationToken) -> Ended {
        let (mut pause, most) = RETRY;
        loop {
            let began = tokio::time::Instant::now();
            let error = match self.attempt(&stop).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if is_final(&error) || (!self.progress.has_worked() && is_setup(&error)) {
                self.progress.enter(Phase::Stopped);
                self.progress.trouble(format!("{error:#}"));
                return Ended::Failed(error);
            }
            if began.elapsed() > GOOD {
                pause = RETRY.0;
            }
            tracing::warn!(error = format!("{error:#}"), ?pause, "interrupted; going on soon");
            self.progress.trouble(format!("{error:#}"));
            self.progress.restarts.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
            pause = (pause * 2).min(most);
        }
        self.progress.enter(Phase::Stopped);
        Ended::Stopped
    }

    /// Finds or makes the branch, and streams.
    async fn attempt(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let branch = tokio::select! {
            branch = self.branch() => branch?,
            () = stop.cancelled() => return Ok(()),
        };
        self.progress.consistent.store(branch.1, Ordering::Relaxed);
        self.progress.set_timeline(branch.0.timeline.to_string());
        let session = Session {
            target: &self.config.from,
            name: &self.config.standby_name,
            slot: &self.slot,
            branch: branch.0,
            named: Named {
                controllers: self.config.controllers.clone(),
                tenant: self.config.tenant.name.clone(),
                name: self.config.tenant.branch.clone(),
            },
            proposer: ProposerConfig {
                lease_ms: self.config.lease_ms,
                heartbeat_ms: 250,
                wire_wal: self.config.wire_wal,
            },
            progress: self.progress.clone(),
            stop: stop.clone(),
        };
        session.run().await
    }

    /// The branch, and the first LSN at which it can be read.
    async fn branch(&self) -> anyhow::Result<(Branch, u64)> {
        let mut last = anyhow::anyhow!("no controller is given");
        for controller in &self.config.controllers {
            match self.branch_of(controller).await {
                Ok(branch) => return Ok(branch),
                Err(error) if is_final(&error) || is_servers(&error) => return Err(error),
                Err(error) => last = error.context(format!("controller {controller}")),
            }
        }
        Err(last)
    }

    async fn branch_of(&self, controller: &str) -> anyhow::Result<(Branch, u64)> {
        let NewTenant { name, branch, .. } = &self.config.tenant;
        let mut client = ControllerClient::new(connect(controller).await?);
        let resolve = client.resolve_branch(v1::ResolveBranchRequest {
            tenant: name.clone(),
            branch: branch.clone(),
        });
        let found = tokio::time::timeout(CONTROLLER, resolve)
            .await
            .context("it does not answer")?;
        let info = match found {
            Ok(found) if found.get_ref().state() == v1::BranchState::Active => found.into_inner(),
            Ok(_) => self.make_tenant(controller).await?,
            Err(status) if status.code() == tonic::Code::NotFound => self.make_tenant(controller).await?,
            Err(status) => anyhow::bail!("{}", status.message()),
        };
        Ok((Branch::from_wire(&info)?, info.consistent_lsn.max(info.start_lsn)))
    }

    /// A tenant made of a base backup of the server.
    async fn make_tenant(&self, controller: &str) -> anyhow::Result<v1::BranchInfo> {
        // Before anything is made: a server that cannot be protected leaves nothing behind.
        Server::connect(&self.config.from, &self.config.standby_name).await?;
        let source = RunningServer {
            target: self.config.from.clone(),
            name: self.config.standby_name.clone(),
            slot: self.slot.clone(),
            rate_kib: self.config.backup_rate_kib,
            progress: self.progress.clone(),
        };
        let tenant = &self.config.tenant;
        let made = create_tenant_from(controller, tenant, &source, BACKUP).await?;
        if made.branch.name != tenant.branch {
            let text = format!(
                "tenant {} exists and its first branch is {}: make branch {} of it, or give another tenant",
                tenant.name, made.branch.name, tenant.branch
            );
            return Err(WrongServer(text).into());
        }
        Ok(made.branch)
    }
}

/// Whether the server was never reached as it was asked for. Later the same is tried again: passwords and certificates
/// are exchanged while a client runs.
fn is_setup(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref().is_some_and(ConnectionError::is_setup))
}

/// Whether the server failed, so that there is no use in asking another controller.
fn is_servers(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let source = matches!(cause.downcast_ref(), Some(BootstrapError::Source { .. }));
        source || cause.is::<ConnectionError>()
    })
}

/// Whether there is no use in trying again.
fn is_final(error: &anyhow::Error) -> bool {
    let refused = |error: &BootstrapError| match error {
        BootstrapError::Controller(status) => {
            matches!(
                status.code(),
                tonic::Code::InvalidArgument | tonic::Code::AlreadyExists
            )
        }
        BootstrapError::Source { hopeless, .. } => *hopeless,
        _ => false,
    };
    error.chain().any(|cause| {
        cause.is::<Final>() || cause.is::<WrongServer>() || cause.downcast_ref().is_some_and(refused)
    })
}
