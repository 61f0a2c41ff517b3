//! Recovery without a compute (rule 11): an acceptor takes from a peer what the peer knows to be committed.
//!
//! Also how a new member's timeline is pulled from another safekeeper, and how damaged WAL is replaced. No term is
//! needed: what is committed is in the log of every later term, so it can be taken at any time, whoever proposes.
//!
//! A peer [offers](Acceptor::offer) its commit position and the terms that wrote what lies below. The receiver
//! computes itself [what it lacks](Acceptor::lack), in two steps that may each be repeated:
//!
//! 1. Its log parts from the offer, or it does not know the terms: it cuts its WAL where they part, then makes the
//!    offered history durable, in that order for the reason of rule 4. Its promised term rises to the history's last.
//! 2. Its log is a prefix of the offer: it appends the committed WAL that follows.
//!
//! An offer may be old when it arrives: what is committed does not change. It says nothing of who may be elected.

use super::{Acceptor, Command};
use crate::history::TermHistory;
use crate::message::Refusal;
use crate::mutation::Mutation;
use bytes::Bytes;
use lakebed_types::{Lsn, Term};

/// What an acceptor knows to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The terms that wrote it: no entry starts at or past `commit`, except the timeline's first.
    pub history: TermHistory,
    /// Start of what the peer itself still has; below it, object storage.
    pub start: Lsn,
    /// Its end.
    pub commit: Lsn,
}

/// What an acceptor lacks of an offer. Each is answered with [`Input::Recover`](super::Input::Recover).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Nothing.
    Nothing,
    /// The knowledge that its WAL is committed up to here; no WAL.
    Commit(Lsn),
    /// The offer's history, after a cut of its own WAL down to this position; no WAL.
    History(Lsn),
    /// WAL of this range, any part from its start on.
    Wal {
        /// First byte.
        begin: Lsn,
        /// End of what is committed.
        end: Lsn,
    },
}

impl Acceptor {
    /// What this acceptor knows to be committed; see [`Offer`].
    pub fn offer(&self) -> Offer {
        let s = &self.state;
        let commit = if self.broken.is(Mutation::OfferUncommitted) {
            self.flush
        } else {
            s.commit
        };
        Offer {
            history: s.term_history.below(commit),
            start: s.truncate,
            commit,
        }
    }

    /// What this acceptor lacks of a peer's offer.
    ///
    /// `NoCommonHistory`: another timeline's WAL. `History` and `BelowCommit`: the offer contradicts what the same term
    /// wrote here, or what is known here to be committed; one of the two nodes is damaged and somebody must look at it.
    pub fn lack(&self, offer: &Offer) -> Result<Lack, Refusal> {
        let own = &self.state.term_history;
        let common = own.common_point(self.write, &offer.history);
        let common = common.ok_or(Refusal::NoCommonHistory)?;
        if offer.commit <= common {
            let known = offer.commit.min(self.flush);
            return Ok(if known > self.state.commit {
                Lack::Commit(known)
            } else {
                Lack::Nothing
            });
        }
        if common < self.state.commit {
            return Err(Refusal::BelowCommit(self.state.commit));
        }
        let (mine, theirs) = (own.entries(), offer.history.entries());
        let knows_terms = mine.starts_with(theirs) || self.broken.is(Mutation::RecoverKeepsHistory);
        let (begin, end) = (common, offer.commit);
        // A later term than the offer's last begins with everything that the offer has.
        let later = mine.get(theirs.len()).is_none_or(|next| next.1 >= end);
        if common == self.write && knows_terms && later {
            return Ok(Lack::Wal { begin, end });
        }
        let (own_last, offered_last) = (own.last().0, offer.history.last().0);
        if own_last > offered_last {
            // A later term began here, before the end of the offer, and was given up; a still later one committed what is
            // offered and wrote nothing yet, so that the offer does not name it. One that does will come.
            return Ok(Lack::Nothing);
        }
        if own_last == offered_last {
            return Err(Refusal::History);
        }
        Ok(Lack::History(common))
    }

    pub(super) fn recover(&mut self, offer: &Offer, begin: Lsn, bytes: Bytes) -> Vec<Command> {
        match self.lack(offer) {
            Ok(Lack::Commit(commit)) => {
                self.state.commit = commit;
                vec![self.persist()]
            }
            Ok(Lack::History(common)) => self.take_history(offer, common),
            Ok(Lack::Wal { begin: at, end }) if at == begin => self.take_wal(begin, end, bytes),
            // The log moved on while the peer was asked; it will be asked again.
            Ok(Lack::Wal { .. } | Lack::Nothing) | Err(_) => Vec::new(),
        }
    }

    fn take_history(&mut self, offer: &Offer, common: Lsn) -> Vec<Command> {
        let mut commands = Vec::new();
        if common < self.write && !self.broken.is(Mutation::RecoverWithoutCut) {
            self.write = common;
            self.flush = self.flush.min(common);
            self.cut = Some((self.seq + 1, common));
            commands.push(Command::TruncateWal { lsn: common });
        }
        let last = offer.history.last().0;
        self.state.term = self.state.term.max(last);
        self.state.term_history = offer.history.clone();
        commands.extend([Command::FlushWal, self.persist()]);
        let applied = last == self.state.term && last > Term(0);
        self.elected = applied.then_some((last, self.seq));
        commands
    }

    fn take_wal(&mut self, begin: Lsn, end: Lsn, bytes: Bytes) -> Vec<Command> {
        let taken = u64::try_from(bytes.len()).ok();
        let Some(taken) = taken.and_then(|n| begin.checked_add(n)).filter(|at| *at <= end) else {
            return Vec::new();
        };
        // Until a new history is durable a crash would leave these bytes under the terms of the one before.
        let early = self.persisted < self.seq && !self.broken.is(Mutation::RecoverBeforeHistory);
        if bytes.is_empty() || early {
            return Vec::new();
        }
        let begin = self.write;
        self.write = taken.max(begin);
        vec![Command::WriteWal { begin, bytes }, Command::FlushWal]
    }
}
