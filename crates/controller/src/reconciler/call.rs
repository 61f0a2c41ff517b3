//! One planned call, carried out over gRPC. Each is idempotent on its node.

use std::time::Duration;

use lakebed_placement::plan::{Action, PlacedShard, TimelineSpec};
use lakebed_placement::{Call, Command, Intent, NodeRole};
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{convert, v1};
use lakebed_types::{TenantId, TimelineId};

use super::role_text;
use crate::nodes::{NodeError, Nodes};
use crate::raft_node::ProposeError;
use crate::wire;

/// How long a safekeeper may take: it creates or removes a few files.
const SAFEKEEPER_PATIENCE: Duration = Duration::from_secs(15);
/// How long a safekeeper may take to say how far it is.
pub(crate) const PEER_PATIENCE: Duration = Duration::from_secs(2);
/// How long a pageserver may take: it may read object storage, and waits until a parent has ingested a branch point.
const PAGESERVER_PATIENCE: Duration = Duration::from_secs(90);

/// Why a step was not done, or not certainly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The log.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Nobody can tell where a new member begins.
    #[error("the timeline is stopped on every safekeeper that has it")]
    AllStopped,
    /// No failure: it was begun and goes on at the node, which is asked again. The text is the same each time, so that it is
    /// logged once.
    #[error("it is under way")]
    UnderWay(Progress),
}

/// How far something that goes on at a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// How much is done.
    pub done: u64,
    /// How much is known to be concerned.
    pub known: u64,
    /// What is counted.
    pub of: &'static str,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} of {} {}", self.done, self.known, self.of)
    }
}

fn shard_ref(tenant: TenantId, shard: PlacedShard) -> Option<v1::ShardRef> {
    Some(convert::shard_ref(tenant, shard.shard))
}

fn spec(timeline: &TimelineSpec) -> v1::PageserverTimeline {
    v1::PageserverTimeline {
        timeline: timeline.timeline.0.to_vec().into(),
        parent: timeline.parent.map(|id| id.0.to_vec()).unwrap_or_default().into(),
        branch_lsn: timeline.parent.map_or(0, |_| timeline.start_lsn.0),
        safekeepers: timeline.safekeepers.clone(),
        cluster: Some(wire::cluster_to_wire(timeline.cluster)),
        horizon_lsn: timeline.kept.horizon.0,
        branches_below: timeline
            .kept
            .branches
            .iter()
            .map(|branch| branch.0.to_vec().into())
            .collect(),
    }
}

/// Makes a call and waits for its answer.
pub(super) async fn execute(nodes: &Nodes, call: &Call) -> Result<(), CallError> {
    let (address, tenant) = (call.address.as_str(), call.tenant);
    match &call.action {
        Action::AttachShard { shard, timelines } => {
            let request = v1::AttachShardRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
                timelines: timelines.iter().map(spec).collect(),
            };
            nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).attach_shard(request).await
                })
                .await?;
        }
        Action::CreateOnShard { shard, timeline } => {
            let request = v1::CreatePageserverTimelineRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
                timeline: Some(spec(timeline)),
            };
            nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).create_timeline(request).await
                })
                .await?;
        }
        Action::DeleteOnShard { shard, timeline } => {
            let request = v1::DeletePageserverTimelineRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
                timeline: timeline.0.to_vec().into(),
            };
            nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).delete_timeline(request).await
                })
                .await?;
        }
        Action::DetachOnShard { shard, timeline } => {
            let request = v1::DetachTimelineRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
                timeline: timeline.0.to_vec().into(),
            };
            let answer = nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).detach_timeline(request).await
                })
                .await?;
            if !answer.detached {
                return Err(CallError::UnderWay(Progress {
                    done: answer.pages_done,
                    known: answer.pages_known,
                    of: "pages",
                }));
            }
        }
        Action::FillShard {
            shard,
            from,
            timelines,
        } => {
            let request = v1::FillShardRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
                from: Some(convert::shard_ref(tenant, *from)),
                timelines: timelines.iter().map(|id| id.0.to_vec().into()).collect(),
            };
            let answer = nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).fill_shard(request).await
                })
                .await?;
            if !answer.filled {
                return Err(CallError::UnderWay(Progress {
                    done: answer.layers_done,
                    known: answer.layers_known,
                    of: "layers",
                }));
            }
        }
        Action::RetireShard { shard } => {
            let request = v1::RetireShardRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
            };
            nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).retire_shard(request).await
                })
                .await?;
        }
        Action::TakeOverShard { shard, from } => {
            let request = v1::TakeOverShardRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
                from: Some(convert::shard_ref(tenant, *from)),
            };
            nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).take_over_shard(request).await
                })
                .await?;
        }
        Action::DropShard { shard } => {
            let request = v1::DropShardRequest {
                shard: shard_ref(tenant, *shard),
                generation: shard.generation.0,
            };
            nodes
                .call(address, PAGESERVER_PATIENCE, async |channel| {
                    PageserverClient::new(channel).drop_shard(request).await
                })
                .await?;
        }
        Action::CreateOnSafekeeper {
            timeline,
            start_lsn,
            cluster,
            safekeepers,
            learner,
            peers,
        } => {
            let (begin_lsn, history) = where_to_join(nodes, tenant, *timeline, peers).await?;
            let request = v1::CreateSafekeeperTimelineRequest {
                timeline: Some(convert::timeline_ref(tenant, *timeline)),
                start_lsn: start_lsn.0,
                cluster: Some(wire::cluster_to_wire(*cluster)),
                membership: Some(wire::membership_to_wire(safekeepers)),
                begin_lsn,
                history,
                learner: *learner,
            };
            nodes
                .call(address, SAFEKEEPER_PATIENCE, async |channel| {
                    SafekeeperClient::new(channel).create_timeline(request).await
                })
                .await?;
        }
        Action::TellSafekeeper {
            timeline,
            safekeepers,
        } => {
            let request = v1::ChangeMembershipRequest {
                timeline: Some(convert::timeline_ref(tenant, *timeline)),
                membership: Some(wire::membership_to_wire(safekeepers)),
            };
            nodes
                .call(address, SAFEKEEPER_PATIENCE, async |channel| {
                    SafekeeperClient::new(channel).change_membership(request).await
                })
                .await?;
        }
        Action::DeleteOnSafekeeper { timeline } => {
            let request = convert::timeline_ref(tenant, *timeline);
            nodes
                .call(address, SAFEKEEPER_PATIENCE, async |channel| {
                    SafekeeperClient::new(channel).give_up_timeline(request).await
                })
                .await?;
        }
        Action::LeaveSafekeeper { timeline } => {
            let request = convert::timeline_ref(tenant, *timeline);
            nodes
                .call(address, SAFEKEEPER_PATIENCE, async |channel| {
                    SafekeeperClient::new(channel).delete_timeline(request).await
                })
                .await?;
        }
    }
    Ok(())
}

/// Where the WAL of one who joins a running timeline begins: at the highest `truncate` of those who have it, with the
/// terms that wrote what lies below. Every member has flushed that, every shard has it in layers, and object storage
/// has it too: what the one who joins would remove at once if it had it. A new timeline begins at its start, which is 0
/// here.
async fn where_to_join(
    nodes: &Nodes,
    tenant: TenantId,
    timeline: TimelineId,
    peers: &[String],
) -> Result<(u64, Vec<v1::TermStart>), CallError> {
    let ask = |address: &String| {
        let (address, request) = (address.clone(), convert::timeline_ref(tenant, timeline));
        async move {
            nodes
                .call(&address, PEER_PATIENCE, async |channel| {
                    SafekeeperClient::new(channel).get_timeline_status(request).await
                })
                .await
        }
    };
    let said = futures::future::join_all(peers.iter().map(ask)).await;
    let mut best: Option<v1::SafekeeperTimelineStatus> = None;
    let mut trouble = None;
    for answer in said {
        match answer {
            Ok(status) if !status.stopped_reason.is_empty() => {}
            Ok(status) => {
                if best
                    .as_ref()
                    .is_none_or(|best| best.truncate_lsn < status.truncate_lsn)
                {
                    best = Some(status);
                }
            }
            Err(error) => trouble = Some(error),
        }
    }
    match (best, trouble) {
        (Some(status), _) => Ok((status.truncate_lsn, status.history)),
        (None, None) if peers.is_empty() => Ok((0, Vec::new())),
        (None, None) => Err(CallError::AllStopped),
        (None, Some(error)) => Err(error.into()),
    }
}

/// A step in words, for logs and status.
pub(super) fn describe(intent: &Intent) -> String {
    let call = match intent {
        Intent::Call(call) => call,
        Intent::Propose(command) => return describe_command(command),
    };
    let (what, role) = match &call.action {
        Action::AttachShard { shard, .. } => {
            let text = format!("attach shard {} at generation {}", shard.shard, shard.generation);
            (text, NodeRole::Pageserver)
        }
        Action::CreateOnShard { shard, timeline } => {
            let text = format!("create timeline {} on shard {}", timeline.timeline, shard.shard);
            (text, NodeRole::Pageserver)
        }
        Action::DeleteOnShard { shard, timeline } => {
            let text = format!("delete timeline {timeline} on shard {}", shard.shard);
            (text, NodeRole::Pageserver)
        }
        Action::DetachOnShard { shard, timeline } => {
            let text = format!(
                "detach timeline {timeline} from its parent on shard {}",
                shard.shard
            );
            (text, NodeRole::Pageserver)
        }
        Action::FillShard { shard, from, .. } => {
            let text = format!("fill shard {} with copies of shard {from}", shard.shard);
            (text, NodeRole::Pageserver)
        }
        Action::RetireShard { shard } => {
            let text = format!("retire shard {}, which is split", shard.shard);
            (text, NodeRole::Pageserver)
        }
        Action::TakeOverShard { shard, from } => {
            let text = format!("have shard {} catch up with shard {from}", shard.shard);
            (text, NodeRole::Pageserver)
        }
        Action::DropShard { shard } => {
            let text = format!("delete former shard {}", shard.shard);
            (text, NodeRole::Pageserver)
        }
        Action::CreateOnSafekeeper {
            timeline, start_lsn, ..
        } => {
            let text = format!("create timeline {timeline} at {start_lsn}");
            (text, NodeRole::Safekeeper)
        }
        Action::TellSafekeeper {
            timeline,
            safekeepers,
        } => {
            let generation = safekeepers.generation;
            let text = format!("tell of timeline {timeline}'s members in generation {generation}");
            (text, NodeRole::Safekeeper)
        }
        Action::DeleteOnSafekeeper { timeline } | Action::LeaveSafekeeper { timeline } => {
            (format!("delete timeline {timeline}"), NodeRole::Safekeeper)
        }
    };
    format!(
        "tenant {}: {what} on {} {}",
        call.tenant,
        role_text(role),
        call.node
    )
}

fn describe_command(command: &Command) -> String {
    match command {
        Command::TimelineReady { tenant, timeline } => {
            format!("tenant {tenant}: record that timeline {timeline} is ready")
        }
        Command::BranchDetached { tenant, timeline } => {
            format!("tenant {tenant}: record that timeline {timeline} has no parent any more")
        }
        Command::SplitFinished { tenant, shards, .. } => {
            format!(
                "tenant {tenant}: record that its {} new shards have taken over",
                shards.len()
            )
        }
        Command::TimelineDeleted { tenant, timeline } => {
            format!("tenant {tenant}: record that timeline {timeline} is gone")
        }
        Command::TenantDeleted { tenant } => format!("tenant {tenant}: record that it is gone"),
        other => format!("record {other:?}"),
    }
}
