//! Rules 1 to 4 and 10 from the proposer's side: choose a term, collect votes, find the donor, announce.

use super::peer::{Link, Peer};
use super::{Command, Proposer, Won};
use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Refusal, Request};
use crate::mutation::Mutation;
use lakebed_types::{Lsn, NodeId, Term};
use std::collections::BTreeSet;

impl Proposer {
    /// An acceptor named its term and its log.
    pub(super) fn greeted(&mut self, from: NodeId) -> Vec<Command> {
        let Some(term) = self.term else {
            return self.choose_term();
        };
        let Some(peer) = self.peers.get_mut(&from) else {
            return Vec::new();
        };
        if self.won.is_some() {
            return self.announce(from);
        }
        if peer.term < term {
            return self.ask_vote(from, term);
        }
        peer.link = Link::Waiting;
        Vec::new()
    }

    /// One above the highest term that a quorum named; then everyone who is there is asked.
    fn choose_term(&mut self) -> Vec<Command> {
        let greeted = |p: &Peer| p.link == Link::Greeted;
        if !self.is_quorum(greeted) {
            return Vec::new();
        }
        let there: Vec<_> = self.peers.iter().filter(|p| greeted(p.1)).map(|p| *p.0).collect();
        let named = self.peers.values().map(|p| p.term).max().unwrap_or_default();
        // The last term there is: nobody can be asked for another.
        let Some(term) = named.max(self.floor).0.checked_add(1).map(Term) else {
            return self.stop(Command::ElectionLost(named));
        };
        self.term = Some(term);
        self.progress_ms = self.now_ms;
        there.into_iter().flat_map(|id| self.ask_vote(id, term)).collect()
    }

    fn ask_vote(&mut self, to: NodeId, term: Term) -> Vec<Command> {
        let votes = self.config.membership.contains(to);
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.link = if votes { Link::Voting } else { Link::Waiting };
            peer.sent_ms = self.now_ms;
        }
        if !votes {
            return Vec::new();
        }
        let generation = self.config.membership.generation;
        let msg = Request::Vote { generation, term };
        vec![Command::Send { to, msg }]
    }

    /// An acceptor voted, or will not.
    pub(super) fn voted(&mut self, from: NodeId) -> Vec<Command> {
        if self.won.is_some() {
            self.announce(from)
        } else {
            self.try_win()
        }
    }

    /// Rule 3: the donor has the greatest (last log term, flush) of a quorum of votes.
    fn try_win(&mut self) -> Vec<Command> {
        let (Some(term), true) = (self.term, self.is_quorum(|p| p.vote.is_some())) else {
            return Vec::new();
        };
        let votes = self
            .peers
            .iter()
            .filter_map(|(id, p)| p.vote.as_ref().map(|v| (id, v)));
        let best = votes.max_by_key(|(_, (history, flush))| {
            let last = history.last_log_term(*flush);
            if self.broken.is(Mutation::DonorByFlushAlone) {
                (Term(0), *flush)
            } else if self.broken.is(Mutation::DonorByTermAlone) {
                (last, Lsn::INVALID)
            } else {
                (last, *flush)
            }
        });
        let Some((donor, (history, start))) = best else {
            return Vec::new();
        };
        let (donor, start) = (*donor, *start);
        // Entries of the donor that start past its own WAL never wrote anything there.
        let written = history.entries().iter().copied().filter(|e| e.1 <= start);
        let Ok(history) = TermHistory::new(written.chain([(term, start)]).collect()) else {
            return Vec::new();
        };
        self.won = Some(Won { donor, history });
        (self.local_start, self.local_end) = (start, start);
        (self.progress_ms, self.started_ms) = (self.now_ms, self.now_ms);
        if self.broken.is(Mutation::CountFlushFromVote) {
            for peer in self.peers.values_mut() {
                peer.flush = peer.vote.as_ref().map(|v| v.1);
            }
        }
        let mut commands = vec![Command::ElectionWon { term, start, donor }];
        let waiting = self.peers.iter().filter(|p| p.1.link == Link::Waiting);
        let waiting: Vec<_> = waiting.map(|p| *p.0).collect();
        commands.extend(waiting.into_iter().flat_map(|id| self.announce(id)));
        commands
    }

    /// Rule 4: the history goes first, with the point where this acceptor's log parts from it.
    fn announce(&mut self, to: NodeId) -> Vec<Command> {
        let (Some(won), Some(term)) = (&self.won, self.term) else {
            return Vec::new();
        };
        let Some(peer) = self.peers.get_mut(&to) else {
            return Vec::new();
        };
        let Some((theirs, flush)) = &peer.log else {
            return Vec::new();
        };
        let flush = *flush;
        let Some(common) = theirs.common_point(flush, &won.history) else {
            peer.link = Link::Refused;
            let (acceptor, refusal) = (to, Refusal::NoCommonHistory);
            return vec![Command::Rejected { acceptor, refusal }];
        };
        peer.link = Link::Announced;
        peer.sent_ms = self.now_ms;
        if self.broken.is(Mutation::AppendBeforeElected) {
            return self.applied(to, flush);
        }
        let (generation, history) = (self.config.membership.generation, won.history.clone());
        let msg = Request::Elected {
            generation,
            term,
            history,
            common,
        };
        vec![Command::Send { to, msg }]
    }

    /// Rule 10: from now on this generation. Nothing that was said under the old one counts: flushes are counted
    /// again when an acceptor has adopted the new one, and an election that is not won starts over.
    pub(super) fn reconfigure(&mut self, membership: Membership) -> Vec<Command> {
        if membership.generation <= self.config.membership.generation {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.config.membership, membership);
        self.settled = false;
        self.add_peers();
        // Who joins has the length of a lease to be heard of: its silence so far says nothing.
        let joined = self.peers.iter_mut().filter(|(id, _)| !before.contains(**id));
        joined.for_each(|(_, peer)| peer.heard_ms = Some(self.now_ms));
        if self.won.is_none() {
            self.floor = self.floor.max(self.term.take().unwrap_or_default());
        }
        let mut commands = Vec::new();
        let ids: Vec<_> = self.peers.keys().copied().collect();
        for id in ids {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            (peer.vote, peer.flush) = (None, None);
            if peer.link != Link::Down {
                commands.extend(self.greet(id));
            }
        }
        commands
    }

    /// Who gets WAL without counting. Those of another attempt begin anew, also on streams that are open.
    pub(super) fn learn(&mut self, attempt: u64, learners: BTreeSet<NodeId>) -> Vec<Command> {
        let anew = attempt != self.attempt;
        (self.attempt, self.learners) = (attempt, learners);
        self.add_peers();
        let members = &self.config.membership;
        let learners = self.learners.iter().filter(|id| anew && !members.contains(**id));
        let learners: Vec<_> = learners.copied().collect();
        let mut commands = Vec::new();
        for id in learners {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            peer.flush = None;
            if peer.link != Link::Down {
                commands.extend(self.greet(id));
            }
        }
        commands
    }
}
