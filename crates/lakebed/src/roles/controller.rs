//! `lakebed controller`.

use anyhow::Context;
use lakebed_admin::axum::Router;
use lakebed_admin::telemetry;
use lakebed_controller::{Controller, ControllerConfig};
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

use super::{any_local_port, read_config, say_ready, serve_admin, shutdown_on_signals};
use crate::cli::RoleArgs;

/// Runs until a signal.
pub async fn run(args: RoleArgs) -> anyhow::Result<()> {
    let (node, config) = read_config::<ControllerConfig>(&args.config, "controller")?;
    telemetry::init(node.log_format, "info")?;
    let shutdown = shutdown_on_signals()?;
    let admin = config.admin_listen.unwrap_or_else(any_local_port);
    let controller = Controller::open(config)?;
    let mut registry = Registry::default();
    controller.register_metrics(&mut registry);
    let (health, status) = (controller.clone(), controller.clone());
    let source = (move || health.health(), move || status.status_json());
    let admin = serve_admin(admin, source, registry, Router::new(), shutdown.clone()).await?;
    let (ready, listening) = oneshot::channel();
    let serving = tokio::spawn(controller.serve(shutdown, ready));
    if let Ok(address) = listening.await {
        say_ready(address, admin);
    }
    serving.await.context("serving")?
}
