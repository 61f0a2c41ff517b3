//! What a compute has to know of its branch, checked.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_proto::convert::{self, InvalidMessage};
use lakebed_proto::{quorum, v1};
use lakebed_quorum::membership::Membership;
use lakebed_types::{Lsn, NodeId, PgVersion, ShardCount, ShardIdentity, TenantId, TimelineId};
use lakebed_wal::page::WalFormat;

/// Where one shard's pages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardAddress {
    /// Which shard.
    pub shard: ShardIdentity,
    /// `host:port` of its pageserver.
    pub address: String,
}

/// A branch as the controller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Name of tenant and branch, for people.
    pub name: String,
    /// Where its own WAL begins.
    pub start: Lsn,
    /// Start of the record that ends there.
    pub last_record_start: Lsn,
    /// Postgres system identifier.
    pub system_id: u64,
    /// Major version of Postgres that made it and must run on it.
    pub version: PgVersion,
    /// WAL segment size in bytes.
    pub segment_bytes: u32,
    /// Who must agree.
    pub membership: Membership,
    /// `host:port` of each safekeeper, of those who are to join as well.
    pub safekeepers: BTreeMap<NodeId, String>,
    /// Who is to join.
    pub joining: Option<Joining>,
    /// All shards, by index.
    pub shards: Vec<ShardAddress>,
}

/// Safekeepers that get the WAL and do not count, until they have caught up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joining {
    /// Rises with every attempt.
    pub attempt: u64,
    /// Who.
    pub learners: BTreeSet<NodeId>,
    /// So far behind they may be when they become members, in bytes.
    pub within_bytes: u64,
}

fn invalid(field: &'static str, reason: impl ToString) -> InvalidMessage {
    InvalidMessage::Field {
        field,
        reason: reason.to_string(),
    }
}

impl Branch {
    /// Checks what the controller answered.
    ///
    /// # Errors
    /// The branch is not ready, or the answer is not consistent.
    pub fn from_wire(wire: &v1::BranchInfo) -> Result<Branch, InvalidMessage> {
        if wire.state() != v1::BranchState::Active {
            return Err(invalid(
                "state",
                format!("branch {} is not active yet", wire.name),
            ));
        }
        let (tenant, timeline) = convert::timeline(wire.timeline.as_ref())?;
        let cluster = wire.cluster.as_ref().ok_or(InvalidMessage::Missing("cluster"))?;
        let version = PgVersion::try_from(cluster.postgres_major)
            .map_err(|error| invalid("cluster.postgres_major", error))?;
        let membership = quorum::membership(wire.membership.as_ref())?;
        let located = |location: &v1::NodeLocation| (NodeId(location.node_id), location.address.clone());
        let mut safekeepers: BTreeMap<NodeId, String> = wire.safekeepers.iter().map(located).collect();
        let members = membership.old.iter().chain(membership.new.iter().flatten());
        for member in members {
            if !safekeepers.contains_key(member) {
                return Err(invalid(
                    "safekeepers",
                    format!("no address of safekeeper {}", member.0),
                ));
            }
        }
        let joining = wire.joining.as_ref().map(|joining| {
            safekeepers.extend(joining.learners.iter().map(located));
            Joining {
                attempt: joining.attempt,
                learners: joining.learners.iter().map(|node| NodeId(node.node_id)).collect(),
                within_bytes: joining.within_bytes,
            }
        });
        Ok(Branch {
            tenant,
            timeline,
            name: format!("{}/{}", wire.tenant_name, wire.name),
            start: Lsn(wire.start_lsn),
            last_record_start: Lsn(wire.last_record_start),
            version,
            system_id: cluster.system_identifier,
            segment_bytes: cluster.wal_segment_bytes,
            membership,
            safekeepers,
            joining,
            shards: shards(&wire.shards)?,
        })
    }

    /// The form of its WAL.
    pub fn format(&self) -> WalFormat {
        WalFormat {
            version: self.version,
            timeline: 1,
            system_identifier: self.system_id,
            segment_bytes: self.segment_bytes,
        }
    }
}

fn shards(wire: &[v1::ShardLocation]) -> Result<Vec<ShardAddress>, InvalidMessage> {
    let count = u8::try_from(wire.len()).ok().and_then(ShardCount::new);
    let count = count.ok_or_else(|| invalid("shards", format!("{} shards", wire.len())))?;
    let mut shards = Vec::with_capacity(wire.len());
    for (index, location) in (0u8..).zip(wire) {
        if location.index != u32::from(index) || location.count != u32::from(count.get()) {
            return Err(invalid("shards", "they are not all there, in order"));
        }
        let shard = ShardIdentity::new(index, count).ok_or_else(|| invalid("shards", "index"))?;
        let node = location
            .node
            .as_ref()
            .ok_or(InvalidMessage::Missing("shards.node"))?;
        shards.push(ShardAddress {
            shard,
            address: node.address.clone(),
        });
    }
    Ok(shards)
}
