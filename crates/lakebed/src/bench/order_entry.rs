//! Order entry in the manner of TPC-C ([`super::tpcc`]), through the tier and on stock Postgres with two of three receivers.
//!
//! Both take turns, with page images in WAL and without, in one run: each is idle while the other works, so that all see
//! the same machine. Settings are the same but for those images, which both switch while they run; a checkpoint comes just
//! before a turn and then every `--checkpoint-seconds`, since the first change of a page after one is what makes an image.
//! All flush to disk for real, the tier on two of three safekeepers, stock Postgres itself and on two of three receivers.
//!
//! `shared_buffers` is smaller than the tables, so pages are read again and again. **Where from**: stock Postgres from the
//! cache of the operating system; a compute that has worked for a while from its own local cache of pages. A turn
//! called `empty` begins just after the start of a compute, which has no page at all then: all come from the pageserver.
//! The tables of each system grow by what its turns enter.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use postgres::Client;
use serde_json::{Map, Value, json};
use tokio::task::block_in_place;

use super::Report;
use super::compute::Compute;
use super::pgbench::{Pgbench, Ran};
use super::stats::{Samples, round};
use super::stock::Stock;
use super::tier::{PrivateTier, TierArgs};
use super::tpcc::{self, TRANSACTIONS};
use crate::up::tenant::BRANCH;

/// Those that only read.
const READS: [&str; 2] = ["order_status", "stock_level"];

/// Its options.
#[derive(Debug, Args)]
pub struct OrderEntryArgs {
    /// Warehouses; one has about 100 MB.
    #[arg(long, default_value_t = 5)]
    pub warehouses: u32,
    /// Clients.
    #[arg(long, default_value_t = 8)]
    pub clients: u32,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// Turns of each system.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Seconds between checkpoints, of all systems.
    #[arg(long, default_value_t = 30)]
    pub checkpoint_seconds: u32,
    /// Megabytes of shared buffers, of all systems.
    #[arg(long, default_value_t = 128)]
    pub shared_buffers_mb: u32,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &OrderEntryArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    tier.start().await?;
    let tier = &*tier;
    block_in_place(|| measure(args, tier, report))
}

/// What is told apart: system, page images, state of the cache.
type Kind = (&'static str, bool, &'static str);

struct Bench<'a> {
    args: &'a OrderEntryArgs,
    tier: &'a PrivateTier,
    scripts: Vec<String>,
    all: BTreeMap<Kind, Turns>,
}

fn measure(args: &OrderEntryArgs, tier: &PrivateTier, report: &Report) -> anyhow::Result<()> {
    let settings = [
        format!("checkpoint_timeout={}s", args.checkpoint_seconds),
        format!("shared_buffers={}MB", args.shared_buffers_mb),
        "max_wal_size=16GB".to_owned(),
        "track_io_timing=on".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut bench = Bench {
        args,
        tier,
        scripts: tpcc::arguments(tier.home(), args.warehouses)?,
        all: BTreeMap::new(),
    };
    let mut stock = Stock::start(tier, "stock", &settings)?;
    stock.receive([stock.port; 3])?;
    eprintln!("loading, stock");
    tpcc::load(stock.port, args.warehouses)?;
    let mut stock_client = stock.connect()?;
    let mut compute = Compute::spawn(tier, BRANCH, &settings)?;
    let (mut client, _) = compute.first_answer()?;
    eprintln!("loading, lakebed");
    tpcc::load(compute.port, args.warehouses)?;

    for round in 1..=args.rounds {
        eprintln!("round {round}");
        for images in [false, true] {
            set_full_page_writes(&mut stock_client, images)?;
            bench.turn(
                ("stock-any-2-of-3", images, "warm"),
                stock.port,
                &mut stock_client,
            )?;

            compute.stop()?;
            compute = Compute::spawn(tier, BRANCH, &settings)?;
            (client, _) = compute.first_answer()?;
            compute.write_full_pages(images)?;
            for cache in ["empty", "warm"] {
                bench.turn(("lakebed", images, cache), compute.port, &mut client)?;
            }
        }
    }
    drop(client);
    compute.stop()?;
    for (kind, turns) in &bench.all {
        report.result(turns.told(*kind, args));
    }
    Ok(())
}

fn set_full_page_writes(client: &mut Client, on: bool) -> anyhow::Result<()> {
    let on = if on { "on" } else { "off" };
    client.batch_execute(&format!("alter system set full_page_writes = {on}"))?;
    client.batch_execute("select pg_reload_conf()")?;
    Ok(())
}

impl Bench<'_> {
    fn turn(&mut self, kind: Kind, port: u16, client: &mut Client) -> anyhow::Result<()> {
        let (system, images, cache) = kind;
        eprintln!("{system}, page images {images}, cache {cache}");
        let pgbench = Pgbench {
            pg_bin: self.tier.pg_bin.clone(),
            port,
            scratch: self.tier.home().to_owned(),
        };
        pgbench.checkpoint()?;
        let before = Counted::now(client)?;
        let time = Duration::from_secs(self.args.seconds);
        let ran = pgbench.run_with(self.args.clients, time, &self.scripts)?;
        let counted = Counted::now(client)?.since(&before);
        self.all.entry(kind).or_default().add(ran, counted);
        Ok(())
    }
}

/// What Postgres counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    wal_bytes: f64,
    reads: f64,
    read_ms: f64,
}

impl Counted {
    fn now(client: &mut Client) -> anyhow::Result<Counted> {
        // Sessions tell what they counted when they end, and pgbench's have ended.
        let row = client.query_one(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8, blks_read::float8, blk_read_time
             from pg_stat_database where datname = current_database()",
            &[],
        )?;
        Ok(Counted {
            wal_bytes: row.try_get(0)?,
            reads: row.try_get(1)?,
            read_ms: row.try_get(2)?,
        })
    }

    fn since(self, before: &Counted) -> Counted {
        Counted {
            wal_bytes: self.wal_bytes - before.wal_bytes,
            reads: self.reads - before.reads,
            read_ms: self.read_ms - before.read_ms,
        }
    }
}

/// All turns of one kind.
#[derive(Debug, Default)]
struct Turns {
    tps: Samples,
    transactions: u64,
    by_script: BTreeMap<usize, Samples>,
    counted: Counted,
}

impl Turns {
    fn add(&mut self, ran: Ran, counted: Counted) {
        self.tps.push(ran.tps);
        self.transactions += ran.transactions;
        for (script, samples) in ran.by_script {
            let all = self.by_script.entry(script).or_default();
            *all = std::mem::take(all).with(samples);
        }
        self.counted.wal_bytes += counted.wal_bytes;
        self.counted.reads += counted.reads;
        self.counted.read_ms += counted.read_ms;
    }

    /// Latencies of the transactions that have one of these names.
    fn of(&self, names: &[&str]) -> Samples {
        let scripts = self.by_script.iter().filter(|(script, _)| {
            let known = TRANSACTIONS.get(**script);
            known.is_some_and(|(name, ..)| names.contains(name))
        });
        let samples = scripts.map(|(_, samples)| samples.clone());
        samples.reduce(Samples::with).unwrap_or_default()
    }

    fn told(&self, (system, images, cache): Kind, args: &OrderEntryArgs) -> Value {
        let latencies = |names: &[&str]| {
            let samples = self.of(names);
            json!({ "p50_ms": samples.percentile(50.0), "p99_ms": samples.percentile(99.0) })
        };
        let each = TRANSACTIONS.map(|(name, ..)| (name.to_owned(), latencies(&[name])));
        let per_tx = |sum: f64| round(sum / self.transactions.max(1) as f64);
        json!({
            "system": system,
            "full_page_writes": images,
            "cache": cache,
            "tps": self.tps.percentile(50.0).map(round),
            "tps_lowest": self.tps.percentile(0.0).map(round),
            "tps_highest": self.tps.percentile(100.0).map(round),
            "transactions": self.transactions,
            "wal_bytes_per_tx": per_tx(self.counted.wal_bytes),
            "pages_read_per_tx": per_tx(self.counted.reads),
            // Of what Postgres reads itself, wherever it comes from.
            "page_read_mean_us": round(self.counted.read_ms * 1e3 / self.counted.reads.max(1.0)),
            "reads": latencies(&READS),
            "by_type": Map::from_iter(each),
            "rounds": args.rounds,
            "seconds": args.seconds,
            "clients": args.clients,
            "warehouses": args.warehouses,
            "shared_buffers_mb": args.shared_buffers_mb,
            "checkpoint_seconds": args.checkpoint_seconds,
        })
    }
}
