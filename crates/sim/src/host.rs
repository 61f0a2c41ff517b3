//! A compute: a proposer, its driver (the sidecar), and a Postgres that writes records.
//!
//! A record names who wrote it, in which term and where, so that no two writers ever write the same bytes.

use crate::disk::{offset, position, record};
use crate::invariants::{
    Checked, commit_on_quorum, histories, no_delay, no_rejection, one_committer, readable,
};
use crate::rng::scatter;
use crate::world::{Event, NODES, SEGMENT_BYTES, World};
use lakebed_quorum::proposer::{Command, Config, Input, Proposer, Source};
use lakebed_types::{Lsn, NodeId, PgVersion, Term};
use std::collections::VecDeque;

/// A compute node.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: NodeId,
    /// Rises with every attempt at a term.
    pub(crate) life: u64,
    pub(crate) core: Option<Proposer>,
    /// The live stream to each node.
    pub(crate) streams: Vec<Option<usize>>,
    /// The whole log, once the term is won.
    pub(crate) log: Vec<u8>,
    commit: Lsn,
    floor: Term,
    /// How far its clock is ahead.
    pub(crate) clock_ms: u64,
}

impl Host {
    pub(crate) fn new(id: NodeId) -> Host {
        Host {
            id,
            life: 0,
            core: None,
            streams: (0..NODES).map(|_| None).collect(),
            log: Vec::new(),
            commit: Lsn::INVALID,
            floor: Term(0),
            clock_ms: 0,
        }
    }
}

impl World {
    pub(crate) fn start_host(&mut self, host: usize, life: u64) -> Checked {
        // After healing one compute is left, as the control plane would have it.
        if self.hosts[host].life != life || (self.faults.healed && host != 0) {
            return Ok(());
        }
        let stale = !self.faults.healed && self.rng.chance(200);
        let previous = self.ledger.previous.clone().filter(|_| stale);
        let config = Config {
            membership: previous.unwrap_or_else(|| self.ledger.config.clone()),
            system_id: 7,
            pg_version: PgVersion::V15,
            segment_bytes: SEGMENT_BYTES,
            lease_ms: 1500,
            heartbeat_ms: 200,
            election_ms: 1000,
            chunk_bytes: 64,
            in_flight_bytes: 256,
        };
        let h = &mut self.hosts[host];
        let mut core = Proposer::new(config, h.floor, self.now + h.clock_ms);
        core.break_rule(self.mutation);
        if !stale {
            core.handle(self.ledger.tell_learners());
        }
        h.core = Some(core);
        h.log.clear();
        h.commit = Lsn::INVALID;
        self.after(0, Event::Tick { host, life });
        self.connect_all(host);
        Ok(())
    }

    fn connect_all(&mut self, host: usize) {
        let life = self.hosts[host].life;
        for node in 0..self.nodes.len() {
            let delay = self.rng.range(0, 40);
            self.after(delay, Event::Connect { host, life, node });
        }
    }

    /// The attempt is over: crashed, fenced or lost. Another one follows.
    pub(crate) fn stop_host(&mut self, host: usize) {
        let (low, high) = if self.faults.healed {
            (50, 500)
        } else {
            (10, self.faults.away_ms)
        };
        let delay = self.rng.range(low, high);
        let h = &mut self.hosts[host];
        h.life += 1;
        h.core = None;
        let (life, streams) = (h.life, std::mem::take(&mut h.streams));
        h.streams = streams.iter().map(|_| None).collect();
        self.after(delay, Event::StartHost { host, life });
    }

    pub(crate) fn tick(&mut self, host: usize, life: u64) -> Checked {
        if self.hosts[host].life != life {
            return Ok(());
        }
        let now_ms = self.now + self.hosts[host].clock_ms;
        self.after(80, Event::Tick { host, life });
        self.host_input(host, Input::Tick { now_ms })?;
        self.report_learners(host)
    }

    /// Postgres writes some records.
    pub(crate) fn produce(&mut self, host: usize, life: u64) -> Checked {
        let Some(term) = self.hosts[host].core.as_ref().and_then(Proposer::term) else {
            return Ok(());
        };
        if self.hosts[host].life != life {
            return Ok(());
        }
        // A waiting compute writes no more than some buffers.
        let h = &mut self.hosts[host];
        if h.log.len() < offset(h.commit.max(position(0))) + 512 {
            let before = h.log.len();
            for _ in 0..self.rng.range(1, 6) {
                let writer = scatter(h.id.0) ^ scatter(term.0) ^ h.life;
                let next = record(scatter(writer), h.log.len());
                h.log.extend_from_slice(&next);
            }
            if let (Some(log), Some(new)) = (self.ledger.logs.get_mut(&term), h.log.get(before..)) {
                log.extend_from_slice(new);
            }
        }
        let end = position(self.hosts[host].log.len());
        let delay = self.rng.range(1, self.faults.write_ms);
        self.after(delay, Event::Produce { host, life });
        self.host_input(host, Input::LocalWal { end })
    }

    /// The controller's decision arrives.
    pub(crate) fn reconfigure(&mut self, host: usize, life: u64) -> Checked {
        if self.hosts[host].life != life {
            return Ok(());
        }
        self.connect_all(host);
        let membership = self.ledger.config.clone();
        self.host_input(host, Input::Reconfigure { membership })?;
        self.host_input(host, self.ledger.tell_learners())
    }

    pub(crate) fn host_input(&mut self, host: usize, input: Input) -> Checked {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let life = self.hosts[host].life;
            let Some(core) = &mut self.hosts[host].core else {
                return Ok(());
            };
            for command in core.handle(input) {
                if self.hosts[host].life != life {
                    return Ok(());
                }
                self.command(host, command, &mut inputs)?;
            }
        }
        match &self.hosts[host].core {
            Some(core) => no_delay::check(core),
            None => Ok(()),
        }
    }

    fn command(&mut self, host: usize, command: Command, inputs: &mut VecDeque<Input>) -> Checked {
        let life = self.hosts[host].life;
        match command {
            Command::Send { to, msg } => self.send_to_acceptor(host, to, msg),
            Command::ReadWal {
                acceptor,
                source,
                term,
                begin,
                end,
            } => {
                let acceptor = usize::try_from(acceptor.0 - 1).unwrap_or(usize::MAX);
                let delay = if source == Source::Local {
                    self.rng.below(2)
                } else {
                    self.rng.range(2, self.faults.read_ms)
                };
                self.after(
                    delay,
                    Event::Read {
                        host,
                        life,
                        acceptor,
                        source,
                        term,
                        begin,
                        end,
                    },
                );
            }
            Command::ElectionWon { term, start, donor } => self.won(host, term, start, donor)?,
            Command::CommitAdvanced(lsn) => self.committed(host, lsn)?,
            Command::Settled(generation) => self.settled(generation),
            Command::Rejected { acceptor, refusal } => no_rejection::on_rejected(acceptor, refusal)?,
            Command::StaleMembership(_) => {
                inputs.push_back(Input::Reconfigure {
                    membership: self.ledger.config.clone(),
                });
                inputs.push_back(self.ledger.tell_learners());
                self.connect_all(host);
            }
            Command::ElectionLost(term) | Command::Fenced(term) => {
                self.report.fenced += 1;
                self.hosts[host].floor = self.hosts[host].floor.max(term);
                self.stop_host(host);
            }
            Command::LeaseExpired => {
                self.report.leases_expired += 1;
                self.stop_host(host);
            }
        }
        Ok(())
    }

    fn won(&mut self, host: usize, term: Term, start: Lsn, donor: NodeId) -> Checked {
        self.report.elections += 1;
        self.note(format_args!(
            "compute {host} wins term {term} from {start} on, donor node {donor}"
        ));
        one_committer::on_election(&self.ledger, term)?;
        // As it was when the donor voted. A slow winner may learn of its votes when a later term has cut the donor's
        // WAL and written it anew; such a winner never commits, and what it believes to have is still its log.
        let wal = self.ledger.votes.get(&(term, donor));
        let wal = wal.map(Vec::as_slice).unwrap_or_default();
        let log = wal.get(..offset(start)).unwrap_or(wal).to_vec();
        histories::on_election(&self.ledger, term, start, &log)?;
        self.ledger.logs.insert(term, log.clone());
        self.hosts[host].log = log;
        // A core must be safe also under a sidecar that streams before the term's start is committed.
        if self.rng.chance(500) {
            let life = self.hosts[host].life;
            self.after(1, Event::Produce { host, life });
        }
        Ok(())
    }

    fn committed(&mut self, host: usize, lsn: Lsn) -> Checked {
        self.report.commits += 1;
        self.note(format_args!("compute {host} commits {lsn}"));
        let h = &mut self.hosts[host];
        let (before, life) = (std::mem::replace(&mut h.commit, lsn), h.life);
        let Some(core) = &h.core else {
            return Ok(());
        };
        let term = core.term().unwrap_or_default();
        one_committer::on_commit(&self.ledger, &h.log, term, lsn)?;
        commit_on_quorum::check(&self.nodes, core.membership(), &h.log, before, lsn)?;
        let known = self.ledger.committed.len();
        if let Some(new) = h.log.get(known..offset(lsn)) {
            self.ledger.committed.extend_from_slice(new);
        }
        self.ledger.commits.insert(term, lsn);
        histories::on_commit(&self.ledger, term, lsn)?;
        if !before.is_valid() {
            self.after(1, Event::Produce { host, life });
        }
        readable::check(&self.nodes, &self.ledger)
    }
}
