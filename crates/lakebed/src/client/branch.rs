//! `lakebed branch …`.

use std::time::Duration;

use anyhow::Context;
use lakebed_controller::rfc3339;
use lakebed_proto::v1::{self, create_branch_request::At};
use lakebed_types::{Lsn, TimelineId};
use serde_json::{Value, json};

use super::tenant::window_text;
use super::{Tier, table, tier, told};
use crate::cli::BranchCommand;
use crate::window::Seconds;

/// A client waits for a branch this long.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Runs one of them.
pub async fn run(command: BranchCommand, as_json: bool) -> anyhow::Result<()> {
    match command {
        BranchCommand::Create {
            name,
            from,
            at_lsn,
            at_time,
            ttl,
            client,
        } => {
            let Tier {
                mut controller,
                tenant,
            } = tier(&client).await?;
            let at = position(at_lsn, at_time)?.unwrap_or(At::AtHead(v1::BranchAtHead {}));
            let request = v1::CreateBranchRequest {
                tenant,
                name,
                from,
                at: Some(at),
                ttl_seconds: ttl.map_or(0, |Seconds(seconds)| seconds),
            };
            let created = tokio::time::timeout(PATIENCE, controller.create_branch(request)).await;
            let branch = created.context("no answer in time")?.map_err(told)?.into_inner();
            show(&[branch], as_json);
        }
        BranchCommand::List { client } => {
            let Tier {
                mut controller,
                tenant,
            } = tier(&client).await?;
            let list = controller
                .list_branches(v1::ListBranchesRequest { tenant })
                .await
                .map_err(told)?;
            show(&list.into_inner().branches, as_json);
        }
        BranchCommand::Delete { name, client } => {
            let Tier {
                mut controller,
                tenant,
            } = tier(&client).await?;
            let request = v1::DeleteBranchRequest {
                tenant,
                name: name.clone(),
            };
            controller.delete_branch(request).await.map_err(told)?;
            match as_json {
                true => println!("{}", json!({ "deleted": name })),
                false => eprintln!("branch {name} deleted"),
            }
        }
    }
    Ok(())
}

/// `--at-lsn` and `--at-time` of a command line.
pub fn position(at_lsn: Option<String>, at_time: Option<String>) -> anyhow::Result<Option<At>> {
    Ok(match (at_lsn, at_time) {
        (Some(lsn), _) => {
            let lsn: Lsn = lsn.parse().with_context(|| format!("--at-lsn {lsn}"))?;
            Some(At::AtLsn(lsn.0))
        }
        (None, Some(time)) => Some(At::AtUnixMicros(unix_micros(&time)?)),
        (None, None) => None,
    })
}

/// One branch as JSON.
pub fn json_of(branch: &v1::BranchInfo) -> Value {
    let timeline = branch
        .timeline
        .as_ref()
        .and_then(|names| TimelineId::from_slice(&names.timeline).ok());
    // As long as nothing was given up, history begins where the branch does.
    let (history_lsn, history_since) = match branch.horizon_lsn {
        0 => (branch.start_lsn, branch.created_unix_micros),
        horizon => (horizon, branch.horizon_unix_micros),
    };
    json!({
        "name": branch.name,
        "timeline": timeline,
        "state": branch.state().as_str_name().trim_start_matches("BRANCH_STATE_").to_lowercase(),
        "parent": (!branch.parent_name.is_empty()).then_some(&branch.parent_name),
        "start_lsn": Lsn(branch.start_lsn).to_string(),
        "created": rfc3339::format(branch.created_unix_micros),
        "window": window_text(branch.retention.as_ref()),
        "history_lsn": Lsn(history_lsn).to_string(),
        "history_since": rfc3339::format(history_since),
        "expires": (branch.expires_unix_micros != 0).then(|| rfc3339::format(branch.expires_unix_micros)),
    })
}

/// Prints branches.
pub fn show(branches: &[v1::BranchInfo], as_json: bool) {
    let rows: Vec<Value> = branches.iter().map(json_of).collect();
    if as_json {
        for row in rows {
            println!("{row}");
        }
        return;
    }
    let mut out = table(&[
        "NAME",
        "PARENT",
        "START",
        "STATE",
        "CREATED",
        "HISTORY SINCE",
        "EXPIRES",
    ]);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    for row in &rows {
        let columns = [
            "name",
            "parent",
            "start_lsn",
            "state",
            "created",
            "history_since",
            "expires",
        ];
        out.add_row(columns.map(|column| text(&row[column])));
    }
    println!("{out}");
}

/// Microseconds since 1970 of a time on the command line.
pub fn unix_micros(text: &str) -> anyhow::Result<i64> {
    rfc3339::parse(text).with_context(|| {
        format!("`{text}` is no time; the form is 2026-11-21T10:30:00Z or 2026-11-21T10:30:00.5+01:00")
    })
}
