//! Commands, what becomes of them, and why they are refused.

use std::collections::BTreeSet;

use lakebed_types::{Generation, Lsn, NodeId, ShardIdentity, ShardIndex, TenantId, TimelineId};
use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::retention::{Horizon, Retention};
use crate::state::{
    ClusterIdentity, DecodeError, FORMAT, NodeRole, TenantState, TimelineState, decode_versioned,
};

/// A command with the time at which it was proposed: the only clock that the state machine knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// Microseconds since 1970 on the proposer's clock.
    pub at_unix_micros: i64,
    /// What to do.
    pub command: Command,
}

impl Stamped {
    /// The stored form.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&(FORMAT, self))
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Stamped, DecodeError> {
        decode_versioned(bytes)
    }
}

/// One change of the control plane, with every choice already made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A daemon started, or its address changed.
    RegisterNode {
        /// Its id.
        node: NodeId,
        /// What it does.
        role: NodeRole,
        /// `host:port` of its gRPC service.
        address: String,
        /// See [`Node::incarnation`](crate::Node::incarnation).
        incarnation: u64,
    },
    /// A safekeeper is to be emptied, or no longer: nothing new is placed on it meanwhile. What it keeps stays until it
    /// is moved.
    DrainSafekeeper {
        /// Which.
        node: NodeId,
        /// Whether it is to be emptied.
        draining: bool,
    },
    /// A tenant whose first branch is to be imported.
    CreateTenant {
        /// A fresh id.
        tenant: TenantId,
        /// Its name.
        name: Name,
        /// Name of its first branch.
        branch: Name,
        /// A fresh id for the first timeline.
        timeline: TimelineId,
        /// Pageserver of each shard.
        shards: Vec<NodeId>,
        /// Safekeepers of the first timeline.
        safekeepers: BTreeSet<NodeId>,
        /// How long history is kept.
        #[serde(default)]
        retention: Retention,
    },
    /// Changes how long a tenant's history is kept. What was given up does not come back.
    SetRetention {
        /// The tenant.
        tenant: TenantId,
        /// The new window.
        retention: Retention,
    },
    /// History of a timeline before this is given up, but for the branch points in it.
    RaiseHorizon {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// Where history begins from now on.
        horizon: Horizon,
    },
    /// Every shard has the images of the first timeline.
    FinishImport {
        /// The tenant.
        tenant: TenantId,
        /// Where WAL starts.
        start_lsn: Lsn,
        /// Start of the record that ends there.
        start_last_record: Lsn,
        /// The imported cluster.
        cluster: ClusterIdentity,
        /// First LSN that may be read, when that is after the start; invalid otherwise.
        #[serde(default)]
        consistent_lsn: Lsn,
    },
    /// A branch at a record boundary of its parent.
    CreateBranch {
        /// The tenant.
        tenant: TenantId,
        /// A name that no branch of the tenant has.
        name: Name,
        /// A fresh id.
        timeline: TimelineId,
        /// Where it branches from.
        parent: TimelineId,
        /// The boundary.
        lsn: Lsn,
        /// Start of the record that ends there.
        last_record: Lsn,
        /// Who keeps it; none: those of the parent.
        #[serde(default)]
        safekeepers: Option<BTreeSet<NodeId>>,
        /// When it may be deleted without being asked for.
        #[serde(default)]
        expires_unix_micros: Option<i64>,
    },
    /// A branch goes on from an earlier position, on a new timeline; its timeline until now gets another name.
    RestoreBranch {
        /// The tenant.
        tenant: TenantId,
        /// The branch.
        name: Name,
        /// The timeline that it has, so that a repeat is known as one.
        of: TimelineId,
        /// Name for that timeline, which no branch of the tenant has.
        keep_as: Name,
        /// A fresh id.
        timeline: TimelineId,
        /// Where the branch goes on from.
        parent: TimelineId,
        /// A boundary there.
        lsn: Lsn,
        /// Start of the record that ends there.
        last_record: Lsn,
        /// Who keeps the new timeline; none: those of the parent.
        #[serde(default)]
        safekeepers: Option<BTreeSet<NodeId>>,
    },
    /// Gives up a branch whose time is over and that has no children. Without effect before that.
    ExpireBranch {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Begins a change in which somebody joins: who does gets the WAL first, without counting.
    LetJoin {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// The generation that the change starts from.
        generation: Generation,
        /// The set that is to follow.
        safekeepers: BTreeSet<NodeId>,
        /// See [`Joining::within_bytes`](crate::Joining::within_bytes).
        within_bytes: u64,
        /// See [`Joining::until_unix_micros`](crate::Joining::until_unix_micros).
        until_unix_micros: i64,
    },
    /// A proposer reports that those who join have caught up: from now on both sets must agree.
    CaughtUp {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// Which attempt.
        attempt: u64,
    },
    /// The time of an attempt is over. Without effect before that.
    JoinTimedOut {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// Which attempt.
        attempt: u64,
    },
    /// Begins a change in which nobody has to catch up first: from now on both sets must agree.
    ChangeSafekeepers {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// The generation that the change starts from, so that a repeat is known as one.
        generation: Generation,
        /// The set that is to follow.
        safekeepers: BTreeSet<NodeId>,
    },
    /// A proposer reports that a quorum of every set has adopted this generation and holds everything committed.
    /// A joint one is followed by the new set alone; after that one, those who left delete the timeline.
    SafekeepersSettled {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// What settled.
        generation: Generation,
    },
    /// Gives up a change whose new set does not stand alone yet.
    AbortSafekeeperChange {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// The joint generation; while somebody catches up, the present one.
        generation: Generation,
    },
    /// A safekeeper that left confirmed that it has deleted the timeline.
    LeftSafekeeper {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// Who confirmed.
        node: NodeId,
    },
    /// Some safekeepers confirmed that they have the timeline.
    CreatedOnSafekeeper {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
        /// Who confirmed.
        node: NodeId,
    },
    /// A quorum of safekeepers and every shard have the timeline.
    TimelineReady {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
    },
    /// A branch is to have what it reads from its parent as its own, and then no parent any more.
    DetachBranch {
        /// The tenant.
        tenant: TenantId,
        /// The branch.
        name: Name,
    },
    /// Every shard has what a timeline that is being detached read from its parent, and the parent's shards have forgotten
    /// it.
    BranchDetached {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Gives up a branch without children that is not the last one of its tenant.
    DeleteBranch {
        /// The tenant.
        tenant: TenantId,
        /// The branch.
        name: Name,
    },
    /// No node has the timeline any more.
    TimelineDeleted {
        /// The tenant.
        tenant: TenantId,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Gives up a tenant with all its branches.
    DeleteTenant {
        /// The tenant.
        tenant: TenantId,
    },
    /// The tenant has no timeline any more.
    TenantDeleted {
        /// The tenant.
        tenant: TenantId,
    },
    /// Another pageserver becomes the owner of a shard, at the next generation.
    MoveShard {
        /// The tenant.
        tenant: TenantId,
        /// The shard.
        shard: ShardIndex,
        /// The new owner.
        to: NodeId,
    },
    /// The tenant is to have more shards, on these pageservers: a multiple of those that it has.
    SplitShards {
        /// The tenant.
        tenant: TenantId,
        /// Pageserver of each.
        shards: Vec<NodeId>,
    },
    /// The new shards have taken over, by these owners.
    SplitFinished {
        /// The tenant.
        tenant: TenantId,
        /// Generation at which the old shard 0 was retired.
        retired: Generation,
        /// Generations of the new ones.
        shards: Vec<Generation>,
    },
    /// The tenant keeps the shards that it has.
    AbortSplit {
        /// The tenant.
        tenant: TenantId,
    },
    /// A former shard has been deleted.
    ShardDropped {
        /// The tenant.
        tenant: TenantId,
        /// The shard.
        shard: ShardIdentity,
    },
    /// Takes or extends a lease.
    AcquireLease {
        /// What is leased.
        name: Name,
        /// Who takes it.
        holder: String,
        /// For how long from the command's time on.
        micros: u32,
    },
    /// Gives a lease back before it ends.
    ReleaseLease {
        /// What was leased.
        name: Name,
        /// Who held it.
        holder: String,
    },
}

/// A command that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The state changed.
    Applied,
    /// The state was already so: a repeated command.
    Unchanged,
}

/// Why a command was refused. The state is as before, and a repeat gives the same answer until something else changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such tenant.
    #[error("there is no tenant '{0}'")]
    NoTenant(String),
    /// There is no such branch.
    #[error("tenant '{tenant}' has no branch '{branch}'")]
    NoBranch {
        /// The tenant's name.
        tenant: Name,
        /// The branch.
        branch: String,
    },
    /// There is no such timeline.
    #[error("there is no timeline {0}")]
    NoTimeline(TimelineId),
    /// There is no such shard.
    #[error("the tenant has no shard {0}")]
    NoShard(ShardIndex),
    /// Another split is under way.
    #[error(
        "the tenant is being split into {0} shards: let that end, or call it off with `lakebed tenant split --abort`"
    )]
    SplitUnderWay(usize),
    /// Pages of a shard could go to more than the new ones that are a part of it.
    #[error(
        "the tenant has {now} shards; it can be split into 2, 3 or more times as many, up to {}, and not into {wanted}",
        lakebed_types::ShardCount::MAX
    )]
    NoMultiple {
        /// Shards that it has.
        now: usize,
        /// Shards that were asked for.
        wanted: usize,
    },
    /// Shards of that count are being deleted.
    #[error("what an earlier split into {0} shards left is still being deleted; try again in a moment")]
    StillDropping(usize),
    /// A placement names a node that is not registered in that role.
    #[error("node {node} is not registered as a {}", role_name(*.role))]
    NoNode {
        /// The node.
        node: NodeId,
        /// The role it should have.
        role: NodeRole,
    },
    /// Something new would be placed on a safekeeper that is being emptied.
    #[error(
        "safekeeper {0} is being emptied: nothing new is placed on it; `lakebed safekeeper decommission {0} --undo` ends that"
    )]
    Draining(NodeId),
    /// A node changed its role.
    #[error("node id {node} belongs to the {} at {address}; give this node another id", role_name(*.role))]
    NodeIdTaken {
        /// The id.
        node: NodeId,
        /// Role of its owner.
        role: NodeRole,
        /// Address of its owner.
        address: String,
    },
    /// A safekeeper came back with another data directory.
    #[error(
        "safekeeper {0} comes back with another data directory, so it lost what it had acknowledged; \
         start it on its former directory, or as a new safekeeper with a new id"
    )]
    SafekeeperLostItsDisk(NodeId),
    /// A tenant of that name exists.
    #[error("tenant '{0}' already exists")]
    TenantExists(Name),
    /// A branch of that name exists.
    #[error("branch '{0}' already exists")]
    BranchExists(Name),
    /// An id that was drawn is in use.
    #[error("the id drawn for a new object is already in use; try again")]
    IdTaken,
    /// The tenant is not in the state that this needs.
    #[error("tenant '{name}' is {state:?}")]
    TenantIs {
        /// The tenant's name.
        name: Name,
        /// Its state.
        state: TenantState,
    },
    /// The timeline is not in the state that this needs.
    #[error("timeline {timeline} is {state:?}")]
    TimelineIs {
        /// The timeline.
        timeline: TimelineId,
        /// Its state.
        state: TimelineState,
    },
    /// The branch has children.
    #[error(
        "branch '{branch}' cannot be deleted while other branches start from it: {}; `lakebed branch detach CHILD` makes \
         such a branch independent of it",
        .children.join(", ")
    )]
    HasChildren {
        /// The branch.
        branch: Name,
        /// Names of its children.
        children: Vec<String>,
    },
    /// The last branch goes only with its tenant.
    #[error("'{0}' is the only branch of its tenant: delete the tenant instead")]
    LastBranch(Name),
    /// A timeline with a parent was reported as detached, and nobody asked for that.
    #[error("timeline {0} is not being detached")]
    NotDetaching(TimelineId),
    /// A branch point before the start of the parent's own WAL.
    #[error("{lsn} is before {start}, where the parent starts")]
    BeforeParent {
        /// The branch point.
        lsn: Lsn,
        /// The parent's start.
        start: Lsn,
    },
    /// A branch point in history that is given up.
    #[error("{lsn} is older than the history that is kept of this branch, which begins at {horizon}")]
    NotKept {
        /// The branch point.
        lsn: Lsn,
        /// Where history begins.
        horizon: Lsn,
    },
    /// A branch is there longer.
    #[error("the time of timeline {0} is not over")]
    NotExpired(TimelineId),
    /// The branch has another timeline than was meant.
    #[error("branch '{0}' was restored meanwhile; look at it again")]
    OtherTimeline(Name),
    /// A branch point inside a base backup, where pages are of different moments.
    #[error(
        "{lsn} is before {consistent}, the end of the base backup that this branch was made of: there is no consistent \
         state before it"
    )]
    NotConsistent {
        /// The branch point.
        lsn: Lsn,
        /// The first LSN that will do.
        consistent: Lsn,
    },
    /// The import was finished with other values, or what it made was deleted since.
    #[error(
        "the import of tenant '{0}' was already finished with other values, or its first branch was deleted since"
    )]
    ImportDiffers(Name),
    /// Not everything has been removed yet.
    #[error("something that depends on it is still there")]
    NotEmpty,
    /// A change of safekeepers is under way, or another one was begun since.
    #[error(
        "the safekeepers are those of generation {0}, which has not settled: finish or abort that change first"
    )]
    ChangeUnderWay(Generation),
    /// A command about a generation that is no longer, or not yet, the present one.
    #[error("the safekeepers are those of generation {0}")]
    OtherGeneration(Generation),
    /// Somebody catches up in order to join.
    #[error("safekeepers {} are to join and catch up: finish or abort that change first", numbers(.0))]
    Joining(BTreeSet<NodeId>),
    /// The attempt to let somebody join is over, or another one was begun since.
    #[error("this attempt to let safekeepers join is over")]
    OtherAttempt,
    /// The time of an attempt is not over.
    #[error("there is time left for those who join")]
    TimeLeft,
    /// A former member still has the timeline.
    #[error("safekeeper {0} has not yet deleted what it holds of this timeline from before")]
    StillLeaving(NodeId),
    /// Somebody else holds the lease.
    #[error("'{name}' is held by '{holder}'")]
    LeaseHeld {
        /// What is leased.
        name: Name,
        /// By whom.
        holder: String,
    },
    /// A value outside its range.
    #[error("{0}")]
    Invalid(&'static str),
}

fn numbers(nodes: &BTreeSet<NodeId>) -> String {
    let texts: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
    texts.join(", ")
}

fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Safekeeper => "safekeeper",
        NodeRole::Pageserver => "pageserver",
    }
}

/// What a caller can do about a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionKind {
    /// Name something that exists.
    NotFound,
    /// Choose another name.
    AlreadyExists,
    /// Change the state of something else first.
    Precondition,
    /// Correct the request.
    Invalid,
}

impl Rejection {
    /// What the caller can do about it.
    pub fn kind(&self) -> RejectionKind {
        use Rejection::*;
        match self {
            NoTenant(_) | NoBranch { .. } | NoTimeline(_) | NoShard(_) => RejectionKind::NotFound,
            TenantExists(_) | BranchExists(_) | IdTaken => RejectionKind::AlreadyExists,
            Invalid(_) | BeforeParent { .. } | NotKept { .. } | NoMultiple { .. } => RejectionKind::Invalid,
            NoNode { .. }
            | Draining(_)
            | SplitUnderWay(_)
            | StillDropping(_)
            | NodeIdTaken { .. }
            | SafekeeperLostItsDisk(_)
            | TenantIs { .. }
            | TimelineIs { .. }
            | HasChildren { .. }
            | LastBranch(_)
            | NotDetaching(_)
            | NotConsistent { .. }
            | NotExpired(_)
            | OtherTimeline(_)
            | ImportDiffers(_)
            | NotEmpty
            | ChangeUnderWay(_)
            | OtherGeneration(_)
            | Joining(_)
            | OtherAttempt
            | TimeLeft
            | StillLeaving(_)
            | LeaseHeld { .. } => RejectionKind::Precondition,
        }
    }
}
