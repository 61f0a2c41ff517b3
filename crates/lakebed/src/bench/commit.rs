//! What a commit costs: pgbench updates one row by its key.
//!
//! The tier and stock Postgres take turns in one run, each idle while the other works, so that both see the same
//! machine. Both flush to disk for real: the tier on two of three safekeepers, stock Postgres itself and on two of
//! three receivers. Settings are the defaults of each, but for checkpoints, which do not fall into a turn.

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
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    pub clients: Vec<u32>,
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
    let mut compute = Compute::spawn_with(tier, BRANCH, &SETTINGS, args.wire_wal)?;
    load(&mut compute.first_answer()?.0)?;
    let mut stock = Stock::start(tier, "stock", &SETTINGS)?;
    stock.receive([stock.port; 3])?;
    load(&mut stock.connect()?)?;
    let systems = [(SYSTEM, compute.port), ("stock-any-2-of-3", stock.port)];
    for &clients in &args.clients {
        let mut all: BTreeMap<&str, (Samples, Samples)> = BTreeMap::new();
        let mut spans = Value::Null;
        for round in 1..=args.rounds {
            for (system, port) in systems {
                eprintln!("{clients} clients, round {round}, {system}");
                let pgbench = Pgbench {
                    pg_bin: tier.pg_bin.clone(),
                    port,
                    scratch: tier.home().to_owned(),
                };
                let before = Counters::now(tier, &compute)?;
                let ran = pgbench.run(clients, Duration::from_secs(args.seconds), Some(&script))?;
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
