//! How long a branch takes, of a small and of a large one.
//!
//! **Through the tier**: from the gRPC call to the controller to its answer, which comes when every safekeeper and pageserver has
//! the branch. That is mostly time of durable writes, so beside each branch one is timed by itself: 4 KiB that are written to a
//! file and flushed, in the tier's directory.
//!
//! **In a pageserver alone** ([`super::branch_alone`]): the call that a pageserver serves, on object storage in memory, so
//! without any durable write: what is left is what could grow with the parent.
//!
//! What is large is made up ([`super::synthetic`]). `--tables` measures a real parent with so many before that, and a branch at
//! its head instead of at its start.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use lakebed_blobstore::BlobStore;
use lakebed_proto::v1::{self, BranchState, create_branch_request::At};
use lakebed_types::TimelineId;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::Report;
use super::branch_alone::Alone;
use super::compute::Compute;
use super::metrics;
use super::stats::Samples;
use super::synthetic::{Stored, Wanted};
use super::tier::{PrivateTier, TierArgs};
use crate::client::told;
use crate::up::tenant::{BRANCH, TENANT};

/// How long a branch may take to be deleted.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// Its options.
#[derive(Debug, Args)]
pub struct BranchBenchArgs {
    /// Branches of each size.
    #[arg(long, default_value_t = 30)]
    pub runs: u32,
    /// Numbers of relations that the parent has besides those of a fresh cluster, made up.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,100000,1000000")]
    pub relations: Vec<u32>,
    /// GiB of layers that the parent has, made up; 0 for what a fresh cluster has. Each with all numbers of relations.
    #[arg(long, value_delimiter = ',', default_value = "0,1,100,1024")]
    pub gib: Vec<u64>,
    /// Numbers of real tables that the parent has, rising, measured before anything is made up.
    #[arg(long, value_delimiter = ',')]
    pub tables: Vec<u32>,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &BranchBenchArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    tier.start().await?;
    let mut there = 0;
    for &tables in &args.tables {
        eprintln!("making {tables} tables");
        block_in_place(|| make_tables(tier, there, tables))?;
        there = tables;
        let mut result = measure(args, tier, At::AtHead(v1::BranchAtHead {})).await?;
        result["tables"] = json!(tables);
        report.result(result);
    }
    let (parent, start) = parent(tier).await?;
    let mut alone = Alone::import(tier).await?;
    tier.pause().await;
    let stored = Stored::of(&BlobStore::open(&tier.directory.store())?, parent).await?;
    let gib = args.gib.iter();
    for (&gib, &relations) in gib.flat_map(|gib| args.relations.iter().map(move |n| (gib, n))) {
        eprintln!("{gib} GiB, {relations} relations");
        let bytes = gib << 30;
        let wanted = Wanted { bytes, relations };
        let size = stored.make(wanted).await?;
        tier.resume().await?;
        let mut result = measure(args, tier, At::AtLsn(start)).await?;
        tier.pause().await;
        let times = alone.measure(wanted, args.runs).await?;
        result["bytes"] = json!(bytes);
        result["relations"] = json!(relations);
        result["layers"] = json!(size.layers);
        result["manifest_bytes"] = json!(size.manifest_bytes);
        result["pageserver_p50_ms"] = json!(times.percentile(50.0));
        result["pageserver_p99_ms"] = json!(times.percentile(99.0));
        report.result(result);
    }
    Ok(())
}

/// The parent, and where it begins: everything that is made up is there, and no compute is needed for a branch at it.
async fn parent(tier: &PrivateTier) -> anyhow::Result<(TimelineId, u64)> {
    let request = v1::ResolveBranchRequest {
        tenant: TENANT.to_owned(),
        branch: BRANCH.to_owned(),
    };
    let mut controller = tier.controller().await?;
    let found = controller.resolve_branch(request).await.map_err(told)?;
    let found = found.into_inner();
    let timeline = found.timeline.context("a branch without a timeline")?;
    Ok((TimelineId::from_slice(&timeline.timeline)?, found.start_lsn))
}

/// Makes branches and deletes each: their times.
async fn measure(args: &BranchBenchArgs, tier: &PrivateTier, at: At) -> anyhow::Result<Value> {
    let mut controller = tier.controller().await?;
    let (mut samples, mut writes) = (Samples::default(), Samples::default());
    // The first one opens connections, and is not counted.
    for run in 0..=args.runs {
        let name = format!("branch-{run}");
        let request = v1::CreateBranchRequest {
            tenant: TENANT.to_owned(),
            name: name.clone(),
            from: BRANCH.to_owned(),
            at: Some(at),
            ttl_seconds: 0,
        };
        let began = Instant::now();
        let made = controller.create_branch(request).await.map_err(told)?;
        let time = began.elapsed();
        ensure!(
            made.into_inner().state() == BranchState::Active,
            "the answer came before the branch was active"
        );
        if run > 0 {
            samples.push(time.as_secs_f64() * 1e3);
            writes.push(block_in_place(|| durable_write(tier.home()))?);
        }
        let request = v1::DeleteBranchRequest {
            tenant: TENANT.to_owned(),
            name,
        };
        controller.delete_branch(request).await.map_err(told)?;
        deleted(tier).await?;
    }
    Ok(json!({
        "runs": samples.len(),
        "p50_ms": samples.percentile(50.0),
        "p99_ms": samples.percentile(99.0),
        "durable_write_p50_ms": writes.percentile(50.0),
        "durable_write_p99_ms": writes.percentile(99.0),
    }))
}

/// Waits until nothing is left of any branch but the parent: what is deleted behind the answer would be in the next one's way.
async fn deleted(tier: &PrivateTier) -> anyhow::Result<()> {
    let admin = tier.directory.layout.admin_ports.first();
    let admin = *admin.context("a controller without an admin port")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let known = metrics::values(admin).await?;
        if known.get("controller_timelines") == Some(&1.0) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "a branch is not deleted: {known:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Milliseconds that 4 KiB take to be durable in a new file.
fn durable_write(directory: &Path) -> anyhow::Result<f64> {
    let path = directory.join("durable");
    let began = Instant::now();
    let mut file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    file.write_all(&[7; 4096])?;
    file.sync_all()?;
    let time = began.elapsed();
    std::fs::remove_file(&path)?;
    Ok(time.as_secs_f64() * 1e3)
}

/// Makes tables until there are `upto`, each one relation.
fn make_tables(tier: &PrivateTier, from: u32, upto: u32) -> anyhow::Result<()> {
    let mut compute = Compute::spawn(tier, BRANCH, &[])?;
    let (mut client, _) = compute.first_answer()?;
    for first in (from..upto).step_by(100) {
        let last = upto.min(first + 100);
        client.batch_execute(&format!(
            "do $$ begin for i in {first}..{last} - 1 loop execute format('create table t%s (a int)', i); end loop; end $$"
        ))?;
    }
    drop(client);
    compute.stop()
}
