//! How long a branch takes: from the gRPC call to its answer, which comes when the branch is active.
//!
//! The parent has many relations or few, and many bytes or few. Bytes are made up ([`super::synthetic`]): what could make a
//! branch of a large timeline slow is its manifest.

use std::time::Instant;

use clap::Args;
use lakebed_blobstore::BlobStore;
use lakebed_proto::v1::{self, BranchState, create_branch_request::At};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::Report;
use super::compute::Compute;
use super::stats::Samples;
use super::synthetic::Stored;
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
    /// GiB of layers that the parent has, rising; 0 for what it has by itself. After the tables.
    #[arg(long, value_delimiter = ',', default_value = "0,1,100,1024")]
    pub gib: Vec<u64>,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &BranchBenchArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    tier.start().await?;
    let store = BlobStore::open(&tier.directory.store())?;
    let stored = Stored::only(&store).await?;
    let mut there = 0;
    for &relations in &args.relations {
        eprintln!("making {relations} tables");
        block_in_place(|| make_tables(tier, there, relations))?;
        there = relations;
        let what = json!({"relations": relations, "gib": 0});
        report.result(measure(args, tier, what).await?);
    }
    for &gib in args.gib.iter().filter(|gib| **gib > 0) {
        tier.pause().await;
        let size = stored.grow(gib << 30).await?;
        eprintln!("{gib} GiB in {} layers", size.layers);
        tier.resume().await?;
        let before = stored.manifests(&store).await?;
        let what = json!({
            "relations": there,
            "gib": gib,
            "layers": size.layers,
            "manifest_bytes": size.manifest_bytes,
        });
        let mut result = measure(args, tier, what).await?;
        let after = stored.manifests(&store).await?;
        result["parent_manifests"] = json!(after.0.saturating_sub(before.0));
        result["parent_manifest_bytes"] = json!(after.1.saturating_sub(before.1));
        report.result(result);
    }
    Ok(())
}

/// Makes branches and deletes each; `what` with their times.
async fn measure(args: &BranchBenchArgs, tier: &PrivateTier, mut what: Value) -> anyhow::Result<Value> {
    let mut controller = tier.controller().await?;
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
    what["runs"] = json!(samples.len());
    what["p50_ms"] = json!(samples.percentile(50.0));
    what["p99_ms"] = json!(samples.percentile(99.0));
    Ok(what)
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
