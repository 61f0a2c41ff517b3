//! `lakebed compute --connect …`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use lakebed_admin::Health;
use lakebed_admin::telemetry::{self, LogFormat};
use lakebed_compute::branch::ShardAddress;
use lakebed_compute::pages::Placement;
use lakebed_compute::quorum::{Members, Safekeepers};
use lakebed_compute::{Branch, ComputeConfig, Ended, Sidecar};
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_types::Generation;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{page_images, read_config, say_ready, serve_admin, shutdown_on_signals};
use crate::cli::ComputeRunArgs;
use crate::connection::Connection;

/// How long controllers may take at the start.
const RESOLVE: Duration = Duration::from_secs(60);
/// How long one controller may take.
const ONE_CONTROLLER: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(200);
/// Pause between two looks for changes of a branch's nodes, besides those that have a reason.
const FOLLOW: Duration = Duration::from_secs(1);

/// Where the preloaded library is. When nobody says: beside this program.
pub fn shim(told: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(told) = told {
        return Ok(told);
    }
    let program = std::env::current_exe().context("finding this program")?;
    let name = "liblakebed_compute_shim.so";
    let directory = program.parent().context("finding this program's directory")?;
    let places = [
        directory.join(name),
        directory.join("../lib").join(name),
        directory.join("../lib/lakebed").join(name),
    ];
    match places.into_iter().find(|place| place.exists()) {
        Some(place) => Ok(place),
        None => bail!(
            "{name} is not beside {}: give its place with --shim",
            program.display()
        ),
    }
}

/// A branch by name.
#[derive(Clone, Debug)]
struct Named {
    controllers: Vec<String>,
    tenant: String,
    name: String,
}

/// The connection string and the configuration, from the arguments or from the file that they name.
fn configuration(args: ComputeRunArgs) -> anyhow::Result<(String, ComputeConfig)> {
    if let Some(path) = args.config {
        let (node, mut table) = read_config::<toml::Table>(&path, "compute")?;
        let in_file = || format!("{}, table [compute]", path.display());
        let connect = table
            .remove("connect")
            .and_then(|value| value.as_str().map(str::to_owned));
        let connect = connect.with_context(|| format!("{}: `connect` is missing", in_file()))?;
        if !table.contains_key("shim") {
            let shim = shim(None)?.display().to_string();
            table.insert("shim".to_owned(), shim.into());
        }
        telemetry::init(node.log_format, "info")?;
        return Ok((connect, table.try_into().with_context(in_file)?));
    }
    telemetry::init(LogFormat::Text, "info")?;
    let dir = match args.dir {
        Some(dir) => dir,
        None => std::env::current_dir()?.join(format!("lakebed-compute-{}", args.pg_port)),
    };
    let config = ComputeConfig {
        dir: std::path::absolute(&dir)?,
        pg_bin: args.server.programs.pg_bin,
        shim: shim(args.server.shim)?,
        pg_listen: args.pg_listen,
        pg_port: args.pg_port,
        admin_listen: args.admin_listen,
        run_as: args.server.programs.run_as,
        lease_ms: args.lease_ms,
        heartbeat_ms: 250,
        local_wal_bytes: 256 << 20,
        wire_wal: args.wire_wal,
        settings: args.server.settings,
    };
    Ok((args.connect.context("--connect is missing")?, config))
}

/// Runs until a signal, or until the compute ends by itself.
pub async fn run(args: ComputeRunArgs) -> anyhow::Result<()> {
    let (connect, config) = configuration(args)?;
    let shutdown = shutdown_on_signals()?;
    let connection: Connection = connect.parse()?;
    let part = |part: Option<String>, what| part.with_context(|| format!("`{connect}` names no {what}"));
    let named = Named {
        controllers: connection.controllers,
        tenant: part(connection.tenant, "tenant")?,
        name: part(connection.branch, "branch")?,
    };
    let branch = tokio::select! {
        branch = first_answer(&named) => branch?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (tell, shards) = watch::channel(branch.shards.clone());
    let stale = Arc::new(Notify::new());
    let placement = Placement {
        shards,
        stale: stale.clone(),
    };
    let (tell_members, told) = watch::channel(Safekeepers::from(&branch));
    let (settle, settled) = watch::channel(Generation::default());
    let members = Members::new(told, stale.clone(), settle);
    let follower = Follower {
        named,
        shards: tell,
        safekeepers: tell_members,
        stale,
        settled,
        timeline: convert::timeline_ref(branch.tenant, branch.timeline),
    };
    tokio::spawn(follower.run(shutdown.clone()));
    let admin = config.admin_listen;
    let address = format!("{}:{}", config.pg_listen, config.pg_port);
    let sidecar = tokio::select! {
        sidecar = Sidecar::start(config, branch, placement, members) => sidecar?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let inspect = sidecar.inspect();
    let mut registry = Registry::default();
    inspect.register_metrics(&mut registry);
    let status = inspect.clone();
    let trouble = inspect.clone();
    let health = move || trouble.trouble().map_or(Health::Ok, Health::Unavailable);
    let serving = CancellationToken::new();
    let admin = serve_admin(
        admin,
        (health, move || status.status_json()),
        registry,
        page_images::routes(inspect.page_images().clone()),
        serving.clone(),
    )
    .await?;
    say_ready(address, admin);
    let ended = sidecar.run(shutdown).await;
    serving.cancel();
    match ended {
        Ended::Stopped => Ok(()),
        Ended::Fenced(term) => bail!("fenced: another compute has this branch, in term {term}"),
        Ended::LeaseExpired => bail!("no quorum of safekeepers for too long: Postgres was stopped"),
        Ended::Postgres(status) => bail!("Postgres ended by itself: {status}"),
        Ended::Wal(reason) => bail!("Postgres was stopped: {reason}"),
    }
}

async fn first_answer(branch: &Named) -> anyhow::Result<Branch> {
    let deadline = tokio::time::Instant::now() + RESOLVE;
    loop {
        match resolve(branch).await {
            Ok(branch) => return Ok(branch),
            Err((error, hopeless)) if hopeless || tokio::time::Instant::now() > deadline => {
                return Err(error);
            }
            Err((error, _)) => tracing::info!(error = format!("{error:#}"), "branch not resolved yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Asks the controllers; the flag says that asking again cannot help.
async fn resolve(branch: &Named) -> Result<Branch, (anyhow::Error, bool)> {
    let mut last = (anyhow::anyhow!("no controller"), true);
    for controller in &branch.controllers {
        let ask = async {
            let channel = connect(controller).await.map_err(|error| (error.into(), false))?;
            let request = v1::ResolveBranchRequest {
                tenant: branch.tenant.clone(),
                branch: branch.name.clone(),
            };
            let answer = ControllerClient::new(channel).resolve_branch(request).await;
            let answer = answer.map_err(|status| {
                let hopeless = matches!(
                    status.code(),
                    tonic::Code::NotFound | tonic::Code::InvalidArgument
                );
                (anyhow::anyhow!("{}", status.message()), hopeless)
            })?;
            Branch::from_wire(answer.get_ref()).map_err(|error| (error.into(), false))
        };
        last = match tokio::time::timeout(ONE_CONTROLLER, ask).await {
            Ok(Ok(branch)) => return Ok(branch),
            Ok(Err((error, hopeless))) => (error.context(format!("controller {controller}")), hopeless),
            Err(_) => (anyhow::anyhow!("controller {controller} does not answer"), false),
        };
    }
    Err(last)
}

/// Follows what the controllers decide about a branch while its compute runs, and tells them what came of it.
struct Follower {
    named: Named,
    timeline: v1::TimelineRef,
    shards: watch::Sender<Vec<ShardAddress>>,
    safekeepers: watch::Sender<Safekeepers>,
    /// Something is not where it was.
    stale: Arc<Notify>,
    /// Generation of safekeepers that is in force.
    settled: watch::Receiver<Generation>,
}

impl Follower {
    async fn run(mut self, stop: CancellationToken) {
        let (mut reported, mut trouble) = (Generation::default(), false);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.stale.notified() => {}
                Ok(()) = self.settled.changed() => {}
                () = tokio::time::sleep(FOLLOW) => {}
            }
            let settled = *self.settled.borrow_and_update();
            match self.look(settled, &mut reported).await {
                Ok(()) => trouble = false,
                // Nobody needs the controllers while nothing changes: said once.
                Err(error) if !trouble => {
                    tracing::info!(
                        error = format!("{error:#}"),
                        "the controllers do not tell of changes"
                    );
                    trouble = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn look(&self, settled: Generation, reported: &mut Generation) -> anyhow::Result<()> {
        if settled != *reported {
            report(&self.named.controllers, &self.timeline, settled).await?;
            *reported = settled;
        }
        let branch = resolve(&self.named).await.map_err(|(error, _)| error)?;
        let safekeepers = Safekeepers::from(&branch);
        replace(&self.shards, branch.shards);
        replace(&self.safekeepers, safekeepers);
        Ok(())
    }
}

fn replace<T: PartialEq>(tell: &watch::Sender<T>, new: T) {
    tell.send_if_modified(|known| {
        let changed = *known != new;
        *known = new;
        changed
    });
}

/// Tells a controller which generation of safekeepers is in force.
async fn report(
    controllers: &[String],
    timeline: &v1::TimelineRef,
    generation: Generation,
) -> anyhow::Result<()> {
    let mut last = anyhow::anyhow!("no controller");
    for controller in controllers {
        let tell = async {
            let request = v1::ReportSettledRequest {
                timeline: Some(timeline.clone()),
                generation: generation.0,
            };
            let channel = connect(controller).await?;
            let told = ControllerClient::new(channel).report_settled(request).await;
            told.map_err(|status| anyhow::anyhow!("{}", status.message()))
        };
        match tokio::time::timeout(ONE_CONTROLLER, tell).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = error.context(format!("controller {controller}")),
            Err(_) => last = anyhow::anyhow!("controller {controller} does not answer"),
        }
    }
    Err(last)
}
