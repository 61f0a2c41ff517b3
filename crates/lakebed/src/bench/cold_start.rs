//! From nothing to an answer.
//!
//! The clock runs from the start of the process `lakebed compute` to the answer to `select 1` over TCP. The compute is
//! stopped in order between runs, and its directory is kept, as on a machine that runs it again: it is emptied at each
//! start.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::task::block_in_place;

use super::Report;
use super::compute::Compute;
use super::pgbench::Pgbench;
use super::stats::Samples;
use super::tier::{PrivateTier, TierArgs};
use crate::up::tenant::BRANCH;

/// Its options.
#[derive(Debug, Args)]
pub struct ColdStartArgs {
    /// Starts of each kind.
    #[arg(long, default_value_t = 40)]
    pub runs: u32,
    /// Scale of the pgbench tables on the used branch.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Seconds of pgbench on the used branch.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &ColdStartArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    tier.start().await?;
    let tier = &*tier;
    block_in_place(|| {
        measure("fresh", args.runs, tier, report)?;
        eprintln!("pgbench on the branch");
        let mut compute = Compute::spawn(tier, BRANCH, &[])?;
        drop(compute.first_answer()?);
        let pgbench = Pgbench {
            pg_bin: tier.pg_bin.clone(),
            port: compute.port,
            scratch: tier.home().to_owned(),
        };
        pgbench.initialize(args.scale)?;
        pgbench.run(4, Duration::from_secs(args.seconds), None)?;
        compute.stop()?;
        measure("used", args.runs, tier, report)
    })
}

fn measure(branch: &str, runs: u32, tier: &PrivateTier, report: &Report) -> anyhow::Result<()> {
    eprintln!("{runs} cold starts, branch {branch}");
    let mut samples = Samples::default();
    // The first one finds nothing in the caches of the operating system, and is not counted.
    for run in 0..=runs {
        let mut compute = Compute::spawn(tier, BRANCH, &[])?;
        let (client, time) = compute.first_answer()?;
        drop(client);
        compute.stop()?;
        if run > 0 {
            samples.push(time.as_secs_f64() * 1e3);
        }
    }
    report.result(json!({
        "branch": branch,
        "runs": samples.len(),
        "p50_ms": samples.percentile(50.0),
        "p99_ms": samples.percentile(99.0),
    }));
    Ok(())
}
