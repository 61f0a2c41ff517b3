//! Faults: what goes wrong, how often, and the end of it.

use crate::invariants::Checked;
use crate::rng::Rng;
use crate::world::{Event, World};
use lakebed_quorum::proposer::Input as HostInput;
use lakebed_types::Lsn;
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
    pub(crate) reconfigures: bool,
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
            18..21 => {
                // Everyone at once.
                self.report.power_cuts += 1;
                (0..self.nodes.len()).try_for_each(|n| self.crash_if_up(n))
            }
            21..26 => {
                if self.hosts[host].core.is_some() {
                    self.report.crashes += 1;
                    self.stop_host(host);
                }
                Ok(())
            }
            26..35 => {
                self.partition();
                Ok(())
            }
            35..44 => {
                self.isolate(host);
                Ok(())
            }
            44..54 => {
                self.faults.blocked.clear();
                Ok(())
            }
            54..58 => {
                self.nodes[node].disk.failing = true;
                Ok(())
            }
            58..61 => {
                self.report.clock_jumps += 1;
                self.hosts[host].clock_ms += self.rng.range(0, 1500);
                Ok(())
            }
            61..65 => {
                self.report.slow_disks += 1;
                self.nodes[node].disk.slow_until = self.now + self.rng.range(100, 1500);
                Ok(())
            }
            65..69 => {
                let start = self.hosts[host]
                    .core
                    .as_ref()
                    .map_or(Lsn(0), |core| core.commit());
                self.host_input(host, HostInput::LocalTrimmed { start })
            }
            69..71 => {
                self.nodes[node].disk.full_until = self.now + self.rng.range(50, 1500);
                Ok(())
            }
            71..73 => {
                self.rot(node);
                Ok(())
            }
            73..75 if self.faults.reconfigures => self.lose_disk(node),
            73..80 => self.exchange(node),
            80..88 => self.upload_and_consume(node),
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
        self.report.one_way_partitions += u64::from(!both);
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

    /// All faults end; the second compute is gone for good.
    pub(crate) fn heal(&mut self) -> Checked {
        self.faults.healed = true;
        self.faults.blocked.clear();
        self.faults.loss_permille = 0;
        (self.faults.write_ms, self.faults.read_ms) = (60, 60);
        for n in 0..self.nodes.len() {
            self.nodes[n].disk.failing = false;
            self.nodes[n].disk.slow_until = 0;
            self.nodes[n].disk.full_until = 0;
            let life = self.nodes[n].life;
            self.restart_node(n, life)?;
        }
        self.stop_host(1);
        self.repeat_step(1000)?;
        self.replace_lost()
    }
}
