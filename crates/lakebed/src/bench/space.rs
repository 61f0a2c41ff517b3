//! What a byte of history costs in storage.
//!
//! WAL of TPC-B without page images is taken in ([`super::replayed`]) and merged until nothing is left to do. Then less and
//! less of it is kept: the window is made a smaller share of the WAL, merges run, and the layers that are left are counted.
//!
//! *Minimum*: what nobody stores less than, about. To read any page at any position from the window's begin on takes the
//! pages as they were then and what happened since; so it is those pages in order, with zstd at level 12 over the whole of
//! them, and the window's records likewise, without the header fields that can be derived (`xl_prev`, `xl_crc`). It can be read
//! from its begin only, so no store that answers a read quickly comes near it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use lakebed_pageserver::timeline::Timeline;
use lakebed_pageserver::timeline::history::Kept;
use lakebed_types::{Lsn, PageKey};
use serde_json::json;
use tokio::task::block_in_place;

use super::Report;
use super::replayed::{Replayed, Workload};
use super::stats::round;
use super::tier::{PrivateTier, TierArgs};

const LEVEL: i32 = 12;
/// Sees repetitions this far back, as a power of two.
const ZSTD_WINDOW: u32 = 27;
/// How long the horizon may take to rise.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// Its options.
#[derive(Debug, Args)]
pub struct SpaceArgs {
    /// Transactions of TPC-B.
    #[arg(long, default_value_t = 300_000)]
    pub transactions: u64,
    /// Scale of its tables.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Percent of the WAL that is kept, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "100,50,25,10,0")]
    pub windows: Vec<u8>,
    /// Bytes of memory that make a layer. Smaller than a pageserver's default, so that there are as many merges as in days.
    #[arg(long, default_value_t = 16 << 20)]
    pub flush_bytes: u64,
    /// Keep the workload in this directory, and use what is there.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &SpaceArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    ensure!(
        args.windows.is_sorted_by(|a, b| a > b) && args.windows.iter().all(|percent| *percent <= 100),
        "--windows are percent, each below the one before: what is given up does not come back"
    );
    let directory = args.keep.clone().unwrap_or_else(|| tier.home().join("workload"));
    let tpcb = directory.join("tpcb");
    let workload = block_in_place(|| Workload::tpcb(tier, tpcb, args.scale, args.transactions))?;
    let settings = [
        ("flush_bytes", json!(args.flush_bytes)),
        // Nobody holds a lease here, and the first horizon would wait for one.
        ("lease_s", json!(1)),
    ];
    let replayed = Replayed::prepare(&workload, &tier.home().join("space"), 1, &settings).await?;
    let timeline = replayed.timelines.first().context("a timeline")?.clone();
    replayed.take_in().await?;
    replayed.flush().await?;
    replayed.compacted().await?;
    let (begin, end) = replayed.lsns;
    for percent in &args.windows {
        let wanted = Lsn(end.0 - (end.0 - begin.0) * u64::from(*percent) / 100);
        let horizon = if *percent == 100 {
            begin
        } else {
            keep_from(&replayed, &timeline, wanted).await?
        };
        let (sizes, kept_wal) = (timeline.sizes(), end.0 - horizon.0);
        eprintln!("compressing what {percent} % of the WAL leave");
        let (pages, records) = block_in_place(|| {
            let pages = pages_bytes(&timeline, horizon)?;
            anyhow::Ok((pages, records_bytes(&workload, (begin, horizon))?))
        })?;
        let minimum = pages.compressed + records.compressed;
        report.result(json!({
            "window_percent": percent,
            "window_wal_mb": mb(kept_wal),
            "stored_mb": mb(sizes.layer_bytes),
            "history_mb": mb(sizes.history_bytes),
            "layers": sizes.layers,
            "pages_mb": mb(pages.plain),
            "records_mb": mb(records.plain),
            "minimum_pages_mb": mb(pages.compressed),
            "minimum_records_mb": mb(records.compressed),
            "stored_to_minimum": round(sizes.layer_bytes as f64 / minimum.max(1) as f64),
            "stored_to_pages_and_wal": round(sizes.layer_bytes as f64 / (pages.plain + kept_wal).max(1) as f64),
        }));
    }
    replayed.stop().await;
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    round(bytes as f64 / 1e6)
}

/// Gives up what is before `wanted`, and waits until merges have done so. Where history begins now.
async fn keep_from(replayed: &Replayed, timeline: &Timeline, wanted: Lsn) -> anyhow::Result<Lsn> {
    let kept = Kept {
        horizon: wanted,
        branches: Default::default(),
    };
    replayed.keep(kept).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let horizon = timeline.kept_history().horizon;
        // It does not rise above what is stored, which may end with the last record's page.
        if horizon >= wanted.min(timeline.disk_consistent()) {
            replayed.compacted().await?;
            return Ok(horizon);
        }
        ensure!(Instant::now() < deadline, "the horizon stays at {horizon}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Bytes of something, and with zstd over all of it.
#[derive(Debug, Default)]
struct Packed {
    plain: u64,
    compressed: u64,
}

/// Counts what is written.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses what `each` writes.
fn compressed(
    each: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> anyhow::Result<()>,
) -> anyhow::Result<Packed> {
    let mut zstd = zstd::stream::Encoder::new(Count(0), LEVEL)?;
    zstd.long_distance_matching(true)?;
    zstd.window_log(ZSTD_WINDOW)?;
    let mut plain = 0;
    each(&mut |bytes| {
        plain += bytes.len() as u64;
        zstd.write_all(bytes)
    })?;
    Ok(Packed {
        plain,
        compressed: zstd.finish()?.0,
    })
}

/// All pages of relations as of `lsn`.
fn pages_bytes(timeline: &Timeline, lsn: Lsn) -> anyhow::Result<Packed> {
    let mut relations: Vec<_> = timeline.catalogue(|catalogue| catalogue.all_relations(lsn).collect());
    relations.sort_unstable();
    compressed(|write| {
        for (rel, blocks) in relations {
            for block in 0..blocks {
                let (page, _) = timeline.page_and_cost(&PageKey::Rel { rel, block }, lsn)?;
                write(&page[..])?;
            }
        }
        Ok(())
    })
}

/// All records from `lsn` on of WAL that begins at `begin`, without what can be derived.
fn records_bytes(workload: &Workload, (begin, lsn): (Lsn, Lsn)) -> anyhow::Result<Packed> {
    let (records, _) = workload.read_wal(begin)?;
    compressed(|write| {
        for record in records.iter().filter(|record| record.start >= lsn) {
            // xl_tot_len, xl_xid; xl_prev; xl_info, xl_rmid, two bytes of padding; xl_crc; the rest.
            let parts = [0..8, 16..20, 24..record.bytes.len()];
            for part in parts {
                write(record.bytes.get(part).context("a record is cut")?)?;
            }
        }
        Ok(())
    })
}
