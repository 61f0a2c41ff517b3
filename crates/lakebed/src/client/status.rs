//! `lakebed status`: the tier at a glance.

use lakebed_proto::v1::{self, NodeRole};
use serde_json::json;

use super::{Tier, branch, compute, table, tier, told};
use crate::cli::ClientArgs;

/// Prints it.
pub async fn run(args: ClientArgs, as_json: bool) -> anyhow::Result<()> {
    let Tier {
        mut controller,
        tenant,
    } = tier(&args).await?;
    let status = controller
        .get_status(v1::GetControllerStatusRequest {})
        .await
        .map_err(told)?
        .into_inner();
    let request = v1::ListBranchesRequest {
        tenant: tenant.clone(),
    };
    let branches = controller
        .list_branches(request)
        .await
        .map_err(told)?
        .into_inner()
        .branches;
    let computes = match args.connect {
        Some(_) => Vec::new(),
        None => compute::list(&args).await?,
    };
    let role = |role: NodeRole| role.as_str_name().trim_start_matches("NODE_ROLE_").to_lowercase();
    if as_json {
        let nodes: Vec<_> = status
            .nodes
            .iter()
            .map(|node| {
                let place = node.node.clone().unwrap_or_default();
                json!({
                    "node_id": place.node_id,
                    "role": role(node.role()),
                    "address": place.address,
                    "draining": node.draining,
                })
            })
            .collect();
        let out = json!({
            "tenant": tenant,
            "controller": { "node_id": status.node_id, "leader_id": status.leader_id, "term": status.term },
            "nodes": nodes,
            "waiting_for": status.waiting_for,
            "branches": branches.iter().map(branch::json_of).collect::<Vec<_>>(),
            "computes": computes.iter().map(compute::json_of).collect::<Vec<_>>(),
        });
        println!("{out}");
        return Ok(());
    }
    let mut nodes = table(&["NODE", "ROLE", "ADDRESS", "STATE"]);
    for node in &status.nodes {
        let place = node.node.clone().unwrap_or_default();
        let state = if node.draining { "being emptied" } else { "" };
        nodes.add_row([
            place.node_id.to_string(),
            role(node.role()),
            place.address,
            state.to_owned(),
        ]);
    }
    println!("{nodes}\n");
    let mut list = table(&[
        "BRANCH",
        "PARENT",
        "START",
        "STATE",
        "HISTORY SINCE",
        "WINDOW",
        "EXPIRES",
    ]);
    for row in branches.iter().map(branch::json_of) {
        let columns = [
            "name",
            "parent",
            "start_lsn",
            "state",
            "history_since",
            "window",
            "expires",
        ];
        list.add_row(columns.map(|column| branch::cell(&row, column)));
    }
    println!("{list}\n");
    compute::show(&computes, false);
    for what in status.waiting_for {
        println!("waiting: {what}");
    }
    Ok(())
}
