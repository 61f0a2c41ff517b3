//! An acceptor's driver: its disk does at once what it is told.

use crate::scenario::Scenario;
use crate::state::{State, index, position};
use lakebed_quorum::acceptor::{Acceptor, Command, Input, Lack};
use lakebed_quorum::message::{Body, Request, Response};
use lakebed_types::{Lsn, NodeId};

impl State {
    /// The acceptor over what a node's disk holds.
    pub(crate) fn open(&self, n: usize, scenario: &Scenario) -> Option<Acceptor> {
        let node = self.nodes.get(n)?;
        let mut acceptor = Acceptor::new(node.control.clone(), position(node.wal.len()))?;
        acceptor.break_rule(scenario.sabotage);
        Some(acceptor)
    }

    /// A request arrives; its answer.
    pub(crate) fn ask(
        &mut self,
        n: usize,
        from: usize,
        request: Request,
        scenario: &Scenario,
    ) -> Option<Response> {
        let from = NodeId(100 + from as u64);
        let answer = self.input(n, Input::Request { from, request }, scenario)?;
        if let Body::Voted { .. } = answer.body {
            let id = NodeId(n as u64 + 1);
            let wal = self.nodes.get(n).map(|node| node.wal.clone());
            self.known
                .votes
                .insert((answer.term, id), wal.unwrap_or_default());
        }
        Some(answer)
    }

    fn input(&mut self, n: usize, input: Input, scenario: &Scenario) -> Option<Response> {
        let Some(mut acceptor) = self.open(n, scenario) else {
            self.ensure(false, "a node's positions are out of order");
            return None;
        };
        let mut answer = None;
        let mut queue: std::collections::VecDeque<_> = acceptor.handle(input).into();
        while let Some(command) = queue.pop_front() {
            let node = self.nodes.get_mut(n)?;
            let done = match command {
                Command::PersistControl { seq, state } => {
                    node.control = *state;
                    Some(Input::ControlPersisted { seq })
                }
                Command::WriteWal { begin, bytes } => {
                    let fits = index(begin) == node.wal.len();
                    node.wal.extend_from_slice(&bytes);
                    self.ensure(fits, "WAL is written with a gap");
                    None
                }
                Command::FlushWal => Some(Input::FlushDone {
                    lsn: position(node.wal.len()),
                }),
                Command::TruncateWal { lsn } => {
                    node.wal.truncate(index(lsn));
                    None
                }
                Command::Reply { msg, .. } => {
                    answer = Some(msg);
                    None
                }
                Command::StopTimeline { .. } => {
                    self.ensure(false, "a node stops");
                    None
                }
            };
            queue.extend(done.into_iter().flat_map(|input| acceptor.handle(input)));
        }
        self.check_node(n);
        answer
    }

    /// Log matching: the WAL of a node is that of the term which its history names for its end.
    fn check_node(&mut self, n: usize) {
        let Some(node) = self.nodes.get(n) else {
            return;
        };
        let term = node.control.term_history.last_log_term(position(node.wal.len()));
        let log = self.known.logs.get(&term).map(Vec::as_slice).unwrap_or_default();
        let (matches, known) = (log.starts_with(&node.wal), index(node.control.commit));
        let true_commit =
            self.known.committed.len() >= known && node.wal.get(..known) == self.known.committed.get(..known);
        self.ensure(matches, "a node's WAL is not that of the term it names");
        self.ensure(true_commit, "a node believes committed what is not");
    }

    /// Rule 11: node `n` takes from `peer` what it lacks, one step.
    pub(crate) fn exchange(&mut self, n: usize, peer: usize, scenario: &Scenario) {
        let (Some(acceptor), Some(from)) = (self.open(n, scenario), self.open(peer, scenario)) else {
            return;
        };
        let offer = from.offer();
        let (begin, bytes) = match acceptor.lack(&offer) {
            Ok(Lack::Nothing) => return,
            Ok(Lack::Commit(at) | Lack::History(at)) => (at, Vec::new()),
            Ok(Lack::Wal { begin, end }) => (begin, self.wal(peer, begin, end)),
            Err(_) => return self.ensure(false, "a peer's offer is refused"),
        };
        let bytes = bytes.into();
        self.input(n, Input::Recover { offer, begin, bytes }, scenario);
    }

    pub(crate) fn wal(&self, n: usize, begin: Lsn, end: Lsn) -> Vec<u8> {
        let node = self.nodes.get(n);
        let wal = node.and_then(|node| node.wal.get(index(begin)..index(end)));
        wal.unwrap_or_default().to_vec()
    }
}
