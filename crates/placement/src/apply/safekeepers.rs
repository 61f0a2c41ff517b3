//! A change of a timeline's safekeepers, in generations: the present set, both, the new one. Before the second, those who
//! join catch up as learners, for a limited time.
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
    /// The timeline, if a change to these safekeepers may begin from generation `from` on.
    fn changeable(
        &mut self,
        id: TenantId,
        timeline_id: TimelineId,
        from: Generation,
        safekeepers: &BTreeSet<NodeId>,
    ) -> Result<&mut Timeline, Rejection> {
        if safekeepers.is_empty() || safekeepers.len() > MAX_SAFEKEEPERS {
            return Err(Rejection::Invalid("a timeline needs 1 to 9 safekeepers"));
        }
        self.all_registered(safekeepers, NodeRole::Safekeeper)?;
        let timeline = self.timeline_mut(id, timeline_id)?;
        if timeline.state != TimelineState::Active {
            let state = timeline.state;
            return Err(Rejection::TimelineIs {
                timeline: timeline_id,
                state,
            });
        }
        let set = &timeline.safekeepers;
        if set.generation != from {
            return Err(Rejection::OtherGeneration(set.generation));
        }
        if set.next.is_some() || !timeline.has_settled() {
            return Err(Rejection::ChangeUnderWay(from));
        }
        if timeline.joining.is_some() {
            return Err(Rejection::Joining(timeline.learners()));
        }
        if let Some(&node) = timeline.leaving.intersection(safekeepers).next() {
            return Err(Rejection::StillLeaving(node));
        }
        Ok(timeline)
    }

    pub(super) fn let_join(
        &mut self,
        id: TenantId,
        timeline_id: TimelineId,
        from: Generation,
        safekeepers: BTreeSet<NodeId>,
        (within_bytes, until_unix_micros): (u64, i64),
    ) -> Applied {
        let timeline = self.timeline_mut(id, timeline_id)?;
        let waits = timeline.joining.as_ref();
        if timeline.safekeepers.generation == from && waits.is_some_and(|j| j.safekeepers == safekeepers) {
            return Ok(Outcome::Unchanged);
        }
        let learners = &safekeepers - &timeline.safekeepers.current;
        self.none_draining(&learners)?;
        let timeline = self.changeable(id, timeline_id, from, &safekeepers)?;
        if learners.is_empty() {
            return Err(Rejection::Invalid("nobody joins, so nobody has to catch up"));
        }
        let attempt = timeline.attempts.checked_add(1);
        timeline.attempts = attempt.ok_or(Rejection::Invalid("there is no higher attempt"))?;
        timeline.timed_out = None;
        timeline.joining = Some(Joining {
            attempt: timeline.attempts,
            safekeepers,
            within_bytes,
            until_unix_micros,
        });
        Ok(Outcome::Applied)
    }

    pub(super) fn caught_up(&mut self, id: TenantId, timeline: TimelineId, attempt: u64) -> Applied {
        let timeline = self.timeline_mut(id, timeline)?;
        let generation = next(timeline.safekeepers.generation)?;
        let joining = timeline.joining.take_if(|joining| joining.attempt == attempt);
        let joining = joining.ok_or(Rejection::OtherAttempt)?;
        timeline.safekeepers.generation = generation;
        timeline.safekeepers.next = Some(joining.safekeepers);
        Ok(Outcome::Applied)
    }

    pub(super) fn join_timed_out(&mut self, id: TenantId, timeline: TimelineId, attempt: u64) -> Applied {
        let now = self.clock_unix_micros;
        let timeline = self.timeline_mut(id, timeline)?;
        let joining = timeline.joining.as_ref().filter(|j| j.attempt == attempt);
        if joining.ok_or(Rejection::OtherAttempt)?.until_unix_micros > now {
            return Err(Rejection::TimeLeft);
        }
        timeline.timed_out = timeline.give_up_joining();
        Ok(Outcome::Applied)
    }

    pub(super) fn change_safekeepers(
        &mut self,
        id: TenantId,
        timeline_id: TimelineId,
        from: Generation,
        safekeepers: BTreeSet<NodeId>,
    ) -> Applied {
        let generation = next(from)?;
        let set = &self.timeline_mut(id, timeline_id)?.safekeepers;
        if set.generation == generation && set.next.as_ref() == Some(&safekeepers) {
            return Ok(Outcome::Unchanged);
        }
        let timeline = self.changeable(id, timeline_id, from, &safekeepers)?;
        timeline.timed_out = None;
        let set = &mut timeline.safekeepers;
        if set.current == safekeepers {
            return Ok(Outcome::Unchanged);
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
        if timeline.safekeepers.generation == generation && timeline.give_up_joining().is_some() {
            return Ok(Outcome::Applied);
        }
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

    /// Who was to join leaves. Nothing counted on it, so the generation stays.
    fn give_up_joining(&mut self) -> Option<Joining> {
        let joining = self.joining.take()?;
        self.leave(&joining.safekeepers);
        Some(joining)
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

    fn let_join(generation: u64, safekeepers: &[u64]) -> Command {
        Command::LetJoin {
            tenant: tenant_id(1),
            timeline: timeline_id(1),
            generation: Generation(generation),
            safekeepers: set(safekeepers),
            within_bytes: 10,
            until_unix_micros: 1_000_000,
        }
    }

    fn caught_up(attempt: u64) -> Command {
        Command::CaughtUp {
            tenant: tenant_id(1),
            timeline: timeline_id(1),
            attempt,
        }
    }

    fn timed_out(attempt: u64) -> Command {
        Command::JoinTimedOut {
            tenant: tenant_id(1),
            timeline: timeline_id(1),
            attempt,
        }
    }

    #[test]
    fn who_joins_catches_up_before_it_counts() {
        let mut state = state();
        for outcome in [Outcome::Applied, Outcome::Unchanged] {
            assert_eq!(apply(&mut state, let_join(1, &[2, 3, 4])), Ok(outcome));
        }
        let learns = timeline(&state);
        assert_eq!(
            (learns.learners(), learns.keepers()),
            (set(&[4]), set(&[1, 2, 3, 4]))
        );
        assert_eq!(learns.safekeepers.members(), set(&[1, 2, 3]), "it does not count");
        let created = Command::CreatedOnSafekeeper {
            tenant: tenant_id(1),
            timeline: timeline_id(1),
            node: NodeId(4),
        };
        apply(&mut state, created).unwrap();
        let refusals = [
            (change(1, &[1, 2]), Rejection::Joining(set(&[4]))),
            (let_join(1, &[1, 2, 4]), Rejection::Joining(set(&[4]))),
            (caught_up(2), Rejection::OtherAttempt),
            (timed_out(1), Rejection::TimeLeft),
            (timed_out(2), Rejection::OtherAttempt),
        ];
        for (command, rejection) in refusals {
            assert_eq!(apply(&mut state, command.clone()), Err(rejection), "{command:?}");
        }
        apply(&mut state, caught_up(1)).unwrap();
        let joint = &timeline(&state).safekeepers;
        assert_eq!(
            (joint.generation, &joint.current, &joint.next),
            (Generation(2), &set(&[1, 2, 3]), &Some(set(&[2, 3, 4])))
        );
        assert_eq!(timeline(&state).joining, None);
        assert_eq!(apply(&mut state, caught_up(1)), Err(Rejection::OtherAttempt));
        assert_eq!(apply(&mut state, timed_out(1)), Err(Rejection::OtherAttempt));
    }

    #[test]
    fn who_does_not_catch_up_leaves_without_a_generation() {
        let mut given_up = state();
        apply(&mut given_up, let_join(1, &[4, 2, 3])).unwrap();
        let mut over = given_up.clone();
        apply(&mut given_up, abort(1)).unwrap();
        over.clock_unix_micros = 1_000_000;
        apply(&mut over, timed_out(1)).unwrap();
        for (mut state, told) in [(given_up, false), (over, true)] {
            let after = timeline(&state);
            assert_eq!(after.safekeepers.generation, Generation(1));
            assert_eq!((&after.joining, &after.leaving), (&None, &set(&[4])));
            assert!(after.may_delete_on_leaving());
            let why = after
                .timed_out
                .as_ref()
                .map(|joining| joining.safekeepers.clone());
            assert_eq!(why, told.then(|| set(&[2, 3, 4])));
            let again = let_join(1, &[2, 3, 4]);
            assert_eq!(
                apply(&mut state, again.clone()),
                Err(Rejection::StillLeaving(NodeId(4)))
            );
            apply(&mut state, left(4)).unwrap();
            apply(&mut state, again).unwrap();
            let joining = timeline(&state).joining.as_ref().unwrap();
            assert_eq!((joining.attempt, &timeline(&state).timed_out), (2, &None));
            // What was reported of the first attempt is not believed of the second.
            assert_eq!(apply(&mut state, caught_up(1)), Err(Rejection::OtherAttempt));
        }
    }

    #[test]
    fn nothing_new_comes_to_a_safekeeper_that_is_being_emptied_and_what_it_has_stays() {
        let mut state = state();
        let drain = |node, draining| Command::DrainSafekeeper {
            node: NodeId(node),
            draining,
        };
        let (node, role) = (NodeId(11), NodeRole::Safekeeper);
        assert_eq!(
            apply(&mut state, drain(11, true)),
            Err(Rejection::NoNode { node, role })
        );
        apply(&mut state, drain(4, true)).unwrap();
        // It registers again, elsewhere, as it does when it starts.
        let mut again = register(4, NodeRole::Safekeeper, 1);
        if let Command::RegisterNode { address, .. } = &mut again {
            *address = "elsewhere:1".to_owned();
        }
        apply(&mut state, again).unwrap();
        let emptied = Err(Rejection::Draining(NodeId(4)));
        assert_eq!(apply(&mut state, let_join(1, &[2, 3, 4])), emptied);
        let mut on_it = branch("dev", 2, 1, 2000);
        if let Command::CreateBranch { safekeepers, .. } = &mut on_it {
            *safekeepers = Some(set(&[1, 4]));
        }
        assert_eq!(apply(&mut state, on_it.clone()), emptied);
        let tenant = Command::CreateTenant {
            tenant: tenant_id(9),
            name: "late".parse().unwrap(),
            branch: "main".parse().unwrap(),
            timeline: timeline_id(9),
            shards: vec![NodeId(11)],
            safekeepers: set(&[4]),
            retention: crate::Retention::USUAL,
        };
        assert_eq!(apply(&mut state, tenant.clone()), emptied);
        let mut stored = State::decode(&state.encode().unwrap()).unwrap();
        assert_eq!(stored, state);
        apply(&mut stored, drain(4, false)).unwrap();
        for command in [let_join(1, &[2, 3, 4]), on_it, tenant] {
            assert_eq!(apply(&mut stored, command), Ok(Outcome::Applied));
        }
        // A member may be emptied, and stays one until it is moved.
        apply(&mut state, drain(1, true)).unwrap();
        assert_eq!(timeline(&state).safekeepers.members(), set(&[1, 2, 3]));
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
            (&done, let_join(3, &[1, 2, 3]), Rejection::StillLeaving(NodeId(1))),
            (
                &fresh,
                let_join(1, &[1, 2]),
                Rejection::Invalid("nobody joins, so nobody has to catch up"),
            ),
            (
                &joint,
                let_join(2, &[1, 2, 4]),
                Rejection::ChangeUnderWay(Generation(2)),
            ),
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
            for new in [
                "settled_generation",
                "leaving",
                "joining",
                "attempts",
                "timed_out",
            ] {
                assert!(fields.remove(new).is_some(), "{new}");
            }
        }
        assert_eq!(State::decode(json.to_string().as_bytes()).unwrap(), state);
    }
}
