//! What is attached to a node, as the controllers describe it, and its list on local disk.
//!
//! With the list a node that restarts while the controllers are down goes on.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use lakebed_types::{Generation, ShardIdentity, TenantId, TimelineId};
use serde::{Deserialize, Serialize};

use super::{Node, NodeError, Shard, ShardKey};
use crate::manifest::{Cluster, Parent};
use crate::timeline::history::Kept;

/// One shard as the controller describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Tenant.
    pub tenant: TenantId,
    /// Shard.
    pub shard: ShardIdentity,
    /// Generation of the ownership.
    pub generation: Generation,
    /// Its timelines.
    pub timelines: Vec<TimelineSpec>,
    /// It is about to be replaced by the shards that it is split into.
    #[serde(default)]
    pub retired: bool,
}

/// One timeline as the controller describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSpec {
    /// Timeline.
    pub timeline: TimelineId,
    /// Parent and branch point, for a branch.
    pub parent: Option<Parent>,
    /// Whose WAL it is.
    pub cluster: Cluster,
    /// gRPC addresses of its safekeepers.
    pub safekeepers: Vec<String>,
    /// How much of its history may be given up. A list from before there was this field allows nothing.
    #[serde(default)]
    pub kept: Kept,
}

impl Node {
    fn attachments_file(&self) -> PathBuf {
        self.config.data_dir.join("attachments.json")
    }

    /// Writes the list of attachments to local disk, in whatever order.
    pub(super) fn remember(&self) -> Result<(), NodeError> {
        let attachments = self.with_shards(|shards| {
            let attachment = |((tenant, shard), found): (&ShardKey, &Shard)| Attachment {
                tenant: *tenant,
                shard: *shard,
                generation: found.generation,
                retired: found.retired,
                timelines: found
                    .timelines
                    .values()
                    .map(|running| running.spec.clone())
                    .collect(),
            };
            let kept = shards.iter().filter(|(_, shard)| !shard.dropped);
            kept.map(attachment).collect::<Vec<_>>()
        });
        let path = self.attachments_file();
        let failed = |source| NodeError::Local {
            path: path.clone(),
            source,
        };
        let json = serde_json::to_vec_pretty(&attachments).map_err(|error| failed(error.into()))?;
        let beside = path.with_extension("new");
        std::fs::write(&beside, json)
            .and_then(|()| std::fs::rename(&beside, &path))
            .map_err(failed)
    }

    /// Attaches what the local file lists. What cannot be attached is left to the controller and said in the log.
    pub async fn resume(self: &Arc<Self>) {
        let path = self.attachments_file();
        let Ok(bytes) = std::fs::read(&path) else { return };
        let attachments: Vec<Attachment> = match serde_json::from_slice(&bytes) {
            Ok(attachments) => attachments,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the list of attachments is unreadable; waiting for the controller");
                return;
            }
        };
        for mut attachment in attachments {
            let (tenant, shard) = (attachment.tenant, attachment.shard);
            attachment.timelines = parents_first(attachment.timelines);
            if let Err(error) = self.attach(attachment).await {
                tracing::warn!(%tenant, %shard, %error, "could not attach the shard again; waiting for the controller");
            }
        }
    }
}

/// Parents before their branches.
pub fn parents_first(mut specs: Vec<TimelineSpec>) -> Vec<TimelineSpec> {
    let mut sorted: Vec<TimelineSpec> = Vec::with_capacity(specs.len());
    while !specs.is_empty() {
        let waiting: HashSet<TimelineId> = specs.iter().map(|spec| spec.timeline).collect();
        let hangs_on_none = |parent: Parent| !waiting.contains(&parent.timeline);
        let (ready, rest): (Vec<_>, Vec<_>) = specs
            .into_iter()
            .partition(|spec| spec.parent.is_none_or(hangs_on_none));
        if ready.is_empty() {
            // A cycle cannot be opened; opening reports the missing parent.
            sorted.extend(rest);
            break;
        }
        sorted.extend(ready);
        specs = rest;
    }
    sorted
}
