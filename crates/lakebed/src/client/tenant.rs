//! `lakebed tenant …`.

use anyhow::Context;
use lakebed_compute::data_dir::owner_of;
use lakebed_controller::bootstrap::{NewTenant, create_tenant};
use lakebed_proto::v1;
use lakebed_types::TenantId;
use serde_json::{Value, json};

use super::{controller, table, told};
use crate::cli::{ProgramArgs, TenantCommand};
use crate::initdb::Initial;
use crate::up::tenant::PATIENCE;

/// Runs one of them.
pub async fn run(command: TenantCommand, as_json: bool) -> anyhow::Result<()> {
    match command {
        TenantCommand::Create {
            name,
            branch,
            shards,
            safekeepers,
            from,
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
            };
            let made = create_tenant(&address, &tenant, &data, PATIENCE).await?;
            if made.existed {
                eprintln!("tenant {} existed before; nothing was imported", tenant.name);
            }
            show_branch(&address, &made.branch, as_json);
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

fn show(tenants: &[v1::TenantInfo], as_json: bool) {
    let row = |tenant: &v1::TenantInfo| {
        json!({
            "name": tenant.name,
            "tenant": TenantId::from_slice(&tenant.tenant).ok(),
            "state": tenant.state().as_str_name().trim_start_matches("TENANT_STATE_").to_lowercase(),
            "shards": tenant.shards.len(),
        })
    };
    let rows: Vec<Value> = tenants.iter().map(row).collect();
    if as_json {
        for row in rows {
            println!("{row}");
        }
        return;
    }
    let mut out = table(&["NAME", "ID", "STATE", "SHARDS"]);
    for row in &rows {
        let text = |column: &str| {
            row[column]
                .as_str()
                .map_or_else(|| row[column].to_string(), str::to_owned)
        };
        out.add_row(["name", "tenant", "state", "shards"].map(text));
    }
    println!("{out}");
}
