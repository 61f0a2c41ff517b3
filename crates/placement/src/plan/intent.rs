//! What the planner asks for.

use std::collections::BTreeSet;

use lakebed_types::{Generation, Lsn, NodeId, ShardIdentity, TenantId, TimelineId};

use crate::command::Command;
use crate::state::{ClusterIdentity, SafekeeperSet};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Intent {
    /// Call a node. On success, tell [`Observed::done`], and propose what it returns.
    Call(Call),
    /// Propose a command.
    Propose(Command),
}

/// A call to one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// The node.
    pub node: NodeId,
    /// `host:port` of its gRPC service.
    pub address: String,
    /// The tenant it is about.
    pub tenant: TenantId,
    /// What to call.
    pub action: Action,
}

/// What to call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Make a pageserver the owner of a shard.
    AttachShard {
        /// The shard.
        shard: PlacedShard,
        /// All its timelines, parents first.
        timelines: Vec<TimelineSpec>,
    },
    /// Tell an owner about one more timeline, or about other safekeepers of a known one.
    CreateOnShard {
        /// The shard.
        shard: PlacedShard,
        /// The timeline.
        timeline: TimelineSpec,
    },
    /// Have an owner give up a timeline.
    DeleteOnShard {
        /// The shard.
        shard: PlacedShard,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Have an owner make what a timeline reads from its parent the timeline's own. Repeated until it is done.
    DetachOnShard {
        /// The shard.
        shard: PlacedShard,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Have a new shard filled with copies of what the one has that it is a part of. Repeated until it is done.
    FillShard {
        /// The new shard.
        shard: PlacedShard,
        /// What it is a part of.
        from: ShardIdentity,
        /// Timelines, parents first.
        timelines: Vec<TimelineId>,
    },
    /// Have shard 0 take nothing any more that no WAL carries: another one is about to take its place.
    RetireShard {
        /// The shard.
        shard: PlacedShard,
    },
    /// Have a new shard catch up with the one that it is a part of, and take over its files.
    TakeOverShard {
        /// The new shard.
        shard: PlacedShard,
        /// What it is a part of.
        from: ShardIdentity,
    },
    /// Have a shard deleted that others have taken the place of.
    DropShard {
        /// The shard.
        shard: PlacedShard,
    },
    /// A timeline on a safekeeper, without any WAL.
    CreateOnSafekeeper {
        /// The timeline.
        timeline: TimelineId,
        /// Where it starts.
        start_lsn: Lsn,
        /// Its cluster.
        cluster: ClusterIdentity,
        /// Who must agree.
        safekeepers: SafekeeperSet,
        /// It is none of them yet: it is to join when it has caught up.
        learner: bool,
        /// Addresses of members that have WAL of it already: it joins a timeline that runs. Empty for a new timeline.
        peers: Vec<String>,
    },
    /// Tell a member who must agree from now on.
    TellSafekeeper {
        /// The timeline.
        timeline: TimelineId,
        /// Who must agree.
        safekeepers: SafekeeperSet,
    },
    /// Have a safekeeper that is no longer a member delete a timeline that goes on elsewhere.
    LeaveSafekeeper {
        /// The timeline.
        timeline: TimelineId,
    },
    /// Have a safekeeper give up a timeline.
    DeleteOnSafekeeper {
        /// The timeline.
        timeline: TimelineId,
    },
}

/// A shard with its fencing number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlacedShard {
    /// Which.
    pub shard: ShardIdentity,
    /// Fencing number of its owner.
    pub generation: Generation,
}

/// What a pageserver has to know about a timeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimelineSpec {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it branches from, if it does.
    pub parent: Option<TimelineId>,
    /// Where its own WAL starts.
    pub start_lsn: Lsn,
    /// Addresses of its safekeepers.
    pub safekeepers: Vec<String>,
    /// Its cluster.
    pub cluster: ClusterIdentity,
    /// What of its history may be given up.
    pub kept: Kept,
}

/// What of a timeline's history may be given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    /// See [`Timeline::horizon`](crate::Timeline::horizon).
    pub horizon: Lsn,
    /// Every branch that was made below it: nothing may be given up before all of them are there.
    pub branches: BTreeSet<TimelineId>,
}
