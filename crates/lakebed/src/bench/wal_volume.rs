//! What a transaction costs on the wire: TPC-B of pgbench, bytes between the writer and one receiver of its WAL.
//!
//! Counted by a TCP proxy in front of one of the three receivers, in both directions, over the time of the run: for
//! the tier that is the gRPC connection from the compute to a safekeeper with all its framing, for stock Postgres the
//! replication connection of one `pg_receivewal`. Pageservers also come through the proxy; theirs are other
//! connections, and the compute's is the one that carries the most towards the server. A checkpoint comes just before
//! each run: the first change of a page after it is what stock Postgres writes a page image for.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::task::block_in_place;

use super::Report;
use super::compute::Compute;
use super::pgbench::Pgbench;
use super::proxy::Proxy;
use super::stats::round;
use super::stock::Stock;
use super::tier::{PrivateTier, TierArgs};
use crate::up::tenant::BRANCH;

/// Its options.
#[derive(Debug, Args)]
pub struct WalVolumeArgs {
    /// Seconds of each run.
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// Scale of the pgbench tables.
    #[arg(long, default_value_t = 50)]
    pub scale: u32,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    pub clients: Vec<u32>,
    /// Seconds between checkpoints, of all systems.
    #[arg(long, default_value_t = 30)]
    pub checkpoint_seconds: u32,
    #[command(flatten)]
    pub tier: TierArgs,
}

struct System {
    name: &'static str,
    proxy: Proxy,
    pgbench: Pgbench,
    /// Which direction carries WAL.
    towards_server: bool,
}

pub async fn run(args: &WalVolumeArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    let ports = &tier.directory.layout.safekeeper_ports;
    let last = ports.len();
    let proxy = Proxy::start(ports.last().copied().unwrap_or_default()).await?;
    let name = format!("safekeeper-{last}");
    tier.advertise.insert(name, proxy.address.to_string());
    tier.start().await?;
    let tier = &*tier;
    let settings = [
        format!("checkpoint_timeout={}s", args.checkpoint_seconds),
        "shared_buffers=1GB".to_owned(),
        "max_wal_size=16GB".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let handle = tokio::runtime::Handle::current();
    block_in_place(|| {
        let pgbench = |port| Pgbench {
            pg_bin: tier.pg_bin.clone(),
            port,
            scratch: tier.home().to_owned(),
        };
        let mut compute = Compute::spawn(tier, BRANCH, &settings)?;
        drop(compute.first_answer()?);
        let lakebed = System {
            name: "lakebed",
            proxy,
            pgbench: pgbench(compute.port),
            towards_server: true,
        };
        measure(args, &lakebed, report)?;
        compute.stop()?;
        for (name, compression) in [
            ("stock", "wal_compression=off"),
            ("stock-lz4", "wal_compression=lz4"),
        ] {
            let mut settings = settings.clone();
            settings.push(compression);
            let mut stock = Stock::start(tier, name, &settings)?;
            let proxy = handle.block_on(Proxy::start(stock.port))?;
            stock.receive(proxy.address.port())?;
            let system = System {
                name,
                proxy,
                pgbench: pgbench(stock.port),
                towards_server: false,
            };
            measure(args, &system, report)?;
        }
        Ok(())
    })
}

fn measure(args: &WalVolumeArgs, system: &System, report: &Report) -> anyhow::Result<()> {
    eprintln!("pgbench -i, {}", system.name);
    system.pgbench.initialize(args.scale)?;
    for &clients in &args.clients {
        eprintln!("{clients} clients, {}", system.name);
        system.pgbench.checkpoint()?;
        let before = system.proxy.counts();
        let ran = system
            .pgbench
            .run(clients, Duration::from_secs(args.seconds), None)?;
        let after = system.proxy.counts();
        let grown = after.iter().enumerate().map(|(number, (up, down))| {
            let (up_before, down_before) = before.get(number).copied().unwrap_or_default();
            (up - up_before, down - down_before)
        });
        let wal = |(up, down): &(u64, u64)| if system.towards_server { *up } else { *down };
        let (up, down) = grown.max_by_key(wal).unwrap_or_default();
        let per_tx = |bytes: u64| round(bytes as f64 / ran.transactions.max(1) as f64);
        report.result(json!({
            "system": system.name,
            "clients": clients,
            "wire_bytes_per_tx": per_tx(up + down),
            "wal_direction_bytes_per_tx": per_tx(wal(&(up, down))),
            "transactions": ran.transactions,
            "tps": round(ran.tps),
            "seconds": args.seconds,
            "scale": args.scale,
        }));
    }
    Ok(())
}
