//! A change of a timeline's safekeepers, in generations: the present set, both, the new one.
//!
//! Each command names the generation that it is about, so a repeat or a late arrival is known as one. Only a proposer
//! knows when a generation has settled: a quorum of every set has adopted it and holds everything committed. Nothing
//! is deleted before that.

use std::collections::BTreeSet;

use lakebed_types::{Generation, NodeId, TenantId, TimelineId};

use super::{Applied, MAX_SAFEKEEPERS, changed};
use crate::command::{Outcome, Rejection};
use crate::state::*;

fn next(generation: Generation) -> Result<Generation, Rejection> {
    let next = generation.0.checked_add(1).map(Generation);
    next.ok_or(Rejection::Invalid("there is no higher generation of safekeepers"))
}

impl State {
    pub(super) fn change_safekeepers(
        &mut self,
        id: TenantId,
        timeline_id: TimelineId,
        from: Generation,
        safekeepers: BTreeSet<NodeId>,
    ) -> Applied {
        if safekeepers.is_empty() || safekeepers.len() > MAX_SAFEKEEPERS {
            return Err(Rejection::Invalid("a timeline needs 1 to 9 safekeepers"));
        }
        let role = NodeRole::Safekeeper;
        let registered = |node: &&NodeId| self.nodes.get(node).is_some_and(|n| n.role == role);
        if let Some(&node) = safekeepers.iter().find(|node| !registered(node)) {
            return Err(Rejection::NoNode { node, role });
        }
        let timeline = self.timeline_mut(id, timeline_id)?;
        if timeline.state != TimelineState::Active {
            let state = timeline.state;
            return Err(Rejection::TimelineIs {
                timeline: timeline_id,
                state,
            });
        }
        let set = &mut timeline.safekeepers;
        let generation = next(from)?;
        if set.generation == generation && set.next.as_ref() == Some(&safekeepers) {
            return Ok(Outcome::Unchanged);
        }
        if set.generation != from {
            return Err(Rejection::OtherGeneration(set.generation));
        }
        let settled = timeline.has_settled();
        let set = &mut timeline.safekeepers;
        if set.next.is_some() || !settled {
            return Err(Rejection::ChangeUnderWay(from));
        }
        if set.current == safekeepers {
            return Ok(Outcome::Unchanged);
        }
        if let Some(&node) = timeline.leaving.intersection(&safekeepers).next() {
            return Err(Rejection::StillLeaving(node));
        }
        set.generation = generation;
        set.next = Some(safekeepers);
        Ok(Outcome::Applied)
    }

    pub(super) fn safekeepers_settled(
        &mut self,
        id: TenantId,
        timeline: TimelineId,
        generation: Generation,
    ) -> Applied {
        let timeline = self.timeline_mut(id, timeline)?;
        let set = &mut timeline.safekeepers;
        if generation < set.generation {
            return Ok(Outcome::Unchanged);
        }
        if generation > set.generation {
            return Err(Rejection::OtherGeneration(set.generation));
        }
        if set.next.is_none() {
            let before = std::mem::replace(&mut timeline.settled_generation, generation);
            return Ok(changed(before != generation));
        }
        set.generation = next(generation)?;
        if let Some(new) = set.next.take() {
            let old = std::mem::replace(&mut set.current, new);
            timeline.leave(&old);
        }
        Ok(Outcome::Applied)
    }

    pub(super) fn abort_safekeeper_change(
        &mut self,
        id: TenantId,
        timeline: TimelineId,
        generation: Generation,
    ) -> Applied {
        let timeline = self.timeline_mut(id, timeline)?;
        let set = &mut timeline.safekeepers;
        // A repeat finds the set alone; so does a command that comes when the new set already is.
        if set.generation != generation || set.next.is_none() {
            return Err(Rejection::OtherGeneration(set.generation));
        }
        set.generation = next(generation)?;
        if let Some(new) = set.next.take() {
            timeline.leave(&new);
        }
        Ok(Outcome::Applied)
    }

    pub(super) fn left_safekeeper(&mut self, id: TenantId, timeline: TimelineId, node: NodeId) -> Applied {
        let timeline = self.timeline_mut(id, timeline)?;
        if !timeline.may_delete_on_leaving() {
            return Err(Rejection::ChangeUnderWay(timeline.safekeepers.generation));
        }
        timeline
            .created_on
            .retain(|created| *created != node || timeline.safekeepers.current.contains(created));
        Ok(changed(timeline.leaving.remove(&node)))
    }
}

impl Timeline {
    /// Those of `nodes` that are no members any more.
    fn leave(&mut self, nodes: &BTreeSet<NodeId>) {
        self.leaving.extend(nodes.difference(&self.safekeepers.current));
    }

    /// Whether no configuration that may still elect or commit counts on a node that left.
    pub fn may_delete_on_leaving(&self) -> bool {
        self.safekeepers.next.is_none() && self.has_settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::fixture::*;

    fn state() -> State {
        let mut state = active();
        apply(&mut state, register(4, NodeRole::Safekeeper, 1)).unwrap();
        state
    }

    fn abort(generation: u64) -> Command {
        Command::AbortSafekeeperChange {
            tenant: tenant_id(1),
            timeline: timeline_id(1),
            generation: Generation(generation),
        }
    }

    fn left(node: u64) -> Command {
        Command::LeftSafekeeper {
            tenant: tenant_id(1),
            timeline: timeline_id(1),
            node: NodeId(node),
        }
    }

    fn timeline(state: &State) -> &Timeline {
        &state.tenants[&tenant_id(1)].timelines[&timeline_id(1)]
    }

    fn set(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_change_goes_from_the_old_set_over_both_to_the_new_one_and_each_step_may_come_twice() {
        let mut state = state();
        let steps = [
            (
                change(1, &[2, 3, 4]),
                (2, &[1, 2, 3][..], Some(&[2, 3, 4][..])),
                &[][..],
            ),
            (settled(2), (3, &[2, 3, 4], None), &[1]),
            (settled(3), (3, &[2, 3, 4], None), &[1]),
            (left(1), (3, &[2, 3, 4], None), &[]),
        ];
        for (command, (generation, current, next), leaving) in steps {
            assert_eq!(
                apply(&mut state, command.clone()),
                Ok(Outcome::Applied),
                "{command:?}"
            );
            assert_eq!(
                apply(&mut state, command.clone()),
                Ok(Outcome::Unchanged),
                "{command:?}"
            );
            let timeline = timeline(&state);
            let expected = SafekeeperSet {
                generation: Generation(generation),
                current: set(current),
                next: next.map(set),
            };
            assert_eq!(
                (&timeline.safekeepers, &timeline.leaving),
                (&expected, &set(leaving))
            );
        }
        assert!(
            !timeline(&state).created_on.contains(&NodeId(1)),
            "it may come back, created anew"
        );
    }

    #[test]
    fn a_change_that_is_given_up_leaves_the_old_set_and_its_new_members_leave() {
        let mut state = state();
        apply(&mut state, change(1, &[2, 3, 4])).unwrap();
        apply(&mut state, abort(2)).unwrap();
        let set_now = &timeline(&state).safekeepers;
        assert_eq!(
            (set_now.generation, &set_now.current, &set_now.next),
            (Generation(3), &set(&[1, 2, 3]), &None)
        );
        assert_eq!(timeline(&state).leaving, set(&[4]));
        assert!(
            !timeline(&state).may_delete_on_leaving(),
            "the joint configuration may still commit"
        );
        apply(&mut state, settled(3)).unwrap();
        assert!(timeline(&state).may_delete_on_leaving());
    }

    #[test]
    fn what_is_refused_and_that_it_changes_nothing() {
        let fresh = state();
        let mut joint = state();
        apply(&mut joint, change(1, &[2, 3, 4])).unwrap();
        let mut alone = joint.clone();
        apply(&mut alone, settled(2)).unwrap();
        let mut done = alone.clone();
        apply(&mut done, settled(3)).unwrap();
        let none = Rejection::NoNode {
            node: NodeId(11),
            role: NodeRole::Safekeeper,
        };
        let table = [
            (
                &fresh,
                change(1, &[]),
                Rejection::Invalid("a timeline needs 1 to 9 safekeepers"),
            ),
            (&fresh, change(1, &[1, 2, 11]), none),
            (
                &fresh,
                change(2, &[2, 3, 4]),
                Rejection::OtherGeneration(Generation(1)),
            ),
            (&fresh, settled(2), Rejection::OtherGeneration(Generation(1))),
            (&fresh, abort(1), Rejection::OtherGeneration(Generation(1))),
            (
                &joint,
                change(1, &[1, 2, 4]),
                Rejection::OtherGeneration(Generation(2)),
            ),
            (
                &joint,
                change(2, &[1, 2, 4]),
                Rejection::ChangeUnderWay(Generation(2)),
            ),
            (&joint, left(1), Rejection::ChangeUnderWay(Generation(2))),
            // The new set alone may have committed: there is no way back but another change.
            (&alone, abort(2), Rejection::OtherGeneration(Generation(3))),
            (
                &alone,
                change(3, &[1, 2, 3]),
                Rejection::ChangeUnderWay(Generation(3)),
            ),
            (&alone, left(1), Rejection::ChangeUnderWay(Generation(3))),
            (&done, change(3, &[1, 2, 3]), Rejection::StillLeaving(NodeId(1))),
        ];
        for (before, command, rejection) in table {
            let mut after = before.clone();
            assert_eq!(apply(&mut after, command.clone()), Err(rejection), "{command:?}");
            after.clock_unix_micros = before.clock_unix_micros;
            assert_eq!(&after, before, "{command:?}");
        }
    }

    #[test]
    fn a_state_that_was_stored_before_there_were_changes_is_read() {
        let state = state();
        let mut json: serde_json::Value = serde_json::from_slice(&state.encode().unwrap()).unwrap();
        let timelines = json
            .pointer_mut(&format!("/1/tenants/{}/timelines", tenant_id(1)))
            .unwrap();
        for timeline in timelines.as_object_mut().unwrap().values_mut() {
            let fields = timeline.as_object_mut().unwrap();
            assert!(fields.remove("settled_generation").is_some() && fields.remove("leaving").is_some());
        }
        assert_eq!(State::decode(json.to_string().as_bytes()).unwrap(), state);
    }
}
