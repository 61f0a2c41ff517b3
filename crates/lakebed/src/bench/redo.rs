//! Building pages from chains of real WAL, in one process: no server, no storage, no network.
//!
//! A stock Postgres runs TPC-B and a script that changes a table with an index of every kind, without full page
//! writes. Its WAL is cut into chains: a page and the next 1, 13, 25, 100 or 300 records that changed it, in the form
//! in which pageservers store them. Each length is a prefix of real chains that are at least that long; where a page
//! of that kind never gets so many changes before it is begun anew, there is no result.
//!
//! Timed is what a pageserver does when a page is read: copy the base, then decode and replay each record, which lie one
//! behind the other as in a layer file. Each caller is a thread with one buffer that goes through all chains of its kind
//! again and again: `us_per_page`, for which base and records come from wherever the processor has them after thousands
//! of others. `us_per_page_warm` builds each page many times in a row, as benchmarks of single pages do. A chain's result is
//! compared once with the page that replaying the decoded records gave, and all of those, as they were last, with the
//! server's files, masked as `wal_consistency_checking` does.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use lakebed_layer::Stored;
use lakebed_pageserver::manifest::Cluster;
use lakebed_pageserver::reconstruct;
use lakebed_redo::{Managers, PageBytes};
use lakebed_types::{Lsn, PgVersion};
use serde_json::json;
use tokio::task::block_in_place;

use super::Report;
use super::chains::{self, Chain, Cut, LENGTHS};
use super::pgbench::Pgbench;
use super::stats::{Samples, round};
use super::stock::Stock;
use super::tier::{PrivateTier, TierArgs};
use crate::client::table;

/// Its options.
#[derive(Debug, Args)]
pub struct RedoArgs {
    /// Milliseconds of each measurement, in all rounds together.
    #[arg(long, default_value_t = 500)]
    pub milliseconds: u64,
    /// Rounds in which everything is measured. The best one is reported too.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Seconds of each of the two workloads whose WAL is cut.
    #[arg(long, default_value_t = 20)]
    pub load_seconds: u64,
    /// Numbers of threads that build pages.
    #[arg(long, value_delimiter = ',', default_value = "1,2,16,128")]
    pub callers: Vec<usize>,
    /// Kinds of pages to measure, as the results name them (`heap`, `spgist`, `mixed`). Default: all.
    #[arg(long, value_delimiter = ',')]
    pub rmgrs: Vec<String>,
    #[command(flatten)]
    pub tier: TierArgs,
}

const SETTINGS: [&str; 8] = [
    "full_page_writes=off",
    "synchronous_commit=off",
    "autovacuum=off",
    "max_wal_size=64GB",
    "checkpoint_timeout=1h",
    "wal_keep_size=64GB",
    "wal_recycle=off",
    "shared_buffers=512MB",
];
/// How often each page is built where what is measured is the processor alone.
const IN_A_ROW: u32 = 32;
/// Clients of the workloads.
const CLIENTS: u32 = 4;
const SCHEMA: &str = include_str!("redo.sql");
const SCRIPT: &str = include_str!("redo-script.sql");
const CLUSTER: Cluster = Cluster {
    system_identifier: 1,
    postgres_major: PgVersion::V15,
    wal_segment_bytes: 16 << 20,
    data_checksums: false,
};

pub async fn run(args: &RedoArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    let tier = &*tier;
    block_in_place(|| {
        let cut = load(args, tier)?;
        ensure!(
            cut.unlike.is_empty(),
            "pages differ from the server's files: {:?}",
            cut.unlike
        );
        eprintln!("{} pages equal the server's files", cut.compared);
        describe(&cut, report);
        measure_all(args, &cut, report)
    })
}

/// Runs the workloads and cuts their WAL.
fn load(args: &RedoArgs, tier: &PrivateTier) -> anyhow::Result<Cut> {
    let stock = Stock::start(tier, "stock", &SETTINGS)?;
    let mut client = stock.connect()?;
    let start = checkpoint(&mut client)?;
    let pgbench = Pgbench {
        pg_bin: tier.pg_bin.clone(),
        port: stock.port,
        scratch: tier.home().to_owned(),
    };
    let time = Duration::from_secs(args.load_seconds);
    eprintln!("running TPC-B");
    pgbench.initialize(2)?;
    pgbench.run(CLIENTS, time, None)?;
    eprintln!("running the script with every kind of index");
    client.batch_execute(SCHEMA)?;
    let script = tier.home().join("redo-script.sql");
    std::fs::write(&script, SCRIPT)?;
    pgbench.run(CLIENTS, time, Some(&script))?;
    checkpoint(&mut client)?;
    eprintln!("cutting chains");
    chains::cut(&data_of(&mut client)?, start)
}

/// Writes a checkpoint and tells where its record is.
fn checkpoint(client: &mut postgres::Client) -> anyhow::Result<Lsn> {
    client.batch_execute("checkpoint")?;
    let row = client.query_one("select checkpoint_lsn::text from pg_control_checkpoint()", &[])?;
    let text: String = row.get(0);
    text.parse().ok().with_context(|| format!("not an LSN: {text}"))
}

fn data_of(client: &mut postgres::Client) -> anyhow::Result<std::path::PathBuf> {
    let row = client.query_one(
        "select setting from pg_settings where name = 'data_directory'",
        &[],
    )?;
    Ok(Path::new(&row.get::<_, String>(0)).to_owned())
}

/// What types of records the chains are made of.
fn describe(cut: &Cut, report: &Report) {
    let mut kinds: BTreeMap<&str, (BTreeMap<&str, u64>, u64, u64)> = BTreeMap::new();
    for ((kind, operation), (count, bytes)) in &cut.types {
        let of = kinds.entry(kind).or_default();
        of.0.insert(operation, *count);
        (of.1, of.2) = (of.1 + count, of.2 + bytes);
    }
    for (kind, (types, count, bytes)) in kinds {
        eprintln!("{kind}: {types:?}");
        report.result(json!({
            "rmgr": kind,
            "types": types,
            "stored_bytes_per_record": round(bytes as f64 / count.max(1) as f64),
        }));
    }
}

/// Pages of one kind, built from so many records each.
struct Point<'a> {
    kind: &'a str,
    length: usize,
    chains: Vec<&'a Chain>,
    /// Microseconds of a page that is built many times in a row, the median, by round.
    warm: Vec<f64>,
    /// By number of callers, then by round.
    measured: Vec<(usize, Vec<Measured>)>,
}

/// One measurement.
struct Measured {
    /// Microseconds of a page: the median, and of 99 in 100 at most.
    p50: f64,
    p99: f64,
    pages: usize,
    /// From the first caller's begin to the last one's end.
    seconds: f64,
    /// That the callers were on a processor: less than `seconds` times the cores when others use them too.
    cpu_seconds: f64,
}

/// The middle one of the rounds, and the smallest: the machine's other users take caches and half of a core for seconds.
fn of_rounds(rounds: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut samples = Samples::default();
    samples.extend(rounds);
    let at = |percent| samples.percentile(percent).unwrap_or_default();
    (at(50.0), at(0.0))
}

fn measure_all(args: &RedoArgs, cut: &Cut, report: &Report) -> anyhow::Result<()> {
    let mut points = points(args, cut)?;
    for point in &points {
        verify(&point.chains, point.length)?;
    }
    let time = Duration::from_millis(args.milliseconds) / args.rounds;
    for _ in 0..args.rounds {
        for point in &mut points {
            point.warm.push(warm(&point.chains, point.length)?);
            for (callers, rounds) in &mut point.measured {
                rounds.push(measure(&point.chains, point.length, *callers, time)?);
            }
        }
    }
    let mut shown = table(&[
        "rmgr",
        "chain",
        "callers",
        "us/page",
        "best",
        "p99",
        "warm",
        "best",
        "ns/record",
        "pages/s",
        "x1",
        "cpu us",
    ]);
    for point in &points {
        show(point, &mut shown, report);
    }
    eprintln!("{shown}");
    Ok(())
}

/// What is to be measured.
fn points<'a>(args: &RedoArgs, cut: &'a Cut) -> anyhow::Result<Vec<Point<'a>>> {
    let mut kinds: Vec<(&str, Vec<&Chain>)> = cut
        .chains
        .iter()
        .map(|(kind, chains)| (*kind, chains.iter().collect()))
        .collect();
    // Turn by turn, so that consecutive pages are of different kinds.
    let longest = kinds.iter().map(|(_, chains)| chains.len()).max().unwrap_or(0);
    let mixed = (0..longest).flat_map(|at| {
        kinds
            .iter()
            .filter_map(move |(_, chains)| chains.get(at).copied())
    });
    let mixed = mixed.collect();
    kinds.push(("mixed", mixed));
    for wanted in &args.rmgrs {
        ensure!(
            kinds.iter().any(|(kind, _)| kind == wanted),
            "the workload has no pages of the kind {wanted}"
        );
    }
    kinds.retain(|(kind, _)| args.rmgrs.is_empty() || args.rmgrs.iter().any(|wanted| wanted == kind));
    let mut points = Vec::new();
    for (kind, chains) in kinds {
        for length in LENGTHS {
            let long = chains.iter().filter(|chain| chain.values.len() >= length);
            let chains: Vec<&Chain> = long.copied().collect();
            if chains.is_empty() {
                eprintln!("{kind}: no page got {length} changes in a row");
                continue;
            }
            points.push(Point {
                kind,
                length,
                chains,
                warm: Vec::new(),
                measured: args
                    .callers
                    .iter()
                    .map(|callers| (*callers, Vec::new()))
                    .collect(),
            });
        }
    }
    Ok(points)
}

fn show(point: &Point<'_>, shown: &mut comfy_table::Table, report: &Report) {
    let (warm, warm_best) = of_rounds(point.warm.iter().copied());
    let mut alone = None;
    for (callers, rounds) in &point.measured {
        let (p50, best) = of_rounds(rounds.iter().map(|round| round.p50));
        let (p99, _) = of_rounds(rounds.iter().map(|round| round.p99));
        let pages: usize = rounds.iter().map(|round| round.pages).sum();
        let seconds: f64 = rounds.iter().map(|round| round.seconds).sum();
        let cpu_seconds: f64 = rounds.iter().map(|round| round.cpu_seconds).sum();
        let rate = pages as f64 / seconds;
        let scaling = round(rate / *alone.get_or_insert(rate));
        let cpu = round(cpu_seconds * 1e6 / pages.max(1) as f64);
        let per_record = round(p50 * 1e3 / point.length as f64);
        report.result(json!({
            "rmgr": point.kind,
            "chain": point.length,
            "callers": callers,
            "us_per_page": p50,
            "us_per_page_best_round": best,
            "us_per_page_p99": p99,
            "us_per_page_warm": warm,
            "us_per_page_warm_best_round": warm_best,
            "ns_per_record": per_record,
            "pages_per_second": round(rate),
            "rate_to_first": scaling,
            "cpu_us_per_page": cpu,
            "chains": point.chains.len(),
        }));
        shown.add_row([
            point.kind.to_owned(),
            point.length.to_string(),
            callers.to_string(),
            p50.to_string(),
            best.to_string(),
            p99.to_string(),
            warm.to_string(),
            warm_best.to_string(),
            per_record.to_string(),
            format!("{rate:.0}"),
            scaling.to_string(),
            cpu.to_string(),
        ]);
    }
}

/// Builds the page from the chain's first `length` records.
fn build(chain: &Chain, length: usize, page: &mut PageBytes) -> anyhow::Result<()> {
    page.copy_from_slice(&chain.base[..]);
    let values = chain.values.iter().take(length).map(Stored::of);
    reconstruct::replay(&CLUSTER, Managers::none(), &chain.key, page, values)?;
    Ok(())
}

fn verify(chains: &[&Chain], length: usize) -> anyhow::Result<()> {
    let mut page = reconstruct::zeros();
    for chain in chains {
        build(chain, length, &mut page)?;
        let expected = chain.after.iter().find(|(at, _)| *at == length);
        if expected.is_none_or(|(_, expected)| *expected != page) {
            bail!("the chain of {:?} gives another page", chain.key);
        }
    }
    Ok(())
}

/// Builds each page in a row of [`IN_A_ROW`] and tells the median of each row's mean, without its first.
fn warm(chains: &[&Chain], length: usize) -> anyhow::Result<f64> {
    let mut page = reconstruct::zeros();
    let mut took = Samples::default();
    for chain in chains {
        build(chain, length, std::hint::black_box(&mut page))?;
        let began = Instant::now();
        for _ in 1..IN_A_ROW {
            build(chain, length, std::hint::black_box(&mut page))?;
        }
        let mean = began.elapsed().as_secs_f64() * 1e6 / f64::from(IN_A_ROW - 1);
        took.push(mean);
    }
    Ok(took.percentile(50.0).unwrap_or_default())
}

fn measure(chains: &[&Chain], length: usize, callers: usize, time: Duration) -> anyhow::Result<Measured> {
    let barrier = Barrier::new(callers);
    let threads = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|caller| {
                let barrier = &barrier;
                let first = caller * chains.len() / callers;
                scope.spawn(move || {
                    barrier.wait();
                    call(chains, first, length, time)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|thread| thread.unwrap_or_else(|_| bail!("a caller panicked")))
            .collect::<anyhow::Result<Vec<Called>>>()
    })?;
    let began = threads.iter().map(|thread| thread.began).min();
    let ended = threads.iter().map(|thread| thread.ended).max();
    let cpu_seconds = threads.iter().map(|thread| thread.cpu_seconds).sum();
    let mut pages = Samples::default();
    threads.into_iter().for_each(|thread| pages.extend(thread.took));
    let at = |percent| pages.percentile(percent).unwrap_or_default();
    Ok(Measured {
        p50: at(50.0),
        p99: at(99.0),
        pages: pages.len(),
        seconds: began
            .zip(ended)
            .map_or(0.0, |(began, ended)| (ended - began).as_secs_f64()),
        cpu_seconds,
    })
}

/// What one caller did.
struct Called {
    took: Vec<f64>,
    began: Instant,
    ended: Instant,
    cpu_seconds: f64,
}

fn call(chains: &[&Chain], first: usize, length: usize, time: Duration) -> anyhow::Result<Called> {
    let mut page = reconstruct::zeros();
    let mut took = Vec::with_capacity(1 << 16);
    let cpu = cpu_seconds()?;
    let began = Instant::now();
    let mut ended = began;
    for chain in chains.iter().cycle().skip(first) {
        let before = ended;
        build(chain, length, std::hint::black_box(&mut page))?;
        ended = Instant::now();
        took.push((ended - before).as_secs_f64() * 1e6);
        if ended - began >= time {
            break;
        }
    }
    Ok(Called {
        took,
        began,
        ended,
        cpu_seconds: cpu_seconds()? - cpu,
    })
}

/// Seconds that this thread was on a processor.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("reading schedstat")?;
    let nanos = text.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    Ok(nanos.context("schedstat has another form")? / 1e9)
}
