//! `lakebed restore`: a branch as it was.

use anyhow::Context;
use lakebed_proto::v1::{self, restore_branch_request::At};
use lakebed_types::Lsn;
use serde_json::json;

use super::branch::{self, PATIENCE, unix_micros};
use super::{Tier, tier, told};
use crate::cli::RestoreArgs;

/// Restores it and says under which name the former state is.
pub async fn run(args: RestoreArgs, as_json: bool) -> anyhow::Result<()> {
    let Tier {
        mut controller,
        tenant,
    } = tier(&args.client).await?;
    let at = match args.at.parse::<Lsn>() {
        Ok(lsn) => At::AtLsn(lsn.0),
        Err(_) => At::AtUnixMicros(unix_micros(&args.at).context("--at is neither an LSN nor a time")?),
    };
    let request = v1::RestoreBranchRequest {
        tenant,
        branch: args.branch,
        at: Some(at),
        keep_as: args.keep_as.unwrap_or_default(),
    };
    let restored = tokio::time::timeout(PATIENCE, controller.restore_branch(request)).await;
    let restored =
        restored.context("no answer in time: look with `lakebed branch list` whether it was done")?;
    let v1::RestoreBranchResponse { branch, before } = restored.map_err(told)?.into_inner();
    let (branch, before) = (branch.unwrap_or_default(), before.unwrap_or_default());
    if as_json {
        println!(
            "{}",
            json!({ "restored": branch::json_of(&branch), "before": branch::json_of(&before) })
        );
        return Ok(());
    }
    eprintln!(
        "branch {} goes on from {}; what it was until now is branch {}",
        branch.name,
        Lsn(branch.start_lsn),
        before.name
    );
    branch::show(&[branch, before], false);
    Ok(())
}
