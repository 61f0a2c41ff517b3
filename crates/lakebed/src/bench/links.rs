//! Commits over slow links: TPC-B while each receiver of WAL is behind a link of so many Mbit/s, for the tier and for stock
//! Postgres with three synchronous receivers, full page writes on, in turns.
//!
//! The links are the kernel's: token buckets (`tc htb`) on the loopback device, one for what goes to each safekeeper's port,
//! and one for what comes from each receiver's own way to stock Postgres, a forwarder that does nothing else. The rest is not
//! limited. All of it happens in a network namespace of its own, which `benches/links` makes: elsewhere it would slow down
//! the whole machine, and it is refused. Tables are loaded before the links are slow. A checkpoint comes before each turn.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use lakebed_compute::config::WireWal;
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

const SETTINGS: [&str; 4] = [
    "checkpoint_timeout=1h",
    "max_wal_size=16GB",
    "shared_buffers=1GB",
    "autovacuum=off",
];
/// Packets of 1,500 bytes that wait at a link, at most: about as many milliseconds at 10 Mbit/s.
const QUEUE_PACKETS: u32 = 64;

/// Its options.
#[derive(Debug, Args)]
pub struct LinksArgs {
    /// Rates of the links, in Mbit/s.
    #[arg(long, value_delimiter = ',', default_value = "10,30,100,300,1000")]
    pub mbits: Vec<u32>,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "8")]
    pub clients: Vec<u32>,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Scale of the pgbench tables.
    #[arg(long, default_value_t = 20)]
    pub scale: u32,
    /// How the tier's compute sends WAL: auto, compact, plain.
    #[arg(long, default_value_t = WireWal::Auto)]
    pub wire_wal: WireWal,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &LinksArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    require_private_network()?;
    tier.start().await?;
    let tier = &*tier;
    let mut stock = block_in_place(|| Stock::start(tier, "stock", &SETTINGS))?;
    let ways = [
        Proxy::start(stock.port).await?,
        Proxy::start(stock.port).await?,
        Proxy::start(stock.port).await?,
    ];
    let ports = ways.each_ref().map(|way| way.address.port());
    block_in_place(|| {
        stock.receive(ports)?;
        let mut compute = Compute::spawn_with(tier, BRANCH, &SETTINGS, args.wire_wal)?;
        drop(compute.first_answer()?);
        let systems = [("lakebed", compute.port), ("stock-any-2-of-3", stock.port)].map(|(name, port)| {
            let pgbench = Pgbench {
                pg_bin: tier.pg_bin.clone(),
                port,
                scratch: tier.home().to_owned(),
            };
            (name, pgbench)
        });
        for (name, pgbench) in &systems {
            eprintln!("loading, {name}");
            pgbench.initialize(args.scale)?;
        }
        let to_safekeepers = tier.directory.layout.safekeeper_ports.iter();
        let limited: Vec<_> = to_safekeepers
            .map(|port| ("dport", *port))
            .chain(ports.map(|port| ("sport", port)))
            .collect();
        for &mbits in &args.mbits {
            for &clients in &args.clients {
                for (name, pgbench) in &systems {
                    unlimit()?;
                    pgbench.checkpoint()?;
                    limit(&limited, mbits)?;
                    eprintln!("{mbits} Mbit/s, {clients} clients, {name}");
                    let ran = pgbench.run(clients, Duration::from_secs(args.seconds), None)?;
                    report.result(json!({
                        "system": name,
                        "mbits": mbits,
                        "clients": clients,
                        "tps": round(ran.tps),
                        "p50_ms": ran.latencies_ms.percentile(50.0),
                        "p99_ms": ran.latencies_ms.percentile(99.0),
                        "wire_wal": args.wire_wal.to_string(),
                        "scale": args.scale,
                        "seconds": args.seconds,
                    }));
                }
            }
        }
        unlimit()?;
        compute.stop()
    })
}

/// Refuses a network that leads anywhere: the loopback device of a namespace made for this has no other beside it.
fn require_private_network() -> anyhow::Result<()> {
    let routes = fs::read_to_string("/proc/self/net/route").context("reading the routes of this network")?;
    if routes.lines().nth(1).is_some() {
        bail!(
            "this slows down the loopback device, so it runs in a network namespace of its own only: use benches/links, as root"
        );
    }
    Ok(())
}

fn tc(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("tc").args(arguments.split_whitespace()).output();
    let output = output.context("running tc (Debian: iproute2)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("tc {arguments}: {}", said.trim());
    }
    Ok(())
}

fn unlimit() -> anyhow::Result<()> {
    // `replace` with what is the default leaves it there also when nothing was there.
    tc("qdisc replace dev lo root pfifo")
}

/// A token bucket for each of these ports. What no filter takes goes past them: the class that is named as the default does
/// not exist.
fn limit(ports: &[(&str, u16)], mbits: u32) -> anyhow::Result<()> {
    tc("qdisc replace dev lo root handle 1: htb default ffff")?;
    // What a millisecond lets through, and at least a few packets.
    let burst = (u64::from(mbits) * 125).max(16_000);
    for (class, (side, port)) in (1..).zip(ports) {
        tc(&format!(
            "class add dev lo parent 1: classid 1:{class:x} htb rate {mbits}mbit burst {burst} cburst {burst}"
        ))?;
        tc(&format!(
            "qdisc add dev lo parent 1:{class:x} pfifo limit {QUEUE_PACKETS}"
        ))?;
        tc(&format!(
            "filter add dev lo parent 1: protocol ip prio 1 u32 match ip {side} {port} 0xffff flowid 1:{class:x}"
        ))?;
    }
    Ok(())
}
