//! What a controller learned from the nodes it called.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{Generation, NodeId, ShardIdentity, TenantId, TimelineId};

use super::intent::{Action, Call, Kept, PlacedShard, TimelineSpec};
use crate::command::Command;
use crate::state::{ShardPlacement, State};

/// What nodes confirmed since this controller took charge. Not durable, and never needed for safety.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub(super) attached: BTreeMap<(TenantId, ShardIdentity), Attached>,
    /// Steps of a split that owners have taken.
    pub(super) split: BTreeSet<(TenantId, SplitStep, PlacedShard, NodeId)>,
    pub(super) deleted: BTreeSet<(TimelineId, Place)>,
    /// Shards that read nothing from a timeline's parent any more. Durable there, so a later owner has it too.
    pub(super) detached: BTreeSet<(TimelineId, ShardIdentity)>,
    /// The generation of its members that a safekeeper was told last.
    pub(super) told: BTreeMap<(TimelineId, NodeId), Generation>,
}

#[derive(Clone, Debug)]
pub(super) struct Attached {
    node: NodeId,
    generation: Generation,
    /// Timelines with what the shard was told of them.
    pub(super) timelines: BTreeMap<TimelineId, Told>,
}

/// What a shard was told of a timeline, and may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    safekeepers: Vec<String>,
    kept: Kept,
}

impl From<&TimelineSpec> for Told {
    fn from(spec: &TimelineSpec) -> Told {
        Told {
            safekeepers: spec.safekeepers.clone(),
            kept: spec.kept.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Safekeeper(NodeId),
    Shard(ShardIdentity),
}

/// What an owner does in a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SplitStep {
    Filled,
    Retired,
    TookOver,
}

impl Observed {
    /// Notes that a call succeeded. Returns the command that makes it durable, where that is needed.
    pub fn done(&mut self, call: &Call) -> Option<Command> {
        let tenant = call.tenant;
        match &call.action {
            Action::AttachShard { shard, timelines } => {
                let timelines = timelines.iter().map(|t| (t.timeline, Told::from(t))).collect();
                let attached = Attached {
                    node: call.node,
                    generation: shard.generation,
                    timelines,
                };
                self.attached.insert((tenant, shard.shard), attached);
            }
            Action::CreateOnShard { shard, timeline } => {
                if let Some(attached) = self.attached.get_mut(&(tenant, shard.shard))
                    && attached.node == call.node
                    && attached.generation == shard.generation
                {
                    attached.timelines.insert(timeline.timeline, Told::from(timeline));
                }
            }
            Action::DeleteOnShard { shard, timeline } => {
                self.deleted.insert((*timeline, Place::Shard(shard.shard)));
            }
            Action::DetachOnShard { shard, timeline } => {
                self.detached.insert((*timeline, shard.shard));
            }
            Action::FillShard { shard, .. } => self.stepped(call, SplitStep::Filled, shard),
            Action::RetireShard { shard } => self.stepped(call, SplitStep::Retired, shard),
            Action::TakeOverShard { shard, .. } => self.stepped(call, SplitStep::TookOver, shard),
            Action::DropShard { shard } => {
                let shard = shard.shard;
                return Some(Command::ShardDropped { tenant, shard });
            }
            Action::TellSafekeeper {
                timeline,
                safekeepers,
            } => {
                self.told.insert((*timeline, call.node), safekeepers.generation);
            }
            Action::CreateOnSafekeeper {
                timeline,
                safekeepers,
                ..
            } => {
                self.told.insert((*timeline, call.node), safekeepers.generation);
                return Some(Command::CreatedOnSafekeeper {
                    tenant,
                    timeline: *timeline,
                    node: call.node,
                });
            }
            Action::DeleteOnSafekeeper { timeline } => {
                self.deleted.insert((*timeline, Place::Safekeeper(call.node)));
            }
            // It may come back as a new member, so nothing is remembered here.
            Action::LeaveSafekeeper { timeline } => {
                return Some(Command::LeftSafekeeper {
                    tenant,
                    timeline: *timeline,
                    node: call.node,
                });
            }
        }
        None
    }

    fn stepped(&mut self, call: &Call, step: SplitStep, shard: &PlacedShard) {
        self.split.insert((call.tenant, step, *shard, call.node));
    }

    /// Whether a shard's owner has taken a step of a split, at its present generation.
    pub(super) fn has_stepped(
        &self,
        tenant: TenantId,
        step: SplitStep,
        (shard, placed): (ShardIdentity, &ShardPlacement),
    ) -> bool {
        let generation = placed.generation;
        let shard = PlacedShard { shard, generation };
        self.split.contains(&(tenant, step, shard, placed.node))
    }

    /// Forgets what belongs to tenants and timelines that no longer exist, and to steps that are over.
    pub fn prune(&mut self, state: &State) {
        self.attached
            .retain(|(tenant, _), _| state.tenants.contains_key(tenant));
        for attached in &mut self.attached {
            let tenant = state.tenants.get(&attached.0.0);
            attached
                .1
                .timelines
                .retain(|id, _| tenant.is_some_and(|t| t.timelines.contains_key(id)));
        }
        let exists = |id: &TimelineId| {
            state
                .tenants
                .values()
                .any(|tenant| tenant.timelines.contains_key(id))
        };
        self.deleted.retain(|(timeline, _)| exists(timeline));
        let detaching = |id: &TimelineId| {
            let mut found = state
                .tenants
                .values()
                .filter_map(|tenant| tenant.timelines.get(id));
            found.any(|timeline| timeline.detaching)
        };
        self.detached.retain(|(timeline, _)| detaching(timeline));
        self.told.retain(|(timeline, _), _| exists(timeline));
        let splitting = |id: &TenantId| {
            state
                .tenants
                .get(id)
                .is_some_and(|tenant| !tenant.split.is_empty())
        };
        self.split.retain(|(tenant, ..)| splitting(tenant));
    }

    /// Whether a shard's owner confirmed its present generation.
    pub fn is_attached(&self, tenant: TenantId, shard: ShardIdentity, placed: &ShardPlacement) -> bool {
        self.attachment(tenant, shard, placed).is_some()
    }

    pub(super) fn attachment(
        &self,
        tenant: TenantId,
        shard: ShardIdentity,
        placed: &ShardPlacement,
    ) -> Option<&Attached> {
        let attached = self.attached.get(&(tenant, shard))?;
        (attached.node == placed.node && attached.generation == placed.generation).then_some(attached)
    }
}
