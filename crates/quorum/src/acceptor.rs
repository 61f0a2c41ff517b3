//! One safekeeper's decisions for one timeline.
//!
//! State changes in memory at once; what may be *said* about it waits: a reply names the control write or the
//! flush it needs, and the driver sends it when [`Acceptor::is_met`] says so. Commands are executed in order, and
//! `TruncateWal` includes its fsync, so WAL is cut before the new history becomes durable.
//! What a driver owes is written down in the crate's header.
//!
//! A history is durable exactly when its `Elected` was applied. So after a restart the acceptor knows from
//! its history alone that it applied the last term's, and a repeated one changes nothing.
//! After a failed write or fsync the acceptor stops: what the disk holds is then unknown.

pub mod mend;
mod recover;
mod rules;

use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request, Response};
use crate::mutation::{Broken, Mutation};
use bytes::Bytes;
use lakebed_types::{Lsn, NodeId, PgVersion, Term};
pub use recover::{Lack, Offer};

/// Commit is made durable when it has moved this part of a segment, or with the next control write for another
/// reason. It need not be exact: after a crash a lower commit is safe, and the next append raises it.
const COMMITS_PERSISTED_PER_SEGMENT: u64 = 16;

/// What the control file holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Durable {
    /// Highest promised term.
    pub term: Term,
    /// Which term wrote what.
    pub term_history: TermHistory,
    /// Who counts.
    pub membership: Membership,
    /// Everything below is committed.
    pub commit: Lsn,
    /// WAL below is not needed here: the driver removes it when a control write with this position is on disk.
    pub truncate: Lsn,
    /// WAL below is in object storage.
    pub backup: Lsn,
    /// First LSN of the timeline.
    pub timeline_start: Lsn,
    /// Postgres system identifier.
    pub system_id: u64,
    /// Major Postgres version.
    pub pg_version: PgVersion,
    /// WAL segment size in bytes.
    pub segment_bytes: u64,
}

/// What an acceptor reacts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A request and who is to get the answer.
    Request {
        /// The proposer.
        from: NodeId,
        /// Its message.
        request: Request,
    },
    /// The WAL is on disk up to `lsn`. Reported in the order of the commands; one that was under way when the WAL
    /// was cut is ignored, up to the control write that ends the cut.
    FlushDone {
        /// End of the flushed WAL.
        lsn: Lsn,
    },
    /// Control write `seq` is on disk, and so is every truncation before it.
    ControlPersisted {
        /// Its number.
        seq: u64,
    },
    /// WAL up to `lsn` is in object storage; what lies past this node's commit does not count yet.
    BackedUp {
        /// End of the uploaded WAL.
        lsn: Lsn,
    },
    /// Every pageserver shard has consumed the WAL up to `lsn`. Kept in memory only: shards report again.
    Consumed {
        /// The lowest position of a shard.
        lsn: Lsn,
    },
    /// The controller or an operator changes the membership. Only a higher generation has an effect; it is in
    /// force when the control write that comes back is on disk.
    Reconfigure {
        /// The new configuration.
        membership: Membership,
    },
    /// A peer's offer, without a compute's doing (rule 11): what [`Acceptor::lack`] asked for of it.
    Recover {
        /// What the peer offered.
        offer: Offer,
        /// Position of the first byte.
        begin: Lsn,
        /// Committed WAL of the peer from `begin` on, to a record boundary; empty when no WAL was asked for.
        bytes: Bytes,
    },
    /// A write or an fsync failed.
    IoFailed,
}

/// What a reply waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing.
    Now,
    /// This control write.
    AfterControl(u64),
    /// WAL on disk up to here.
    AfterFlush(Lsn),
    /// Both.
    AfterBoth(u64, Lsn),
}

impl When {
    /// Whether a truncation kills the reply: the flush that it waits for would be of other bytes.
    pub fn waits_for_wal(self) -> bool {
        matches!(self, When::AfterFlush(_) | When::AfterBoth(..))
    }
}

/// What the driver must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Replace the control file.
    PersistControl {
        /// Number of this write, rising by one.
        seq: u64,
        /// Its contents.
        state: Box<Durable>,
    },
    /// Write WAL, without a flush.
    WriteWal {
        /// Position of the first byte.
        begin: Lsn,
        /// The bytes.
        bytes: Bytes,
    },
    /// Flush everything written, then report `FlushDone`.
    FlushWal,
    /// Drop every waiting reply that waits for WAL, cut the WAL here and fsync, all before the next command.
    TruncateWal {
        /// The new end.
        lsn: Lsn,
    },
    /// Answer when the condition holds.
    Reply {
        /// Receiver.
        to: NodeId,
        /// Message.
        msg: Response,
        /// Condition.
        when: When,
    },
    /// Stop for good; drop every waiting reply.
    StopTimeline {
        /// For the log.
        reason: &'static str,
    },
}

/// An acceptor of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Acceptor {
    state: Durable,
    flush: Lsn,
    write: Lsn,
    seq: u64,
    persisted: u64,
    /// The term whose history was applied, and the control write that made it durable.
    elected: Option<(Term, u64)>,
    /// The control write that made the generation durable.
    adopted: u64,
    /// A truncation that is not known to be on disk: its control write and the new end.
    cut: Option<(u64, Lsn)>,
    /// Commit of the newest control write.
    commit_persisted: Lsn,
    /// What the proposer and the shards allow to be removed.
    removable: Lsn,
    consumed: Lsn,
    stopped: bool,
    broken: Broken,
}

impl Acceptor {
    /// An acceptor over what the disk holds: the control state and WAL that is flushed up to `flush`.
    /// `None` when the positions are out of order.
    pub fn new(state: Durable, flush: Lsn) -> Option<Self> {
        let last = state.term_history.last().0;
        let acceptor = Self {
            flush,
            write: flush,
            seq: 0,
            persisted: 0,
            elected: (last == state.term && last > Term(0)).then_some((last, 0)),
            adopted: 0,
            cut: None,
            commit_persisted: state.commit,
            removable: state.truncate,
            consumed: state.truncate,
            stopped: false,
            broken: Broken::default(),
            state,
        };
        acceptor.in_order().then_some(acceptor)
    }

    /// Takes one rule away; see [`Mutation`].
    #[doc(hidden)]
    #[cfg(feature = "mutants")]
    pub fn break_rule(&mut self, rule: Option<Mutation>) {
        self.broken = Broken(rule);
    }

    /// The control state in memory.
    pub fn state(&self) -> &Durable {
        &self.state
    }

    /// Ends of the flushed and of the written WAL.
    pub fn ends(&self) -> (Lsn, Lsn) {
        (self.flush, self.write)
    }

    /// Whether the timeline stopped; it is then opened again from disk, as a new acceptor.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a reply's condition holds.
    pub fn is_met(&self, when: When) -> bool {
        match when {
            When::Now => true,
            When::AfterControl(seq) => seq <= self.persisted,
            When::AfterFlush(lsn) => lsn <= self.flush,
            When::AfterBoth(seq, lsn) => seq <= self.persisted && lsn <= self.flush,
        }
    }

    /// Whether WAL up to `end` may be read here on behalf of the proposer of `term`, as its donor (rule 5).
    ///
    /// Ask *after* the bytes were read. They go elsewhere under that term's history, so they must be its bytes; any
    /// others would be a fork that no history shows. Three cases:
    ///
    /// * A higher term was promised here: no. WAL may have been cut and written anew, and not even what is committed
    ///   is for certain that of the lower term: a later one may have committed past the point where the two part.
    /// * The same term: its proposer names as donors those who voted with this log, or applied its history.
    /// * A lower one: this acceptor is new, or has lost its disk, and another proposer may have filled it. Only what is
    ///   committed is then in the log of every later term.
    pub fn may_serve(&self, term: Term, end: Lsn) -> Result<(), Refusal> {
        if term < self.state.term && !self.broken.is(Mutation::DonorServesOldTerm) {
            return Err(Refusal::Term(self.state.term));
        }
        let reach = if term > self.state.term {
            self.state.commit
        } else {
            self.flush
        };
        if end > reach {
            return Err(Refusal::Gap(reach));
        }
        Ok(())
    }

    fn in_order(&self) -> bool {
        let s = &self.state;
        s.truncate <= s.backup && s.backup <= s.commit && s.commit <= self.flush && self.flush <= self.write
    }

    /// Takes one input. A stopped acceptor answers nothing.
    pub fn handle(&mut self, input: Input) -> Vec<Command> {
        if self.stopped {
            return Vec::new();
        }
        let commands = match input {
            Input::IoFailed if self.broken.is(Mutation::RetryFailedFsync) => vec![Command::FlushWal],
            Input::IoFailed => return self.stop("a write or fsync failed"),
            Input::FlushDone { lsn } => {
                if self.cut.is_none() {
                    self.flush = self.flush.max(lsn.min(self.write));
                }
                Vec::new()
            }
            Input::ControlPersisted { seq } => {
                self.control_persisted(seq.min(self.seq));
                Vec::new()
            }
            Input::BackedUp { lsn } => self.backed_up(lsn),
            Input::Consumed { lsn } => {
                self.consumed = self.consumed.max(lsn);
                self.remove().into_iter().collect()
            }
            Input::Recover { offer, begin, bytes } => self.recover(&offer, begin, bytes),
            Input::Reconfigure { membership } => self.adopt(membership).into_iter().collect(),
            Input::Request { from, request } => self.request(from, request).unwrap_or_else(|refusal| {
                // The term in a refusal is a promise too: it leaves only when it is durable.
                let when = if self.persisted < self.seq {
                    When::AfterControl(self.seq)
                } else {
                    When::Now
                };
                vec![self.reply(from, Body::Refused(refusal), when)]
            }),
        };
        if self.in_order() {
            commands
        } else {
            self.stop("positions out of order")
        }
    }

    fn control_persisted(&mut self, seq: u64) {
        self.persisted = self.persisted.max(seq);
        if let Some((cut, end)) = self.cut
            && cut <= self.persisted
        {
            // The truncation came first and included its fsync.
            self.flush = self.flush.max(end.min(self.write));
            self.cut = None;
        }
    }

    fn stop(&mut self, reason: &'static str) -> Vec<Command> {
        self.stopped = true;
        vec![Command::StopTimeline { reason }]
    }

    fn reply(&self, to: NodeId, body: Body, when: When) -> Command {
        let msg = Response {
            generation: self.state.membership.generation,
            term: self.state.term,
            body,
        };
        Command::Reply { to, msg, when }
    }

    fn persist(&mut self) -> Command {
        self.seq += 1;
        self.commit_persisted = self.state.commit;
        Command::PersistControl {
            seq: self.seq,
            state: Box::new(self.state.clone()),
        }
    }
}
