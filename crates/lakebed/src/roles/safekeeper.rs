//! `lakebed safekeeper`.

use std::path::Path;

use anyhow::Context;
use lakebed_admin::{Health, telemetry};
use lakebed_blobstore::BlobStore;
use lakebed_controller::registration::{Registration, keep_registered, stored_incarnation};
use lakebed_proto::v1;
use lakebed_safekeeper::{Safekeeper, SafekeeperConfig};
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

use super::{any_local_port, read_config, say_ready, scrub, serve_admin, shutdown_on_signals};

/// Runs until a signal.
pub async fn run(config: &Path) -> anyhow::Result<()> {
    let (node, config) = read_config::<SafekeeperConfig>(config, "safekeeper")?;
    telemetry::init(node.log_format, "info")?;
    let shutdown = shutdown_on_signals()?;
    let safekeeper = Safekeeper::open(config.clone()).await?;
    let incarnation =
        stored_incarnation(&config.data_dir.join("incarnation")).context("the data directory")?;
    if let Some(backup) = safekeeper.backup() {
        keep_incarnation(&backup.store, config.node_id, incarnation).await;
    }
    let mut registry = Registry::default();
    safekeeper.register_metrics(&mut registry);
    let (health, status) = (safekeeper.clone(), safekeeper.clone());
    let health = move || health.stopped().map_or(Health::Ok, Health::Unavailable);
    let source = (health, move || status.status_json());
    let admin = config.admin_listen.unwrap_or_else(any_local_port);
    let routes = scrub::routes(safekeeper.clone());
    let admin = serve_admin(admin, source, registry, routes, shutdown.clone()).await?;
    let (ready, listening) = oneshot::channel();
    let peers = safekeeper.peers().clone();
    let mut serving = tokio::spawn(safekeeper.serve(shutdown.clone(), ready));
    let Ok(address) = listening.await else {
        return serving.await.context("serving")?;
    };
    say_ready(address, admin);
    if node.controllers.is_empty() {
        return serving.await.context("serving")?;
    }
    let (controllers, stop) = (node.controllers.clone(), shutdown.clone());
    tokio::spawn(async move { peers.follow(controllers, stop).await });
    let registration = Registration {
        controllers: node.controllers,
        node_id: config.node_id,
        role: v1::NodeRole::Safekeeper,
        address: node.advertise.unwrap_or_else(|| address.to_string()),
        incarnation,
    };
    tokio::select! {
        served = &mut serving => served.context("serving")?,
        registered = keep_registered(registration, shutdown, || {}) => {
            registered?;
            serving.await.context("serving")?
        }
    }
}

/// Stores this data directory's incarnation, so that `lakebed wal restore` can make a directory that the controllers take
/// for this one. Not there yet when object storage is out of reach: the next start stores it.
async fn keep_incarnation(store: &BlobStore, node_id: u64, incarnation: u64) {
    let path = incarnation_path(node_id);
    if let Err(error) = store.put(&path, format!("{incarnation:016x}\n").into()).await {
        tracing::warn!(%error, "this safekeeper's incarnation is not in object storage");
    }
}

/// Where the incarnation of a safekeeper's data directory is kept in object storage.
pub fn incarnation_path(node_id: u64) -> String {
    format!("safekeepers/{node_id}/incarnation")
}
