//! `lakebed wal-client --from …`.

use lakebed_admin::Health;
use lakebed_admin::axum::Router;
use lakebed_admin::telemetry::{self, LogFormat};
use lakebed_controller::bootstrap::NewTenant;
use lakebed_walclient::{ClientConfig, Ended, WalClient};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{say_ready, serve_admin, shutdown_on_signals};
use crate::cli::WalClientArgs;
use crate::client::addresses;

/// Runs until a signal, or until there is no use in going on.
pub async fn run(args: WalClientArgs) -> anyhow::Result<()> {
    telemetry::init(LogFormat::Text, "info")?;
    let shutdown = shutdown_on_signals()?;
    let mut from = args.from;
    if from.password.is_none() {
        from.password = std::env::var("PGPASSWORD").ok();
    }
    let server = from.to_string();
    let client = WalClient::new(ClientConfig {
        from,
        controllers: addresses(&args.client)?.0,
        tenant: NewTenant {
            name: args.tenant,
            branch: args.branch,
            shards: args.shards,
            safekeepers: args.safekeepers,
            retention: None,
        },
        standby_name: args.synchronous_name,
        slot: args.slot,
        backup_rate_kib: args.backup_rate_kib,
        lease_ms: args.lease_ms,
        wire_wal: args.wire_wal,
    });
    let inspect = client.inspect();
    let mut registry = Registry::default();
    inspect.register_metrics(&mut registry);
    let status = inspect.clone();
    let health = move || inspect.trouble().map_or(Health::Ok, Health::Unavailable);
    let serving = CancellationToken::new();
    let source = (health, move || status.status_json());
    let admin = serve_admin(
        args.admin_listen,
        source,
        registry,
        Router::new(),
        serving.clone(),
    )
    .await?;
    say_ready(server, admin);
    let ended = client.run(shutdown).await;
    serving.cancel();
    match ended {
        Ended::Stopped => Ok(()),
        Ended::Failed(error) => Err(error),
    }
}
