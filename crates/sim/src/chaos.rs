//! Faults, and the parts of the control plane that the quorum sees: membership changes, uploads, shards' progress.

use crate::invariants::{Checked, readable};
use crate::rng::Rng;
use crate::world::{Event, NODES, World};
use lakebed_quorum::acceptor::Input;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::proposer::Input as HostInput;
use lakebed_types::{Generation, Lsn, NodeId};
use std::collections::BTreeSet;

/// What is wrong at the moment.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Host, node and direction between which nothing passes.
    pub(crate) blocked: BTreeSet<(usize, usize, usize)>,
    /// A message is lost, and its stream breaks.
    pub(crate) loss_permille: u64,
    /// All faults are over.
    pub(crate) healed: bool,
    /// Whether this seed changes the membership.
    reconfigures: bool,
    /// How long a compute stays away at most, in milliseconds.
    pub(crate) away_ms: u64,
    /// The mean pause between faults, in milliseconds.
    pause_ms: u64,
    /// The longest pause of Postgres between writes, in milliseconds. Long ones leave room for more elections.
    pub(crate) write_ms: u64,
    /// The longest that a read from another acceptor takes, in milliseconds. In a long one terms come and go.
    pub(crate) read_ms: u64,
}

impl Faults {
    pub(crate) fn new(rng: &mut Rng) -> Faults {
        Faults {
            blocked: BTreeSet::new(),
            loss_permille: [0, 0, 3, 15][rng.index(4)],
            healed: false,
            reconfigures: rng.chance(500),
            away_ms: [200, 800, 4000][rng.index(3)],
            pause_ms: [60, 150, 400][rng.index(3)],
            write_ms: [60, 60, 400][rng.index(3)],
            read_ms: [60, 60, 800][rng.index(3)],
        }
    }
}

impl World {
    /// One thing goes wrong, or right again.
    pub(crate) fn chaos(&mut self) -> Checked {
        if self.faults.healed {
            return Ok(());
        }
        let delay = self.rng.range(1, 2 * self.faults.pause_ms);
        self.after(delay, Event::Chaos);
        let node = self.rng.index(self.nodes.len());
        let host = self.rng.index(self.hosts.len());
        match self.rng.below(100) {
            0..18 => self.crash_if_up(node),
            18..22 => {
                // A power cut: everyone at once.
                (0..self.nodes.len()).try_for_each(|n| self.crash_if_up(n))
            }
            22..27 => {
                if self.hosts[host].core.is_some() {
                    self.report.crashes += 1;
                    self.stop_host(host);
                }
                Ok(())
            }
            27..38 => {
                self.partition();
                Ok(())
            }
            38..48 => {
                self.isolate(host);
                Ok(())
            }
            48..60 => {
                self.faults.blocked.clear();
                Ok(())
            }
            60..64 => {
                self.nodes[node].disk.failing = true;
                Ok(())
            }
            64..68 => {
                self.hosts[host].clock_ms += self.rng.range(0, 1500);
                Ok(())
            }
            68..73 => {
                self.nodes[node].disk.slow_until = self.now + self.rng.range(100, 1500);
                Ok(())
            }
            73..78 => {
                let start = self.hosts[host]
                    .core
                    .as_ref()
                    .map_or(Lsn(0), |core| core.commit());
                self.host_input(host, HostInput::LocalTrimmed { start })
            }
            78..88 => self.upload_and_consume(node),
            _ => self.change_membership(),
        }
    }

    fn crash_if_up(&mut self, n: usize) -> Checked {
        if self.nodes[n].acceptor.is_none() {
            return Ok(());
        }
        self.crash_node(n)
    }

    /// Cuts some hosts off from some nodes, in one direction or both.
    fn partition(&mut self) {
        self.report.partitions += 1;
        let both = self.rng.chance(600);
        for host in 0..self.hosts.len() {
            for node in 0..self.nodes.len() {
                if self.rng.chance(400) {
                    let one = self.rng.index(2);
                    let directions = if both { 0..=1 } else { one..=one };
                    self.faults
                        .blocked
                        .extend(directions.map(|direction| (host, node, direction)));
                }
            }
        }
    }

    /// Leaves a host one node: it goes on writing what will never be committed.
    fn isolate(&mut self, host: usize) {
        self.report.partitions += 1;
        let kept = self.rng.index(self.nodes.len());
        for node in (0..self.nodes.len()).filter(|node| *node != kept) {
            self.faults.blocked.extend([(host, node, 0), (host, node, 1)]);
        }
    }

    fn upload_and_consume(&mut self, n: usize) -> Checked {
        let Some(acceptor) = &self.nodes[n].acceptor else {
            return Ok(());
        };
        // A shard gets WAL from any safekeeper that knows it to be committed; here the slowest shard moves.
        let commit = acceptor.state().commit;
        self.ledger.uploaded = self.ledger.uploaded.max(commit);
        if self.rng.chance(500) {
            self.ledger.consumed = self.ledger.consumed.max(commit);
        }
        for n in 0..self.nodes.len() {
            if self.rng.chance(700) {
                self.node_input(
                    n,
                    Input::BackedUp {
                        lsn: self.ledger.uploaded,
                    },
                    None,
                )?;
                self.node_input(
                    n,
                    Input::Consumed {
                        lsn: self.ledger.consumed,
                    },
                    None,
                )?;
            }
        }
        Ok(())
    }

    /// The controller begins a change, or gives one up.
    fn change_membership(&mut self) -> Checked {
        if !self.faults.reconfigures {
            return Ok(());
        }
        let current = self.ledger.config.clone();
        let generation = Generation(current.generation.0 + 1);
        if self.ledger.previous.is_some() {
            if current.new.is_some() && self.rng.chance(200) {
                self.report.aborted_reconfigurations += 1;
                self.decide(Membership {
                    generation,
                    old: current.old,
                    new: None,
                });
                self.reconfigure_hosts(700);
            }
            return readable::check(&self.nodes, &self.ledger);
        }
        let count = if self.rng.chance(700) { 3 } else { 5 };
        let mut new: BTreeSet<_> = (1..=NODES).map(NodeId).collect();
        while new.len() > count {
            let id = NodeId(self.rng.range(1, NODES));
            new.remove(&id);
        }
        let added: Vec<_> = new.difference(&current.old).copied().collect();
        self.decide(Membership {
            generation,
            old: current.old,
            new: Some(new),
        });
        for n in 0..self.nodes.len() {
            if added.contains(&self.nodes[n].id) {
                self.recreate_node(n);
            }
        }
        self.reconfigure_hosts(700);
        readable::check(&self.nodes, &self.ledger)
    }

    fn decide(&mut self, config: Membership) {
        self.ledger.previous = Some(std::mem::replace(&mut self.ledger.config, config));
    }

    /// Tells the computes; those that are not told hear of it from an acceptor.
    pub(crate) fn reconfigure_hosts(&mut self, permille: u64) {
        for host in 0..self.hosts.len() {
            if self.rng.chance(permille) {
                let life = self.hosts[host].life;
                let delay = self.rng.range(0, 50);
                self.after(delay, Event::Reconfigure { host, life });
            }
        }
    }

    /// A proposer says that a generation is in force. True when the next step was decided.
    pub(crate) fn settled(&mut self, generation: Generation) -> bool {
        if self.ledger.config.generation != generation {
            return false;
        }
        self.ledger.previous = None;
        let current = self.ledger.config.clone();
        let Some(new) = current.new else {
            return false;
        };
        self.report.reconfigurations += 1;
        let generation = Generation(generation.0 + 1);
        self.decide(Membership {
            generation,
            old: new,
            new: None,
        });
        true
    }

    /// All faults end; the second compute is gone for good.
    pub(crate) fn heal(&mut self) -> Checked {
        self.faults.healed = true;
        self.faults.blocked.clear();
        self.faults.loss_permille = 0;
        (self.faults.write_ms, self.faults.read_ms) = (60, 60);
        for n in 0..self.nodes.len() {
            self.nodes[n].disk.failing = false;
            self.nodes[n].disk.slow_until = 0;
            let life = self.nodes[n].life;
            self.restart_node(n, life)?;
        }
        self.stop_host(1);
        self.reconfigure_hosts(1000);
        Ok(())
    }
}
