//! What the controllers remember: nodes, tenants, branches, timelines, placement and leases.
//!
//! A state is only ever changed by [`State::apply`](crate::apply). It is stored as JSON inside a raft snapshot, with
//! [`FORMAT`] in front: a controller refuses a newer one with a clear error instead of misreading it.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{
    Generation, Lsn, NodeId, PgVersion, ShardCount, ShardIdentity, ShardIndex, TenantId, TimelineId,
};
use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::retention::{Horizon, Retention};

/// Version of the stored form of [`State`] and of commands.
pub const FORMAT: u32 = 1;

/// Everything the control plane knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The highest time that a command carried, in microseconds since 1970. Leases expire by it.
    pub clock_unix_micros: i64,
    /// Registered safekeepers and pageservers.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Tenants by id; names are unique among them.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// Names that somebody holds for a limited time.
    pub leases: BTreeMap<Name, Lease>,
}

/// A registered daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// What it does.
    pub role: NodeRole,
    /// `host:port` of its gRPC service.
    pub address: String,
    /// Safekeeper: drawn once, when its data directory was made; another one means that its WAL is lost.
    /// Pageserver: drawn at each start; another one fences what the former process still does.
    pub incarnation: u64,
    /// Safekeeper: it is being emptied, and nothing new is placed on it.
    #[serde(default)]
    pub draining: bool,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// A Paxos acceptor of WAL.
    Safekeeper,
    /// An owner of shards.
    Pageserver,
}

/// One customer's Postgres clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Unique among tenants.
    pub name: Name,
    /// Where it is in its life.
    pub state: TenantState,
    /// Known once the import is finished.
    pub cluster: Option<ClusterIdentity>,
    /// Owner of each shard, by shard index. Never empty, at most [`ShardCount::MAX`].
    pub shards: Vec<ShardPlacement>,
    /// Shards that are being made to take the place of [`shards`](Self::shards), by index; their number is a multiple of
    /// that. Empty: none.
    #[serde(default)]
    pub split: Vec<ShardPlacement>,
    /// Shards that are to be deleted: others have taken their place, or a split was called off.
    #[serde(default)]
    pub former: Vec<FormerShard>,
    /// The highest generation of splits that were called off: none of them is used again.
    #[serde(default)]
    pub split_generation: Generation,
    /// Branch names. A timeline that is being deleted has none.
    pub branches: BTreeMap<Name, TimelineId>,
    /// Timelines by id.
    pub timelines: BTreeMap<TimelineId, Timeline>,
    /// How long history is kept. What was stored before there was this field keeps all.
    #[serde(default)]
    pub retention: Retention,
}

/// Life of a tenant, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantState {
    /// A client is to send the output of `initdb` to the shards.
    Importing,
    /// Its first branch can be used.
    Active,
    /// Its timelines are being removed from the nodes.
    Deleting,
}

/// Which Postgres cluster the WAL belongs to; it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// From the control file.
    pub system_identifier: u64,
    /// 15 to 18.
    pub postgres_major: PgVersion,
    /// A power of two, 1 MiB to 1 GiB.
    pub wal_segment_bytes: u32,
    /// Its pages carry checksums. What was stored before there was this field is of clusters without.
    #[serde(default)]
    pub data_checksums: bool,
}

/// Who owns a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPlacement {
    /// A pageserver.
    pub node: NodeId,
    /// Rises with every change of owner and with every restart of it.
    pub generation: Generation,
}

/// A shard that is to be deleted, with its last owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerShard {
    /// Which.
    pub shard: ShardIdentity,
    /// Who had it.
    pub placement: ShardPlacement,
}

/// A history of WAL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Where it is in its life.
    pub state: TimelineState,
    /// The timeline it branches from, at [`start_lsn`](Self::start_lsn). None: the tenant's first one, or detached.
    pub parent: Option<TimelineId>,
    /// Shards copy what it reads from its parent. Once all have it, it has no parent any more.
    #[serde(default)]
    pub detaching: bool,
    /// Where its own WAL starts, always a record boundary; invalid while importing.
    pub start_lsn: Lsn,
    /// Start of the record that ends at `start_lsn`: the `xl_prev` of the first record.
    pub start_last_record: Lsn,
    /// First LSN at which it may be read or branched, when that is after `start_lsn`: the end of the base backup of a
    /// running server that it was made of. Invalid otherwise.
    #[serde(default)]
    pub consistent_lsn: Lsn,
    /// Who must agree on its WAL.
    pub safekeepers: SafekeeperSet,
    /// Safekeepers that confirmed its creation. Never asked again: one that lost its disk must not come back empty.
    pub created_on: BTreeSet<NodeId>,
    /// The generation of the safekeepers that is known to be in force; invalid until the first change of them.
    #[serde(default)]
    pub settled_generation: Generation,
    /// Former members, and those of changes that were given up. Once the present generation has settled they are told
    /// to delete the timeline; until they confirmed it they cannot come back, which they may only do empty.
    #[serde(default)]
    pub leaving: BTreeSet<NodeId>,
    /// Who is to join, and has not caught up yet: the change has not begun.
    #[serde(default)]
    pub joining: Option<Joining>,
    /// Number of the last attempt to let somebody join; 0 before the first.
    #[serde(default)]
    pub attempts: u64,
    /// The attempt that was given up because its time was over, until another is made. For people.
    #[serde(default)]
    pub timed_out: Option<Joining>,
    /// When it was created, in microseconds since 1970.
    pub created_unix_micros: i64,
    /// Below this LSN nothing of its own history is promised but branch points that there are. Invalid: all is kept.
    #[serde(default)]
    pub horizon: Horizon,
    /// When it may be deleted without being asked for, in microseconds since 1970.
    #[serde(default)]
    pub expires_unix_micros: Option<i64>,
}

/// A change of safekeepers that waits until those who join have caught up. They are *learners* meanwhile: they get the WAL
/// and count for nothing, so no commit waits for them, and no generation is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// Rises with every attempt, so that what is reported of an earlier one is known as such.
    pub attempt: u64,
    /// The set that is to follow.
    pub safekeepers: BTreeSet<NodeId>,
    /// A learner has caught up when it lacks at most this of what is committed, in bytes.
    pub within_bytes: u64,
    /// When the attempt is given up, on [`State::clock_unix_micros`].
    pub until_unix_micros: i64,
}

/// Generation of the safekeepers of a timeline that never changed.
const FIRST_GENERATION: Generation = Generation(1);

impl Timeline {
    /// Whether the present generation of its safekeepers is known to be in force: a quorum of every set has it. The
    /// first one is from the beginning.
    pub fn has_settled(&self) -> bool {
        let generation = self.safekeepers.generation;
        generation == FIRST_GENERATION || self.settled_generation == generation
    }

    /// Who is to join and does not count yet.
    pub fn learners(&self) -> BTreeSet<NodeId> {
        let joining = self.joining.as_ref();
        joining.map_or_else(BTreeSet::new, |joining| {
            &joining.safekeepers - &self.safekeepers.members()
        })
    }

    /// Every safekeeper that is to have it: members and learners.
    pub fn keepers(&self) -> BTreeSet<NodeId> {
        &self.safekeepers.members() | &self.learners()
    }
}

/// Life of a timeline, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimelineState {
    /// Its first images are being sent.
    Importing,
    /// Safekeepers and shards are being told about it.
    Creating,
    /// Can be used.
    Active,
    /// Being removed from the nodes; its name is free already.
    Deleting,
}

/// The safekeepers that must agree; with `next`, both sets must.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SafekeeperSet {
    /// Rises with every change.
    pub generation: Generation,
    /// The set in force.
    pub current: BTreeSet<NodeId>,
    /// The set that is to follow, while a change is under way.
    pub next: Option<BTreeSet<NodeId>>,
}

impl SafekeeperSet {
    /// Whether the nodes for which `agrees` holds are a majority of every set. An empty set has no majority.
    pub fn is_quorum(&self, agrees: impl Fn(NodeId) -> bool) -> bool {
        let majority = |set: &BTreeSet<NodeId>| set.iter().filter(|n| agrees(**n)).count() * 2 > set.len();
        majority(&self.current) && self.next.as_ref().is_none_or(majority)
    }

    /// Half-way through a change the set that is to follow, else the one in force.
    pub fn to_stay(&self) -> &BTreeSet<NodeId> {
        self.next.as_ref().unwrap_or(&self.current)
    }

    /// The nodes of both sets, each once.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.current
            .iter()
            .chain(self.next.iter().flatten())
            .copied()
            .collect()
    }
}

/// A name that somebody holds for a limited time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who holds it: any text that the holder can repeat.
    pub holder: String,
    /// When it is free again, on [`State::clock_unix_micros`].
    pub expires_unix_micros: i64,
}

fn identified(shards: &[ShardPlacement]) -> impl Iterator<Item = (ShardIdentity, ShardPlacement)> + '_ {
    let count = u8::try_from(shards.len()).ok().and_then(ShardCount::new);
    let identified = move |(index, placed): (ShardIndex, &ShardPlacement)| {
        let shard = count.and_then(|count| ShardIdentity::new(index, count));
        shard.map(|shard| (shard, *placed))
    };
    (0..).zip(shards).filter_map(identified)
}

impl Tenant {
    /// Number of shards.
    pub fn shard_count(&self) -> Option<ShardCount> {
        u8::try_from(self.shards.len()).ok().and_then(ShardCount::new)
    }

    /// Shards in force, with their index.
    pub fn placed_shards(&self) -> impl Iterator<Item = (ShardIndex, ShardPlacement)> + '_ {
        (0..).zip(self.shards.iter().copied())
    }

    /// The shards in force.
    pub fn shards_in_force(&self) -> impl Iterator<Item = (ShardIdentity, ShardPlacement)> + '_ {
        identified(&self.shards)
    }

    /// The shards that are to take their place, if it is being split.
    pub fn shards_to_be(&self) -> impl Iterator<Item = (ShardIdentity, ShardPlacement)> + '_ {
        identified(&self.split)
    }

    /// The shard in force that another one is a part of.
    pub fn whole_of(&self, part: ShardIdentity) -> Option<(ShardIdentity, ShardPlacement)> {
        self.shards_in_force().find(|(whole, _)| part.is_part_of(*whole))
    }

    /// Timelines that branch from this one, also those being deleted.
    pub fn children(&self, parent: TimelineId) -> impl Iterator<Item = (TimelineId, &Timeline)> + '_ {
        let is_child = move |(_, t): &(&TimelineId, &Timeline)| t.parent == Some(parent);
        self.timelines.iter().filter(is_child).map(|(id, t)| (*id, t))
    }

    /// The name under which a timeline is known.
    pub fn name_of(&self, timeline: TimelineId) -> Option<&Name> {
        self.branches
            .iter()
            .find(|(_, id)| **id == timeline)
            .map(|(name, _)| name)
    }
}

impl State {
    /// The tenant that a person means: by name, or by id.
    pub fn find_tenant(&self, name_or_id: &str) -> Option<(TenantId, &Tenant)> {
        if let Ok(id) = name_or_id.parse::<TenantId>() {
            return self.tenants.get(&id).map(|tenant| (id, tenant));
        }
        let named = |(_, tenant): &(&TenantId, &Tenant)| tenant.name.as_str() == name_or_id;
        self.tenants.iter().find(named).map(|(id, tenant)| (*id, tenant))
    }

    /// The stored form.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&(FORMAT, self))
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<State, DecodeError> {
        decode_versioned(bytes)
    }
}

/// Stored bytes that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version.
    #[error(
        "format {0} is newer than {FORMAT}, the newest that this version of lakebed reads; run a newer version"
    )]
    Newer(u32),
    /// Not what [`State::encode`] or [`Stamped::encode`](crate::Stamped::encode) writes.
    #[error("stored control-plane data cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Reads `[format, value]`, looking at the format before the value.
pub(crate) fn decode_versioned<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (format, _): (u32, serde::de::IgnoredAny) = serde_json::from_slice(bytes)?;
    if format > FORMAT {
        return Err(DecodeError::Newer(format));
    }
    let (_, value): (u32, T) = serde_json::from_slice(bytes)?;
    Ok(value)
}
