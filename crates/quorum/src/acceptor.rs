//! One safekeeper's decisions for one timeline.
//!
//! State changes in memory at once; what may be *said* about it waits: a reply names the control write or the
//! flush it needs, and the driver sends it when that is on disk. Commands are executed in order, and
//! `TruncateWal` includes its fsync, so WAL is cut before the new history becomes durable.
//! The driver drops replies that wait for a flush, and flushes still under way, when it truncates.
//! After a failed write or fsync the acceptor stops: what the disk holds is then unknown.

use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request, Response};
use bytes::Bytes;
use lakebed_types::{Generation, Lsn, NodeId, Term};

/// What the control file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    /// Highest promised term.
    pub term: Term,
    /// Which term wrote what.
    pub term_history: TermHistory,
    /// Who counts.
    pub membership: Membership,
    /// Everything below is committed.
    pub commit: Lsn,
    /// WAL below is gone.
    pub truncate: Lsn,
    /// WAL below is in object storage.
    pub backup: Lsn,
    /// First LSN of the timeline.
    pub timeline_start: Lsn,
    /// Postgres system identifier.
    pub system_id: u64,
    /// Major Postgres version.
    pub pg_version: u32,
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
    /// The WAL is on disk up to `lsn`.
    FlushDone {
        /// End of the flushed WAL.
        lsn: Lsn,
    },
    /// Control write `seq` is on disk.
    ControlPersisted {
        /// Its number.
        seq: u64,
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
    /// Cut the WAL here and fsync before the next command.
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
#[derive(Debug)]
pub struct Acceptor {
    state: Durable,
    flush: Lsn,
    write: Lsn,
    seq: u64,
    persisted: u64,
    elected: Option<(Term, u64)>,
    stopped: bool,
}

impl Acceptor {
    /// An acceptor over what the disk holds: the control state and WAL that is flushed up to `flush`.
    /// `None` when the positions are out of order.
    pub fn new(state: Durable, flush: Lsn) -> Option<Self> {
        let acceptor = Self {
            state,
            flush,
            write: flush,
            seq: 0,
            persisted: 0,
            elected: None,
            stopped: false,
        };
        acceptor.in_order().then_some(acceptor)
    }

    /// The control state in memory.
    pub fn state(&self) -> &Durable {
        &self.state
    }

    /// Ends of the flushed and of the written WAL.
    pub fn ends(&self) -> (Lsn, Lsn) {
        (self.flush, self.write)
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
            Input::IoFailed => return self.stop("a write or fsync failed"),
            Input::FlushDone { lsn } => {
                // A flush that was under way during a truncation may report more than is left.
                self.flush = self.flush.max(lsn.min(self.write));
                Vec::new()
            }
            Input::ControlPersisted { seq } => {
                self.persisted = self.persisted.max(seq.min(self.seq));
                Vec::new()
            }
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
        Command::PersistControl {
            seq: self.seq,
            state: Box::new(self.state.clone()),
        }
    }

    fn same_generation(&self, generation: Generation) -> Result<(), Refusal> {
        let mine = self.state.membership.generation;
        if generation == mine {
            Ok(())
        } else {
            Err(Refusal::Generation(mine))
        }
    }

    fn request(&mut self, from: NodeId, request: Request) -> Result<Vec<Command>, Refusal> {
        match request {
            Request::Greeting {
                membership,
                system_id,
                pg_version,
                segment_bytes,
            } => {
                let s = &mut self.state;
                if (system_id, pg_version, segment_bytes) != (s.system_id, s.pg_version, s.segment_bytes) {
                    return Err(Refusal::Identity);
                }
                if membership.generation < s.membership.generation {
                    return Err(Refusal::Generation(s.membership.generation));
                }
                let mut commands = Vec::new();
                if membership.generation > s.membership.generation {
                    s.membership = membership;
                    commands.push(self.persist());
                }
                commands.push(self.reply(from, Body::Greeted, When::AfterControl(self.seq)));
                Ok(commands)
            }
            Request::Vote { generation, term } => {
                self.same_generation(generation)?;
                if term <= self.state.term {
                    return Err(Refusal::Term(self.state.term));
                }
                self.state.term = term;
                self.elected = None;
                let body = Body::Voted {
                    history: self.state.term_history.clone(),
                    flush: self.write,
                    truncate: self.state.truncate,
                    timeline_start: self.state.timeline_start,
                };
                let persist = self.persist();
                let reply = self.reply(from, body, When::AfterBoth(self.seq, self.write));
                Ok(vec![Command::FlushWal, persist, reply])
            }
            Request::Elected {
                generation,
                term,
                history,
                common,
            } => {
                self.same_generation(generation)?;
                self.elected(from, term, history, common)
            }
            Request::Append {
                generation,
                term,
                begin,
                bytes,
                commit,
                truncate,
            } => {
                self.same_generation(generation)?;
                if term < self.state.term {
                    return Err(Refusal::Term(self.state.term));
                }
                match self.elected {
                    Some((t, seq)) if t == term && seq <= self.persisted => {}
                    _ => return Err(Refusal::NotElected),
                }
                if begin != self.write {
                    return Err(Refusal::Gap(self.write));
                }
                let end = u64::try_from(bytes.len()).ok().and_then(|n| begin.checked_add(n));
                self.write = end.ok_or(Refusal::Gap(self.write))?;
                // Clamped to this node's own flush; WAL goes only below what is in object storage.
                let commit = commit.min(self.flush).max(self.state.commit);
                let truncate = truncate.min(self.state.backup).max(self.state.truncate);
                let mut commands = Vec::new();
                if !bytes.is_empty() {
                    commands.extend([Command::WriteWal { begin, bytes }, Command::FlushWal]);
                }
                if (commit, truncate) != (self.state.commit, self.state.truncate) {
                    (self.state.commit, self.state.truncate) = (commit, truncate);
                    commands.push(self.persist());
                }
                let body = Body::Appended {
                    flush: self.write,
                    commit,
                };
                commands.push(self.reply(from, body, When::AfterFlush(self.write)));
                Ok(commands)
            }
        }
    }

    fn elected(
        &mut self,
        from: NodeId,
        term: Term,
        history: TermHistory,
        common: Lsn,
    ) -> Result<Vec<Command>, Refusal> {
        if term < self.state.term {
            return Err(Refusal::Term(self.state.term));
        }
        let own = self.state.term_history.common_point(self.write, &history);
        if history.last().0 != term || own != Some(common) {
            return Err(Refusal::History);
        }
        if common < self.state.commit {
            return Err(Refusal::BelowCommit(self.state.commit));
        }
        let mut commands = Vec::new();
        if common < self.write {
            self.write = common;
            self.flush = self.flush.min(common);
            commands.push(Command::TruncateWal { lsn: common });
        }
        self.state.term = term;
        self.state.term_history = history;
        commands.push(Command::FlushWal);
        commands.push(self.persist());
        self.elected = Some((term, self.seq));
        let when = When::AfterBoth(self.seq, self.write);
        commands.push(self.reply(from, Body::Applied { flush: self.write }, when));
        Ok(commands)
    }
}
