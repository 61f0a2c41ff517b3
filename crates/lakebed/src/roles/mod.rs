//! One daemon a process: configuration, logs, service, admin pages, registration, orderly end.

mod compaction;
pub mod compute;
pub mod controller;
mod page_images;
pub mod pageserver;
pub mod safekeeper;
mod scrub;
pub mod wal_client;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use lakebed_admin::axum::Router;
use lakebed_admin::telemetry::LogFormat;
use lakebed_admin::{AdminServer, StatusSource};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a role's TOML file says beside the role's own table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// Addresses of the controllers, `host:port`.
    #[serde(default)]
    pub controllers: Vec<String>,
    /// `host:port` at which others reach this node; default: what it listens on.
    #[serde(default)]
    pub advertise: Option<String>,
    /// How log lines look.
    #[serde(default)]
    pub log_format: LogFormat,
}

/// Reads a role's file: the table `[node]` and a table with the role's name.
pub fn read_config<T: DeserializeOwned>(path: &Path, role: &str) -> anyhow::Result<(NodeSettings, T)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut tables: toml::Table = text.parse().with_context(|| format!("{}", path.display()))?;
    let mut table = |name: &str| {
        tables
            .remove(name)
            .unwrap_or(toml::Value::Table(toml::Table::new()))
    };
    let (node, own) = (table("node"), table(role));
    if let Some(unknown) = tables.keys().next() {
        bail!(
            "{}: unknown table `{unknown}`; there are [node] and [{role}]",
            path.display()
        );
    }
    let node = node
        .try_into()
        .with_context(|| format!("{}, table [node]", path.display()))?;
    let own = own
        .try_into()
        .with_context(|| format!("{}, table [{role}]", path.display()))?;
    Ok((node, own))
}

/// Cancelled at SIGTERM and SIGINT. A second signal ends the process at once.
pub fn shutdown_on_signals() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let told = token.clone();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        for patience in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if patience > 0 {
                std::process::exit(130);
            }
            told.cancel();
        }
    });
    Ok(token)
}

/// Ends this process when its parent ends.
pub fn stop_with_parent() -> anyhow::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::TERM)).context("tying this process to its parent")?;
    if getppid() != parent {
        bail!("the process that started this one has ended");
    }
    Ok(())
}

/// Serves the admin pages, and the role's own, in the background and returns their address.
pub async fn serve_admin(
    listen: SocketAddr,
    source: impl StatusSource,
    registry: Registry,
    more: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("the admin service cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let server = AdminServer::new(source, registry).with_routes(more);
        if let Err(error) = server.serve(listener, shutdown).await {
            tracing::error!(%error, "the admin service ended");
        }
    });
    Ok(address)
}

/// Says on standard output, in one line of JSON, that this role serves, and where.
pub fn say_ready(address: impl ToString, admin: SocketAddr) {
    use std::io::Write;
    let line = json!({ "ready": true, "address": address.to_string(), "admin": admin.to_string() });
    let mut out = std::io::stdout().lock();
    // Whoever started this may not be listening.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Admin pages that nobody asked for a place for.
pub fn any_local_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lakebed_compute::ComputeConfig;
    use lakebed_controller::ControllerConfig;
    use lakebed_pageserver::config::PageserverConfig;
    use lakebed_safekeeper::SafekeeperConfig;

    fn example(role: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../deploy/{role}.toml"))
    }

    #[test]
    fn the_examples_in_deploy_are_configurations() {
        read_config::<ControllerConfig>(&example("controller"), "controller").unwrap();
        read_config::<SafekeeperConfig>(&example("safekeeper"), "safekeeper").unwrap();
        read_config::<PageserverConfig>(&example("pageserver"), "pageserver").unwrap();
        let (_, mut compute) = read_config::<toml::Table>(&example("compute"), "compute").unwrap();
        assert!(compute.remove("connect").is_some());
        compute.insert("shim".to_owned(), "liblakebed_compute_shim.so".into());
        compute.try_into::<ComputeConfig>().unwrap();
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let error = read_config::<SafekeeperConfig>(&example("pageserver"), "safekeeper").unwrap_err();
        assert!(
            format!("{error:#}").contains("unknown table `pageserver`"),
            "{error:#}"
        );
        let error = read_config::<SafekeeperConfig>(&example("none"), "safekeeper").unwrap_err();
        assert!(format!("{error:#}").contains("none.toml"), "{error:#}");
    }
}
