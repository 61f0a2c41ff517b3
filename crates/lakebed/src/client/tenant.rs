//! `lakebed tenant …`.

use anyhow::Context;
use lakebed_compute::data_dir::owner_of;
use lakebed_controller::bootstrap::{NewTenant, Retention, create_tenant};
use lakebed_proto::v1;
use lakebed_types::TenantId;
use serde_json::{Value, json};

use super::{controller, table, told};
use crate::cli::{ProgramArgs, TenantCommand};
use crate::initdb::Initial;
use crate::up::tenant::PATIENCE;
use crate::window::{self, Bound, Bytes, Seconds};

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

fn show(tenants: &[v1::TenantInfo], as_json: bool) {
    let row = |tenant: &v1::TenantInfo| {
        json!({
            "name": tenant.name,
            "tenant": TenantId::from_slice(&tenant.tenant).ok(),
            "state": tenant.state().as_str_name().trim_start_matches("TENANT_STATE_").to_lowercase(),
            "shards": tenant.shards.len(),
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
        out.add_row(["name", "tenant", "state", "shards", "window"].map(text));
    }
    println!("{out}");
}
