//! Rules 5 to 7 from the proposer's side: bring acceptors up to date, append, count flushes.
//!
//! For each acceptor: at most one read under way, at most `in_flight_bytes` sent and not yet flushed there. Appends
//! follow each other without a gap because `next` moves only when one is sent.

use super::peer::{Following, Link};
use super::{Command, Proposer, Source, Won};
use crate::message::{Refusal, Request};
use crate::mutation::Mutation;
use bytes::Bytes;
use lakebed_types::{Lsn, NodeId};

impl Proposer {
    /// The acceptor applied this term's history and its WAL ends at `flush`: go on from there.
    pub(super) fn applied(&mut self, from: NodeId, flush: Lsn) -> Vec<Command> {
        let Some(peer) = self.peers.get_mut(&from) else {
            return Vec::new();
        };
        if peer.link != Link::Announced {
            return Vec::new();
        }
        peer.link = Link::Following(Following {
            next: flush,
            reading: None,
            failed: false,
            failures: 0,
            commit_sent: Lsn::INVALID,
        });
        self.flushed(from, flush)
    }

    /// Counts only when Applied was heard of before.
    pub(super) fn appended(&mut self, from: NodeId, flush: Lsn) -> Vec<Command> {
        if self.peers.get(&from).is_none_or(|peer| peer.flush.is_none()) {
            return Vec::new();
        }
        self.flushed(from, flush)
    }

    fn flushed(&mut self, from: NodeId, flush: Lsn) -> Vec<Command> {
        let Some(peer) = self.peers.get_mut(&from) else {
            return Vec::new();
        };
        if flush > self.local_end {
            // WAL of this term that this proposer never wrote: believe nothing (rule 13).
            (peer.link, peer.flush) = (Link::Refused, None);
            let (acceptor, refusal) = (from, Refusal::Gap(self.local_end));
            return vec![Command::Rejected { acceptor, refusal }];
        }
        if peer.flush < Some(flush) {
            (peer.flush, self.progress_ms) = (Some(flush), self.now_ms);
        }
        let mut commands = self.advance();
        if commands.is_empty() {
            commands.extend(self.pump(from));
        } else {
            commands.extend(self.pump_all());
        }
        commands
    }

    /// Rule 7: the highest position that a quorum flushed, at or past the term's start.
    fn advance(&mut self) -> Vec<Command> {
        let Some(won) = &self.won else {
            return Vec::new();
        };
        let mut start = won.start();
        if self.broken.is(Mutation::CommitBelowTermStart) {
            start = Lsn::INVALID;
        }
        let reached = self.peers.values().filter_map(|p| p.flush);
        let best = reached
            .filter(|at| self.is_quorum(|p| p.flush >= Some(*at)))
            .filter(|at| !self.broken.is(Mutation::WaitForLearners) || self.learners_have(*at))
            .max();
        let Some(at) = best.filter(|at| *at >= start && *at >= self.commit) else {
            return Vec::new();
        };
        let mut commands = Vec::new();
        if at > self.commit {
            self.commit = at;
            commands.push(Command::CommitAdvanced(at));
        }
        if !self.settled {
            self.settled = true;
            commands.push(Command::Settled(self.config.membership.generation));
        }
        commands
    }

    fn learners_have(&self, at: Lsn) -> bool {
        let flush = |learner| self.peers.get(learner).and_then(|peer| peer.flush);
        self.learners.iter().all(|learner| flush(learner) >= Some(at))
    }

    pub(super) fn pump_all(&mut self) -> Vec<Command> {
        let ids: Vec<_> = self.peers.keys().copied().collect();
        ids.into_iter().flat_map(|id| self.pump(id)).collect()
    }

    /// Asks for the next bytes of an acceptor, or tells it the commit position when there are none.
    pub(super) fn pump(&mut self, id: NodeId) -> Vec<Command> {
        let (Some(won), Some(term)) = (&self.won, self.term) else {
            return Vec::new();
        };
        let Some(peer) = self.peers.get(&id) else {
            return Vec::new();
        };
        let Link::Following(following) = &peer.link else {
            return Vec::new();
        };
        let next = following.next;
        if following.reading.is_some() || following.failed {
            return Vec::new();
        }
        let acked = peer.flush.unwrap_or(Lsn::INVALID);
        let in_flight = next.0.saturating_sub(acked.0);
        if next < self.local_end && in_flight < self.config.in_flight_bytes {
            let Some((source, limit)) = self.source(won, id, next, following.failures) else {
                return Vec::new();
            };
            let begin = next;
            let end = limit.min(Lsn(begin.0.saturating_add(self.config.chunk_bytes)));
            if let Some(peer) = self.peers.get_mut(&id)
                && let Link::Following(following) = &mut peer.link
            {
                following.reading = Some(begin);
            }
            let acceptor = id;
            return vec![Command::ReadWal {
                acceptor,
                source,
                term,
                begin,
                end,
            }];
        }
        if next == self.local_end && following.commit_sent < self.commit {
            return self.append(id, Bytes::new()).into_iter().collect();
        }
        Vec::new()
    }

    /// Who has WAL from `next` on, and up to where. After a failure the next one who may have it.
    fn source(&self, won: &Won, id: NodeId, next: Lsn, failures: usize) -> Option<(Source, Lsn)> {
        if next >= self.local_start {
            return Some((Source::Local, self.local_end));
        }
        let others = self.peers.iter().filter(|(other, _)| **other != id);
        let with_end = others.map(|(other, peer)| {
            let end = if *other == won.donor {
                peer.flush.max(Some(won.start()))
            } else {
                peer.flush
            };
            (*other, end.unwrap_or(Lsn::INVALID))
        });
        let mut having: Vec<_> = with_end.filter(|(_, end)| *end > next).collect();
        having.sort_by_key(|(other, _)| *other != won.donor);
        let turn = failures.checked_rem(having.len())?;
        let (other, end) = having.get(turn)?;
        Some((Source::Acceptor(*other), (*end).min(self.local_start)))
    }

    /// The driver read what was asked for.
    pub(super) fn wal_read(&mut self, id: NodeId, begin: Lsn, bytes: Bytes) -> Vec<Command> {
        let end = u64::try_from(bytes.len()).ok().and_then(|n| begin.checked_add(n));
        let Some(peer) = self.peers.get_mut(&id) else {
            return Vec::new();
        };
        let Link::Following(following) = &mut peer.link else {
            return Vec::new();
        };
        // An answer to a read from before a reconnect is not what was asked for last.
        if following.reading != Some(begin) || following.next != begin {
            return Vec::new();
        }
        following.reading = None;
        if bytes.is_empty() || end.is_none_or(|end| end > self.local_end) {
            following.failed = true;
            return Vec::new();
        }
        let mut commands: Vec<_> = self.append(id, bytes).into_iter().collect();
        commands.extend(self.pump(id));
        commands
    }

    /// The source could not: another one, after the next tick.
    pub(super) fn wal_read_failed(&mut self, id: NodeId, begin: Lsn) {
        if let Some(peer) = self.peers.get_mut(&id)
            && let Link::Following(following) = &mut peer.link
            && following.reading == Some(begin)
        {
            following.reading = None;
            following.failed = true;
            following.failures += 1;
        }
    }

    /// The next append; without bytes it carries the commit position and renews the lease.
    pub(super) fn append(&mut self, id: NodeId, bytes: Bytes) -> Option<Command> {
        let (generation, term) = (self.config.membership.generation, self.term?);
        // Every member has flushed it, so none will ask another member for it.
        let everywhere = self.peers.values().map(|p| p.flush.unwrap_or(Lsn::INVALID));
        let truncate = everywhere.min().unwrap_or(Lsn::INVALID).min(self.commit);
        let (commit, now_ms) = (self.commit, self.now_ms);
        let peer = self.peers.get_mut(&id)?;
        let Link::Following(following) = &mut peer.link else {
            return None;
        };
        let begin = following.next;
        let length = u64::try_from(bytes.len()).ok()?;
        following.next = begin.checked_add(length)?;
        following.commit_sent = commit;
        peer.sent_ms = now_ms;
        let msg = Request::Append {
            generation,
            term,
            begin,
            bytes,
            commit,
            truncate,
        };
        Some(Command::Send { to: id, msg })
    }
}
