//! The controller: decides the next configuration, gives one up, tells a proposer.

use crate::scenario::{NODES, Scenario};
use crate::state::State;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::mutation::Mutation;
use lakebed_quorum::proposer::Input;
use lakebed_types::{Generation, NodeId};

impl State {
    /// What the controller would decide next, if anything.
    pub(crate) fn next_config(&self, scenario: &Scenario) -> Option<Membership> {
        let target = scenario.target()?.into_iter().collect();
        let current = &self.config;
        let generation = Generation(current.generation.0 + 1);
        let early = scenario.sabotage == Some(Mutation::NewSetBeforeSettled);
        match &current.new {
            Some(new) if self.settled || early => Some(Membership {
                generation,
                old: new.clone(),
                new: None,
            }),
            None if self.settled && current.old != target => {
                let skip = scenario.sabotage == Some(Mutation::SkipJoint);
                let (old, new) = if skip {
                    (target, None)
                } else {
                    (current.old.clone(), Some(target))
                };
                Some(Membership { generation, old, new })
            }
            _ => None,
        }
    }

    /// Gives a joint configuration up, once.
    pub(crate) fn abort_config(&self, scenario: &Scenario) -> Option<Membership> {
        let abort = scenario.abort && !self.aborted && self.config.new.is_some();
        abort.then(|| Membership {
            generation: Generation(self.config.generation.0 + 1),
            old: self.config.old.clone(),
            new: None,
        })
    }

    pub(crate) fn decide(&mut self, config: Membership) {
        self.aborted |= self.config.new.as_ref().is_some_and(|new| *new != config.old);
        (self.config, self.settled) = (config, false);
    }

    /// A proposer is told.
    pub(crate) fn tell(&mut self, c: usize) {
        let membership = self.config.clone();
        let Some(known) = self
            .computes
            .get(c)
            .map(|compute| compute.core.membership().clone())
        else {
            return;
        };
        let members = (1..=NODES as u64)
            .map(NodeId)
            .filter(|id| membership.contains(*id));
        let new: Vec<_> = members.filter(|id| !known.contains(*id)).collect();
        self.proposer_input(c, Input::Reconfigure { membership });
        if self.computes.get(c).is_some_and(|compute| compute.ghost) {
            return self.connect_all(c);
        }
        for id in new {
            self.proposer_input(c, Input::Connected(id));
        }
    }
}
