//! `lakebed compute start|stop|status`.

use anyhow::{Context, bail};
use lakebed_proto::v1::supervisor_client::SupervisorClient;
use lakebed_proto::{connect, v1};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{table, told};
use crate::cli::{ClientArgs, ComputeCommand};
use crate::up::layout;

async fn supervisor(args: &ClientArgs) -> anyhow::Result<SupervisorClient<Channel>> {
    if args.connect.is_some() && args.dir.is_none() {
        bail!("computes are managed by the `lakebed up` of a machine: give its directory with --dir");
    }
    let directory = layout::directory(args.dir.as_deref())?;
    let address = layout::read(&directory)?.supervisor();
    let channel = connect(&address).await;
    let channel =
        channel.with_context(|| format!("no `lakebed up` answers for {}: start it", directory.display()))?;
    Ok(SupervisorClient::new(channel))
}

/// Runs one of them.
pub async fn run(command: ComputeCommand, as_json: bool) -> anyhow::Result<()> {
    match command {
        ComputeCommand::Start {
            branch,
            port,
            pg_bin,
            client,
        } => {
            // The supervisor may have another working directory.
            let pg_bin = pg_bin.map(std::path::absolute).transpose()?.unwrap_or_default();
            let request = v1::StartComputeRequest {
                branch,
                port: port.into(),
                pg_bin: pg_bin.display().to_string(),
            };
            let started = supervisor(&client)
                .await?
                .start_compute(request)
                .await
                .map_err(told)?;
            let info = started.into_inner();
            match as_json {
                true => println!("{}", json_of(&info)),
                false => println!("connection: {}", info.connection),
            }
        }
        ComputeCommand::Stop { branch, client } => {
            let request = v1::StopComputeRequest { branch };
            let stopped = supervisor(&client)
                .await?
                .stop_compute(request)
                .await
                .map_err(told)?;
            let info = stopped.into_inner();
            match as_json {
                true => println!("{}", json_of(&info)),
                false => eprintln!("the compute of branch {} is stopped", info.branch),
            }
        }
        ComputeCommand::Status { branch, client } => {
            let list = supervisor(&client)
                .await?
                .list_computes(v1::ListComputesRequest {})
                .await
                .map_err(told)?;
            let mut computes = list.into_inner().computes;
            if let Some(branch) = branch {
                computes.retain(|compute| compute.branch == branch);
                if computes.is_empty() {
                    let mut none = v1::ComputeInfo {
                        branch,
                        ..Default::default()
                    };
                    none.set_state(v1::ComputeState::Stopped);
                    computes.push(none);
                }
            }
            show(&computes, as_json);
        }
    }
    Ok(())
}

/// All computes of a machine.
pub async fn list(args: &ClientArgs) -> anyhow::Result<Vec<v1::ComputeInfo>> {
    let list = supervisor(args)
        .await?
        .list_computes(v1::ListComputesRequest {})
        .await
        .map_err(told)?;
    Ok(list.into_inner().computes)
}

/// One compute as JSON.
pub fn json_of(info: &v1::ComputeInfo) -> Value {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    json!({
        "branch": info.branch,
        "state": info.state().as_str_name().trim_start_matches("COMPUTE_STATE_").to_lowercase(),
        "port": (info.port != 0).then_some(info.port),
        "connection": text(&info.connection),
        "admin": text(&info.admin),
        "message": text(&info.message),
    })
}

/// Prints computes.
pub fn show(computes: &[v1::ComputeInfo], as_json: bool) {
    if as_json {
        for compute in computes {
            println!("{}", json_of(compute));
        }
        return;
    }
    let mut out = table(&["BRANCH", "STATE", "CONNECTION", "ADMIN", "MESSAGE"]);
    for compute in computes {
        let row = json_of(compute);
        let text = |column: &str| row[column].as_str().unwrap_or("-").to_owned();
        out.add_row(["branch", "state", "connection", "admin", "message"].map(text));
    }
    println!("{out}");
}
