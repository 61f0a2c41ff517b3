//! How fast a pageserver takes in WAL: receive, decode, route, store in memory, write layers and upload them.
//!
//! A stock Postgres without page images gets pgbench's tables, which each shard imports, and runs TPC-B; the WAL of that is
//! taken in ([`super::replayed`]). All of it is the daemon's own code in this process: feed, ingest, memory tables, flushes to a
//! directory, compaction when it is due (`merges`). Time ends when everything is in object storage (a directory here). Bytes
//! are those of WAL, whatever the number of shards: `mb_per_s_per_core` is the megabytes for each second of processor time,
//! of all threads but the one that sends the WAL.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use tokio::task::block_in_place;

use super::Report;
use super::cpu;
use super::feeder;
use super::replayed::{Replayed, Workload};
use super::stats::round;
use super::tier::{PrivateTier, TierArgs};

/// Its options.
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// Transactions whose WAL is taken in.
    #[arg(long, default_value_t = 300_000)]
    pub transactions: u64,
    /// Scale of the pgbench tables.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Numbers of shards, all in this process.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    pub shard_counts: Vec<u8>,
    /// How often each.
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// Keep the workload in this directory, and use what is there: so that two builds take in the same WAL.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &IngestArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    let directory = args.keep.clone().unwrap_or_else(|| tier.home().join("workload"));
    let workload = block_in_place(|| Workload::tpcb(tier, directory, args.scale, args.transactions))?;
    for round in 0..args.rounds {
        for &shards in &args.shard_counts {
            eprintln!("{shards} shards");
            let home = tier.home().join(format!("pageserver-{shards}-{round}"));
            let replayed = Replayed::prepare(&workload, &home, shards, &[]).await?;
            measure(&replayed, shards, report).await?;
            replayed.stop().await;
            std::fs::remove_dir_all(&home)?;
        }
    }
    Ok(())
}

async fn measure(replayed: &Replayed, shards: u8, report: &Report) -> anyhow::Result<()> {
    let (cpu_before, began) = (cpu::seconds(feeder::THREADS)?, Instant::now());
    replayed.take_in().await?;
    let received = began.elapsed().as_secs_f64();
    replayed.flush().await?;
    let seconds = began.elapsed().as_secs_f64();
    let used = cpu::seconds(feeder::THREADS)?.since(&cpu_before);
    let own = used.process - used.threads;
    let megabytes = replayed.megabytes();
    let metrics = &replayed.node.metrics;
    report.result(json!({
        "workload": "pgbench",
        "shards": shards,
        "mb_per_s": round(megabytes / seconds),
        "mb_per_s_per_core": round(megabytes / own),
        "wal_mb": round(megabytes),
        "records": replayed.records,
        "seconds": round(seconds),
        "seconds_until_received": round(received),
        "cpu_seconds": round(own),
        "feeder_cpu_seconds": round(used.threads),
        "records_taken": metrics.records.get(),
        "flushes": metrics.flushes.get(),
        "merges": metrics.merges.get(),
    }));
    Ok(())
}
