//! Whether readers notice that a pageserver compacts.
//!
//! Pages of one branch are read in an open loop ([`super::open_loop`]) at half of the rate that the same streams reach in
//! a closed one. Meanwhile the pageserver has merges to do, of another branch: so the pages that are read, and the layers
//! they are read from, stay the same, and what differs between the two kinds of turns is whether it works on them or was
//! told to pause (`PUT /v1/compaction`). Turns alternate, and each begins with some time that does not count. A machine that
//! stands still for a moment spoils a turn, so what is compared is the median of the turns' percentiles.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use lakebed_proto::v1::{self, create_branch_request::At};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::compute::Compute;
use super::getpage::{self, Shape};
use super::open_loop::{self, Measured};
use super::stats::{Samples, round};
use super::tier::{PrivateTier, TierArgs};
use super::{Report, admin, metrics};
use crate::client::told;
use crate::up::tenant::{BRANCH, TENANT};

/// The branch that is compacted.
const WORK: &str = "work";
/// Streams to each pageserver, and requests under way on each where the peak is measured.
const STREAMS: usize = 8;
const DEPTH: usize = 4;
/// Before the turns the branch that is read is compacted; that is over when nothing was merged for this long.
const QUIET: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(180);
/// The beginning of a turn, which does not count.
const SETTLE: Duration = Duration::from_millis(500);

/// Its options.
#[derive(Debug, Args)]
pub struct IsolationArgs {
    /// Seconds of each turn.
    #[arg(long, default_value_t = 2)]
    pub seconds: u64,
    /// Turns of each kind.
    #[arg(long, default_value_t = 11)]
    pub rounds: u32,
    /// Scale of the pgbench tables.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Transactions of pgbench before, which make chains.
    #[arg(long, default_value_t = 60_000)]
    pub transactions: u64,
    /// How often every row of the large table is updated on the branch that is compacted.
    #[arg(long, default_value_t = 1)]
    pub updates: u32,
    /// Reads a second, in place of half of the peak.
    #[arg(long)]
    pub reads: Option<f64>,
    /// Bytes of new WAL that make a layer. Small ones make so many layers that merges are late, and no longer yield to reads.
    #[arg(long, default_value_t = 64 << 20)]
    pub flush_bytes: usize,
    /// Bytes of built pages that each pageserver keeps.
    #[arg(long, default_value_t = 0)]
    pub page_cache_bytes: u64,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &IsolationArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    tier.told.pageserver.extend([
        ("page_cache_bytes".to_owned(), json!(args.page_cache_bytes)),
        ("flush_bytes".to_owned(), json!(args.flush_bytes)),
    ]);
    tier.start().await?;
    let (targets, unlike) = getpage::targets(tier, args.scale, args.transactions).await?;
    let targets = Arc::new(targets);
    eprintln!("waiting until what is read is compacted");
    quiet(tier).await?;
    compaction(tier, "pause").await?;
    make_work(args, tier).await?;
    let shape = Shape::of(STREAMS, DEPTH, 1);
    let time = Duration::from_secs(args.seconds);
    let (closed, _, took) = getpage::measure(&targets, shape, time).await?;
    let peak = closed.len() as f64 / took.as_secs_f64();
    let per_second = args.reads.unwrap_or(peak / 2.0);
    let (mut without, mut with) = (Turns::default(), Turns::default());
    let mut work = Work::default();
    for round in 1..=args.rounds {
        for (what, all) in [("pause", &mut without), ("resume", &mut with)] {
            eprintln!("round {round}: {what}");
            compaction(tier, what).await?;
            open_loop::run(&targets, STREAMS, per_second, SETTLE, u64::from(round)).await?;
            let before = Work::until_now(tier).await?;
            let seed = u64::from(round) << 1;
            let measured = open_loop::run(&targets, STREAMS, per_second, time, seed).await?;
            let done = Work::until_now(tier).await?.since(&before);
            if what == "resume" {
                work = work.and(&done);
            } else if done.read_bytes > 0.0 {
                bail!("something was merged while compaction paused");
            }
            all.add(measured);
        }
    }
    let ratio = with.p99_us.percentile(50.0).zip(without.p99_us.percentile(50.0));
    report.result(json!({
        "unlike_the_local_copy": unlike,
        "peak_pages_per_s": peak.round(),
        "pages_per_s": per_second.round(),
        "without_compaction": without.json(),
        "with_compaction": with.json(),
        "p99_ratio": ratio.map(|(with, without)| round(with / without)),
        "wrong": with.wrong + without.wrong,
        "merged_read_bytes": work.read_bytes,
        "merged_written_bytes": work.written_bytes,
        "compacted_s": f64::from(args.rounds) * time.as_secs_f64(),
    }));
    Ok(())
}

/// What was measured in all turns of a kind.
#[derive(Clone, Debug, Default)]
struct Turns {
    p50_us: Samples,
    p99_us: Samples,
    p999_us: Samples,
    reads: usize,
    wrong: u64,
}

impl Turns {
    fn add(&mut self, turn: Measured) {
        let Measured { latencies, wrong } = turn;
        self.p50_us.extend(latencies.percentile(50.0));
        self.p99_us.extend(latencies.percentile(99.0));
        self.p999_us.extend(latencies.percentile(99.9));
        self.reads += latencies.len();
        self.wrong += wrong;
    }

    /// The medians, and the least and greatest 99th percentile of a turn.
    fn json(&self) -> Value {
        json!({
            "p50_us": self.p50_us.percentile(50.0),
            "p99_us": self.p99_us.percentile(50.0),
            "p99_us_least": self.p99_us.percentile(0.0),
            "p99_us_greatest": self.p99_us.percentile(100.0),
            "p999_us": self.p999_us.percentile(50.0),
            "reads": self.reads,
        })
    }
}

/// What compaction of all pageservers did.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    read_bytes: f64,
    written_bytes: f64,
}

impl Work {
    async fn until_now(tier: &PrivateTier) -> anyhow::Result<Work> {
        let mut work = Work::default();
        for port in admin_ports(tier) {
            let values = metrics::values(port).await?;
            let value = |name: &str| values.get(name).copied().with_context(|| format!("no {name}"));
            work.read_bytes += value("pageserver_compaction_read_bytes_total")?;
            work.written_bytes += value("pageserver_compaction_written_bytes_total")?;
        }
        Ok(work)
    }

    fn since(&self, before: &Work) -> Work {
        Work {
            read_bytes: self.read_bytes - before.read_bytes,
            written_bytes: self.written_bytes - before.written_bytes,
        }
    }

    fn and(&self, more: &Work) -> Work {
        Work {
            read_bytes: self.read_bytes + more.read_bytes,
            written_bytes: self.written_bytes + more.written_bytes,
        }
    }
}

fn admin_ports(tier: &PrivateTier) -> Vec<u16> {
    let layout = &tier.directory.layout;
    let before = 1 + layout.safekeeper_ports.len();
    layout.admin_ports.iter().skip(before).copied().collect()
}

/// Has all pageservers pause or go on.
async fn compaction(tier: &PrivateTier, what: &str) -> anyhow::Result<()> {
    for port in admin_ports(tier) {
        admin::put(port, "/v1/compaction", what).await?;
    }
    Ok(())
}

/// Waits until nothing is merged any more.
async fn quiet(tier: &PrivateTier) -> anyhow::Result<()> {
    let (began, mut last) = (Instant::now(), Work::until_now(tier).await?);
    let mut since = Instant::now();
    while since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = Work::until_now(tier).await?;
        if now.since(&last).read_bytes > 0.0 {
            (last, since) = (now, Instant::now());
        }
        if began.elapsed() > PATIENCE {
            bail!("compaction does not come to an end");
        }
    }
    Ok(())
}

/// Layers that want to be merged, on a branch of their own.
async fn make_work(args: &IsolationArgs, tier: &PrivateTier) -> anyhow::Result<()> {
    eprintln!("updating all rows {} times on a branch", args.updates);
    let request = v1::CreateBranchRequest {
        tenant: TENANT.to_owned(),
        name: WORK.to_owned(),
        from: BRANCH.to_owned(),
        at: Some(At::AtHead(v1::BranchAtHead {})),
        ttl_seconds: 0,
    };
    let mut controller = tier.controller().await?;
    controller.create_branch(request).await.map_err(told)?;
    block_in_place(|| {
        let mut compute = Compute::spawn(tier, WORK, &["autovacuum=off", "max_wal_size=16GB"])?;
        let (mut client, _) = compute.first_answer()?;
        for _ in 0..args.updates {
            client.batch_execute("update pgbench_accounts set abalance = abalance + 1")?;
        }
        drop(client);
        compute.stop()
    })
}
