//! What a commit costs: pgbench updates one row by its key.
//!
//! The tier and stock Postgres, once with receivers and once alone, take turns in one run, each idle while the others
//! work, so that all see the same machine. All flush to disk for real: the tier on two of three safekeepers, stock
//! Postgres itself, and on two of three receivers if it has any. Settings are the defaults of each, but for
//! checkpoints, which do not fall into a turn. Before the turns of each number of clients all warm up: the tier
//! finds out then whether commits should wait for each other.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use lakebed_compute::config::WireWal;
use postgres::Client;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::Report;
use super::compute::Compute;
use super::pgbench::Pgbench;
use super::spans::Counters;
use super::stats::{Samples, round};
use super::stock::Stock;
use super::tier::{PrivateTier, TierArgs};
use crate::up::tenant::BRANCH;

const SYSTEM: &str = "lakebed";
const ROWS: u32 = 100_000;
const SETTINGS: [&str; 3] = ["checkpoint_timeout=1h", "max_wal_size=16GB", "autovacuum=off"];

/// Its options.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Seconds of each turn.
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// Turns of each system.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Seconds for which each warms up.
    #[arg(long, default_value_t = 6)]
    pub warm_up_seconds: u64,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,8,16,64")]
    pub clients: Vec<u32>,
    /// A setting of the tier's Postgres, `commit_delay=0`; may be given more than once.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// How the tier's compute sends WAL: auto, compact, plain.
    #[arg(long, default_value_t = WireWal::Auto)]
    pub wire_wal: WireWal,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &CommitArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    tier.start().await?;
    let tier = &*tier;
    block_in_place(|| measure(args, tier, report))
}

fn load(client: &mut Client) -> anyhow::Result<()> {
    client.batch_execute(&format!(
        "create table counters (id int primary key, n bigint not null) with (fillfactor = 50);
         insert into counters select id, 0 from generate_series(1, {ROWS}) id;"
    ))?;
    // Outside of the block above, which is one transaction.
    client.batch_execute("vacuum counters")?;
    client.batch_execute("checkpoint")?;
    Ok(())
}

fn measure(args: &CommitArgs, tier: &PrivateTier, report: &Report) -> anyhow::Result<()> {
    let script = tier.home().join("update.sql");
    std::fs::write(
        &script,
        format!("\\set id random(1, {ROWS})\nupdate counters set n = n + 1 where id = :id;\n"),
    )?;
    let own: Vec<&str> = SETTINGS
        .into_iter()
        .chain(args.settings.iter().map(String::as_str))
        .collect();
    let mut compute = Compute::spawn_with(tier, BRANCH, &own, args.wire_wal)?;
    load(&mut compute.first_answer()?.0)?;
    let mut stock = Stock::start(tier, "stock", &SETTINGS)?;
    stock.receive([stock.port; 3])?;
    load(&mut stock.connect()?)?;
    let alone = Stock::start(tier, "stock-alone", &SETTINGS)?;
    load(&mut alone.connect()?)?;
    let systems = [
        (SYSTEM, compute.port),
        ("stock-any-2-of-3", stock.port),
        ("stock-alone", alone.port),
    ];
    for &clients in &args.clients {
        let mut all: BTreeMap<&str, (Samples, Samples)> = BTreeMap::new();
        let mut spans = Value::Null;
        let pgbench = |port| Pgbench {
            pg_bin: tier.pg_bin.clone(),
            port,
            scratch: tier.home().to_owned(),
        };
        for (system, port) in systems.into_iter().filter(|_| args.warm_up_seconds > 0) {
            eprintln!("{clients} clients, {system} warms up");
            pgbench(port).run(clients, Duration::from_secs(args.warm_up_seconds), Some(&script))?;
        }
        for round in 1..=args.rounds {
            for (system, port) in systems {
                eprintln!("{clients} clients, round {round}, {system}");
                let before = Counters::now(tier, &compute)?;
                let ran = pgbench(port).run(clients, Duration::from_secs(args.seconds), Some(&script))?;
                if port == compute.port {
                    spans = Counters::now(tier, &compute)?.spans_since(&before);
                }
                let (tps, latencies) = all.entry(system).or_default();
                tps.push(ran.tps);
                *latencies = std::mem::take(latencies).with(ran.latencies_ms);
            }
        }
        for (system, (tps, latencies)) in all {
            let spans = if system == SYSTEM {
                spans.take()
            } else {
                Value::Null
            };
            report.result(json!({
                "system": system,
                "clients": clients,
                "tps": tps.percentile(50.0).map(round),
                "p50_ms": latencies.percentile(50.0),
                "p99_ms": latencies.percentile(99.0),
                "rounds": args.rounds,
                "seconds": args.seconds,
                "wire_wal": args.wire_wal.to_string(),
                // Of the last turn.
                "spans": spans,
            }));
        }
    }
    compute.stop()
}
