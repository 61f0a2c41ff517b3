//! How long a branch takes: from the gRPC call to its answer, which comes when the branch is active.

use std::time::Instant;

use clap::Args;
use lakebed_proto::v1::{self, BranchState, create_branch_request::At};
use serde_json::json;
use tokio::task::block_in_place;

use super::Report;
use super::compute::Compute;
use super::stats::Samples;
use super::tier::{PrivateTier, TierArgs};
use crate::client::told;
use crate::up::tenant::{BRANCH, TENANT};

/// Its options.
#[derive(Debug, Args)]
pub struct BranchBenchArgs {
    /// Branches for each number of relations.
    #[arg(long, default_value_t = 30)]
    pub runs: u32,
    /// Numbers of tables that the parent has, rising.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    pub relations: Vec<u32>,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &BranchBenchArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    tier.start().await?;
    let mut controller = tier.controller().await?;
    let mut there = 0;
    for &relations in &args.relations {
        eprintln!("making {relations} tables");
        block_in_place(|| make_tables(tier, there, relations))?;
        there = relations;
        let mut samples = Samples::default();
        // The first one opens connections, and is not counted.
        for run in 0..=args.runs {
            let name = format!("branch-{run}");
            let request = v1::CreateBranchRequest {
                tenant: TENANT.to_owned(),
                name: name.clone(),
                from: BRANCH.to_owned(),
                at: Some(At::AtHead(v1::BranchAtHead {})),
                ttl_seconds: 0,
            };
            let began = Instant::now();
            let made = controller
                .create_branch(request)
                .await
                .map_err(told)?
                .into_inner();
            let time = began.elapsed();
            anyhow::ensure!(
                made.state() == BranchState::Active,
                "the answer came before the branch was active"
            );
            if run > 0 {
                samples.push(time.as_secs_f64() * 1e3);
            }
            let request = v1::DeleteBranchRequest {
                tenant: TENANT.to_owned(),
                name,
            };
            controller.delete_branch(request).await.map_err(told)?;
        }
        report.result(json!({
            "relations": relations,
            "runs": samples.len(),
            "p50_ms": samples.percentile(50.0),
            "p99_ms": samples.percentile(99.0),
        }));
    }
    Ok(())
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
