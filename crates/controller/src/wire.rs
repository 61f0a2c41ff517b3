//! Between the schema and the domain: checked on the way in, plain on the way out.

use lakebed_placement::choose::CannotPlace;
use lakebed_placement::name::InvalidName;
use lakebed_placement::{
    ClusterIdentity, Joining, Name, NodeRole, Rejection, RejectionKind, Retention, ShardPlacement, State,
    Tenant, TenantState, Timeline, TimelineState,
};
use lakebed_proto::{convert, v1};
use lakebed_types::{NodeId, PgVersion, ShardIdentity, TenantId, TimelineId};
use tonic::Status;

use crate::raft_node::ProposeError;

/// Name of a tenant's first branch, and of the branch that is meant when none is named.
pub const MAIN: &str = "main";

/// A name from a request.
pub fn name(text: &str) -> Result<Name, Status> {
    text.parse()
        .map_err(|error: InvalidName| Status::invalid_argument(error.to_string()))
}

/// A branch name from a request; an empty one means [`MAIN`].
pub fn branch_name(text: &str) -> Result<Name, Status> {
    name(if text.is_empty() { MAIN } else { text })
}

/// The tenant that a request names, by name or by id.
pub fn tenant<'a>(state: &'a State, text: &str) -> Result<(TenantId, &'a Tenant), Status> {
    // Checked first, so that whatever is echoed is short and printable.
    if text.parse::<TenantId>().is_err() {
        name(text)?;
    }
    let found = state.find_tenant(text);
    found.ok_or_else(|| rejected(&Rejection::NoTenant(text.to_owned())))
}

/// The timeline of a branch.
pub fn branch<'a>(tenant: &'a Tenant, branch: &Name) -> Result<(TimelineId, &'a Timeline), Status> {
    let found = tenant.branches.get(branch);
    let found = found.and_then(|id| tenant.timelines.get(id).map(|timeline| (*id, timeline)));
    found.ok_or_else(|| {
        rejected(&Rejection::NoBranch {
            tenant: tenant.name.clone(),
            branch: branch.to_string(),
        })
    })
}

/// A role from a request.
pub fn role(wire: i32) -> Result<NodeRole, Status> {
    match v1::NodeRole::try_from(wire) {
        Ok(v1::NodeRole::Safekeeper) => Ok(NodeRole::Safekeeper),
        Ok(v1::NodeRole::Pageserver) => Ok(NodeRole::Pageserver),
        _ => Err(Status::invalid_argument(format!(
            "role {wire} is neither safekeeper nor pageserver"
        ))),
    }
}

/// An address that others can connect to: `host:port`, as text that needs no escaping.
pub fn address(text: &str) -> Result<String, Status> {
    let valid = |(host, port): (&str, &str)| {
        let host_is_plain = host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b));
        let port: u16 = port.parse().unwrap_or(0);
        !host.is_empty() && host_is_plain && port != 0
    };
    if text.len() <= 255 && text.rsplit_once(':').is_some_and(valid) {
        return Ok(text.to_owned());
    }
    let shown: String = text.chars().take(64).collect();
    Err(Status::invalid_argument(format!(
        "'{}' is not the address of a node: expected host:port",
        shown.escape_debug()
    )))
}

/// The answer to a refused command.
pub fn rejected(rejection: &Rejection) -> Status {
    let text = rejection.to_string();
    match rejection.kind() {
        RejectionKind::NotFound => Status::not_found(text),
        RejectionKind::AlreadyExists => Status::already_exists(text),
        RejectionKind::Precondition => Status::failed_precondition(text),
        RejectionKind::Invalid => Status::invalid_argument(text),
    }
}

/// The answer to a command that did not get through.
pub fn not_proposed(error: ProposeError) -> Status {
    let text = error.to_string();
    match error {
        ProposeError::Rejected(rejection) => rejected(&rejection),
        ProposeError::NoLeader | ProposeError::Busy | ProposeError::Stopped => Status::unavailable(text),
        ProposeError::Unknown(_) => Status::deadline_exceeded(text),
        ProposeError::Unstorable(_) => Status::invalid_argument(text),
    }
}

/// The answer when no nodes can be chosen, or not those.
pub fn cannot_place(error: CannotPlace) -> Status {
    let text = error.to_string();
    match error {
        CannotPlace::TooFewSafekeepers { .. } | CannotPlace::NoPageserver => {
            Status::failed_precondition(format!("{text}; start more nodes, or ask for fewer"))
        }
        CannotPlace::NoReplacement(_) => Status::failed_precondition(format!("{text}; start another one")),
        CannotPlace::NoMember(_) => Status::failed_precondition(text),
    }
}

/// A cluster identity from a request; its values are checked when the command is applied.
pub fn cluster(wire: Option<&v1::ClusterIdentity>) -> Result<ClusterIdentity, Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument("the message lacks its field 'cluster'"))?;
    if wire.system_identifier == 0 {
        return Err(Status::invalid_argument("cluster.system_identifier is 0"));
    }
    Ok(ClusterIdentity {
        system_identifier: wire.system_identifier,
        postgres_major: PgVersion::try_from(wire.postgres_major)
            .map_err(|error| Status::invalid_argument(format!("cluster.postgres_major: {error}")))?,
        wal_segment_bytes: wire.wal_segment_bytes,
        data_checksums: wire.data_checksums,
    })
}

/// A cluster identity for an answer or a node.
pub fn cluster_to_wire(cluster: ClusterIdentity) -> v1::ClusterIdentity {
    v1::ClusterIdentity {
        system_identifier: cluster.system_identifier,
        postgres_major: cluster.postgres_major.major(),
        wal_segment_bytes: cluster.wal_segment_bytes,
        data_checksums: cluster.data_checksums,
    }
}

/// How long history is kept, from a request; a window of nothing would give up what is read right now.
pub fn retention(wire: &v1::Retention) -> Result<Retention, Status> {
    if wire.window_seconds == Some(0) || wire.window_bytes == Some(0) {
        return Err(Status::invalid_argument(
            "a window of history is at least one second and one byte",
        ));
    }
    Ok(Retention {
        seconds: wire.window_seconds,
        bytes: wire.window_bytes,
    })
}

/// How long history is kept, for an answer.
pub fn retention_to_wire(retention: Retention) -> v1::Retention {
    v1::Retention {
        window_seconds: retention.seconds,
        window_bytes: retention.bytes,
    }
}

/// A set of safekeepers for an answer or a node.
pub fn membership_to_wire(set: &lakebed_placement::SafekeeperSet) -> v1::Membership {
    v1::Membership {
        generation: set.generation.0,
        current: set.current.iter().map(|node| node.0).collect(),
        next: set.next.iter().flatten().map(|node| node.0).collect(),
    }
}

/// Who is to join, for an answer.
pub fn joining_to_wire(state: &State, timeline: &Timeline, joining: &Joining) -> v1::Joining {
    let learners = &joining.safekeepers - &timeline.safekeepers.members();
    v1::Joining {
        attempt: joining.attempt,
        safekeepers: joining.safekeepers.iter().map(|node| node.0).collect(),
        learners: learners.into_iter().map(|node| location(state, node)).collect(),
        within_bytes: joining.within_bytes,
        until_unix_micros: joining.until_unix_micros,
    }
}

/// Where a node is, for an answer.
pub fn location(state: &State, node: NodeId) -> v1::NodeLocation {
    v1::NodeLocation {
        node_id: node.0,
        address: state
            .nodes
            .get(&node)
            .map(|node| node.address.clone())
            .unwrap_or_default(),
    }
}

type Placed = (ShardIdentity, ShardPlacement);

fn shards(state: &State, shards: impl Iterator<Item = Placed>) -> Vec<v1::ShardLocation> {
    let location = |(shard, placed): Placed| v1::ShardLocation {
        index: shard.index().into(),
        count: shard.count().get().into(),
        generation: placed.generation.0,
        node: Some(location(state, placed.node)),
    };
    shards.map(location).collect()
}

/// A tenant for an answer.
pub fn tenant_info(state: &State, id: TenantId, tenant: &Tenant) -> v1::TenantInfo {
    let wire_state = match tenant.state {
        TenantState::Importing => v1::TenantState::Importing,
        TenantState::Active => v1::TenantState::Active,
        TenantState::Deleting => v1::TenantState::Deleting,
    };
    v1::TenantInfo {
        tenant: id.0.to_vec().into(),
        name: tenant.name.to_string(),
        state: wire_state.into(),
        cluster: tenant.cluster.map(cluster_to_wire),
        shards: shards(state, tenant.shards_in_force()),
        retention: Some(retention_to_wire(tenant.retention)),
        split: shards(state, tenant.shards_to_be()),
        former_shards: u32::try_from(tenant.former.len()).unwrap_or(u32::MAX),
    }
}

/// A branch for an answer: all that a compute needs to start.
pub fn branch_info(
    state: &State,
    (tenant_id, tenant): (TenantId, &Tenant),
    (id, timeline): (TimelineId, &Timeline),
) -> v1::BranchInfo {
    let wire_state = match timeline.state {
        TimelineState::Importing => v1::BranchState::Importing,
        TimelineState::Creating => v1::BranchState::Creating,
        TimelineState::Active => v1::BranchState::Active,
        // Its name is gone, so nobody can ask for it.
        TimelineState::Deleting => v1::BranchState::Unspecified,
    };
    let text = |name: Option<&Name>| name.map(Name::to_string).unwrap_or_default();
    v1::BranchInfo {
        timeline: Some(convert::timeline_ref(tenant_id, id)),
        tenant_name: tenant.name.to_string(),
        name: text(tenant.name_of(id)),
        state: wire_state.into(),
        parent: timeline.parent.map(|id| id.0.to_vec()).unwrap_or_default().into(),
        parent_name: text(timeline.parent.and_then(|id| tenant.name_of(id))),
        start_lsn: timeline.start_lsn.0,
        last_record_start: timeline.start_last_record.0,
        cluster: tenant.cluster.map(cluster_to_wire),
        membership: Some(membership_to_wire(&timeline.safekeepers)),
        safekeepers: timeline
            .safekeepers
            .members()
            .into_iter()
            .map(|node| location(state, node))
            .collect(),
        shards: shards(state, tenant.shards_in_force()),
        created_unix_micros: timeline.created_unix_micros,
        consistent_lsn: timeline.consistent_lsn.0,
        joining: timeline
            .joining
            .as_ref()
            .map(|joining| joining_to_wire(state, timeline, joining)),
        horizon_lsn: timeline.horizon.lsn.0,
        horizon_unix_micros: timeline.horizon.unix_micros,
        expires_unix_micros: timeline.expires_unix_micros.unwrap_or_default(),
        retention: Some(retention_to_wire(tenant.retention)),
        detaching: timeline.detaching,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_need_no_escaping_are_accepted() {
        for good in ["127.0.0.1:7001", "[::1]:1", "sk-1.lakebed_net:65535"] {
            assert_eq!(address(good).unwrap(), good);
        }
        let long = format!("{}:1", "h".repeat(255));
        for bad in [
            "",
            ":1",
            "host",
            "host:0",
            "host:65536",
            "a@b:1",
            "a/b:1",
            "a b:1",
            "a\n:1",
            &long,
        ] {
            assert!(address(bad).is_err(), "{bad:?} must be refused");
        }
    }
}
