//! What a run of the checker explores.

use lakebed_quorum::membership::Membership;
use lakebed_quorum::mutation::Mutation;
use lakebed_types::{Generation, NodeId};

/// Acceptors, numbered from 1.
pub(crate) const NODES: usize = 3;
/// Proposers, numbered from 0.
pub(crate) const COMPUTES: usize = 2;

/// A change of membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The three safekeepers stay.
    None,
    /// From 1 and 2 to 2 and 3: one is replaced.
    Replace,
    /// From 1 to 2 and 3: every quorum is another.
    Move,
    /// From all three to 1 and 2: one is removed.
    Remove,
}

/// Bounds of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Attempts at a term of each proposer.
    pub attempts: [u8; COMPUTES],
    /// Records that an attempt writes at most.
    pub records: usize,
    /// The membership's change.
    pub change: Change,
    /// The controller may give up the joint configuration.
    pub abort: bool,
    /// Answers take any time, too. Without, only requests do: far fewer states.
    pub slow_answers: bool,
    /// Requests may arrive again.
    pub duplicates: bool,
    /// Safekeepers may recover from each other.
    pub exchange: bool,
    /// Time passes.
    pub ticks: bool,
    /// Every state counts, without the reductions that `idle` describes.
    pub plain: bool,
    /// A rule that does not hold.
    pub sabotage: Option<Mutation>,
}

impl Scenario {
    /// Name of the property that must always hold.
    pub const SAFETY: &'static str = "nothing committed is lost or changed";

    /// Name of the property that some state must have: something can be committed.
    pub const PROGRESS: &'static str = "a record is committed";
    /// Name of the property that some state must have: a term is won after another.
    pub const TWO_TERMS: &'static str = "two terms are won";
    /// Name of the property that some state must have: a change of membership can be finished.
    pub const CHANGED: &'static str = "a change is through";

    /// One that a test can afford: two proposers, one attempt each, one record.
    pub fn small(change: Change) -> Scenario {
        Scenario {
            attempts: [1, 1],
            records: 1,
            change,
            abort: false,
            slow_answers: true,
            duplicates: true,
            exchange: false,
            ticks: false,
            plain: false,
            sabotage: None,
        }
    }

    /// Whether the reductions of `idle` apply.
    pub(crate) fn is_reduced(&self) -> bool {
        !self.plain && !self.ticks && !self.exchange
    }

    /// The first configuration.
    pub(crate) fn first(&self) -> Membership {
        Membership {
            generation: Generation(1),
            old: self.sets().0.iter().copied().map(NodeId).collect(),
            new: None,
        }
    }

    /// The set that the change leads to.
    pub(crate) fn target(&self) -> Option<Vec<NodeId>> {
        Some(self.sets().1?.iter().copied().map(NodeId).collect())
    }

    fn sets(&self) -> (&'static [u64], Option<&'static [u64]>) {
        match self.change {
            Change::None => (&[1, 2, 3], None),
            Change::Replace => (&[1, 2], Some(&[2, 3])),
            Change::Move => (&[1], Some(&[2, 3])),
            Change::Remove => (&[1, 2, 3], Some(&[1, 2])),
        }
    }
}
