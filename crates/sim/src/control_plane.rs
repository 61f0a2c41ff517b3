//! The controller as the quorum sees it: membership changes, in steps that may come twice or be given up, and the
//! deletion of timelines on nodes that left.
//!
//! A change: who joins gets WAL and does not count until a proposer says that it has caught up; then the joint
//! configuration is decided (now and then at once, for safety must not depend on the wait); when it has settled, the new set alone; when that has settled, nodes
//! that left give the timeline up. Computes and nodes are told, or not, and hear of it from each other.

use crate::invariants::{Checked, joiners, readable};
use crate::ledger::Joining;
use crate::world::{Event, NODES, World};
use lakebed_quorum::acceptor::Input;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::mutation::Mutation;
use lakebed_types::{Generation, Lsn, NodeId};
use std::collections::BTreeSet;

impl World {
    /// The controller begins a change, repeats a step, or gives one up.
    pub(crate) fn change_membership(&mut self) -> Checked {
        if !self.faults.reconfigures {
            return Ok(());
        }
        if self.ledger.joining.is_some() {
            if self.rng.chance(200) {
                return self.give_up_joining();
            }
            self.report.repeated_steps += 1;
            return self.repeat_step(500);
        }
        if self.ledger.previous.is_none() && self.ledger.config.new.is_none() {
            return self.begin_change();
        }
        if self.ledger.config.new.is_some() && self.rng.chance(200) {
            return self.abort();
        }
        self.report.repeated_steps += 1;
        self.repeat_step(500)
    }

    /// A change to a new set: without nodes that are gone, of three or five where there are so many.
    fn begin_change(&mut self) -> Checked {
        let current = self.ledger.config.clone();
        let lost = |id: &NodeId| current.old.contains(id) && self.nodes.iter().any(|n| n.id == *id && n.gone);
        let mut new: BTreeSet<_> = (1..=NODES).map(NodeId).filter(|id| !lost(id)).collect();
        let count = if self.rng.chance(700) { 3 } else { 5 };
        while new.len() > count {
            let id = NodeId(self.rng.range(1, NODES));
            new.remove(&id);
        }
        let learners: BTreeSet<_> = new.difference(&current.old).copied().collect();
        let at_once = learners.is_empty() || self.rng.chance(300);
        if at_once {
            self.join(new.clone())?;
        }
        for n in 0..self.nodes.len() {
            if learners.contains(&self.nodes[n].id) {
                self.recreate_node(n);
                // It pulls what its peers know to be committed.
                self.after(1, Event::Exchange { node: n });
            }
        }
        if !at_once {
            self.note(format_args!("the controller lets {learners:?} catch up"));
            let target = new;
            self.ledger.joining = Some(Joining { target, learners });
            self.ledger.attempt += 1;
            if self.mutation == Some(Mutation::JoinBeforeCaughtUp) {
                return self.caught_up(self.ledger.attempt, self.ledger.commit());
            }
        }
        self.repeat_step(if self.faults.healed { 1000 } else { 700 })?;
        readable::check(&self.nodes, &self.ledger)
    }

    /// The joint configuration.
    fn join(&mut self, new: BTreeSet<NodeId>) -> Checked {
        let current = self.ledger.config.clone();
        let generation = Generation(current.generation.0 + 1);
        let leaving: Vec<_> = current.old.difference(&new).copied().collect();
        let (old, new) = match self.mutation {
            Some(Mutation::SkipJoint) => (new, None),
            _ => (current.old, Some(new)),
        };
        self.decide(Membership { generation, old, new });
        for n in 0..self.nodes.len() {
            if self.mutation == Some(Mutation::DecommissionEarly) && leaving.contains(&self.nodes[n].id) {
                self.wipe_node(n)?;
            }
        }
        if self.mutation == Some(Mutation::NewSetBeforeSettled) {
            self.after(20, Event::NextStep { generation });
        }
        Ok(())
    }

    /// A proposer finds, or does not, that its learners have caught up: it says so as long as it is so.
    pub(crate) fn report_learners(&mut self, host: usize) -> Checked {
        let Some(core) = &self.hosts[host].core else {
            return Ok(());
        };
        let (found, commit) = (core.caught_up(joiners::WITHIN), core.commit());
        if let Some(attempt) = found
            && !self.rng.chance(self.faults.loss_permille)
        {
            let delay = self.rng.range(0, 600);
            self.after(delay, Event::CaughtUp { attempt, commit });
        }
        Ok(())
    }

    /// Learners may become members.
    pub(crate) fn caught_up(&mut self, attempt: u64, commit: Lsn) -> Checked {
        let present = attempt == self.ledger.attempt;
        let Some(joining) = self.ledger.joining.take_if(|_| present) else {
            return Ok(());
        };
        joiners::check(&self.nodes, &joining, commit)?;
        self.report.joined_after_catching_up += 1;
        self.join(joining.target)?;
        self.repeat_step(if self.faults.healed { 1000 } else { 700 })?;
        readable::check(&self.nodes, &self.ledger)
    }

    /// Who was to join does not: nothing counted on it, so no generation is needed.
    fn give_up_joining(&mut self) -> Checked {
        self.report.catch_ups_given_up += 1;
        self.note(format_args!("the controller gives up who was to join"));
        self.ledger.joining = None;
        self.repeat_step(700)
    }

    /// Gives up a joint configuration, settled or not.
    fn abort(&mut self) -> Checked {
        let current = self.ledger.config.clone();
        if self.ledger.previous.is_none() {
            self.report.aborts_after_settled += 1;
        } else {
            self.report.aborts_before_settled += 1;
        }
        self.decide(Membership {
            generation: Generation(current.generation.0 + 1),
            old: current.old,
            new: None,
        });
        self.repeat_step(700)?;
        readable::check(&self.nodes, &self.ledger)
    }

    fn decide(&mut self, config: Membership) {
        self.note(format_args!("the controller decides {config:?}"));
        self.ledger.previous = Some(std::mem::replace(&mut self.ledger.config, config));
    }

    /// Tells computes and nodes, with this probability each.
    pub(crate) fn repeat_step(&mut self, permille: u64) -> Checked {
        for host in 0..self.hosts.len() {
            if self.rng.chance(permille) {
                let life = self.hosts[host].life;
                let delay = self.rng.range(0, 50);
                self.after(delay, Event::Reconfigure { host, life });
            }
        }
        for n in 0..self.nodes.len() {
            let membership = self.ledger.config.clone();
            if membership.contains(self.nodes[n].id) && self.rng.chance(permille / 2) {
                self.node_input(n, Input::Reconfigure { membership }, None)?;
            }
        }
        Ok(())
    }

    /// A proposer says that a generation is in force: the controller takes its next step in its own time.
    pub(crate) fn settled(&mut self, generation: Generation) {
        if self.ledger.config.generation != generation || self.ledger.previous.is_none() {
            return;
        }
        self.ledger.previous = None;
        let delay = self.rng.range(0, 600);
        self.after(delay, Event::NextStep { generation });
    }

    /// What follows a configuration that has settled.
    pub(crate) fn next_step(&mut self, generation: Generation) -> Checked {
        let early = self.mutation == Some(Mutation::NewSetBeforeSettled);
        let current = self.ledger.config.clone();
        if current.generation != generation || (self.ledger.previous.is_some() && !early) {
            return Ok(());
        }
        let Some(new) = current.new else {
            if self.rng.chance(500) {
                self.decommission()?;
            }
            return self.replace_lost();
        };
        if !self.faults.healed && self.rng.chance(150) {
            return self.abort();
        }
        self.report.reconfigurations += 1;
        self.decide(Membership {
            generation: Generation(generation.0 + 1),
            old: new,
            new: None,
        });
        self.repeat_step(1000)
    }

    /// Nodes that are in no configuration give the timeline up.
    fn decommission(&mut self) -> Checked {
        for n in 0..self.nodes.len() {
            let id = self.nodes[n].id;
            let needed = self.ledger.config.contains(id) || self.ledger.learners().contains(&id);
            if !self.nodes[n].gone && !needed {
                self.report.decommissions += 1;
                self.wipe_node(n)?;
            }
        }
        Ok(())
    }

    /// Once the faults are over: members whose disks are gone are replaced.
    pub(crate) fn replace_lost(&mut self) -> Checked {
        let learners = self.ledger.learners();
        if self.faults.healed && self.nodes.iter().any(|n| n.gone && learners.contains(&n.id)) {
            self.give_up_joining()?;
        }
        let config = &self.ledger.config;
        let lost = self.nodes.iter().any(|n| n.gone && config.contains(n.id));
        let idle = config.new.is_none() && self.ledger.previous.is_none() && self.ledger.joining.is_none();
        if self.faults.healed && lost && idle {
            return self.begin_change();
        }
        // A joint configuration that had settled before the faults ended has its next step under way.
        Ok(())
    }
}
