//! `lakebed tenant …`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lakebed_compute::data_dir::owner_of;
use lakebed_controller::bootstrap::{NewTenant, Retention, create_tenant};
use lakebed_proto::v1::{self, controller_client::ControllerClient};
use lakebed_types::TenantId;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{controller, table, told};
use crate::cli::{ProgramArgs, TenantCommand};
use crate::initdb::Initial;
use crate::up::tenant::PATIENCE;
use crate::window::{self, Bound, Bytes, Seconds};

/// Pause between two looks at something that goes on.
const LOOK: Duration = Duration::from_millis(200);
/// What it waits for is said so often.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Runs one of them.
pub async fn run(command: TenantCommand, as_json: bool) -> anyhow::Result<()> {
    match command {
        TenantCommand::Create {
            name,
            branch,
            shards,
            safekeepers,
            from,
            window,
            window_bytes,
            programs: ProgramArgs { pg_bin, run_as },
            client,
        } => {
            let (address, _) = controller(&client).await?;
            let made;
            let data = match from {
                Some(data) => data,
                None => {
                    let home = std::env::temp_dir().join(format!("lakebed-initdb-{}", std::process::id()));
                    made = Initial::make(&pg_bin, home, owner_of(&run_as)?)?;
                    made.data()
                }
            };
            let tenant = NewTenant {
                name,
                branch,
                shards,
                safekeepers,
                retention: Some(retention(Retention::USUAL, window, window_bytes)),
            };
            let made = create_tenant(&address, &tenant, &data, PATIENCE).await?;
            if made.existed {
                eprintln!("tenant {} existed before; nothing was imported", tenant.name);
            }
            show_branch(&address, &made.branch, as_json);
        }
        TenantCommand::Set {
            name,
            window,
            window_bytes,
            client,
        } => {
            let (_, mut client) = controller(&client).await?;
            let request = v1::GetTenantRequest { tenant: name.clone() };
            let known = client.get_tenant(request).await.map_err(told)?.into_inner();
            let known = known.retention.unwrap_or_default();
            let known = Retention {
                seconds: known.window_seconds,
                bytes: known.window_bytes,
            };
            let wanted = retention(known, window, window_bytes);
            let request = v1::SetRetentionRequest {
                tenant: name,
                retention: Some(v1::Retention {
                    window_seconds: wanted.seconds,
                    window_bytes: wanted.bytes,
                }),
            };
            let set = client.set_retention(request).await.map_err(told)?;
            show(&[set.into_inner()], as_json);
        }
        TenantCommand::Split {
            name,
            shards,
            abort: _,
            no_wait,
            client,
        } => {
            let (_, mut client) = controller(&client).await?;
            let info = match shards {
                Some(shards) => split(&mut client, name, shards, !no_wait).await?,
                None => {
                    let request = v1::AbortSplitRequest { tenant: name };
                    client.abort_split(request).await.map_err(told)?.into_inner()
                }
            };
            show(&[info], as_json);
        }
        TenantCommand::MoveShard {
            name,
            shard,
            node,
            client,
        } => {
            let (_, mut client) = controller(&client).await?;
            let request = v1::MoveShardRequest {
                tenant: name,
                shard,
                node_id: node,
            };
            let moved = client.move_shard(request).await.map_err(told)?;
            show(&[moved.into_inner()], as_json);
        }
        TenantCommand::List { client } => {
            let (_, mut client) = controller(&client).await?;
            let list = client
                .list_tenants(v1::ListTenantsRequest {})
                .await
                .map_err(told)?;
            show(&list.into_inner().tenants, as_json);
        }
        TenantCommand::Delete { name, client } => {
            let (_, mut client) = controller(&client).await?;
            let request = v1::DeleteTenantRequest { tenant: name.clone() };
            client
                .delete_tenant(request)
                .await
                .map_err(told)
                .with_context(|| format!("tenant {name}"))?;
            match as_json {
                true => println!("{}", json!({ "deleting": name })),
                false => eprintln!("tenant {name} is being deleted"),
            }
        }
    }
    Ok(())
}

/// Begins a split, and waits for its end if wanted. What happens goes to standard error.
async fn split(
    client: &mut ControllerClient<Channel>,
    name: String,
    shards: u32,
    wait: bool,
) -> anyhow::Result<v1::TenantInfo> {
    let request = v1::SplitTenantRequest {
        tenant: name.clone(),
        shards,
    };
    let begun = client.split_tenant(request).await.map_err(told)?.into_inner();
    let id = TenantId::from_slice(&begun.tenant).map(|id| id.to_string());
    let id = id.context("the controller's answer has no tenant")?;
    if begun.split.is_empty() {
        eprintln!("tenant {name} has {} shards", begun.shards.len());
        return Ok(begun);
    }
    if !wait {
        eprintln!(
            "tenant {name} is being split into {shards} shards; see `lakebed tenant list` and `lakebed status`"
        );
        return Ok(begun);
    }
    let (mut said, mut say) = (String::new(), Instant::now() + SAY_EVERY);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = match look(client, &id).await {
            Ok((now, _)) if now.split.is_empty() => {
                if now.shards.len() as u64 != u64::from(shards) {
                    bail!("the split of tenant {name} was called off");
                }
                eprintln!("tenant {name} has {shards} shards");
                return Ok(now);
            }
            Ok((_, waiting_for)) => waiting_for,
            // A controller that starts again goes on where it was.
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= say && !now.is_empty() && now != said {
            eprintln!("{now}");
            (said, say) = (now, Instant::now() + SAY_EVERY);
        }
    }
}

/// A tenant as it is now, with what the controller says of it.
async fn look(client: &mut ControllerClient<Channel>, id: &str) -> anyhow::Result<(v1::TenantInfo, String)> {
    let request = v1::GetTenantRequest {
        tenant: id.to_owned(),
    };
    let info = client.get_tenant(request).await.map_err(told)?.into_inner();
    let status = client.get_status(v1::GetControllerStatusRequest {}).await;
    let lines = status.map_err(told)?.into_inner().waiting_for.into_iter();
    let lines: Vec<String> = lines.filter(|line| line.contains(id)).collect();
    Ok((info, lines.join("\n")))
}

/// A window with what the command line says of it.
fn retention(
    known: Retention,
    window: Option<Bound<Seconds>>,
    window_bytes: Option<Bound<Bytes>>,
) -> Retention {
    Retention {
        seconds: window.map_or(known.seconds, |bound| {
            bound.some().map(|Seconds(seconds)| seconds)
        }),
        bytes: window_bytes.map_or(known.bytes, |bound| bound.some().map(|Bytes(bytes)| bytes)),
    }
}

fn show_branch(controller: &str, branch: &v1::BranchInfo, as_json: bool) {
    let connect = format!("lakebed://{controller}/{}/{}", branch.tenant_name, branch.name);
    match as_json {
        true => println!(
            "{}",
            json!({ "tenant": branch.tenant_name, "branch": branch.name, "connect": connect })
        ),
        false => println!("connect: {connect}"),
    }
}

/// How long history is kept, for people.
pub fn window_text(retention: Option<&v1::Retention>) -> String {
    let retention = retention.copied().unwrap_or_default();
    window::text(retention.window_seconds, retention.window_bytes)
}

/// Pageserver of each shard.
fn owners(shards: &[v1::ShardLocation]) -> Vec<u64> {
    let owner = |shard: &v1::ShardLocation| shard.node.as_ref().map_or(0, |node| node.node_id);
    shards.iter().map(owner).collect()
}

fn show(tenants: &[v1::TenantInfo], as_json: bool) {
    let row = |tenant: &v1::TenantInfo| {
        json!({
            "name": tenant.name,
            "tenant": TenantId::from_slice(&tenant.tenant).ok(),
            "state": tenant.state().as_str_name().trim_start_matches("TENANT_STATE_").to_lowercase(),
            "shards": tenant.shards.len(),
            "split_into": (!tenant.split.is_empty()).then_some(tenant.split.len()),
            "former_shards": tenant.former_shards,
            "pageservers": owners(&tenant.shards),
            "window": window_text(tenant.retention.as_ref()),
            "window_seconds": tenant.retention.and_then(|window| window.window_seconds),
            "window_bytes": tenant.retention.and_then(|window| window.window_bytes),
        })
    };
    let rows: Vec<Value> = tenants.iter().map(row).collect();
    if as_json {
        for row in rows {
            println!("{row}");
        }
        return;
    }
    let mut out = table(&["NAME", "ID", "STATE", "SHARDS", "WINDOW"]);
    for row in &rows {
        let text = |column: &str| {
            row[column]
                .as_str()
                .map_or_else(|| row[column].to_string(), str::to_owned)
        };
        let mut columns = ["name", "tenant", "state", "shards", "window"].map(text);
        if let Some(more) = row["split_into"].as_u64() {
            columns[3] = format!("{} (being split into {more})", columns[3]);
        }
        out.add_row(columns);
    }
    println!("{out}");
}
