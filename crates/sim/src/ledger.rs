//! What the simulator knows and no node does: who won which term with which log, and what was acknowledged.

use crate::disk::{offset, position};
use lakebed_quorum::membership::Membership;
use lakebed_quorum::proposer::Input;
use lakebed_types::{Lsn, NodeId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// Knowledge from outside.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// For every term that was won, the whole log of its winner, from the timeline's start on.
    pub(crate) logs: BTreeMap<Term, Vec<u8>>,
    /// The WAL on an acceptor's disk when its vote for a term left it: what a winner may call its donor's.
    pub(crate) votes: BTreeMap<(Term, NodeId), Vec<u8>>,
    /// Everything that was ever acknowledged.
    pub(crate) committed: Vec<u8>,
    /// How far each term has committed.
    pub(crate) commits: BTreeMap<Term, Lsn>,
    /// The configuration that the controller decided last.
    pub(crate) config: Membership,
    /// The one before, until a quorum has adopted the last.
    pub(crate) previous: Option<Membership>,
    /// Who is to join, and has not caught up yet as far as the controller knows.
    pub(crate) joining: Option<Joining>,
    /// Number of the last attempt to let somebody join.
    pub(crate) attempt: u64,
    /// The WAL in object storage, from the timeline's start on.
    pub(crate) store: Vec<u8>,
    /// Lowest position of a pageserver shard.
    pub(crate) consumed: Lsn,
}

/// A change that waits for its learners.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    /// The set that is to follow.
    pub(crate) target: BTreeSet<NodeId>,
    /// Those of it that are no members.
    pub(crate) learners: BTreeSet<NodeId>,
}

impl Ledger {
    pub(crate) fn new(config: Membership) -> Ledger {
        Ledger {
            logs: BTreeMap::new(),
            votes: BTreeMap::new(),
            committed: Vec::new(),
            commits: BTreeMap::new(),
            config,
            previous: None,
            joining: None,
            attempt: 0,
            store: Vec::new(),
            consumed: position(0),
        }
    }

    /// End of what was acknowledged.
    pub(crate) fn commit(&self) -> Lsn {
        position(self.committed.len())
    }

    /// Who gets WAL and does not count.
    pub(crate) fn learners(&self) -> BTreeSet<NodeId> {
        let joining = self.joining.as_ref();
        joining.map_or_else(BTreeSet::new, |joining| joining.learners.clone())
    }

    /// The same as a proposer is told it.
    pub(crate) fn tell_learners(&self) -> Input {
        Input::Learners {
            attempt: self.attempt,
            learners: self.learners(),
        }
    }

    /// End of the WAL in object storage.
    pub(crate) fn uploaded(&self) -> Lsn {
        position(self.store.len())
    }

    /// The joint configuration that follows when learners have caught up.
    pub(crate) fn to_follow(&self) -> Option<Membership> {
        let joining = self.joining.as_ref()?;
        Some(Membership {
            new: Some(joining.target.clone()),
            ..self.config.clone()
        })
    }

    /// The configurations that may still elect and commit.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = &Membership> {
        std::iter::once(&self.config).chain(self.previous.as_ref())
    }

    /// What terms below `term` have committed: all that its winner must have.
    pub(crate) fn committed_before(&self, term: Term) -> &[u8] {
        let end = self.commits.range(..term).map(|(_, lsn)| *lsn).max();
        self.committed.get(..end.map_or(0, offset)).unwrap_or_default()
    }

    /// Object storage's part of `[begin, end)`, from `begin` on.
    pub(crate) fn stored(&self, begin: Lsn, end: Lsn) -> &[u8] {
        let end = offset(end.min(self.uploaded()));
        self.store.get(offset(begin)..end).unwrap_or_default()
    }
}
