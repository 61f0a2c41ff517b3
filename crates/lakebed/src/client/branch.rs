//! `lakebed branch …`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
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
/// The pause between two looks at something that takes longer.
const LOOK: Duration = Duration::from_millis(200);
/// So often it is said how far that is.
const SAY_EVERY: Duration = Duration::from_secs(5);

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
        BranchCommand::Detach {
            branch,
            no_wait,
            client,
        } => {
            let mut tier = tier(&client).await?;
            let branch = detach(&mut tier, branch, !no_wait).await?;
            if as_json {
                println!("{}", json_of(&branch));
            }
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

/// Begins it, and waits for its end if wanted. What happens goes to standard error.
async fn detach(tier: &mut Tier, name: String, wait: bool) -> anyhow::Result<v1::BranchInfo> {
    let Tier { controller, tenant } = tier;
    let request = v1::DetachBranchRequest {
        tenant: tenant.clone(),
        branch: name.clone(),
    };
    let begun = controller.detach_branch(request).await.map_err(told)?;
    let begun = begun.into_inner();
    if !begun.detaching {
        eprintln!("branch {name} has no parent");
        return Ok(begun);
    }
    if !wait {
        eprintln!(
            "branch {name} is being detached from {}; see `lakebed branch list`",
            begun.parent_name
        );
        return Ok(begun);
    }
    let (mut said, mut say) = (String::new(), Instant::now() + SAY_EVERY);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = match look(tier, &begun).await {
            Ok(now) => now,
            // A controller that starts again goes on where it was.
            Err(error) => {
                if Instant::now() >= say {
                    (said, say) = (format!("{error:#}"), Instant::now() + SAY_EVERY);
                    eprintln!("{said}");
                }
                continue;
            }
        };
        let Some((branch, waiting_for)) = now else {
            bail!("branch {name} was deleted meanwhile");
        };
        if !branch.detaching {
            eprintln!("branch {} is detached from {}", branch.name, begun.parent_name);
            return Ok(branch);
        }
        if Instant::now() >= say && !waiting_for.is_empty() && waiting_for != said {
            eprintln!("{waiting_for}");
            (said, say) = (waiting_for, Instant::now() + SAY_EVERY);
        }
    }
}

/// A branch as it is now, whatever its name is, with what the controller says of its shards; none when it was deleted.
async fn look(tier: &mut Tier, known: &v1::BranchInfo) -> anyhow::Result<Option<(v1::BranchInfo, String)>> {
    let Tier { controller, tenant } = tier;
    let request = v1::ListBranchesRequest {
        tenant: tenant.clone(),
    };
    let list = controller
        .list_branches(request)
        .await
        .map_err(told)?
        .into_inner();
    let found = list
        .branches
        .into_iter()
        .find(|branch| branch.timeline == known.timeline);
    let status = controller.get_status(v1::GetControllerStatusRequest {}).await;
    let lines = status.map_err(told)?.into_inner().waiting_for;
    let timeline = timeline_of(known).map(|timeline| timeline.to_string());
    let concerns = |line: &String| timeline.as_ref().is_some_and(|timeline| line.contains(timeline));
    let lines: Vec<String> = lines.into_iter().filter(concerns).collect();
    Ok(found.map(|branch| (branch, lines.join("\n"))))
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

fn timeline_of(branch: &v1::BranchInfo) -> Option<TimelineId> {
    let names = branch.timeline.as_ref()?;
    TimelineId::from_slice(&names.timeline).ok()
}

/// One branch as JSON.
pub fn json_of(branch: &v1::BranchInfo) -> Value {
    let timeline = timeline_of(branch);
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
        "detaching": branch.detaching,
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
        out.add_row(columns.map(|column| cell(row, column)));
    }
    println!("{out}");
}

/// What a table for people shows of [`json_of`] a branch.
pub fn cell(row: &Value, column: &str) -> String {
    let text = row[column].as_str().unwrap_or("-");
    match column == "state" && row["detaching"] == true {
        true => format!("{text}, detaching"),
        false => text.to_owned(),
    }
}

/// Microseconds since 1970 of a time on the command line.
pub fn unix_micros(text: &str) -> anyhow::Result<i64> {
    rfc3339::parse(text).with_context(|| {
        format!("`{text}` is no time; the form is 2026-11-21T10:30:00Z or 2026-11-21T10:30:00.5+01:00")
    })
}
