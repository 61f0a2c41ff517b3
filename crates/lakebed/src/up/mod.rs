//! `lakebed up`: every role of one machine as a child process, wired together.
//!
//! Nothing here is known to the roles: each gets the TOML file or the arguments that it would get from systemd. A
//! child that dies is started again, except a compute, whose branch another compute may have.

mod child;
mod computes;
pub mod layout;
mod progress;
pub mod target;
pub mod tenant;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use lakebed_compute::data_dir::owner_of;
use lakebed_proto::v1::supervisor_server::SupervisorServer;
use serde_json::{Map, Value, json};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{ProgramArgs, ServerArgs, UpArgs};
use crate::initdb;
use crate::roles::{compute, shutdown_on_signals};
use child::Recipe;
use computes::{Common, Computes, Wanted};
use layout::{UpDirectory, check_free, local};
use progress::Step;

/// Runs until a signal.
pub async fn run(args: UpArgs, as_json: bool) -> anyhow::Result<()> {
    let ServerArgs {
        programs: ProgramArgs { pg_bin, run_as },
        settings,
        shim,
    } = args.server;
    initdb::check_programs(&pg_bin)?;
    let shim = compute::shim(shim)?;
    let owner = owner_of(&run_as)?;
    let directory = UpDirectory::take(
        layout::directory(args.dir.as_deref())?,
        args.safekeepers,
        args.shards,
    )?;
    check_free(args.pg_port, "Postgres (choose another with --pg-port)")?;
    if owner.is_some() {
        directory.check_others_may_enter(&run_as)?;
    }
    let shutdown = shutdown_on_signals()?;
    let layout = directory.layout.clone();
    let daemons = Daemons::default();
    let computes = Computes::new(Common {
        controller: layout.controller(),
        directory: directory.path.join("computes"),
        logs: directory.path.join("log"),
        pg_bin: pg_bin.clone(),
        run_as,
        shim,
        settings,
    });
    let service = serve_supervisor(&layout, computes.clone()).await?;
    let started = async {
        start_daemons(&directory, &daemons, &Told::default()).await?;
        let step = directory
            .fresh
            .then(|| Step::begin("making the first branch from initdb"));
        tenant::ensure(&directory, &pg_bin, owner).await?;
        drop(step);
        // It may be deleted once another branch was detached from it.
        if !tenant::has_first_branch(&layout.controller()).await? {
            return Ok(None);
        }
        let _step = Step::begin("starting Postgres on branch main");
        let wanted = Wanted {
            port: args.pg_port,
            ..Default::default()
        };
        let compute = computes.start(&tenant::first_branch(), wanted).await;
        let compute = compute.map_err(|status| anyhow::anyhow!("{}", status.message()));
        compute.map(Some)
    };
    let result = tokio::select! {
        result = started => result.map(Some),
        () = shutdown.cancelled() => Ok(None),
    };
    if let Ok(Some(compute)) = &result {
        let connection = compute.as_ref().map(|compute| &compute.connection);
        if as_json {
            let tier = format!("lakebed://{}/{}", layout.controller(), tenant::TENANT);
            println!(
                "{}",
                json!({ "connection": connection, "tier": tier, "dir": directory.path })
            );
        } else if let Some(connection) = connection {
            println!("connection: {connection}");
        }
        if connection.is_none() {
            eprintln!(
                "branch {} was deleted; `lakebed compute start BRANCH` starts Postgres on another one",
                tenant::BRANCH
            );
        }
        shutdown.cancelled().await;
        eprintln!("stopping");
    }
    // In order: what writes WAL, then what reads it, then what keeps it.
    computes.stop_all().await;
    daemons.stop().await;
    service.cancel();
    result.map(|_| ())
}

async fn serve_supervisor(layout: &layout::Layout, computes: Computes) -> anyhow::Result<CancellationToken> {
    let listener = tokio::net::TcpListener::bind(layout.supervisor()).await;
    let listener = listener.with_context(|| format!("listening on {}", layout.supervisor()))?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let serving = tonic::transport::Server::builder()
            .add_service(SupervisorServer::new(computes))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::select! {
            served = serving => if let Err(error) = served {
                eprintln!("the service for client commands ended: {error}");
            },
            () = stopped.cancelled() => {}
        }
    });
    Ok(stop)
}

/// Children in groups that are stopped one after the other.
#[derive(Debug, Default)]
pub struct Daemons {
    controller: Group,
    pageservers: Group,
    safekeepers: Group,
}

#[derive(Debug, Default)]
struct Group {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Group {
    async fn start(&self, recipes: Vec<Recipe>) -> anyhow::Result<()> {
        let mut starting = tokio::task::JoinSet::new();
        for recipe in recipes {
            starting.spawn(async move { (recipe.start().await, recipe) });
        }
        let mut failure = None;
        while let Some(started) = starting.join_next().await {
            let (running, recipe) = started.context("starting a daemon")?;
            match running {
                Ok(running) => {
                    self.tasks.spawn(recipe.keep(running, self.stop.clone()));
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Daemons {
    /// Stops all.
    pub async fn stop(&self) {
        self.pageservers.stop().await;
        self.safekeepers.stop().await;
        self.controller.stop().await;
    }
}

/// What the roles are told besides where they are.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Where others find a node, by its name, when that is not where it listens.
    pub advertise: BTreeMap<String, String>,
    /// Settings of every pageserver.
    pub pageserver: Map<String, Value>,
}

/// Starts the roles of a directory.
///
/// # Errors
/// One of them does not come to serve.
pub async fn start_daemons(directory: &UpDirectory, daemons: &Daemons, told: &Told) -> anyhow::Result<()> {
    let _step = Step::begin("starting controller, safekeepers and pageservers");
    let layout = &directory.layout;
    let mut admin = layout.admin_ports.iter().map(|port| local(*port));
    let mut next_admin = || admin.next().context("lakebed.json: too few admin ports");
    let node = |name: &str| {
        let mut node = json!({ "controllers": [layout.controller()] });
        // A null has no place in TOML.
        if let Some(address) = told.advertise.get(name) {
            node["advertise"] = json!(address);
        }
        node
    };
    let controller = json!({
        "node": {},
        "controller": {
            "node_id": 1,
            "data_dir": directory.path.join("controller"),
            "listen": layout.controller(),
            "admin_listen": next_admin()?,
        },
    });
    daemons
        .controller
        .start(vec![recipe(directory, "controller", "controller", &controller)?])
        .await?;
    let store = directory.store();
    let mut safekeepers = Vec::new();
    for (number, port) in (1u64..).zip(&layout.safekeeper_ports) {
        let name = format!("safekeeper-{number}");
        let config = json!({
            "node": node(&name),
            "safekeeper": {
                "node_id": number,
                "data_dir": directory.path.join(&name),
                "listen": local(*port),
                "admin_listen": next_admin()?,
                "backup": { "store": store },
            },
        });
        safekeepers.push(recipe(directory, "safekeeper", &name, &config)?);
    }
    daemons.safekeepers.start(safekeepers).await?;
    let mut pageservers = Vec::new();
    for (number, port) in (1u64..).zip(&layout.pageserver_ports) {
        let name = format!("pageserver-{number}");
        let mut config = json!({
            "node": node(&name),
            "pageserver": {
                "node_id": 100 + number,
                "data_dir": directory.path.join(&name),
                "listen": local(*port),
                "admin_listen": next_admin()?,
                "store": store,
            },
        });
        for (name, value) in &told.pageserver {
            config["pageserver"][name] = value.clone();
        }
        pageservers.push(recipe(directory, "pageserver", &name, &config)?);
    }
    daemons.pageservers.start(pageservers).await
}

/// Writes a role's TOML file; returns how to start the role with it.
fn recipe(
    directory: &UpDirectory,
    role: &str,
    name: &str,
    config: &serde_json::Value,
) -> anyhow::Result<Recipe> {
    let path = directory.config(name);
    let text = toml::to_string(config).with_context(|| format!("the configuration of {name}"))?;
    write(&path, &text)?;
    Ok(Recipe {
        name: name.to_owned(),
        arguments: vec![role.to_owned(), format!("--config={}", path.display())],
        log: directory.log(name),
    })
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
