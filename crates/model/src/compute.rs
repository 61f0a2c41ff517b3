//! A proposer's driver: streams, donor reads, and a Postgres that writes records.

use crate::scenario::{NODES, Scenario};
use crate::state::{Compute, Read, State, index, position, slot};
use bytes::Bytes;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Body, Request};
use lakebed_quorum::proposer::{Command, Config, Input, Proposer, Source};
use lakebed_types::{Lsn, NodeId, PgVersion, Term};
use std::collections::{BTreeSet, VecDeque};

/// Nothing in the model takes so long.
const NEVER_MS: u64 = 1 << 40;

impl Compute {
    pub(crate) fn new(membership: Membership, attempt: u8, floor: Term, scenario: &Scenario) -> Compute {
        let config = Config {
            membership,
            system_id: 7,
            pg_version: PgVersion::V15,
            segment_bytes: 1,
            lease_ms: NEVER_MS,
            heartbeat_ms: 1,
            election_ms: NEVER_MS,
            chunk_bytes: 64,
            in_flight_bytes: 64,
        };
        let mut core = Proposer::new(config, floor, 0);
        core.break_rule(scenario.sabotage);
        Compute {
            core,
            floor,
            attempt,
            up: true,
            started: false,
            ghost: false,
            untold: scenario.is_reduced(),
            log: Vec::new(),
            written: 0,
            ticked: false,
            requests: Default::default(),
            answers: Default::default(),
            reads: BTreeSet::new(),
            rests: [false; NODES],
        }
    }
}

/// An append without WAL, which tells the commit position.
fn is_notice(request: &Request) -> bool {
    matches!(request, Request::Append { bytes, .. } if bytes.is_empty())
}

impl State {
    /// Streams to all members that have none yet.
    pub(crate) fn connect_all(&mut self, c: usize) {
        let members = self
            .computes
            .get(c)
            .map(|compute| compute.core.membership().clone());
        for id in (1..=NODES as u64).map(NodeId) {
            if members.as_ref().is_some_and(|members| members.contains(id)) {
                self.proposer_input(c, Input::Connected(id));
            }
        }
    }

    /// The next request of a proposer reaches a node.
    pub(crate) fn deliver(&mut self, c: usize, n: usize, scenario: &Scenario) -> Option<()> {
        let request = self.computes.get_mut(c)?.requests.get_mut(n)?.pop_front()?;
        let greeting = matches!(request, Request::Greeting { .. });
        if scenario.duplicates && !greeting {
            self.old.insert((n, request.clone()));
        }
        // What it would tell is known already.
        let notice = is_notice(&request);
        let mut msg = self.ask(n, c, request, scenario)?;
        let deaf = self.deaf_above(self.computes.get(c)?, scenario);
        if self.computes.get(c)?.ghost || deaf.is_some_and(|term| msg.term > term) {
            return Some(());
        }
        if let Body::Appended { commit, .. } = &mut msg.body {
            // For status pages: no proposer looks at it.
            *commit = Lsn::INVALID;
        }
        if greeting || !scenario.slow_answers {
            // A greeting is always answered at once: that a proposer's picture of an acceptor may be old comes from
            // what happens before its next request arrives.
            let from = NodeId(n as u64 + 1);
            self.proposer_input(c, Input::Received { from, msg });
        } else if !(notice && matches!(msg.body, Body::Appended { .. })) {
            self.computes.get_mut(c)?.answers.get_mut(n)?.push_back(msg);
        }
        Some(())
    }

    /// Delivers the commit notices that are next in a stream; see the module header of `normal`.
    pub(crate) fn deliver_notices(&mut self, scenario: &Scenario) {
        for (c, n) in (0..self.computes.len()).flat_map(|c| (0..NODES).map(move |n| (c, n))) {
            let next = |state: &State| {
                let requests = state.computes.get(c)?.requests.get(n)?;
                requests.front().map(is_notice)
            };
            while next(self) == Some(true) {
                self.deliver(c, n, scenario);
            }
        }
    }

    /// The attempt ends, what it sent stays on its way, and another begins.
    pub(crate) fn restart(&mut self, c: usize, scenario: &Scenario) {
        self.end_attempt(c, scenario);
        let Some(compute) = self.computes.get_mut(c) else {
            return;
        };
        let floor = compute.floor.max(compute.core.term().unwrap_or_default());
        **compute = Compute::new(self.config.clone(), compute.attempt + 1, floor, scenario);
    }

    pub(crate) fn end_attempt(&mut self, c: usize, scenario: &Scenario) {
        let Some(compute) = self.computes.get_mut(c).map(|part| &mut **part) else {
            return;
        };
        compute.up = false;
        compute.reads.clear();
        for (n, (requests, answers)) in compute.requests.iter_mut().zip(&mut compute.answers).enumerate() {
            answers.clear();
            let late = std::mem::take(requests);
            if scenario.duplicates {
                let late = late
                    .into_iter()
                    .filter(|request| !matches!(request, Request::Greeting { .. }));
                self.old.extend(late.map(|request| (n, request)));
            }
        }
    }

    /// Postgres writes a record.
    pub(crate) fn write(&mut self, c: usize) {
        self.append_record(c);
        self.tell_written(c);
    }

    /// The proposer learns of what was written.
    fn tell_written(&mut self, c: usize) {
        let end = self.computes.get(c).map(|compute| position(compute.log.len()));
        if let Some(end) = end {
            self.proposer_input(c, Input::LocalWal { end });
        }
    }

    fn append_record(&mut self, c: usize) {
        let Some(compute) = self.computes.get_mut(c) else {
            return;
        };
        let Some(term) = compute.core.term() else {
            return;
        };
        compute.log.push(u8::try_from(term.0).unwrap_or(u8::MAX));
        compute.written += 1;
        let log = compute.log.clone();
        self.known.logs.insert(term, log);
    }

    /// A donor read is done: what it gives is what the donor has and may serve now.
    pub(crate) fn read(&mut self, c: usize, read: &Read, scenario: &Scenario) {
        if let Some(compute) = self.computes.get_mut(c) {
            compute.reads.remove(read);
        }
        let donor = slot(read.donor);
        let end = self
            .nodes
            .get(donor)
            .map_or(Lsn::INVALID, |node| position(node.wal.len()));
        let end = end.min(read.end);
        let promised = self
            .nodes
            .get(donor)
            .is_some_and(|node| node.control.term >= read.term);
        self.ensure(promised, "a donor is in a lower term than its reader");
        let serves = self
            .open(donor, scenario)
            .is_some_and(|donor| donor.may_serve(read.term, end).is_ok());
        let bytes = if serves {
            self.wal(donor, read.begin, end)
        } else {
            Vec::new()
        };
        let (acceptor, begin) = (read.acceptor, read.begin);
        let input = if bytes.is_empty() {
            Input::WalReadFailed { acceptor, begin }
        } else {
            let bytes = Bytes::from(bytes);
            Input::WalRead {
                acceptor,
                begin,
                bytes,
            }
        };
        self.proposer_input(c, input);
    }

    pub(crate) fn proposer_input(&mut self, c: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(compute) = self.computes.get_mut(c).filter(|compute| compute.up) else {
                return;
            };
            for command in compute.core.handle(input) {
                self.command(c, command, &mut inputs);
            }
        }
    }

    fn command(&mut self, c: usize, command: Command, inputs: &mut VecDeque<Input>) {
        let Some(compute) = self.computes.get_mut(c) else {
            return;
        };
        match command {
            Command::Send { to, mut msg } => {
                if compute.untold && is_notice(&msg) {
                    return;
                }
                if let Request::Append { truncate, commit, .. } = &mut msg {
                    // Nothing is in object storage, so nothing is removed.
                    *truncate = Lsn::INVALID;
                    if compute.untold {
                        *commit = Lsn::INVALID;
                    }
                }
                let compute = &mut **compute;
                let queue = compute.requests.get_mut(slot(to));
                if let (Some(requests), Some(rests)) = (queue, compute.rests.get_mut(slot(to))) {
                    requests.push_back(msg);
                    *rests = false;
                }
            }
            Command::ReadWal {
                acceptor,
                source: Source::Local,
                begin,
                end,
                ..
            } => {
                let bytes = compute
                    .log
                    .get(index(begin)..index(end))
                    .map(Bytes::copy_from_slice);
                inputs.push_back(match bytes {
                    Some(bytes) => Input::WalRead {
                        acceptor,
                        begin,
                        bytes,
                    },
                    None => Input::WalReadFailed { acceptor, begin },
                });
            }
            Command::ReadWal {
                acceptor,
                source: Source::Acceptor(donor),
                term,
                begin,
                end,
            } => {
                compute.reads.insert(Read {
                    acceptor,
                    donor,
                    term,
                    begin,
                    end,
                });
            }
            Command::ElectionWon { term, start, donor } => {
                self.won(c, term, start, donor);
                let end = self
                    .computes
                    .get(c)
                    .map_or(start, |compute| position(compute.log.len()));
                inputs.push_back(Input::LocalWal { end });
            }
            Command::CommitAdvanced(lsn) => self.committed(c, lsn),
            Command::Settled(generation) => self.settled |= generation == self.config.generation,
            Command::Rejected { .. } => self.ensure(false, "a member is shut out"),
            Command::StaleMembership(_) => {
                let membership = self.config.clone();
                inputs.push_back(Input::Reconfigure { membership });
                let new = (1..=NODES as u64)
                    .map(NodeId)
                    .filter(|id| !compute.core.membership().contains(*id));
                let members = new.filter(|id| self.config.contains(*id));
                inputs.extend(members.map(Input::Connected));
            }
            Command::ElectionLost(_) | Command::Fenced(_) | Command::LeaseExpired => compute.up = false,
        }
    }

    fn won(&mut self, c: usize, term: Term, start: Lsn, donor: NodeId) {
        let voted = self
            .known
            .votes
            .get(&(term, donor))
            .map(Vec::as_slice)
            .unwrap_or_default();
        let log = voted.get(..index(start)).map(<[u8]>::to_vec);
        self.ensure(
            log.is_some(),
            "a term starts where its donor's WAL does not reach",
        );
        self.ensure(!self.known.logs.contains_key(&term), "a term is won twice");
        let before = self
            .known
            .commits
            .range(..term)
            .map(|(_, end)| *end)
            .max()
            .unwrap_or(0);
        let log = log.unwrap_or_default();
        let complete = log.starts_with(self.known.committed.get(..before).unwrap_or_default());
        self.ensure(complete, "a winner lacks what an earlier term committed");
        self.known.logs.insert(term, log.clone());
        if let Some(compute) = self.computes.get_mut(c) {
            compute.log = log;
        }
        // The first record is there at once, the others come at any time. Postgres would wait for the first commit; the
        // core must be safe without.
        self.append_record(c);
    }

    fn committed(&mut self, c: usize, lsn: Lsn) {
        let Some(compute) = self.computes.get(c) else {
            return;
        };
        let (term, end) = (compute.core.term().unwrap_or_default(), index(lsn));
        let Some(log) = compute.log.get(..end).map(<[u8]>::to_vec) else {
            return self.ensure(false, "more is committed than was written");
        };
        let members = compute.core.membership().clone();
        let has = |id: NodeId| {
            self.nodes
                .get(slot(id))
                .is_some_and(|node| node.wal.starts_with(&log))
        };
        let on_quorum = members.is_quorum(has);
        let both = self.known.committed.len().min(end);
        let one = log.get(..both) == self.known.committed.get(..both);
        let later = self
            .known
            .logs
            .range(Term(term.0 + 1)..)
            .all(|(_, later)| later.starts_with(&log));
        self.ensure(on_quorum, "committed WAL is not on a quorum");
        self.ensure(one, "two terms commit different WAL at a position");
        self.ensure(later, "a later winner lacks what is committed");
        if end > self.known.committed.len() {
            self.known.committed = log;
        }
        self.known.commits.insert(term, end);
    }
}
