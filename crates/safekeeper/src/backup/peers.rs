//! What the other members of a timeline say about it.
//!
//! The controller knows where safekeepers are; while it is away the addresses that it told last are used. A member that
//! does not answer in time has not reported, no more and no less.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_types::{Generation, Lsn, NodeId, Term};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::plan::{Report, ShardReport};
use crate::data_dir::Name;

/// How long a member may take to report.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a controller may take.
const CONTROLLER_PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two looks at the controller's list.
const FOLLOW: Duration = Duration::from_secs(10);
/// The same while nothing is known yet.
const FOLLOW_FIRST: Duration = Duration::from_secs(1);

/// Where the other safekeepers are.
#[derive(Debug, Default)]
pub struct Peers {
    addresses: Mutex<BTreeMap<NodeId, String>>,
    connections: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    /// Replaces what is known about where safekeepers are.
    pub fn set(&self, addresses: BTreeMap<NodeId, String>) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|address, _| addresses.values().any(|known| known == address));
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// What one of them reports about a timeline; `None` when it does not.
    pub async fn ask(&self, node: NodeId, timeline: Name) -> Option<Report> {
        let status = self.status(node, timeline).await?;
        Some(report(node, &status))
    }

    /// What one of them says about a timeline; `None` when it does not.
    pub async fn status(&self, node: NodeId, timeline: Name) -> Option<v1::SafekeeperTimelineStatus> {
        let address = {
            let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            addresses.get(&node)?.clone()
        };
        let asked = async {
            let channel = self.channel(&address).await?;
            let request = convert::timeline_ref(timeline.0, timeline.1);
            let answer = SafekeeperClient::new(channel).get_timeline_status(request).await;
            Some(answer.ok()?.into_inner())
        };
        let said = tokio::time::timeout(PATIENCE, asked).await.ok().flatten();
        if said.is_none() {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.remove(&address);
        }
        said
    }

    /// WAL of one of them, as much of the range as it has: committed WAL, or on behalf of a term what it flushed.
    ///
    /// # Errors
    /// Why there is none, in words. After a silence of a few seconds that is the reason.
    pub async fn read(
        &self,
        node: NodeId,
        timeline: Name,
        (begin, end): (Lsn, Lsn),
        term: Term,
    ) -> Result<Vec<u8>, String> {
        let address = {
            let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            addresses.get(&node).cloned()
        };
        let address = address.ok_or("its address is not known")?;
        let channel = tokio::time::timeout(PATIENCE, self.channel(&address)).await;
        let channel = channel.ok().flatten().ok_or("it cannot be reached")?;
        let request = v1::ReadWalRequest {
            timeline: Some(convert::timeline_ref(timeline.0, timeline.1)),
            begin_lsn: begin.0,
            end_lsn: end.0,
            committed_only: term == Term(0),
            term: term.0,
        };
        let mut wal = Vec::new();
        let read = async {
            let silent = |_| tonic::Status::deadline_exceeded("it does not go on");
            let mut client = SafekeeperClient::new(channel);
            let asked = tokio::time::timeout(PATIENCE, client.read_wal(request)).await;
            let mut chunks = asked.map_err(silent)??.into_inner();
            let wanted = usize::try_from(end.0 - begin.0).unwrap_or(usize::MAX);
            while wal.len() < wanted {
                let next = tokio::time::timeout(PATIENCE, chunks.message()).await;
                match next.map_err(silent)?? {
                    Some(chunk) => wal.extend_from_slice(&chunk.wal),
                    None => break,
                }
            }
            Ok::<(), tonic::Status>(())
        };
        match read.await {
            // What came before damage of its own may be what is asked for.
            Err(status) if wal.is_empty() => Err(status.to_string()),
            _ => Ok(wal),
        }
    }

    async fn channel(&self, address: &str) -> Option<Channel> {
        let known = {
            let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.get(address).cloned()
        };
        if known.is_some() {
            return known;
        }
        let channel = connect(address).await.ok()?;
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.insert(address.to_owned(), channel.clone());
        Some(channel)
    }

    /// Asks the controllers where safekeepers are, again and again, until `stop`.
    pub async fn follow(&self, controllers: Vec<String>, stop: CancellationToken) {
        loop {
            let mut known = false;
            for controller in &controllers {
                let listed = tokio::time::timeout(CONTROLLER_PATIENCE, list(controller)).await;
                if let Ok(Some(addresses)) = listed {
                    self.set(addresses);
                    known = true;
                    break;
                }
            }
            let pause = if known { FOLLOW } else { FOLLOW_FIRST };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

async fn list(controller: &str) -> Option<BTreeMap<NodeId, String>> {
    let channel = connect(controller).await.ok()?;
    let status = ControllerClient::new(channel)
        .get_status(v1::GetControllerStatusRequest {})
        .await
        .ok()?;
    let safekeepers = status.into_inner().nodes.into_iter().filter_map(|registered| {
        let node = registered.node?;
        let role = v1::NodeRole::Safekeeper as i32;
        (registered.role == role).then_some((NodeId(node.node_id), node.address))
    });
    Some(safekeepers.collect())
}

fn report(node: NodeId, status: &v1::SafekeeperTimelineStatus) -> Report {
    let shards = status.shard_reports.iter().filter_map(|shard| {
        let number = |wire: u32| u8::try_from(wire).ok();
        Some(ShardReport {
            shard: (number(shard.shard_count)?, number(shard.shard_index)?),
            generation: Generation(shard.generation),
            remote_consistent: Lsn(shard.remote_consistent_lsn),
            fed: shard.fed,
        })
    });
    Report {
        node,
        works: status.stopped_reason.is_empty(),
        commit: Lsn(status.commit_lsn),
        backup: Lsn(status.backup_lsn),
        shards: shards.collect(),
    }
}
