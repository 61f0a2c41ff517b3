//! Pages over the stream of pages, built anew for each read.
//!
//! A pgbench database is loaded and worked on. All pages of main forks of one database are then read twice: from
//! Postgres (`get_raw_page` of the extension pageinspect, after a checkpoint) and from the pageservers at the same
//! LSN. They must agree, but for what Postgres itself lets differ between a page and its replayed copy: hint bits and
//! the like, which no WAL carries, masked as `wal_consistency_checking` does. What the pageservers gave then is the
//! yardstick of the timed part: the version of a page at an LSN never changes, so every answer must have the same CRC32C. That
//! comparison, and the client's half of the stream, run on the machine that is measured.
//!
//! A client is one stream to each shard; its depth is the number of requests, each for `batch`
//! pages, that it keeps under way on each. Pages are drawn uniformly. Pageservers keep no built pages unless
//! `--page-cache-bytes` says so: every read collects the page's chain and replays it. Where one client asks for one page at
//! a time, the pageserver and this process are bound to different processors, and the raw exchange beside it is too: it
//! is mostly the time in which an idle processor wakes up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use lakebed_proto::convert;
use lakebed_proto::stream::pages::PageStream;
use lakebed_proto::v1::{self, PageStatus};
use lakebed_redo::mask;
use lakebed_types::shard::shard_of;
use lakebed_types::{ForkNumber, Lsn, PAGE_SIZE, PageKey, RelTag, ShardCount, TenantId, TimelineId};
use postgres::Client;
use rand::{Rng, SeedableRng};
use rustix::process::Pid;
use serde_json::json;
use tokio::task::{JoinSet, block_in_place};

use super::Report;
use super::compute::Compute;
use super::metrics;
use super::pgbench::Pgbench;
use super::ping;
use super::pinned::{self, Pinned};
use super::stats::{Samples, round};
use super::tier::{PrivateTier, TierArgs};
use crate::client::told;
use crate::up::tenant::{BRANCH, TENANT};

/// Pages read at a time before the timed part.
const BATCH: usize = 256;
const SETTINGS: [&str; 3] = [
    "autovacuum=off",
    "shared_buffers=512MB",
    "bgwriter_lru_maxpages=0",
];
const SHAPES: [Shape; 5] = [
    Shape::of(1, 1, 1),
    Shape::of(8, 1, 1),
    Shape::of(8, 4, 1),
    Shape::of(8, 1, 16),
    Shape::of(8, 4, 16),
];
/// A stream that ends before all was answered.
pub const ENDED: &str = "the pageserver ended the stream";
const PINGS: usize = 20_000;
/// How often the pages are read from Postgres until nothing changes meanwhile.
const MAX_READINGS: u32 = 5;

/// How pages are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    clients: usize,
    depth: usize,
    batch: usize,
}

impl Shape {
    /// So many streams to each shard, requests under way on each, and pages in each.
    pub const fn of(clients: usize, depth: usize, batch: usize) -> Shape {
        Shape {
            clients,
            depth,
            batch,
        }
    }
}

/// Its options.
#[derive(Debug, Args)]
pub struct GetpageArgs {
    /// Seconds of each shape.
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// Scale of the pgbench tables.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Transactions of pgbench before, which make chains.
    #[arg(long, default_value_t = 60_000)]
    pub transactions: u64,
    /// Bytes of built pages that each pageserver keeps.
    #[arg(long, default_value_t = 0)]
    pub page_cache_bytes: u64,
    #[command(flatten)]
    pub tier: TierArgs,
}

/// A page and what it must be: its bytes' checksum, for that the bytes themselves be read with every answer would make the timed
/// part a measure of this process's memory.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Which.
    pub key: PageKey,
    crc: u32,
}

impl Known {
    /// Whether an answer is right.
    pub fn is(&self, result: &v1::PageResult) -> bool {
        result.status() == PageStatus::Ok
            && result.page.len() == PAGE_SIZE
            && crc32c::crc32c(&result.page) == self.crc
    }
}

/// One shard: where it is, and its pages.
#[derive(Debug)]
pub struct Target {
    /// Of its pageserver.
    pub address: String,
    tenant: TenantId,
    timeline: TimelineId,
    shard: lakebed_types::ShardIdentity,
    lsn: Lsn,
    /// Its pages.
    pub pages: Vec<Known>,
}

impl Target {
    /// The request for some of its pages.
    pub fn request(&self, request_id: u64, keys: impl Iterator<Item = PageKey>) -> v1::GetPagesRequest {
        v1::GetPagesRequest {
            request_id,
            shard: Some(convert::shard_ref(self.tenant, self.shard)),
            timeline: self.timeline.0.to_vec().into(),
            at: Some(v1::ReadPoint {
                lsn: self.lsn.0,
                not_modified_since: self.lsn.0,
            }),
            keys: keys.map(|key| key.encode().to_vec().into()).collect(),
        }
    }
}

pub async fn run(args: &GetpageArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    let cache = ("page_cache_bytes".to_owned(), json!(args.page_cache_bytes));
    tier.told.pageserver.extend([cache]);
    tier.start().await?;
    let (targets, unlike) = targets(tier, args.scale, args.transactions).await?;
    let pages: usize = targets.iter().map(|target| target.pages.len()).sum();
    let chains = chain_lengths(tier).await?;
    let pings = block_in_place(|| ping::apart(PINGS))?;
    let targets = Arc::new(targets);
    report.result(json!({
        "kind": "setup",
        "pages": pages,
        "unlike_the_local_copy": unlike,
        "raw_tcp_p50_us": pings.percentile(50.0),
        "raw_tcp_p99_us": pings.percentile(99.0),
        "chain_lengths_by_shard": chains,
    }));
    let pageservers = pageservers(tier)?;
    for shape in SHAPES {
        let Shape {
            clients,
            depth,
            batch,
        } = shape;
        eprintln!("{clients} clients, depth {depth}, {batch} pages a request");
        let time = Duration::from_secs(args.seconds);
        let pinned = match clients * depth {
            1 => Pinned::apart(&pageservers)?,
            _ => None,
        };
        let (samples, wrong, took) = measure(&targets, shape, time).await?;
        let pages = samples.len() * batch;
        report.result(json!({
            "clients": clients,
            "depth": depth,
            "batch": batch,
            "pinned_apart": pinned.is_some(),
            "pages_per_s": (pages as f64 / took.as_secs_f64()).round(),
            "p50_us": samples.percentile(50.0),
            "p99_us": samples.percentile(99.0),
            "wrong": wrong,
            "pages": pages,
            "seconds": round(took.as_secs_f64()),
        }));
    }
    Ok(())
}

fn pageservers(tier: &PrivateTier) -> anyhow::Result<Vec<Pid>> {
    let shards = 1..=tier.directory.layout.pageserver_ports.len();
    let config = |number| tier.directory.config(&format!("pageserver-{number}"));
    shards.map(|number| pinned::process_of(&config(number))).collect()
}

/// Makes a pgbench database of this scale, does so many transactions, and reads all of it from Postgres and from the
/// pageservers; returns its pages, and how many of them were not alike.
pub async fn targets(
    tier: &PrivateTier,
    scale: u32,
    transactions: u64,
) -> anyhow::Result<(Vec<Target>, u64)> {
    let (local, lsn) = block_in_place(|| load(tier, scale, transactions))?;
    let branch = v1::ResolveBranchRequest {
        tenant: TENANT.to_owned(),
        branch: BRANCH.to_owned(),
    };
    let resolved = tier.controller().await?.resolve_branch(branch).await;
    read_all(&resolved.map_err(told)?.into_inner(), lsn, local).await
}

/// Makes a database with a history; returns its pages, and the LSN at which they are that.
fn load(
    tier: &PrivateTier,
    scale: u32,
    transactions: u64,
) -> anyhow::Result<(BTreeMap<PageKey, Vec<u8>>, Lsn)> {
    let mut compute = Compute::spawn(tier, BRANCH, &SETTINGS)?;
    let (mut client, _) = compute.first_answer()?;
    let pgbench = Pgbench {
        pg_bin: tier.pg_bin.clone(),
        port: compute.port,
        scratch: tier.home().to_owned(),
    };
    eprintln!("pgbench -i and a run");
    pgbench.initialize(scale)?;
    pgbench.run_transactions(4, transactions)?;
    client.batch_execute("create extension pageinspect")?;
    client.batch_execute("checkpoint")?;
    // Reading may write: it prunes pages of the catalogues on its way. The reading after which WAL ends where it ended
    // before has changed nothing.
    for _ in 0..MAX_READINGS {
        eprintln!("reading all pages from Postgres");
        let before = end_of_wal(&mut client)?;
        let pages = raw_pages(&mut client)?;
        if end_of_wal(&mut client)? == before {
            drop(client);
            compute.stop()?;
            return Ok((pages, before));
        }
    }
    bail!("Postgres goes on writing WAL")
}

fn end_of_wal(client: &mut Client) -> anyhow::Result<Lsn> {
    let row = client.query_one("select pg_current_wal_insert_lsn()::text", &[])?;
    row.get::<_, String>(0).parse().context("an LSN")
}

fn raw_pages(client: &mut Client) -> anyhow::Result<BTreeMap<PageKey, Vec<u8>>> {
    let mut pages = BTreeMap::new();
    let relations = client.query(
        "select c.oid::regclass::text,
                case when c.reltablespace = 0 then d.dattablespace else c.reltablespace end::bigint,
                case when c.relisshared then 0 else d.oid end::bigint,
                pg_relation_filenode(c.oid)::bigint,
                pg_relation_size(c.oid) / 8192
         from pg_class c, pg_database d
         where d.datname = current_database() and relkind in ('r', 'i', 't', 'm', 'S') and relpersistence = 'p'",
        &[],
    )?;
    let number = |value: i64| u32::try_from(value).context("a number of 32 bits");
    for row in relations {
        let (name, blocks): (String, i64) = (row.get(0), row.get(4));
        let rel = RelTag {
            spcnode: number(row.get(1))?,
            dbnode: number(row.get(2))?,
            relnode: number(row.get(3))?,
            fork: ForkNumber::Main,
        };
        for first in (0..blocks).step_by(BATCH) {
            let last = blocks.min(first + BATCH as i64) - 1;
            let rows = client.query(
                "select b, get_raw_page($1, 'main', b) from generate_series($2::bigint, $3) b",
                &[&name, &first, &last],
            )?;
            for row in rows {
                let block = number(row.get(0))?;
                pages.insert(PageKey::Rel { rel, block }, row.get(1));
            }
        }
    }
    Ok(pages)
}

/// All pages from the pageservers, and how many are not what Postgres has.
async fn read_all(
    branch: &v1::BranchInfo,
    lsn: Lsn,
    mut local: BTreeMap<PageKey, Vec<u8>>,
) -> anyhow::Result<(Vec<Target>, u64)> {
    let (tenant, timeline) = convert::timeline(branch.timeline.as_ref())?;
    let count = u8::try_from(branch.shards.len()).ok().and_then(ShardCount::new);
    let count = count.context("the branch's shards")?;
    let (mut targets, mut unlike) = (Vec::new(), 0);
    for (index, location) in (0..).zip(&branch.shards) {
        let node = location.node.clone().context("a shard's node")?;
        let mut target = Target {
            address: node.address,
            tenant,
            timeline,
            shard: lakebed_types::ShardIdentity::new(index, count).context("a shard")?,
            lsn,
            pages: Vec::new(),
        };
        let keys: Vec<PageKey> = local
            .keys()
            .filter(|key| shard_of(key, count) == index)
            .copied()
            .collect();
        let mut stream = PageStream::connect(&target.address).await?;
        for keys in keys.chunks(BATCH) {
            stream.ask(&target.request(1, keys.iter().copied()))?;
            let answer = stream.answer().await?.context(ENDED)?;
            for (&key, result) in keys.iter().zip(answer.pages) {
                ensure!(result.status() == PageStatus::Ok, "{key}: {}", result.message);
                let expected = local.remove(&key).unwrap_or_default();
                if !alike(&key, &expected, &result.page) {
                    eprintln!("{key} is not what Postgres has");
                    unlike += 1;
                }
                target.pages.push(Known {
                    key,
                    crc: crc32c::crc32c(&result.page),
                });
            }
        }
        targets.push(target);
    }
    Ok((targets, unlike))
}

fn alike(key: &PageKey, expected: &[u8], found: &[u8]) -> bool {
    let block = match key {
        PageKey::Rel { block, .. } => *block,
        _ => 0,
    };
    let masked = |page: &[u8]| -> Option<Box<[u8; PAGE_SIZE]>> {
        let mut page = Box::new(<[u8; PAGE_SIZE]>::try_from(page).ok()?);
        mask::by_layout(&mut page, block);
        Some(page)
    };
    let (expected, found) = (masked(expected), masked(found));
    expected.is_some() && expected == found
}

/// Latencies in microseconds, wrong answers, and how long it took.
///
/// # Errors
/// A pageserver does not answer.
pub async fn measure(
    targets: &Arc<Vec<Target>>,
    shape: Shape,
    time: Duration,
) -> anyhow::Result<(Samples, u64, Duration)> {
    let mut streams = Vec::new();
    for client in 0..shape.clients {
        for (index, target) in targets.iter().enumerate() {
            if target.pages.is_empty() {
                bail!("shard {} has no pages", target.shard);
            }
            streams.push((index, client as u64, PageStream::connect(&target.address).await?));
        }
    }
    let began = Instant::now();
    let mut running = JoinSet::new();
    for (index, client, stream) in streams {
        let (targets, until) = (targets.clone(), began + time);
        running.spawn(async move {
            match targets.get(index) {
                Some(target) => ask_randomly(target, client, stream, shape, until).await,
                None => Ok((Samples::default(), 0)),
            }
        });
    }
    let (mut all, mut wrong) = (Samples::default(), 0);
    for result in running.join_all().await {
        let (samples, bad) = result?;
        all = all.with(samples);
        wrong += bad;
    }
    Ok((all, wrong, began.elapsed()))
}

async fn ask_randomly(
    target: &Target,
    seed: u64,
    mut stream: PageStream,
    shape: Shape,
    until: Instant,
) -> anyhow::Result<(Samples, u64)> {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut under_way: BTreeMap<u64, (Vec<&Known>, Instant)> = BTreeMap::new();
    let (mut samples, mut wrong, mut next) = (Samples::default(), 0, 0);
    loop {
        while under_way.len() < shape.depth && Instant::now() < until {
            let places = (0..shape.batch).map(|_| random.random_range(0..target.pages.len()));
            let known: Vec<&Known> = places.filter_map(|place| target.pages.get(place)).collect();
            let request = target.request(next, known.iter().map(|known| known.key));
            under_way.insert(next, (known, Instant::now()));
            stream.ask(&request)?;
            next += 1;
        }
        if under_way.is_empty() {
            return Ok((samples, wrong));
        }
        let answer = stream.answer().await?.context(ENDED)?;
        let asked = under_way.remove(&answer.request_id);
        let (known, asked) = asked.context("an answer to no question")?;
        samples.push(asked.elapsed().as_secs_f64() * 1e6);
        let right = answer.pages.iter().zip(&known);
        let right = right.filter(|(page, known)| known.is(page));
        wrong += (known.len() - right.count()) as u64;
    }
}

/// How many values each page was built from until now, as the pageservers count it: `[at most, pages]`.
async fn chain_lengths(tier: &PrivateTier) -> anyhow::Result<Vec<serde_json::Value>> {
    let layout = &tier.directory.layout;
    let admin = layout.admin_ports.iter().skip(1 + layout.safekeeper_ports.len());
    let mut shards = Vec::new();
    for port in admin {
        let text = metrics::text(*port).await?;
        let mut below = 0;
        let mut buckets = Vec::new();
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("pageserver_page_chain_length_bucket{le=\"") else {
                continue;
            };
            let Some((bound, count)) = rest.split_once("\"} ") else {
                continue;
            };
            let count: u64 = count.trim().parse().context("a count")?;
            buckets.push(json!([bound, count - below]));
            below = count;
        }
        shards.push(json!(buckets));
    }
    Ok(shards)
}
