//! How fast a pageserver takes in WAL: receive, decode, route, store in memory, write layers and upload them.
//!
//! A stock Postgres without page images gets pgbench's tables and is stopped; that is the base which each shard imports.
//! Then it runs TPC-B, and the WAL of that is what is measured. It is cut and routed beforehand, and sent over gRPC by a
//! thread that counts for itself ([`super::feeder`]). Everything else is the daemon's own code in this process: feed, ingest,
//! memory tables, flushes to a directory, compaction when it is due (`merges`). Time ends when all of it is in object
//! storage (a directory here). Bytes are those of WAL, whatever the number of shards: `mb_per_s_per_core` is the megabytes
//! for each second of processor time, of all threads but the feeder's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use lakebed_blobstore::BlobStore;
use lakebed_layer::LayerKind;
use lakebed_pageserver::config::PageserverConfig;
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::metrics::Metrics;
use lakebed_pageserver::node::{Attachment, Node, Taken, TimelineSpec, wait_for};
use lakebed_redo::Managers;
use lakebed_types::{Generation, Lsn, ShardCount, ShardIdentity, TenantId, TimelineId};
use lakebed_wal::control::ControlFile;
use lakebed_wal::stream::RawRecord;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use super::Report;
use super::cpu;
use super::feeder::{self, Feeder};
use super::pgbench::Pgbench;
use super::stats::round;
use super::stock::Stock;
use super::tier::{PrivateTier, TierArgs};
use super::written_wal;
use crate::initdb::Initial;

const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);
const CLIENTS: u32 = 4;
/// How long one reading of the WAL may take.
const PATIENCE: Duration = Duration::from_secs(600);
const SETTINGS: [&str; 10] = [
    "full_page_writes=off",
    "fsync=off",
    "synchronous_commit=off",
    "autovacuum=off",
    "max_wal_size=64GB",
    "checkpoint_timeout=1h",
    "wal_keep_size=64GB",
    "wal_recycle=off",
    "wal_init_zero=off",
    "shared_buffers=512MB",
];

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
    if !directory.join("done").exists() {
        block_in_place(|| make(args, tier, &directory))?;
    }
    for round in 0..args.rounds {
        for &shards in &args.shard_counts {
            eprintln!("{shards} shards");
            let home = tier.home().join(format!("pageserver-{shards}-{round}"));
            measure(&directory, &home, shards, report).await?;
            std::fs::remove_dir_all(&home)?;
        }
    }
    Ok(())
}

/// Makes `base`, the data directory before, and `after`, the same after the transactions.
fn make(args: &IngestArgs, tier: &PrivateTier, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let pgbench = |stock: &Stock| Pgbench {
        pg_bin: tier.pg_bin.clone(),
        port: stock.port,
        scratch: tier.home().to_owned(),
    };
    eprintln!("making the tables");
    let initial = Initial::make(&tier.pg_bin, tier.home().join("stock"), tier.owner)?;
    let stock = Stock::start_on(tier, initial, &SETTINGS)?;
    pgbench(&stock).initialize(args.scale)?;
    let initial = stock.stop()?;
    copy(&initial.data(), &directory.join("base"))?;
    eprintln!("running {} transactions", args.transactions);
    let stock = Stock::start_on(tier, initial, &SETTINGS)?;
    pgbench(&stock).run_transactions(CLIENTS, args.transactions)?;
    let initial = stock.stop()?;
    copy(&initial.data(), &directory.join("after"))?;
    std::fs::write(directory.join("done"), "")?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(
        copied.success(),
        "copying {} to {}: {copied}",
        from.display(),
        to.display()
    );
    Ok(())
}

fn shard_keys(shards: u8) -> anyhow::Result<Vec<(TenantId, ShardIdentity)>> {
    let count = ShardCount::new(shards).context("a number of shards")?;
    let key = |index| Some((TENANT, ShardIdentity::new(index, count)?));
    (0..shards).map(|index| key(index).context("a shard")).collect()
}

/// A node that has imported the base as each of these shards, with nothing left to compact.
async fn node_with_base(
    base: &Path,
    home: &Path,
    shards: &[(TenantId, ShardIdentity)],
) -> anyhow::Result<(Arc<Node>, Taken)> {
    let store = format!("file://{}", home.join("objects").display());
    let config = json!({
        "node_id": 1,
        "data_dir": home.join("data"),
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "store": store,
    });
    let config: PageserverConfig = serde_json::from_value(config)?;
    std::fs::create_dir_all(&config.data_dir)?;
    let store = BlobStore::open(&config.store)?;
    let metrics = Metrics::register(&mut Registry::default());
    let node = Node::new(
        config,
        Managers::default(),
        store,
        metrics,
        CancellationToken::new(),
    );
    let mut taken = None;
    for &key in shards {
        let imported = node.import(key, Generation(1), TIMELINE, base, Circumstances::default());
        taken = Some(imported.await?);
    }
    let taken = taken.context("no shard")?;
    attach(&node, shards, &taken, None).await?;
    for &(tenant, shard) in shards {
        node.timeline(tenant, shard, TIMELINE)?.compact().await?;
    }
    Ok((node, taken))
}

async fn attach(
    node: &Arc<Node>,
    shards: &[(TenantId, ShardIdentity)],
    taken: &Taken,
    safekeeper: Option<&str>,
) -> anyhow::Result<()> {
    for &(tenant, shard) in shards {
        let spec = TimelineSpec {
            timeline: TIMELINE,
            parent: None,
            cluster: taken.cluster,
            safekeepers: safekeeper.into_iter().map(str::to_owned).collect(),
        };
        let attachment = Attachment {
            tenant,
            shard,
            generation: Generation(1),
            timelines: vec![spec],
        };
        node.attach(attachment).await?;
    }
    Ok(())
}

fn read_wal(after: &Path, start: Lsn) -> anyhow::Result<(Vec<RawRecord>, Lsn)> {
    let control = std::fs::read(after.join("global/pg_control")).context("reading pg_control")?;
    let control = ControlFile::decode(&control)?;
    let mut records = Vec::new();
    let end = written_wal::records(after, &control, start, |record| {
        records.push(record);
        Ok(())
    })?;
    Ok((records, end))
}

async fn measure(directory: &Path, home: &Path, shards: u8, report: &Report) -> anyhow::Result<()> {
    let keys = shard_keys(shards)?;
    let (node, taken) = node_with_base(&directory.join("base"), home, &keys).await?;
    let (batches, count, end) = block_in_place(|| {
        let (records, end) = read_wal(&directory.join("after"), taken.start)?;
        anyhow::Ok((feeder::batches(&records, shards)?, records.len(), end))
    })?;
    let feeder = Feeder::start(Arc::new(batches))?;
    let timelines = keys
        .iter()
        .map(|(tenant, shard)| Ok(node.timeline(*tenant, *shard, TIMELINE)?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let before: u64 = timelines.iter().map(|timeline| level0_bytes(timeline)).sum();
    let (cpu_before, began) = (cpu::seconds(feeder::THREADS)?, Instant::now());
    attach(&node, &keys, &taken, Some(&feeder.address)).await?;
    for timeline in &timelines {
        wait_for(timeline, end, PATIENCE).await?;
    }
    let received = began.elapsed().as_secs_f64();
    for timeline in &timelines {
        timeline.flush().await?;
        if let Some(reason) = timeline.stopped() {
            anyhow::bail!("ingest stopped: {reason}");
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let used = cpu::seconds(feeder::THREADS)?.since(&cpu_before);
    let own = used.process - used.threads;
    let megabytes = (end.0 - taken.start.0) as f64 / 1e6;
    let after: u64 = timelines.iter().map(|timeline| level0_bytes(timeline)).sum();
    let metrics = &node.metrics;
    report.result(json!({
        "workload": "pgbench",
        "shards": shards,
        "mb_per_s": round(megabytes / seconds),
        "mb_per_s_per_core": round(megabytes / own),
        "wal_mb": round(megabytes),
        "records": count,
        "seconds": round(seconds),
        "seconds_until_received": round(received),
        "cpu_seconds": round(own),
        "feeder_cpu_seconds": round(used.threads),
        "records_taken": metrics.records.get(),
        "flushes": metrics.flushes.get(),
        "merges": metrics.merges.get(),
        "level0_mb": round((after - before.min(after)) as f64 / 1e6),
    }));
    node.stop().await;
    Ok(())
}

fn level0_bytes(timeline: &lakebed_pageserver::timeline::Timeline) -> u64 {
    let map = timeline.layer_map();
    let level0 = map.layers().filter(|desc| desc.kind == LayerKind::Level0);
    level0.map(|desc| desc.bytes).sum()
}
