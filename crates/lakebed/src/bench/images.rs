//! What images of pages cost and give.
//!
//! *Sweep*: the WAL of TPC-B without page images is taken in ([`super::replayed`]) once for each number of deltas that makes an
//! image (bytes do not count then), in small layers, so that there are merges; when there is nothing left to merge, pages of
//! all relations are read uniformly at random at the head, out of memory that the system caches, without pages that were built
//! before. Bytes are those of layers ever written: by flushes, by merges, and what is kept in the end above the imported base.
//!
//! *Hot*: one small table is updated very often, once with images as they are configured by default and once without any. Its
//! pages are read, and those of a table that nobody changes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use lakebed_pageserver::timeline::Timeline;
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag};
use postgres::{Client, NoTls};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::Report;
use super::pgbench::Pgbench;
use super::replayed::{CLIENTS, Replayed, Workload};
use super::stats::{Samples, round};
use super::tier::{PrivateTier, TierArgs};

/// Relations below it were there before (`FirstNormalObjectId`).
const FIRST_OF_USERS: u32 = 16384;
/// Where pgbench's tables are: tablespace and database.
const PLACE: (u32, u32) = (1663, 5);
/// Small, so that a workload of some seconds makes several, and merges.
const FLUSH_BYTES: u64 = 16 << 20;
/// Reads of one kind of pages end after this.
const READING: Duration = Duration::from_secs(8);
const HOT_TABLES: &str = "
    create table hot (id int primary key, n bigint) with (fillfactor = 50);
    insert into hot select i, 0 from generate_series(1, 100) i;
    create table cold (id int primary key, t text);
    insert into cold select i, repeat(md5(i::text), 10) from generate_series(1, 20000) i;";
const HOT_SCRIPT: &str = "\\set id random(1, 100)\nupdate hot set n = n + 1 where id = :id;\n";

/// Its options.
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Transactions of TPC-B for the sweep.
    #[arg(long, default_value_t = 300_000)]
    pub transactions: u64,
    /// Scale of its tables.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Numbers of deltas that make an image.
    #[arg(long, value_delimiter = ',', default_value = "4,8,12,16,24,32,48,64,128")]
    pub deltas: Vec<u32>,
    /// Updates of the hot table; 0 for none.
    #[arg(long, default_value_t = 1_000_000)]
    pub updates: u64,
    /// Pages that are read at most.
    #[arg(long, default_value_t = 20_000)]
    pub reads: usize,
    /// Keep the workloads in this directory, and use what is there: so that two builds take in the same WAL.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &ImagesArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    let directory = args.keep.clone().unwrap_or_else(|| tier.home().join("workload"));
    if !args.deltas.is_empty() {
        let tpcb = directory.join("tpcb");
        let workload = block_in_place(|| Workload::tpcb(tier, tpcb, args.scale, args.transactions))?;
        for deltas in &args.deltas {
            eprintln!("an image for {deltas} deltas");
            let home = tier.home().join(format!("sweep-{deltas}"));
            sweep(args, &workload, &home, *deltas, report).await?;
            std::fs::remove_dir_all(&home)?;
        }
    }
    if args.updates > 0 {
        let script = tier.home().join("hot.sql");
        std::fs::write(&script, HOT_SCRIPT)?;
        let workload = block_in_place(|| {
            Workload::make(
                tier,
                directory.join("hot"),
                |pgbench| {
                    let mut client = connect(pgbench)?;
                    client.batch_execute(HOT_TABLES)?;
                    // By itself: it is no part of a transaction.
                    Ok(client.batch_execute("vacuum freeze")?)
                },
                |pgbench| pgbench.run_script(CLIENTS, args.updates, &script).map(drop),
            )
        })?;
        for images in [true, false] {
            eprintln!("a hot table, images {}", if images { "on" } else { "off" });
            let home = tier.home().join(format!("hot-{images}"));
            hot(args, &workload, &home, images, report).await?;
            std::fs::remove_dir_all(&home)?;
        }
    }
    Ok(())
}

fn connect(pgbench: &Pgbench) -> anyhow::Result<Client> {
    let url = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        pgbench.port
    );
    Ok(Client::connect(&url, NoTls)?)
}

/// Bytes of the layers that were ever stored: none is deleted so soon.
fn stored_bytes(directory: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        let is_layer = path
            .parent()
            .is_some_and(|directory| directory.ends_with("layers"));
        bytes += match metadata.is_dir() {
            true => stored_bytes(&path)?,
            false if is_layer => metadata.len(),
            false => 0,
        };
    }
    Ok(bytes)
}

/// Takes everything in, and waits until there is nothing left to merge.
async fn settle(replayed: &Replayed) -> anyhow::Result<()> {
    replayed.take_in().await?;
    replayed.flush().await?;
    replayed.compacted().await
}

async fn sweep(
    args: &ImagesArgs,
    workload: &Workload,
    home: &Path,
    deltas: u32,
    report: &Report,
) -> anyhow::Result<()> {
    let settings = [
        ("image_deltas", json!(deltas)),
        ("image_bytes", json!(u64::MAX >> 1)),
        ("flush_bytes", json!(FLUSH_BYTES)),
    ];
    let replayed = Replayed::prepare(workload, home, 1, &settings).await?;
    let timeline = replayed.timelines.first().context("a timeline")?.clone();
    let objects = home.join("objects");
    let merged_before = replayed.node.metrics.compaction_written_bytes.get();
    let (stored_before, kept_before) = (stored_bytes(&objects)?, timeline.sizes().layer_bytes);
    settle(&replayed).await?;
    let merged = replayed.node.metrics.compaction_written_bytes.get() - merged_before;
    let stored = stored_bytes(&objects)? - stored_before;
    let kept = timeline.sizes().layer_bytes.saturating_sub(kept_before);
    let wal = replayed.megabytes() * 1e6;
    let per_byte = |bytes: u64| round(bytes as f64 / wal);
    let read = block_in_place(|| read(&timeline, &user_pages(&timeline), args.reads))?;
    report.result(with(
        json!({
            "kind": "sweep",
            "image_deltas": deltas,
            "flushed_per_wal_byte": per_byte(stored.saturating_sub(merged)),
            "merged_per_wal_byte": per_byte(merged),
            "kept_per_wal_byte": per_byte(kept),
            "wal_mb": round(replayed.megabytes()),
            "merges": replayed.node.metrics.merges.get(),
        }),
        read.fields(""),
    ));
    replayed.stop().await;
    Ok(())
}

async fn hot(
    args: &ImagesArgs,
    workload: &Workload,
    home: &Path,
    images: bool,
    report: &Report,
) -> anyhow::Result<()> {
    let off = [
        ("image_deltas", json!(u32::MAX)),
        ("image_bytes", json!(u64::MAX >> 1)),
    ];
    let settings = if images { &[][..] } else { &off[..] };
    let replayed = Replayed::prepare(workload, home, 1, settings).await?;
    let timeline = replayed.timelines.first().context("a timeline")?.clone();
    settle(&replayed).await?;
    // The table that is updated was made first.
    let mut rels: Vec<RelTag> = user_pages(&timeline).iter().filter_map(relation).collect();
    rels.dedup();
    let pages = |of: &dyn Fn(RelTag) -> bool| {
        let pages = user_pages(&timeline).into_iter();
        pages
            .filter(|key| relation(key).is_some_and(of))
            .collect::<Vec<_>>()
    };
    let first = *rels.first().context("the hot table")?;
    let (hot, cold) = (
        pages(&|rel| rel == first),
        pages(&|rel| rel != first && rel.relnode > first.relnode + 4),
    );
    let hot_read = block_in_place(|| read(&timeline, &hot, args.reads))?;
    let cold_read = block_in_place(|| read(&timeline, &cold, args.reads))?;
    let fields = with(hot_read.fields("hot_"), cold_read.fields("cold_"));
    report.result(with(
        json!({
            "kind": "hot",
            "images": images,
            "updates": args.updates,
            "hot_pages": hot.len(),
            "cold_pages": cold.len(),
            "wal_mb": round(replayed.megabytes()),
            "layers_mb": round(timeline.sizes().layer_bytes as f64 / 1e6),
        }),
        fields,
    ));
    replayed.stop().await;
    Ok(())
}

fn relation(key: &PageKey) -> Option<RelTag> {
    match key {
        PageKey::Rel { rel, .. } => Some(*rel),
        _ => None,
    }
}

/// Pages of main forks of the workload's relations, ascending.
fn user_pages(timeline: &Timeline) -> Vec<PageKey> {
    let head = timeline.last_record();
    let relations: Vec<(RelTag, u32)> =
        timeline.catalogue(|catalogue| catalogue.relations(PLACE, head).collect());
    let own = |(rel, _): &(RelTag, u32)| rel.fork == ForkNumber::Main && rel.relnode >= FIRST_OF_USERS;
    let blocks = |(rel, blocks)| (0..blocks).map(move |block| PageKey::Rel { rel, block });
    relations.into_iter().filter(own).flat_map(blocks).collect()
}

/// What reads cost.
#[derive(Debug, Default)]
struct Read {
    micros: Samples,
    values: Samples,
    sum: f64,
}

fn read(timeline: &Timeline, pages: &[PageKey], reads: usize) -> anyhow::Result<Read> {
    let head: Lsn = timeline.last_record();
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let (mut read, began) = (Read::default(), Instant::now());
    for _ in 0..reads {
        let place = random.random_range(0..pages.len().max(1));
        let key = pages.get(place).context("there are no pages")?;
        let begin = Instant::now();
        let (_, cost) = timeline.page_and_cost(key, head)?;
        read.micros.push(begin.elapsed().as_secs_f64() * 1e6);
        read.values.push(cost.values as f64);
        read.sum += cost.values as f64;
        if began.elapsed() >= READING {
            break;
        }
    }
    Ok(read)
}

impl Read {
    fn fields(&self, of: &str) -> Value {
        let count = self.micros.len();
        let mut fields = serde_json::Map::new();
        for (name, value) in [
            ("reads", json!(count)),
            ("read_p50_us", json!(self.micros.percentile(50.0))),
            ("read_p99_us", json!(self.micros.percentile(99.0))),
            ("chain_mean", json!(round(self.sum / count.max(1) as f64))),
            ("chain_p50", json!(self.values.percentile(50.0))),
            ("chain_p99", json!(self.values.percentile(99.0))),
            ("chain_max", json!(self.values.percentile(100.0))),
        ] {
            fields.insert(format!("{of}{name}"), value);
        }
        Value::Object(fields)
    }
}

fn with(mut one: Value, other: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (one.as_object_mut(), other) {
        fields.extend(more);
    }
    one
}
