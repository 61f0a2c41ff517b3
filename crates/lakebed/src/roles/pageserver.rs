//! `lakebed pageserver`.

use anyhow::Context;
use lakebed_admin::axum::extract::Query;
use lakebed_admin::axum::routing::get;
use lakebed_admin::axum::{Json, Router};
use lakebed_admin::{Health, telemetry};
use lakebed_controller::registration::{Registration, fresh_incarnation, keep_registered};
use lakebed_pageserver::config::PageserverConfig;
use lakebed_pageserver::daemon::{HotQuery, Managers, Pageserver, hot_json, layers_json, status_json};
use lakebed_proto::v1;
use prometheus_client::registry::Registry;

use super::{read_config, say_ready, serve_admin, shutdown_on_signals};
use crate::cli::RoleArgs;

/// Runs until a signal. `managers` replay records of extensions.
pub async fn run(args: RoleArgs, managers: Managers) -> anyhow::Result<()> {
    let (node, config) = read_config::<PageserverConfig>(&args.config, "pageserver")?;
    telemetry::init(node.log_format, "info")?;
    let shutdown = shutdown_on_signals()?;
    let (node_id, admin) = (config.node_id, config.admin_listen);
    let mut registry = Registry::default();
    let server = Pageserver::start(config, managers, &mut registry, shutdown.clone()).await?;
    let (health, status, layers, hot) = (server.node(), server.node(), server.node(), server.node());
    let stopped = move || {
        let stopped = health.timelines().iter().find_map(|timeline| {
            let reason = timeline.stopped()?;
            Some(format!("timeline {}: {reason}", timeline.identity.timeline))
        });
        stopped.map_or(Health::Ok, Health::Unavailable)
    };
    let admin = serve_admin(
        admin,
        (stopped, move || status_json(&status)),
        registry,
        Router::new()
            .route("/v1/layers", get(async move || Json(layers_json(&layers))))
            .route(
                "/v1/pages/hot",
                get(async move |Query(query): Query<HotQuery>| Json(hot_json(&hot, &query))),
            )
            .merge(super::compaction::routes(server.node())),
        shutdown.clone(),
    )
    .await?;
    let address = server.address()?;
    let mut serving = tokio::spawn(server.serve());
    say_ready(address, admin);
    if node.controllers.is_empty() {
        return serving.await.context("serving")?;
    }
    let registration = Registration {
        controllers: node.controllers,
        node_id,
        role: v1::NodeRole::Pageserver,
        address: node.advertise.unwrap_or_else(|| address.to_string()),
        incarnation: fresh_incarnation()?,
    };
    tokio::select! {
        served = &mut serving => served.context("serving")?,
        registered = keep_registered(registration, shutdown, || {}) => {
            registered?;
            serving.await.context("serving")?
        }
    }
}
