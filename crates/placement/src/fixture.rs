//! States that several tests start from. Safekeepers are nodes 1, 2, …; pageservers 11, 12, ….

use lakebed_types::{Generation, Lsn, NodeId, PgVersion, TenantId, TimelineId};

use crate::command::{Command, Outcome, Rejection, Stamped};
use crate::retention::Retention;
use crate::state::*;

pub fn apply(state: &mut State, command: Command) -> Result<Outcome, Rejection> {
    let at_unix_micros = state.clock_unix_micros + 1;
    state.apply(&Stamped {
        at_unix_micros,
        command,
    })
}

pub fn tenant_id(n: u8) -> TenantId {
    TenantId([n; 16])
}

pub fn timeline_id(n: u8) -> TimelineId {
    TimelineId([n; 16])
}

pub fn register(node: u64, role: NodeRole, incarnation: u64) -> Command {
    Command::RegisterNode {
        node: NodeId(node),
        role,
        address: format!("n{node}:1"),
        incarnation,
    }
}

pub fn with_nodes(safekeepers: u64, pageservers: u64) -> State {
    let mut state = State::default();
    for node in 1..=safekeepers {
        apply(&mut state, register(node, NodeRole::Safekeeper, 1)).unwrap();
    }
    for node in 11..11 + pageservers {
        apply(&mut state, register(node, NodeRole::Pageserver, 1)).unwrap();
    }
    state
}

/// Tenant `n` with first branch `main` on timeline `n`, still importing.
pub fn create_tenant(state: &mut State, n: u8, name: &str, shards: &[u64], safekeepers: &[u64]) {
    let command = Command::CreateTenant {
        tenant: tenant_id(n),
        name: name.parse().unwrap(),
        branch: "main".parse().unwrap(),
        timeline: timeline_id(n),
        shards: shards.iter().copied().map(NodeId).collect(),
        safekeepers: safekeepers.iter().copied().map(NodeId).collect(),
        retention: Retention::USUAL,
    };
    apply(state, command).unwrap();
}

pub const CLUSTER: ClusterIdentity = ClusterIdentity {
    system_identifier: 42,
    postgres_major: PgVersion::V15,
    wal_segment_bytes: 16 << 20,
    data_checksums: false,
};

pub fn finish_import() -> Command {
    Command::FinishImport {
        tenant: tenant_id(1),
        start_lsn: Lsn(1000),
        start_last_record: Lsn(900),
        consistent_lsn: Lsn::INVALID,
        cluster: CLUSTER,
    }
}

/// Three safekeepers, two pageservers, and tenant 1 `acme` with two shards whose branch `main` is active at 0/3E8.
pub fn active() -> State {
    let mut state = with_nodes(3, 2);
    create_tenant(&mut state, 1, "acme", &[11, 12], &[1, 2, 3]);
    apply(&mut state, finish_import()).unwrap();
    make_ready(&mut state, 1);
    state
}

pub fn make_ready(state: &mut State, timeline: u8) {
    let (tenant, timeline) = (tenant_id(1), timeline_id(timeline));
    for node in [1, 2].map(NodeId) {
        apply(
            state,
            Command::CreatedOnSafekeeper {
                tenant,
                timeline,
                node,
            },
        )
        .unwrap();
    }
    apply(state, Command::TimelineReady { tenant, timeline }).unwrap();
}

pub fn branch(name: &str, timeline: u8, parent: u8, lsn: u64) -> Command {
    Command::CreateBranch {
        tenant: tenant_id(1),
        name: name.parse().unwrap(),
        timeline: timeline_id(timeline),
        parent: timeline_id(parent),
        lsn: Lsn(lsn),
        last_record: Lsn(lsn - 50),
        safekeepers: None,
        expires_unix_micros: None,
    }
}

/// Asks that a branch of tenant 1 be detached.
pub fn detach(name: &str) -> Command {
    Command::DetachBranch {
        tenant: tenant_id(1),
        name: name.parse().unwrap(),
    }
}

/// A timeline of tenant 1 is detached on every shard.
pub fn detached(timeline: u8) -> Command {
    Command::BranchDetached {
        tenant: tenant_id(1),
        timeline: timeline_id(timeline),
    }
}

/// A change of timeline 1's safekeepers from a generation on.
pub fn change(generation: u64, safekeepers: &[u64]) -> Command {
    Command::ChangeSafekeepers {
        tenant: tenant_id(1),
        timeline: timeline_id(1),
        generation: Generation(generation),
        safekeepers: safekeepers.iter().copied().map(NodeId).collect(),
    }
}

/// A generation of timeline 1's safekeepers has settled.
pub fn settled(generation: u64) -> Command {
    Command::SafekeepersSettled {
        tenant: tenant_id(1),
        timeline: timeline_id(1),
        generation: Generation(generation),
    }
}
