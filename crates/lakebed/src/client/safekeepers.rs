//! `lakebed safekeepers …` and `lakebed safekeeper decommission`.

use std::time::Duration;

use anyhow::bail;
use lakebed_compute::caretaker::Caretaker;
use lakebed_compute::control_plane::Named;
use lakebed_controller::rfc3339;
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::v1::{self, BranchState};
use lakebed_types::{Lsn, TimelineId};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::{addresses, controller, table, told};
use crate::cli::{SafekeeperCommand, SafekeepersCommand, SafekeepersOf};

/// Pause between two looks at a change.
const LOOK: Duration = Duration::from_millis(200);

type Client = ControllerClient<Channel>;

/// Runs one of `lakebed safekeepers`.
pub async fn run(command: SafekeepersCommand, as_json: bool) -> anyhow::Result<()> {
    let (info, in_time) = match command {
        SafekeepersCommand::Status(of) => {
            let (_, mut client) = controller(&of.client).await?;
            (look(&mut client, &of.tenant, &of.branch).await?, true)
        }
        SafekeepersCommand::Change {
            of,
            to,
            within,
            deadline,
            wait,
        } => {
            let (_, mut client) = controller(&of.client).await?;
            let request = v1::ChangeSafekeepersRequest {
                tenant: of.tenant.clone(),
                branch: of.branch.clone(),
                safekeepers: to,
                replace: 0,
                within_bytes: within,
                deadline_seconds: deadline,
            };
            let recorded = client.change_safekeepers(request).await.map_err(told)?;
            finished(&mut client, &of, recorded.into_inner(), wait).await?
        }
        SafekeepersCommand::Finish { of, wait, fence } => finish(&of, wait, fence).await?,
        SafekeepersCommand::Abort { of, wait } => {
            let (_, mut client) = controller(&of.client).await?;
            let request = v1::AbortSafekeeperChangeRequest {
                tenant: of.tenant.clone(),
                branch: of.branch.clone(),
            };
            let recorded = client.abort_safekeeper_change(request).await.map_err(told)?;
            finished(&mut client, &of, recorded.into_inner(), wait).await?
        }
    };
    show(&info, as_json);
    match (timed_out(&info), in_time) {
        (Some(told), false) => bail!("{told}"),
        (None, false) => bail!("{}; it goes on in the background", unfinished(&info)),
        (_, true) => Ok(()),
    }
}

/// Brings a change into force without a compute.
async fn finish(of: &SafekeepersOf, wait: u64, fence: bool) -> anyhow::Result<(v1::SafekeepersInfo, bool)> {
    let (_, mut client) = controller(&of.client).await?;
    let mut info = look(&mut client, &of.tenant, &of.branch).await?;
    if is_finished(&info) {
        return Ok((info, true));
    }
    let connected = info.safekeepers.iter().filter(|node| node.proposers > 0);
    let connected: Vec<u64> = connected.map(number).collect();
    if !connected.is_empty() && !fence {
        bail!(
            "a compute or a wal-client of this branch is connected to safekeepers {}, and finishes the change by itself; \
             if it hangs, --fence takes the branch from it",
            numbers(&connected)
        );
    }
    let named = Named {
        controllers: addresses(&of.client)?.0,
        tenant: of.tenant.clone(),
        name: of.branch.clone(),
    };
    let deadline = Duration::from_secs(wait);
    let finished = async {
        let caretaker = Caretaker::start(named).await?;
        let done = wait_until_finished(&mut client, &mut info, wait).await?;
        match caretaker.trouble() {
            Some(trouble) if !done => bail!("the branch was taken over meanwhile: {trouble}"),
            _ => Ok(done),
        }
    };
    let done = tokio::time::timeout(deadline, finished).await;
    let done = done.unwrap_or(Ok(false))?;
    Ok((info, done))
}

/// Runs one of `lakebed safekeeper`.
pub async fn run_node(command: SafekeeperCommand, as_json: bool) -> anyhow::Result<()> {
    let SafekeeperCommand::Decommission {
        node,
        undo,
        wait,
        client,
    } = command;
    let (_, mut client) = controller(&client).await?;
    let request = v1::DrainSafekeeperRequest {
        node_id: node,
        draining: !undo,
    };
    client.drain_safekeeper(request).await.map_err(told)?;
    if undo {
        eprintln!("new branches may be placed on safekeeper {node} again");
        return Ok(());
    }
    let kept = kept_by(&mut client, node).await?;
    let count = kept.len();
    for (number, (tenant, branch)) in (1..).zip(kept) {
        eprintln!("{number} of {count}: {tenant}/{branch}");
        let request = v1::ChangeSafekeepersRequest {
            tenant: tenant.clone(),
            branch: branch.clone(),
            replace: node,
            ..v1::ChangeSafekeepersRequest::default()
        };
        let mut info = client
            .change_safekeepers(request)
            .await
            .map_err(told)?
            .into_inner();
        if !wait_until_finished(&mut client, &mut info, wait).await? {
            let why = timed_out(&info).unwrap_or_else(|| unfinished(&info));
            bail!("{tenant}/{branch}: {why}; repeat this command later");
        }
        if as_json {
            println!("{}", json_of(&info));
        } else {
            eprintln!("    now kept by {}", numbers(&members(&info).current));
        }
    }
    eprintln!("safekeeper {node} keeps no branch any more");
    Ok(())
}

/// Tenant and name of every branch that counts on a safekeeper.
async fn kept_by(client: &mut Client, node: u64) -> anyhow::Result<Vec<(String, String)>> {
    let tenants = client
        .list_tenants(v1::ListTenantsRequest {})
        .await
        .map_err(told)?;
    let mut kept = Vec::new();
    for tenant in tenants.into_inner().tenants {
        let tenant = tenant.name;
        let request = v1::ListBranchesRequest {
            tenant: tenant.clone(),
        };
        let branches = client.list_branches(request).await.map_err(told)?;
        for branch in branches.into_inner().branches {
            let members = branch.membership.clone().unwrap_or_default();
            let counts = members.current.contains(&node) || members.next.contains(&node);
            if counts && branch.state() != BranchState::Active {
                bail!(
                    "{tenant}/{} is not ready yet: repeat this command later",
                    branch.name
                );
            }
            if counts {
                kept.push((tenant.clone(), branch.name));
            }
        }
    }
    Ok(kept)
}

async fn look(client: &mut Client, tenant: &str, branch: &str) -> anyhow::Result<v1::SafekeepersInfo> {
    let request = v1::GetSafekeepersRequest {
        tenant: tenant.to_owned(),
        branch: branch.to_owned(),
    };
    Ok(client.get_safekeepers(request).await.map_err(told)?.into_inner())
}

/// Waits as long as the caller wants to; whether that was enough. Whoever does not wait does not ask.
async fn finished(
    client: &mut Client,
    of: &SafekeepersOf,
    mut info: v1::SafekeepersInfo,
    wait: u64,
) -> anyhow::Result<(v1::SafekeepersInfo, bool)> {
    if wait == 0 {
        return Ok((look(client, &of.tenant, &of.branch).await?, true));
    }
    let in_time = wait_until_finished(client, &mut info, wait).await?;
    Ok((info, in_time))
}

/// Whether a change was finished in time; what happens meanwhile goes to standard error.
async fn wait_until_finished(
    client: &mut Client,
    info: &mut v1::SafekeepersInfo,
    wait: u64,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(wait);
    let mut said = String::new();
    while !is_finished(info) {
        let now = unfinished(info);
        if now != said {
            eprintln!("{now}");
            said = now;
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        let joined = info.joining.is_some();
        tokio::time::sleep(LOOK).await;
        let (tenant, branch) = (info.tenant_name.clone(), info.name.clone());
        match look(client, &tenant, &branch).await {
            Ok(now) => *info = now,
            // A controller that starts again goes on where it was.
            Err(error) => eprintln!("{error:#}"),
        }
        if joined && info.timed_out.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn members(info: &v1::SafekeepersInfo) -> v1::Membership {
    info.membership.clone().unwrap_or_default()
}

/// Nothing is left to do but what a node that is away would have to do. One that answers that the timeline has stopped
/// there is not away: so does one that is just deleting it, and until it has done so it cannot come back.
fn is_finished(info: &v1::SafekeepersInfo) -> bool {
    let still_leaving = |node: &v1::SafekeeperInfo| node.leaving && !node.away;
    info.settled && info.joining.is_none() && !info.safekeepers.iter().any(still_leaving)
}

/// That a change was given up, if it was the last one.
fn timed_out(info: &v1::SafekeepersInfo) -> Option<String> {
    let learners = &info.timed_out.as_ref()?.learners;
    let learners: Vec<u64> = learners.iter().map(|node| node.node_id).collect();
    Some(format!(
        "the last change was given up: safekeepers {} did not catch up in time; the present ones still count",
        numbers(&learners)
    ))
}

/// How far each learner is.
fn catching_up(info: &v1::SafekeepersInfo, joining: &v1::Joining) -> String {
    let committed = info
        .safekeepers
        .iter()
        .map(|node| node.commit_lsn)
        .max()
        .unwrap_or(0);
    let how_far = |learner: &v1::NodeLocation| {
        let node = learner.node_id;
        let known = info.safekeepers.iter().find(|known| number(known) == node);
        match known.filter(|known| known.flush_lsn > 0) {
            Some(known) => format!(
                "{node} is {} bytes behind",
                committed.saturating_sub(known.flush_lsn)
            ),
            None => format!("{node} has nothing yet"),
        }
    };
    let how_far: Vec<String> = joining.learners.iter().map(how_far).collect();
    how_far.join(", ")
}

fn numbers(nodes: &[u64]) -> String {
    let texts: Vec<String> = nodes.iter().map(u64::to_string).collect();
    texts.join(", ")
}

/// What is waited for, in words.
fn unfinished(info: &v1::SafekeepersInfo) -> String {
    let members = members(info);
    let generation = members.generation;
    if let Some(joining) = &info.joining {
        return format!(
            "generation {generation}: {}; {} follow when a compute of this branch, which has to run, or `lakebed safekeepers              finish`, has brought them within {} bytes; if not by {}, the change is given up",
            catching_up(info, joining),
            numbers(&joining.safekeepers),
            joining.within_bytes,
            rfc3339::format(joining.until_unix_micros)
        );
    }
    if !members.next.is_empty() {
        return format!(
            "generation {generation}: quorums of {} and of {} must agree until a compute of this branch, which \
             has to run, or `lakebed safekeepers finish`, has brought those who join up to date",
            numbers(&members.current),
            numbers(&members.next)
        );
    }
    if !info.settled {
        return format!(
            "generation {generation}: {} are to count alone as soon as a compute of this branch, which has to run, or `lakebed safekeepers finish`, finds \
             them in force",
            numbers(&members.current)
        );
    }
    let leaving: Vec<u64> = info
        .safekeepers
        .iter()
        .filter(|node| node.leaving)
        .map(number)
        .collect();
    format!(
        "generation {generation} is in force; {} still has to delete what it keeps",
        numbers(&leaving)
    )
}

fn number(safekeeper: &v1::SafekeeperInfo) -> u64 {
    safekeeper.node.as_ref().map_or(0, |node| node.node_id)
}

/// What a safekeeper is to a branch.
fn part(info: &v1::SafekeepersInfo, safekeeper: &v1::SafekeeperInfo) -> &'static str {
    let (node, members) = (number(safekeeper), members(info));
    let learners = info.joining.iter().flat_map(|joining| &joining.learners);
    if learners
        .map(|learner| learner.node_id)
        .any(|learner| learner == node)
    {
        return "learner";
    }
    let (now, next) = (members.current.contains(&node), members.next.contains(&node));
    match (now, next, members.next.is_empty()) {
        (false, false, _) => "former",
        (false, true, _) => "joins",
        (true, false, false) => "leaves",
        _ => "member",
    }
}

fn joining_json(joining: &v1::Joining) -> Value {
    let learners = joining.learners.iter().map(|learner| learner.node_id);
    json!({
        "attempt": joining.attempt,
        "safekeepers": joining.safekeepers,
        "learners": learners.collect::<Vec<_>>(),
        "within_bytes": joining.within_bytes,
        "until": rfc3339::format(joining.until_unix_micros),
    })
}

fn json_of(info: &v1::SafekeepersInfo) -> Value {
    let members = members(info);
    let timeline = info
        .timeline
        .as_ref()
        .and_then(|names| TimelineId::from_slice(&names.timeline).ok());
    let one = |safekeeper: &v1::SafekeeperInfo| {
        json!({
            "node_id": number(safekeeper),
            "address": safekeeper.node.as_ref().map(|node| &node.address),
            "part": part(info, safekeeper),
            "created": safekeeper.created,
            "generation": safekeeper.generation,
            "term": safekeeper.term,
            "commit_lsn": Lsn(safekeeper.commit_lsn).to_string(),
            "flush_lsn": Lsn(safekeeper.flush_lsn).to_string(),
            "proposers": safekeeper.proposers,
            "error": (!safekeeper.error.is_empty()).then_some(&safekeeper.error),
        })
    };
    json!({
        "tenant": info.tenant_name,
        "branch": info.name,
        "timeline": timeline,
        "generation": members.generation,
        "current": members.current,
        "next": members.next,
        "settled": info.settled,
        "joining": info.joining.as_ref().map(joining_json),
        "timed_out": info.timed_out.as_ref().map(joining_json),
        "finished": is_finished(info),
        "safekeepers": info.safekeepers.iter().map(one).collect::<Vec<_>>(),
    })
}

fn show(info: &v1::SafekeepersInfo, as_json: bool) {
    if as_json {
        println!("{}", json_of(info));
        return;
    }
    let mut out = table(&[
        "NODE",
        "PART",
        "GENERATION",
        "TERM",
        "COMMIT",
        "FLUSH",
        "ADDRESS",
        "TROUBLE",
    ]);
    for safekeeper in &info.safekeepers {
        out.add_row([
            number(safekeeper).to_string(),
            part(info, safekeeper).to_owned(),
            safekeeper.generation.to_string(),
            safekeeper.term.to_string(),
            Lsn(safekeeper.commit_lsn).to_string(),
            Lsn(safekeeper.flush_lsn).to_string(),
            safekeeper
                .node
                .as_ref()
                .map(|node| node.address.clone())
                .unwrap_or_default(),
            safekeeper.error.clone(),
        ]);
    }
    println!("{out}");
    if !is_finished(info) {
        println!("\n{}", unfinished(info));
    }
    if let Some(told) = timed_out(info) {
        println!("\n{told}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_finished_when_those_who_leave_have_deleted_it_or_are_away() {
        let node = |leaving, error: &str, away| v1::SafekeeperInfo {
            leaving,
            error: error.to_owned(),
            away,
            ..v1::SafekeeperInfo::default()
        };
        let table = [
            (vec![node(false, "", false)], true),
            (vec![node(false, "its disk failed", false)], true),
            (vec![node(true, "", false)], false),
            (vec![node(true, "it was deleted", false)], false),
            (vec![node(true, "no route to host", true)], true),
            (
                vec![node(true, "no route to host", true), node(true, "", false)],
                false,
            ),
        ];
        for (safekeepers, finished) in table {
            let info = |settled| v1::SafekeepersInfo {
                settled,
                safekeepers: safekeepers.clone(),
                ..v1::SafekeepersInfo::default()
            };
            assert_eq!(is_finished(&info(true)), finished, "{safekeepers:?}");
            assert!(!is_finished(&info(false)));
        }
    }
}
