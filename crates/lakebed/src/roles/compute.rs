//! `lakebed compute --connect …`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use lakebed_admin::Health;
use lakebed_admin::telemetry::{self, LogFormat};
use lakebed_compute::control_plane::{Follower, Named};
use lakebed_compute::{ComputeConfig, Ended, Sidecar};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{page_images, read_config, say_ready, serve_admin, shutdown_on_signals};
use crate::cli::ComputeRunArgs;
use crate::connection::Connection;

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
        branch = named.first_answer() => branch?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (follower, placement, members) = Follower::new(named, &branch);
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
        Ended::History(reason) => bail!(
            "Postgres was stopped: the pages as of its start are not kept any more, since their lease was not renewed in \
             time ({reason}); start it again"
        ),
    }
}
