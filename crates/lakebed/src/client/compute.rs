//! `lakebed compute start|stop|status`.

use anyhow::{Context, bail};
use lakebed_controller::rfc3339;
use lakebed_proto::v1::create_branch_request::At;
use lakebed_proto::v1::supervisor_client::SupervisorClient;
use lakebed_proto::{connect, v1};
use lakebed_types::Lsn;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use super::branch::{PATIENCE, position};
use super::{controller, table, told};
use crate::cli::{ClientArgs, ComputeCommand};
use crate::up::layout;
use crate::up::target::Target;
use crate::window::Seconds;

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
            at_lsn,
            at_time,
            ttl,
            read_only,
            client,
        } => {
            let at = position(at_lsn, at_time)?;
            let read_only = read_only || at.is_some();
            let branch = match at {
                Some(at) => branch_at(&branch, at, ttl, &client).await?,
                None => branch,
            };
            // The supervisor may have another working directory.
            let pg_bin = pg_bin.map(std::path::absolute).transpose()?.unwrap_or_default();
            let request = v1::StartComputeRequest {
                branch,
                port: port.into(),
                pg_bin: pg_bin.display().to_string(),
                read_only,
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

/// Name of the branch on which `branch` is read as of a position: the same for the same position.
fn name_at(branch: &str, at: &At) -> String {
    let position = match at {
        At::AtLsn(lsn) => Lsn(*lsn).to_string().replace('/', "-"),
        At::AtUnixMicros(micros) => {
            let second = rfc3339::format(*micros).replace(|c: char| !c.is_ascii_alphanumeric(), "");
            match micros.rem_euclid(1_000_000) {
                0 => second,
                fraction => format!("{}.{fraction:06}Z", second.trim_end_matches('Z')),
            }
        }
        At::AtHead(_) => "head".to_owned(),
    };
    format!("{branch}-at-{position}")
}

/// A branch at a position of `branch`: a new one, or the one that was made for this position before.
async fn branch_at(branch: &str, at: At, ttl: Seconds, client: &ClientArgs) -> anyhow::Result<String> {
    let target: Target = branch.parse()?;
    let (_, mut controller) = controller(client).await?;
    let name = name_at(target.branch(), &at);
    let request = v1::CreateBranchRequest {
        tenant: target.tenant().to_owned(),
        name: name.clone(),
        from: target.branch().to_owned(),
        at: Some(at),
        ttl_seconds: ttl.0,
    };
    let created = tokio::time::timeout(PATIENCE, controller.create_branch(request)).await;
    let made = match created.context("no answer in time")? {
        Ok(made) => made.into_inner(),
        Err(status) if status.code() == Code::AlreadyExists => {
            let request = v1::ResolveBranchRequest {
                tenant: target.tenant().to_owned(),
                branch: name.clone(),
            };
            let found = controller
                .resolve_branch(request)
                .await
                .map_err(told)?
                .into_inner();
            if found.parent_name != target.branch() {
                bail!("there is a branch {name} already, which is not one of {branch}");
            }
            found
        }
        Err(status) => return Err(told(status)),
    };
    let until = match made.expires_unix_micros {
        0 => "stays until it is deleted".to_owned(),
        micros => format!(
            "goes after {}, once no compute runs on it",
            rfc3339::format(micros)
        ),
    };
    eprintln!(
        "branch {branch} as of {} is branch {name}; it {until}",
        Lsn(made.start_lsn)
    );
    Ok(Target::new(target.tenant(), &name).to_string())
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
        "read_only": info.read_only,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_has_one_name() {
        let of = |lsn: Option<&str>, time: Option<&str>| {
            let at = position(lsn.map(str::to_owned), time.map(str::to_owned)).unwrap();
            name_at("main", &at.unwrap())
        };
        assert_eq!(of(Some("1/554DA68"), None), "main-at-1-554DA68");
        for (time, name) in [
            ("2026-11-21T11:20:00+01:00", "main-at-20261121T102000Z"),
            ("2026-11-21T10:20:00.5Z", "main-at-20261121T102000.500000Z"),
        ] {
            assert_eq!(of(None, Some(time)), name);
        }
    }
}
