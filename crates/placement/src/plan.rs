//! The planner: what has to be done so that the nodes become what the state says.
//!
//! [`plan`] is a function of the replicated [`State`] and of what this controller has [`Observed`] since it became the
//! one in charge. It starts from nothing observed and then repeats calls that were made before: each call is
//! idempotent on its node. Creation on safekeepers is the exception, and is remembered in the state itself.
//!
//! Order matters only within a timeline's family: parents are created before and deleted after their children. A child
//! that is detached keeps its parent until every shard confirmed that it reads nothing from it any more.
//!
//! A tenant that is split has two sets of shards, and both are told everything that happens to timelines. The new ones are
//! filled, attached, and take over; only then the old ones are deleted.

mod intent;
mod observed;

use lakebed_types::{NodeId, ShardIdentity, TenantId, TimelineId};

use crate::command::Command;
use crate::state::*;
pub use intent::{Action, Call, Intent, Kept, PlacedShard, TimelineSpec};
pub use observed::Observed;
use observed::{Place, SplitStep, Told};

/// What is to be done now, in an order in which it may be done. Empty when everything is as it should be.
pub fn plan(state: &State, observed: &Observed) -> Vec<Intent> {
    let mut intents = Vec::new();
    for (&id, tenant) in &state.tenants {
        let mut planner = Planner {
            state,
            observed,
            id,
            tenant,
            intents: &mut intents,
        };
        planner.shards();
        planner.timelines();
        if tenant.state == TenantState::Deleting && tenant.timelines.is_empty() && tenant.former.is_empty() {
            intents.push(Intent::Propose(Command::TenantDeleted { tenant: id }));
        }
    }
    intents
}

/// Attempts to let safekeepers join whose time is over at `now_unix_micros`, and when the next one's is.
pub fn timed_out(state: &State, now_unix_micros: i64) -> (Vec<Intent>, Option<i64>) {
    let (mut over, mut next) = (Vec::new(), None);
    for (&tenant, found) in &state.tenants {
        for (&timeline, joining) in joinings(found) {
            let (attempt, until) = (joining.attempt, joining.until_unix_micros);
            if until <= now_unix_micros {
                over.push(Intent::Propose(Command::JoinTimedOut {
                    tenant,
                    timeline,
                    attempt,
                }));
            } else {
                next = Some(next.map_or(until, |next: i64| next.min(until)));
            }
        }
    }
    (over, next)
}

fn joinings(tenant: &Tenant) -> impl Iterator<Item = (&TimelineId, &Joining)> {
    let timelines = tenant.timelines.iter();
    timelines.filter_map(|(id, timeline)| Some((id, timeline.joining.as_ref()?)))
}

struct Planner<'a> {
    state: &'a State,
    observed: &'a Observed,
    id: TenantId,
    tenant: &'a Tenant,
    intents: &'a mut Vec<Intent>,
}

impl Planner<'_> {
    fn shards(&mut self) {
        let specs = self.shard_timelines();
        for (shard, placed) in self.tenant.shards_in_force() {
            self.attach(shard, &placed, &specs);
        }
        // Nobody who reads there takes a lease before they are in force: until then nothing may be given up.
        let mut to_be = specs;
        to_be.iter_mut().for_each(|spec| spec.kept = Kept::default());
        let (mut there, mut any) = (true, false);
        for (shard, placed) in self.tenant.shards_to_be() {
            any = true;
            let of = (shard, &placed);
            there &= match self.observed.has_stepped(self.id, SplitStep::Filled, of) {
                true => self.attach(shard, &placed, &to_be),
                false => self.fill(of, &to_be),
            };
        }
        if any && there {
            self.take_over();
        }
        for former in &self.tenant.former {
            let shard = placed(former.shard, &former.placement);
            self.call(former.placement.node, Action::DropShard { shard });
        }
    }

    /// Has an owner attach a shard, and tells it of its timelines. Whether it has all of them.
    fn attach(&mut self, shard: ShardIdentity, owner: &ShardPlacement, specs: &[TimelineSpec]) -> bool {
        let (node, named) = (owner.node, placed(shard, owner));
        let Some(attached) = self.observed.attachment(self.id, shard, owner) else {
            let timelines = specs.to_vec();
            self.call(
                node,
                Action::AttachShard {
                    shard: named,
                    timelines,
                },
            );
            return false;
        };
        for spec in specs {
            let told = attached.timelines.get(&spec.timeline) == Some(&Told::from(spec));
            let parent_there = spec.parent.is_none_or(|p| attached.timelines.contains_key(&p));
            if !told && parent_there {
                self.call(
                    node,
                    Action::CreateOnShard {
                        shard: named,
                        timeline: spec.clone(),
                    },
                );
            }
        }
        let has = |spec: &TimelineSpec| attached.timelines.contains_key(&spec.timeline);
        specs.iter().all(has)
    }

    /// Has a new shard filled; it is not there yet. A timeline that is made later begins on it as on any shard.
    fn fill(&mut self, (shard, owner): (ShardIdentity, &ShardPlacement), specs: &[TimelineSpec]) -> bool {
        if let Some((from, _)) = self.tenant.whole_of(shard) {
            let timelines = specs.iter().map(|spec| spec.timeline).collect();
            self.call(
                owner.node,
                Action::FillShard {
                    shard: placed(shard, owner),
                    from,
                    timelines,
                },
            );
        }
        false
    }

    /// All new shards run. The old shard 0 takes no files any more, then the new ones take over, then they are in force.
    fn take_over(&mut self) {
        let Some((first, owner)) = self.tenant.shards_in_force().next() else {
            return;
        };
        if !self
            .observed
            .has_stepped(self.id, SplitStep::Retired, (first, &owner))
        {
            // At a generation that was not attached yet nothing could be retired.
            if self.observed.is_attached(self.id, first, &owner) {
                let shard = placed(first, &owner);
                self.call(owner.node, Action::RetireShard { shard });
            }
            return;
        }
        let mut all = true;
        for (shard, owner) in self.tenant.shards_to_be() {
            let took_over = self
                .observed
                .has_stepped(self.id, SplitStep::TookOver, (shard, &owner));
            if let (false, Some((from, _))) = (took_over, self.tenant.whole_of(shard)) {
                let shard = placed(shard, &owner);
                self.call(owner.node, Action::TakeOverShard { shard, from });
            }
            all &= took_over;
        }
        if all {
            self.intents.push(Intent::Propose(Command::SplitFinished {
                tenant: self.id,
                retired: owner.generation,
                shards: self.tenant.split.iter().map(|shard| shard.generation).collect(),
            }));
        }
    }

    /// What shards must have: every timeline with WAL that is not being deleted, parents first.
    fn shard_timelines(&self) -> Vec<TimelineSpec> {
        let Some(cluster) = self.tenant.cluster else {
            return Vec::new();
        };
        let live = |t: &Timeline| matches!(t.state, TimelineState::Creating | TimelineState::Active);
        let live = self
            .tenant
            .timelines
            .iter()
            .filter(|(_, timeline)| live(timeline));
        let mut by_depth: Vec<_> = live
            .map(|(id, timeline)| (self.depth(*id), *id, timeline))
            .collect();
        by_depth.sort_by_key(|(depth, id, _)| (*depth, *id));
        let spec = |(_, timeline, t): (usize, TimelineId, &Timeline)| TimelineSpec {
            timeline,
            parent: t.parent,
            start_lsn: t.start_lsn,
            safekeepers: t
                .safekeepers
                .members()
                .iter()
                .filter_map(|n| self.address(*n))
                .collect(),
            cluster,
            kept: self.kept(timeline, t),
        };
        by_depth.into_iter().map(spec).collect()
    }

    /// The horizon with the branches below it. None is made there any more, so the list is complete for ever.
    fn kept(&self, id: TimelineId, timeline: &Timeline) -> Kept {
        let horizon = timeline.horizon.lsn;
        let below = self
            .tenant
            .children(id)
            .filter(|(_, child)| child.state != TimelineState::Deleting && child.start_lsn < horizon);
        Kept {
            horizon,
            branches: below.map(|(child, _)| child).collect(),
        }
    }

    fn depth(&self, timeline: TimelineId) -> usize {
        let parent = |id: &TimelineId| self.tenant.timelines.get(id).and_then(|t| t.parent);
        let ancestors = std::iter::successors(parent(&timeline), parent);
        ancestors.take(self.tenant.timelines.len()).count()
    }

    fn timelines(&mut self) {
        for (&id, timeline) in &self.tenant.timelines {
            match timeline.state {
                TimelineState::Importing => {}
                TimelineState::Creating | TimelineState::Active => self.live(id, timeline),
                TimelineState::Deleting => self.deleting(id, timeline),
            }
        }
    }

    fn live(&mut self, id: TimelineId, timeline: &Timeline) {
        let Some(cluster) = self.tenant.cluster else {
            return;
        };
        for node in timeline.keepers() {
            if !timeline.created_on.contains(&node) {
                let safekeepers = timeline.safekeepers.clone();
                let start_lsn = timeline.start_lsn;
                self.call(
                    node,
                    Action::CreateOnSafekeeper {
                        timeline: id,
                        start_lsn,
                        cluster,
                        learner: !safekeepers.members().contains(&node),
                        safekeepers,
                        peers: self.peers(timeline),
                    },
                );
            } else if self.is_to_be_told(id, timeline, node) {
                let safekeepers = timeline.safekeepers.clone();
                self.call(
                    node,
                    Action::TellSafekeeper {
                        timeline: id,
                        safekeepers,
                    },
                );
            }
        }
        if timeline.may_delete_on_leaving() {
            for node in &timeline.leaving {
                self.call(*node, Action::LeaveSafekeeper { timeline: id });
            }
        }
        let on_quorum = timeline
            .safekeepers
            .is_quorum(|node| timeline.created_on.contains(&node));
        let on_shards = self.tenant.shards_in_force().all(|(shard, placed)| {
            let attached = self.observed.attachment(self.id, shard, &placed);
            attached.is_some_and(|attached| attached.timelines.contains_key(&id))
        });
        if timeline.state == TimelineState::Creating && on_quorum && on_shards {
            self.intents.push(Intent::Propose(Command::TimelineReady {
                tenant: self.id,
                timeline: id,
            }));
        }
        if timeline.detaching {
            self.detaching(id);
        }
    }

    /// Asks each shard that has the timeline until it is detached there; when it is on all, the parent is let go.
    fn detaching(&mut self, id: TimelineId) {
        let mut everywhere = true;
        for (shard, owner) in self.tenant.shards_in_force().chain(self.tenant.shards_to_be()) {
            if self.observed.detached.contains(&(id, shard)) {
                continue;
            }
            everywhere = false;
            let attached = self.observed.attachment(self.id, shard, &owner);
            if attached.is_some_and(|attached| attached.timelines.contains_key(&id)) {
                let shard = placed(shard, &owner);
                self.call(owner.node, Action::DetachOnShard { shard, timeline: id });
            }
        }
        if everywhere {
            self.intents.push(Intent::Propose(Command::BranchDetached {
                tenant: self.id,
                timeline: id,
            }));
        }
    }

    /// Members that have the WAL of a timeline whose safekeepers change.
    fn peers(&self, timeline: &Timeline) -> Vec<String> {
        if timeline.state != TimelineState::Active {
            return Vec::new();
        }
        let members = &timeline.safekeepers.members() & &timeline.created_on;
        members.iter().filter_map(|node| self.address(*node)).collect()
    }

    /// Whether a member may not have heard of the present generation. Once that has settled a quorum has it, and the
    /// rest hears of it from the proposer.
    fn is_to_be_told(&self, id: TimelineId, timeline: &Timeline, node: NodeId) -> bool {
        let generation = timeline.safekeepers.generation;
        let told = self.observed.told.get(&(id, node)).copied();
        !timeline.has_settled() && told < Some(generation)
    }

    fn deleting(&mut self, id: TimelineId, timeline: &Timeline) {
        if self.tenant.children(id).next().is_some() {
            return;
        }
        let gone = |place| self.observed.deleted.contains(&(id, place));
        let mut all_gone = true;
        // Also where creation was never confirmed: the call may have had its effect.
        let members = &timeline.keepers() | &timeline.created_on;
        for node in &members | &timeline.leaving {
            if !gone(Place::Safekeeper(node)) {
                all_gone = false;
                self.call(node, Action::DeleteOnSafekeeper { timeline: id });
            }
        }
        for (shard, owner) in self.tenant.shards_in_force().chain(self.tenant.shards_to_be()) {
            if gone(Place::Shard(shard)) {
                continue;
            }
            all_gone = false;
            if self.observed.is_attached(self.id, shard, &owner) {
                let shard = placed(shard, &owner);
                self.call(owner.node, Action::DeleteOnShard { shard, timeline: id });
            }
        }
        if all_gone {
            self.intents.push(Intent::Propose(Command::TimelineDeleted {
                tenant: self.id,
                timeline: id,
            }));
        }
    }

    fn address(&self, node: NodeId) -> Option<String> {
        self.state.nodes.get(&node).map(|node| node.address.clone())
    }

    fn call(&mut self, node: NodeId, action: Action) {
        if let Some(address) = self.address(node) {
            self.intents.push(Intent::Call(Call {
                node,
                address,
                tenant: self.id,
                action,
            }));
        }
    }
}

fn placed(shard: ShardIdentity, owner: &ShardPlacement) -> PlacedShard {
    let generation = owner.generation;
    PlacedShard { shard, generation }
}

#[cfg(test)]
mod tests;
