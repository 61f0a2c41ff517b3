//! The acceptor's side of the rules: greeting, vote, elected, append, removal of WAL, membership.
//!
//! Each function checks the request against this node's own state (rule 13), changes it, and says what the answer
//! waits for. A refusal changes nothing.

use super::{Acceptor, COMMITS_PERSISTED_PER_SEGMENT, Command, When};
use crate::history::TermHistory;
use crate::membership::Membership;
use crate::message::{Body, Refusal, Request};
use crate::mutation::Mutation;
use bytes::Bytes;
use lakebed_types::{Generation, Lsn, NodeId, Term};

/// An append without the fields that are checked on the way in.
struct Append {
    term: Term,
    begin: Lsn,
    bytes: Bytes,
    commit: Lsn,
    truncate: Lsn,
}

impl Acceptor {
    pub(super) fn request(&mut self, from: NodeId, request: Request) -> Result<Vec<Command>, Refusal> {
        match request {
            Request::Greeting {
                membership,
                system_id,
                pg_version,
                segment_bytes,
            } => {
                let s = &self.state;
                if (system_id, pg_version, segment_bytes) != (s.system_id, s.pg_version, s.segment_bytes) {
                    return Err(Refusal::Identity);
                }
                self.greeting(from, membership)
            }
            Request::Vote { generation, term } => {
                self.same_generation(generation)?;
                self.vote(from, term)
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
                let append = Append {
                    term,
                    begin,
                    bytes,
                    commit,
                    truncate,
                };
                self.append(from, append)
            }
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

    /// Rules 1 and 10: a higher generation is adopted; nothing is said under it before it is durable.
    pub(super) fn adopt(&mut self, membership: Membership) -> Option<Command> {
        if membership.generation <= self.state.membership.generation {
            return None;
        }
        self.state.membership = membership;
        if self.broken.is(Mutation::GenerationNotDurable) {
            return None;
        }
        let command = self.persist();
        self.adopted = self.seq;
        Some(command)
    }

    fn greeting(&mut self, from: NodeId, membership: Membership) -> Result<Vec<Command>, Refusal> {
        let mine = &self.state.membership;
        let other_set = membership.generation == mine.generation && membership != *mine;
        if membership.generation < mine.generation || other_set {
            return Err(Refusal::Generation(mine.generation));
        }
        let mut commands: Vec<_> = self.adopt(membership).into_iter().collect();
        if self.flush < self.write {
            commands.push(Command::FlushWal);
        }
        let s = &self.state;
        let body = Body::Greeted {
            history: s.term_history.clone(),
            flush: self.write,
            commit: s.commit,
            truncate: s.truncate,
            timeline_start: s.timeline_start,
        };
        // Term and history leave as well, so every control write under way is waited for.
        commands.push(self.reply(from, body, When::AfterBoth(self.seq, self.write)));
        Ok(commands)
    }

    /// Rule 2.
    fn vote(&mut self, from: NodeId, term: Term) -> Result<Vec<Command>, Refusal> {
        let again = self.broken.is(Mutation::VoteTwice) && term == self.state.term;
        if term <= self.state.term && !again {
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
        let when = if self.broken.is(Mutation::VoteWithoutDurableTerm) {
            When::AfterFlush(self.write)
        } else if self.broken.is(Mutation::VoteWithoutWalFlush) {
            When::AfterControl(self.seq)
        } else {
            When::AfterBoth(self.seq, self.write)
        };
        let mut commands = vec![Command::FlushWal];
        if self.broken.is(Mutation::VoteWithoutWalFlush) {
            commands.clear();
        }
        commands.extend([persist, self.reply(from, body, when)]);
        Ok(commands)
    }

    /// Rule 4.
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
        if history.last().0 != term {
            return Err(Refusal::History);
        }
        if self.state.term_history.last().0 == term {
            return self.elected_again(from, term, &history);
        }
        let own = self.state.term_history.common_point(self.write, &history);
        let mut own = own.ok_or(Refusal::NoCommonHistory)?;
        if own != common {
            return Err(Refusal::History);
        }
        if self.broken.is(Mutation::TruncateBelowCommit) {
            own = self.state.timeline_start;
            self.state.commit = self.state.commit.min(own);
            self.state.backup = self.state.backup.min(own);
            self.state.truncate = self.state.truncate.min(own);
        }
        if self.broken.is(Mutation::NoTruncation) {
            own = self.write;
        }
        if own < self.state.commit {
            return Err(Refusal::BelowCommit(self.state.commit));
        }
        let mut commands = Vec::new();
        if own < self.write {
            self.write = own;
            self.flush = self.flush.min(own);
            self.cut = Some((self.seq + 1, own));
            commands.push(Command::TruncateWal { lsn: own });
        }
        self.state.term = term;
        self.state.term_history = history;
        commands.push(Command::FlushWal);
        commands.push(self.persist());
        if self.broken.is(Mutation::HistoryBeforeTruncation) {
            commands.reverse();
        }
        self.elected = Some((term, self.seq));
        let when = When::AfterBoth(self.seq, self.write);
        commands.push(self.reply(from, Body::Applied { flush: self.write }, when));
        Ok(commands)
    }

    /// A reconnect in the same term: the history is known, and WAL written in the term stays.
    fn elected_again(
        &mut self,
        from: NodeId,
        term: Term,
        history: &TermHistory,
    ) -> Result<Vec<Command>, Refusal> {
        if self.state.term_history != *history {
            // Two winners of one term: the quorum was broken somewhere. Nothing here may change.
            return Err(Refusal::History);
        }
        let (_, seq) = *self.elected.get_or_insert((term, self.seq));
        let mut commands = Vec::new();
        if self.flush < self.write {
            commands.push(Command::FlushWal);
        }
        let when = When::AfterBoth(seq.max(self.adopted), self.write);
        commands.push(self.reply(from, Body::Applied { flush: self.write }, when));
        Ok(commands)
    }

    /// Rule 6.
    fn append(&mut self, from: NodeId, append: Append) -> Result<Vec<Command>, Refusal> {
        if append.term < self.state.term {
            return Err(Refusal::Term(self.state.term));
        }
        match self.elected {
            Some((term, seq)) if term == append.term && seq <= self.persisted => {}
            _ if self.broken.is(Mutation::AppendBeforeElected) => {}
            _ => return Err(Refusal::NotElected),
        }
        if append.begin != self.write {
            return Err(Refusal::Gap(self.write));
        }
        let length = u64::try_from(append.bytes.len()).ok();
        let end = length.and_then(|n| append.begin.checked_add(n));
        self.write = end.ok_or(Refusal::Gap(self.write))?;
        // Clamped to this node's own flush.
        self.state.commit = append.commit.min(self.flush).max(self.state.commit);
        self.removable = self.removable.max(append.truncate);
        let mut commands = Vec::new();
        if !append.bytes.is_empty() {
            let Append { begin, bytes, .. } = append;
            commands.extend([Command::WriteWal { begin, bytes }, Command::FlushWal]);
        }
        let moved = self.state.commit.0.saturating_sub(self.commit_persisted.0);
        if let Some(persist) = self.remove() {
            commands.push(persist);
        } else if moved > 0 && moved >= self.state.segment_bytes / COMMITS_PERSISTED_PER_SEGMENT {
            commands.push(self.persist());
        }
        let body = Body::Appended {
            flush: self.write,
            commit: self.state.commit,
        };
        let when = if self.broken.is(Mutation::AckBeforeFlush) {
            When::Now
        } else if self.adopted > self.persisted {
            When::AfterBoth(self.adopted, self.write)
        } else {
            When::AfterFlush(self.write)
        };
        commands.push(self.reply(from, body, when));
        Ok(commands)
    }

    /// Rule 8, the upload. Another safekeeper may have uploaded more than this one knows to be committed.
    pub(super) fn backed_up(&mut self, lsn: Lsn) -> Vec<Command> {
        let backup = lsn.min(self.state.commit);
        if backup <= self.state.backup {
            return Vec::new();
        }
        self.state.backup = backup;
        let command = self.remove().unwrap_or_else(|| self.persist());
        vec![command]
    }

    /// Rule 8: WAL goes when the proposer allows it, it is in object storage, and every shard has consumed it.
    pub(super) fn remove(&mut self) -> Option<Command> {
        let mut truncate = self.removable.min(self.state.backup);
        if !self.broken.is(Mutation::RemoveUnconsumed) {
            truncate = truncate.min(self.consumed);
        }
        if truncate <= self.state.truncate {
            return None;
        }
        self.state.truncate = truncate;
        Some(self.persist())
    }
}
