//! The controller as the quorum sees it: membership changes, in steps that may come twice or be given up, and the
//! deletion of timelines on nodes that left.
//!
//! A change: the joint configuration is decided; when it has settled, the new set alone; when that has settled, nodes
//! that left give the timeline up. Computes and nodes are told, or not, and hear of it from each other.

use crate::invariants::{Checked, readable};
use crate::world::{Event, NODES, World};
use lakebed_quorum::acceptor::Input;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::mutation::Mutation;
use lakebed_types::{Generation, NodeId};
use std::collections::BTreeSet;

impl World {
    /// The controller begins a change, repeats a step, or gives one up.
    pub(crate) fn change_membership(&mut self) -> Checked {
        if !self.faults.reconfigures {
            return Ok(());
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

    /// A joint configuration with a new set: without nodes that are gone, of three or five where there are so many.
    fn begin_change(&mut self) -> Checked {
        let current = self.ledger.config.clone();
        let lost = |id: &NodeId| current.old.contains(id) && self.nodes.iter().any(|n| n.id == *id && n.gone);
        let mut new: BTreeSet<_> = (1..=NODES).map(NodeId).filter(|id| !lost(id)).collect();
        let count = if self.rng.chance(700) { 3 } else { 5 };
        while new.len() > count {
            let id = NodeId(self.rng.range(1, NODES));
            new.remove(&id);
        }
        let generation = Generation(current.generation.0 + 1);
        let leaving: Vec<_> = current.old.difference(&new).copied().collect();
        let added: Vec<_> = new.difference(&current.old).copied().collect();
        let (old, new) = match self.mutation {
            Some(Mutation::SkipJoint) => (new, None),
            _ => (current.old, Some(new)),
        };
        self.decide(Membership { generation, old, new });
        for n in 0..self.nodes.len() {
            if added.contains(&self.nodes[n].id) {
                self.recreate_node(n);
                // It pulls what its peers know to be committed.
                self.after(1, Event::Exchange { node: n });
            }
            if self.mutation == Some(Mutation::DecommissionEarly) && leaving.contains(&self.nodes[n].id) {
                self.wipe_node(n)?;
            }
        }
        if self.mutation == Some(Mutation::NewSetBeforeSettled) {
            self.after(20, Event::NextStep { generation });
        }
        self.repeat_step(if self.faults.healed { 1000 } else { 700 })?;
        readable::check(&self.nodes, &self.ledger)
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
            if !self.nodes[n].gone && !self.ledger.config.contains(self.nodes[n].id) {
                self.report.decommissions += 1;
                self.wipe_node(n)?;
            }
        }
        Ok(())
    }

    /// Once the faults are over: members whose disks are gone are replaced.
    pub(crate) fn replace_lost(&mut self) -> Checked {
        let config = &self.ledger.config;
        let lost = self.nodes.iter().any(|n| n.gone && config.contains(n.id));
        let idle = config.new.is_none() && self.ledger.previous.is_none();
        if self.faults.healed && lost && idle {
            return self.begin_change();
        }
        // A joint configuration that had settled before the faults ended has its next step under way.
        Ok(())
    }
}
