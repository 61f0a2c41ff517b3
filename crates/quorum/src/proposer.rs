//! The compute side: wins a term, announces its history, brings acceptors up to date, counts flushes, is fenced.
//!
//! One `Proposer` is one attempt at one term; after `ElectionLost`, `Fenced` or `LeaseExpired` it is over and the
//! driver makes another, or does not. Each acceptor goes through the same states, again after every reconnect:
//!
//! ```text
//! down -> greeting -> greeted -> voting -> waiting -> announced -> following (catching up, then streaming)
//!                        '- the term is won already -------^
//! ```
//!
//! The term is one above the highest that a quorum named in its greetings. An acceptor that comes after the election
//! is told the history at once: `Elected` promises the term as well. The core decides which bytes an acceptor gets
//! next and from where; the driver reads them ([`Command::ReadWal`]) and hands them back ([`Input::WalRead`]).
//! [Learners](Input::Learners) are told the history and get WAL as well; they are not asked for votes, and nothing counts
//! on them or waits for them.
//! Deliberately absent: a retry of a lost election, because the pause before it must be random.

mod election;
mod peer;
mod replication;

use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request, Response};
use crate::mutation::{Broken, Mutation};
use bytes::Bytes;
use lakebed_types::{Generation, Lsn, NodeId, PgVersion, Term};
pub use peer::Phase;
use peer::{Link, Peer};
use std::collections::{BTreeMap, BTreeSet};

/// What the proposer is told once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// Who counts.
    pub membership: Membership,
    /// Postgres system identifier.
    pub system_id: u64,
    /// Major Postgres version.
    pub pg_version: PgVersion,
    /// WAL segment size in bytes.
    pub segment_bytes: u64,
    /// Without quorum contact for this long the compute stops.
    pub lease_ms: u64,
    /// An acceptor that was sent nothing for this long is sent an empty append.
    pub heartbeat_ms: u64,
    /// An election, or the recovery up to the term's start, that makes no progress for this long is lost. An acceptor
    /// that does not answer for this long, on a stream that lives, is greeted again.
    pub election_ms: u64,
    /// WAL asked for in one read.
    pub chunk_bytes: u64,
    /// WAL on its way to one acceptor, not yet flushed there; a single record may exceed it.
    pub in_flight_bytes: u64,
}

/// What a proposer reacts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A new stream to this acceptor is open; nothing of an older one will be delivered any more.
    Connected(NodeId),
    /// The stream to this acceptor broke.
    Disconnected(NodeId),
    /// An acceptor answered.
    Received {
        /// Who.
        from: NodeId,
        /// What.
        msg: Response,
    },
    /// The compute wrote whole records up to `end`.
    LocalWal {
        /// A record boundary at or past the term's start.
        end: Lsn,
    },
    /// Local WAL below `start` is gone; what an acceptor lacks of it comes from another acceptor.
    LocalTrimmed {
        /// First position still held.
        start: Lsn,
    },
    /// Answer to `ReadWal`, ending at a record boundary: at or before the end that was asked for, unless the first
    /// record alone is longer.
    WalRead {
        /// For whom it was read.
        acceptor: NodeId,
        /// Position of the first byte, as asked.
        begin: Lsn,
        /// At least one byte.
        bytes: Bytes,
    },
    /// Answer to `ReadWal` when the source does not have it, does not answer, or is in a higher term.
    WalReadFailed {
        /// For whom it was to be read.
        acceptor: NodeId,
        /// Position as asked.
        begin: Lsn,
    },
    /// The membership changes; only a higher generation has an effect.
    Reconfigure {
        /// The new configuration.
        membership: Membership,
    },
    /// Who receives WAL although it does not count: who is to join, until it has caught up. Replaces those told before;
    /// nobody has to agree on them. A member among them is a member. The driver keeps streams to them as to members.
    Learners {
        /// Rises with every attempt to let somebody join: what a learner said under an earlier one, when it may have had
        /// another disk, is forgotten.
        attempt: u64,
        /// All of them.
        learners: BTreeSet<NodeId>,
    },
    /// Time passed; the clock is the driver's and is never taken backwards.
    Tick {
        /// Milliseconds since any fixed moment.
        now_ms: u64,
    },
}

/// Where WAL is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// What the compute itself wrote.
    Local,
    /// This acceptor, which must check [`may_serve`](crate::acceptor::Acceptor::may_serve) for this term; below
    /// its `truncate`, object storage.
    Acceptor(NodeId),
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send to an acceptor, in order.
    Send {
        /// Receiver.
        to: NodeId,
        /// Message.
        msg: Request,
    },
    /// Read WAL for an acceptor and report `WalRead` or `WalReadFailed`. At most one at a time for each acceptor.
    ReadWal {
        /// For whom.
        acceptor: NodeId,
        /// Where.
        source: Source,
        /// The term on whose behalf: a donor in a higher one refuses.
        term: Term,
        /// From here.
        begin: Lsn,
        /// To about here.
        end: Lsn,
    },
    /// The term is won; the compute's WAL starts at `start`.
    ElectionWon {
        /// The term.
        term: Term,
        /// Its first position.
        start: Lsn,
        /// The acceptor that has all WAL below.
        donor: NodeId,
    },
    /// Everything below is committed. The first one, at or past the term's start, says that Postgres may start.
    CommitAdvanced(Lsn),
    /// A quorum of every set has adopted this generation and holds everything committed: the next step may follow.
    Settled(Generation),
    /// An acceptor cannot take part until somebody has looked at it; the others go on.
    Rejected {
        /// Which.
        acceptor: NodeId,
        /// Why.
        refusal: Refusal,
    },
    /// An acceptor has this higher generation: fetch the membership and pass it as `Reconfigure`.
    StaleMembership(Generation),
    /// Nothing was won and nothing will be: another proposer has this term, or no quorum answered in time.
    ElectionLost(Term),
    /// Another proposer has this higher term: stop Postgres.
    Fenced(Term),
    /// No quorum contact for the length of the lease: stop Postgres.
    LeaseExpired,
}

/// What was won.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Won {
    donor: NodeId,
    history: TermHistory,
}

impl Won {
    fn start(&self) -> Lsn {
        self.history.last().1
    }
}

/// A proposer of one term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proposer {
    config: Config,
    /// The term asked for or won; none until a quorum has greeted.
    term: Option<Term>,
    /// The new term is above this one.
    floor: Term,
    attempt: u64,
    learners: BTreeSet<NodeId>,
    /// Members and learners.
    peers: BTreeMap<NodeId, Peer>,
    /// Nodes with an open stream. Who leaves may become a learner before its stream has ended, and is heard of on that.
    open: BTreeSet<NodeId>,
    won: Option<Won>,
    commit: Lsn,
    /// Local WAL: `[local_start, local_end)`, empty at the term's start.
    local_start: Lsn,
    local_end: Lsn,
    settled: bool,
    now_ms: u64,
    started_ms: u64,
    progress_ms: u64,
    stopped: bool,
    broken: Broken,
}

impl Proposer {
    /// A proposer that will ask for a term above `floor`, the highest that this compute knows of.
    pub fn new(config: Config, floor: Term, now_ms: u64) -> Self {
        let mut proposer = Self {
            config,
            term: None,
            floor,
            attempt: 0,
            learners: BTreeSet::new(),
            peers: BTreeMap::new(),
            open: BTreeSet::new(),
            won: None,
            commit: Lsn::INVALID,
            local_start: Lsn::INVALID,
            local_end: Lsn::INVALID,
            settled: false,
            now_ms,
            started_ms: now_ms,
            progress_ms: now_ms,
            stopped: false,
            broken: Broken::default(),
        };
        proposer.add_peers();
        proposer
    }

    /// Takes one rule away; see [`Mutation`].
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    pub fn break_rule(&mut self, rule: Option<Mutation>) {
        self.broken = Broken(rule);
    }

    /// Drops what this proposer will not look at again, so that states of a model that differ in nothing else are one: who
    /// voted, once it has won; the floor and promised terms below the term that it chose, for what it chooses next is
    /// above that anyway; the logs of peers that will name them again before they are announced to.
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    pub fn forget(&mut self) {
        let chosen = self.term.unwrap_or(self.floor);
        if self.term.is_some() {
            self.floor = Term(0);
        }
        for peer in self.peers.values_mut() {
            if self.won.is_some() {
                peer.vote = None;
            }
            if self.won.is_some() || peer.term <= chosen {
                peer.term = Term(0);
            }
            if !matches!(peer.link, Link::Greeted | Link::Voting | Link::Waiting) {
                peer.log = None;
            }
        }
    }

    /// Drops what only the passing of time looks at, and which commit positions were told, for a model that has neither.
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    pub fn forget_time(&mut self) {
        for peer in self.peers.values_mut() {
            peer.heard_ms = None;
            if let Link::Following(following) = &mut peer.link {
                following.commit_sent = Lsn::INVALID;
            }
        }
    }

    /// Lets a peer rest that this term will hear nothing of any more: until time passes or the membership changes, nothing
    /// is sent to it. What it voted or flushed stays.
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    pub fn shelve(&mut self, id: NodeId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && peer.link != Link::Down
        {
            peer.link = Link::Stale;
        }
    }

    /// Whether an acceptor has voted in the election under way.
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    pub fn has_vote(&self, id: NodeId) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.vote.is_some())
    }

    /// Gives up an election that cannot be won any more: what it waits for is another membership.
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    pub fn lose(&mut self) {
        self.floor = self.floor.max(self.term.take().unwrap_or_default());
        for peer in self.peers.values_mut() {
            peer.vote = None;
            if peer.link != Link::Down {
                peer.link = Link::Stale;
            }
        }
    }

    /// Takes one input. A proposer that is over says nothing.
    pub fn handle(&mut self, input: Input) -> Vec<Command> {
        if self.stopped {
            return Vec::new();
        }
        match input {
            Input::Connected(id) => self.connected(id),
            Input::Disconnected(id) => {
                self.open.remove(&id);
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.link = Link::Down;
                }
                Vec::new()
            }
            Input::Received { from, msg } => self.received(from, msg),
            Input::LocalWal { end } => {
                if self.won.is_none() || end <= self.local_end {
                    return Vec::new();
                }
                self.local_end = end;
                self.pump_all()
            }
            Input::LocalTrimmed { start } => {
                self.local_start = self.local_start.max(start.min(self.local_end));
                Vec::new()
            }
            Input::WalRead {
                acceptor,
                begin,
                bytes,
            } => self.wal_read(acceptor, begin, bytes),
            Input::WalReadFailed { acceptor, begin } => {
                self.wal_read_failed(acceptor, begin);
                Vec::new()
            }
            Input::Reconfigure { membership } => self.reconfigure(membership),
            Input::Learners { attempt, learners } => self.learn(attempt, learners),
            Input::Tick { now_ms } => self.tick(now_ms),
        }
    }

    /// The commit position; zero until the term's start is on a quorum.
    pub fn commit(&self) -> Lsn {
        self.commit
    }

    /// The term asked for or won.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// The history of a term that is won.
    pub fn history(&self) -> Option<&TermHistory> {
        self.won.as_ref().map(|won| &won.history)
    }

    /// The configuration in force.
    pub fn membership(&self) -> &Membership {
        &self.config.membership
    }

    /// Whether it is over.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Where an acceptor stands, and the end of its WAL that counts for commit.
    pub fn progress(&self, acceptor: NodeId) -> Option<(Phase, Option<Lsn>)> {
        let start = self.won.as_ref().map_or(Lsn::INVALID, Won::start);
        self.peers.get(&acceptor).map(|p| (p.phase(start), p.flush))
    }

    /// The attempt to let learners join, when there are some and each, in this term, has flushed all but at most `within`
    /// bytes of what is committed: in a joint configuration commits would not wait for their catching up. True at this
    /// moment only.
    pub fn caught_up(&self, within: u64) -> Option<u64> {
        let close = |learner: &NodeId| {
            let flush = self.peers.get(learner).and_then(|peer| peer.flush);
            flush.is_some_and(|flush| self.commit.0.saturating_sub(flush.0) <= within)
        };
        let all = !self.learners.is_empty() && self.learners.iter().all(close);
        (all && self.commit.is_valid()).then_some(self.attempt)
    }

    /// The lowest position from which local WAL may still be wanted: local WAL below may be trimmed.
    pub fn needed_from(&self) -> Lsn {
        let counted = self.peers.values().map(|p| p.flush.unwrap_or(Lsn::INVALID));
        counted.min().unwrap_or(Lsn::INVALID).max(self.local_start)
    }

    fn add_peers(&mut self) {
        let members = &self.config.membership;
        let all = members.old.iter().chain(members.new.iter().flatten());
        for id in all.chain(&self.learners) {
            self.peers.entry(*id).or_insert_with(|| Peer {
                link: if self.open.contains(id) {
                    Link::Stale
                } else {
                    Link::Down
                },
                ..Peer::default()
            });
        }
        self.peers
            .retain(|id, _| members.contains(*id) || self.learners.contains(id));
    }

    fn is_quorum(&self, agrees: impl Fn(&Peer) -> bool) -> bool {
        let agrees = |id| self.peers.get(&id).is_some_and(&agrees);
        let members = &self.config.membership;
        match &members.new {
            Some(new) if self.broken.is(Mutation::NewSetAlone) => {
                new.iter().filter(|id| agrees(**id)).count() * 2 > new.len()
            }
            _ if self.broken.is(Mutation::LearnerCounts) => {
                let all = &members.old | &self.learners;
                all.iter().filter(|id| agrees(**id)).count() * 2 > members.old.len()
            }
            _ => members.is_quorum(agrees),
        }
    }

    fn stop(&mut self, why: Command) -> Vec<Command> {
        self.stopped = true;
        vec![why]
    }

    /// Another proposer has `term`.
    fn superseded(&mut self, term: Term) -> Vec<Command> {
        let why = match self.won {
            Some(_) => Command::Fenced(term),
            None => Command::ElectionLost(term),
        };
        self.stop(why)
    }

    fn connected(&mut self, id: NodeId) -> Vec<Command> {
        self.open.insert(id);
        self.greet(id).into_iter().collect()
    }

    fn greet(&mut self, id: NodeId) -> Option<Command> {
        let peer = self.peers.get_mut(&id)?;
        peer.link = Link::Greeting;
        peer.sent_ms = self.now_ms;
        let msg = Request::Greeting {
            membership: self.config.membership.clone(),
            system_id: self.config.system_id,
            pg_version: self.config.pg_version,
            segment_bytes: self.config.segment_bytes,
        };
        Some(Command::Send { to: id, msg })
    }

    fn tick(&mut self, now_ms: u64) -> Vec<Command> {
        self.now_ms = self.now_ms.max(now_ms);
        let now = self.now_ms;
        let recovering = self.won.is_none() || !self.commit.is_valid();
        if recovering && now.saturating_sub(self.progress_ms) >= self.config.election_ms {
            let term = self.term.unwrap_or(self.floor);
            return self.stop(Command::ElectionLost(term));
        }
        let (lease, started) = (self.config.lease_ms, self.started_ms);
        let fresh = |peer: &Peer| now.saturating_sub(peer.heard_ms.unwrap_or(started)) < lease;
        if self.won.is_some() && !self.is_quorum(fresh) {
            return self.stop(Command::LeaseExpired);
        }
        let ids: Vec<_> = self.peers.keys().copied().collect();
        ids.into_iter().flat_map(|id| self.tick_peer(id)).collect()
    }

    fn tick_peer(&mut self, id: NodeId) -> Vec<Command> {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Vec::new();
        };
        let quiet_ms = self.now_ms.saturating_sub(peer.sent_ms);
        let silent = quiet_ms >= self.config.heartbeat_ms;
        let unanswered = quiet_ms >= self.config.election_ms;
        match &mut peer.link {
            // An acceptor that cuts its WAL drops the answers that waited for it, on a stream that lives on: nobody
            // else would ever ask again. An answer that is only late is passed over.
            Link::Greeting | Link::Announced if unanswered => self.greet(id).into_iter().collect(),
            Link::Voting if unanswered && self.won.is_some() => self.greet(id).into_iter().collect(),
            Link::Stale if silent => self.greet(id).into_iter().collect(),
            Link::Following(following) => {
                following.failed = false;
                let mut commands = self.pump(id);
                if silent {
                    commands.extend(self.append(id, Bytes::new()));
                }
                commands
            }
            _ => Vec::new(),
        }
    }

    /// Answers from strangers, other generations and other terms change nothing.
    fn received(&mut self, from: NodeId, msg: Response) -> Vec<Command> {
        let Some(peer) = self.peers.get_mut(&from) else {
            return Vec::new();
        };
        if let Some(term) = self.term
            && msg.term > term
        {
            return self.superseded(msg.term);
        }
        if let Body::Refused(refusal) = msg.body {
            return self.refused(from, refusal);
        }
        if msg.generation != self.config.membership.generation {
            return Vec::new();
        }
        peer.heard_ms = Some(self.now_ms);
        match msg.body {
            Body::Greeted { history, flush, .. } => {
                if peer.link != Link::Greeting {
                    return Vec::new();
                }
                (peer.link, peer.term, peer.log) = (Link::Greeted, msg.term, Some((history, flush)));
                self.greeted(from)
            }
            _ if Some(msg.term) != self.term => Vec::new(),
            Body::Voted { history, flush, .. } => {
                if peer.link != Link::Voting {
                    return Vec::new();
                }
                peer.link = Link::Waiting;
                peer.log = Some((history, flush));
                peer.vote = peer.log.clone();
                self.voted(from)
            }
            Body::Applied { flush } => self.applied(from, flush),
            Body::Appended { flush, .. } => self.appended(from, flush),
            Body::Refused(_) => Vec::new(),
        }
    }

    fn refused(&mut self, from: NodeId, refusal: Refusal) -> Vec<Command> {
        let mine = self.config.membership.generation;
        let Some(peer) = self.peers.get_mut(&from) else {
            return Vec::new();
        };
        match refusal {
            // The same term: this acceptor promised it to another, or its vote for us was lost on the way.
            Refusal::Term(term) if Some(term) == self.term && peer.link == Link::Voting => {
                peer.link = Link::Waiting;
                self.voted(from)
            }
            Refusal::Term(_) => Vec::new(),
            Refusal::Generation(theirs) if theirs > mine => {
                peer.link = Link::Refused;
                vec![Command::StaleMembership(theirs)]
            }
            // It knows another configuration of this generation, or answers to what was sent before ours.
            Refusal::Generation(theirs) if theirs == mine => {
                peer.link = Link::Stale;
                Vec::new()
            }
            Refusal::History | Refusal::Generation(_) => {
                if peer.link != Link::Greeting {
                    peer.link = Link::Stale;
                }
                Vec::new()
            }
            Refusal::Gap(_) | Refusal::NotElected => match peer.link {
                Link::Following(_) => self.greet(from).into_iter().collect(),
                _ => Vec::new(),
            },
            Refusal::Identity | Refusal::NoCommonHistory | Refusal::BelowCommit(_) => {
                peer.link = Link::Refused;
                let acceptor = from;
                vec![Command::Rejected { acceptor, refusal }]
            }
        }
    }
}
