//! The compute side: wins a term, announces its history, counts flushes, and is fenced by a higher term.
//!
//! Catch-up is the driver's: `CatchUp` names what an acceptor lacks, and the driver sends the appends.

use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request, Response};
use lakebed_types::{Lsn, NodeId, Term};
use std::collections::BTreeMap;

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send to an acceptor.
    Send {
        /// Receiver.
        to: NodeId,
        /// Message.
        msg: Request,
    },
    /// Bring an acceptor from its end up to the term's start.
    CatchUp {
        /// Who lacks WAL.
        acceptor: NodeId,
        /// Who has it.
        donor: NodeId,
        /// From where, inclusive.
        begin: Lsn,
        /// To where, exclusive.
        end: Lsn,
    },
    /// Everything below is committed.
    CommitAdvanced(Lsn),
    /// Another proposer has this higher term: stop Postgres.
    Fenced(Term),
    /// No quorum contact for the length of the lease: stop Postgres.
    LeaseExpired,
}

#[derive(Debug, Default)]
struct Peer {
    vote: Option<(TermHistory, Lsn)>,
    /// Flush reported after this term's Elected was applied; never an older one.
    flush: Option<Lsn>,
    heard_ms: Option<u64>,
}

/// A proposer of one term.
#[derive(Debug)]
pub struct Proposer {
    term: Term,
    membership: Membership,
    lease_ms: u64,
    peers: BTreeMap<NodeId, Peer>,
    won: Option<(NodeId, TermHistory)>,
    commit: Lsn,
    started_ms: u64,
    now_ms: u64,
    stopped: bool,
}

impl Proposer {
    /// A proposer that asks for `term`; its lease of `lease_ms` milliseconds starts at `now_ms`.
    pub fn new(term: Term, membership: Membership, lease_ms: u64, now_ms: u64) -> (Self, Vec<Command>) {
        let ids = membership.old.iter().chain(membership.new.iter().flatten());
        let peers: BTreeMap<_, _> = ids.map(|id| (*id, Peer::default())).collect();
        let msg = Request::Vote {
            generation: membership.generation,
            term,
        };
        let ask = peers
            .keys()
            .map(|to| Command::Send {
                to: *to,
                msg: msg.clone(),
            })
            .collect();
        let (won, commit, stopped) = (None, Lsn::INVALID, false);
        let started_ms = now_ms;
        (
            Self {
                term,
                membership,
                lease_ms,
                peers,
                won,
                commit,
                started_ms,
                now_ms,
                stopped,
            },
            ask,
        )
    }

    /// The commit position; zero until the term's start is on a quorum.
    pub fn commit(&self) -> Lsn {
        self.commit
    }

    /// Time passed; the clock is the driver's and is never taken backwards.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Command> {
        self.now_ms = self.now_ms.max(now_ms);
        let fresh = |id| {
            let heard = self
                .peers
                .get(&id)
                .and_then(|p| p.heard_ms)
                .unwrap_or(self.started_ms);
            self.now_ms.saturating_sub(heard) < self.lease_ms
        };
        if self.stopped || self.membership.is_quorum(fresh) {
            return Vec::new();
        }
        self.stopped = true;
        vec![Command::LeaseExpired]
    }

    /// An acceptor answered. Answers from strangers, other generations and lower terms change nothing.
    pub fn receive(&mut self, from: NodeId, msg: Response) -> Vec<Command> {
        if self.stopped || !self.membership.contains(from) {
            return Vec::new();
        }
        let fenced =
            msg.term > self.term || matches!(msg.body, Body::Refused(Refusal::Term(t)) if t > self.term);
        if fenced {
            self.stopped = true;
            return vec![Command::Fenced(msg.term)];
        }
        if msg.generation != self.membership.generation || msg.term < self.term {
            return Vec::new();
        }
        let Some(peer) = self.peers.get_mut(&from) else {
            return Vec::new();
        };
        peer.heard_ms = Some(self.now_ms);
        match msg.body {
            Body::Voted { history, flush, .. } if peer.vote.is_none() => {
                peer.vote = Some((history, flush));
                if self.won.is_some() {
                    self.announce(from)
                } else {
                    self.try_win()
                }
            }
            Body::Applied { flush } => {
                peer.flush = peer.flush.max(Some(flush));
                let mut commands = self.advance();
                if let Some((donor, history)) = &self.won
                    && flush < history.last().1
                {
                    let (donor, end) = (*donor, history.last().1);
                    commands.push(Command::CatchUp {
                        acceptor: from,
                        donor,
                        begin: flush,
                        end,
                    });
                }
                commands
            }
            Body::Appended { flush, .. } => {
                // Counts only after Applied: the answer of an append implies it, reordering may hide it.
                peer.flush = peer.flush.max(Some(flush));
                self.advance()
            }
            _ => Vec::new(),
        }
    }

    /// Rule 3: the donor has the greatest (last log term, flush) of a quorum of votes.
    fn try_win(&mut self) -> Vec<Command> {
        if !self
            .membership
            .is_quorum(|id| self.peers.get(&id).is_some_and(|p| p.vote.is_some()))
        {
            return Vec::new();
        }
        let votes = self
            .peers
            .iter()
            .filter_map(|(id, p)| p.vote.as_ref().map(|v| (id, v)));
        let best = votes.max_by_key(|(_, (history, flush))| (history.last_log_term(*flush), *flush));
        let Some((donor, (history, flush))) = best else {
            return Vec::new();
        };
        // Entries of the donor that start past its own WAL never wrote anything there.
        let mut entries: Vec<_> = history
            .entries()
            .iter()
            .copied()
            .filter(|e| e.1 <= *flush)
            .collect();
        entries.push((self.term, *flush));
        let Ok(history) = TermHistory::new(entries) else {
            return Vec::new();
        };
        self.won = Some((*donor, history));
        let voters: Vec<_> = self
            .peers
            .iter()
            .filter(|p| p.1.vote.is_some())
            .map(|p| *p.0)
            .collect();
        voters.into_iter().flat_map(|id| self.announce(id)).collect()
    }

    /// Rule 4: the history goes first, with the point where this acceptor's log parts from it.
    fn announce(&self, to: NodeId) -> Vec<Command> {
        let vote = self.peers.get(&to).and_then(|p| p.vote.as_ref());
        let (Some((_, history)), Some((theirs, flush))) = (&self.won, vote) else {
            return Vec::new();
        };
        let Some(common) = theirs.common_point(*flush, history) else {
            return Vec::new();
        };
        let (generation, term, history) = (self.membership.generation, self.term, history.clone());
        vec![Command::Send {
            to,
            msg: Request::Elected {
                generation,
                term,
                history,
                common,
            },
        }]
    }

    /// Rule 7: the highest position that a quorum flushed, at or past the term's start.
    fn advance(&mut self) -> Vec<Command> {
        let Some((_, history)) = &self.won else {
            return Vec::new();
        };
        let start = history.last().1;
        let flushed = |id, at| self.peers.get(&id).is_some_and(|p| p.flush >= Some(at));
        let reached = self.peers.values().filter_map(|p| p.flush);
        let best = reached
            .filter(|at| self.membership.is_quorum(|id| flushed(id, *at)))
            .max();
        match best {
            Some(at) if at >= start && at > self.commit => {
                self.commit = at;
                vec![Command::CommitAdvanced(at)]
            }
            _ => Vec::new(),
        }
    }
}
