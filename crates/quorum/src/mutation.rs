//! Broken rules, one each, that the simulator must catch.
//!
//! A test that has never failed proves nothing. Each mutation takes one rule of the protocol away; `sim` runs
//! seeds until an invariant notices, and fails when none does. Without the feature `mutants` no rule can be broken:
//! `Broken::is` is then a constant. With it, a core is whole until a test calls `break_rule`.

/// One rule that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// Rule 2: a vote leaves before the term is durable.
    VoteWithoutDurableTerm,
    /// Rule 2: a vote names WAL that is not flushed.
    VoteWithoutWalFlush,
    /// Rule 2: a term that was promised is promised again.
    VoteTwice,
    /// Rule 3: the longest log is the donor, whatever its last term.
    DonorByFlushAlone,
    /// Rule 3: any log of the last term is the donor, however short.
    DonorByTermAlone,
    /// Rule 7: the flush position of a vote counts for commit.
    CountFlushFromVote,
    /// Rule 7: what an earlier term wrote is committed by counting.
    CommitBelowTermStart,
    /// Rule 6: appends go out, and are taken, without the history.
    AppendBeforeElected,
    /// Rule 4: the new history is durable before the WAL is cut.
    HistoryBeforeTruncation,
    /// Rule 4: the WAL is not cut where the histories part.
    NoTruncation,
    /// Rule 4: the WAL is cut to its start to fetch all of it again.
    TruncateBelowCommit,
    /// Rule 6: an append is answered before the flush.
    AckBeforeFlush,
    /// A failed fsync is tried again.
    RetryFailedFsync,
    /// Rule 10: in a joint configuration the new set alone commits and elects.
    NewSetAlone,
    /// Rule 10: a new generation is acted upon before it is durable.
    GenerationNotDurable,
    /// Rule 8: WAL goes although a shard has not consumed it.
    RemoveUnconsumed,
    /// Rule 5: a donor serves WAL to a proposer whose term is over.
    DonorServesOldTerm,
    /// Driver contract: an answer that waits for a flush survives a truncation.
    KeepAnswersOverTruncation,
    /// Rule 11: committed WAL of a peer is put behind WAL that parts from it.
    RecoverWithoutCut,
    /// Rule 11: committed WAL of a peer is taken without the terms that wrote it.
    RecoverKeepsHistory,
    /// Rule 11: WAL of a peer is taken before its history is durable.
    RecoverBeforeHistory,
    /// Rule 11: a peer offers what it has flushed, committed or not, under its whole history.
    OfferUncommitted,
    /// Driver contract: after a crash the WAL's end is taken from its length, torn record and all.
    KeepTornTail,
    /// Driver contract: after a crash WAL ends where it does not decode, also below what is known to have been durable.
    CutDamage,
    /// Driver contract: WAL is served without a look at its checksums.
    ServeUnverified,
    /// A safekeeper that lost its disk comes back empty, as the member that it was.
    EmptyDiskKeepsIdentity,
    /// Rule 8: WAL is uploaded as soon as it is flushed.
    UploadUncommitted,
    /// Rule 10: the controller goes to the new set without a joint configuration.
    SkipJoint,
    /// Rule 10: the new set follows before the joint configuration has settled.
    NewSetBeforeSettled,
    /// Rule 10: a leaving safekeeper's timeline is deleted when the change begins.
    DecommissionEarly,
    /// Rule 10: a learner counts as if it were a member.
    LearnerCounts,
    /// Rule 10: a commit waits until learners have it.
    WaitForLearners,
    /// Rule 10: the controller lets learners join before they have caught up.
    JoinBeforeCaughtUp,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 33] = [
        Mutation::VoteWithoutDurableTerm,
        Mutation::VoteWithoutWalFlush,
        Mutation::VoteTwice,
        Mutation::DonorByFlushAlone,
        Mutation::DonorByTermAlone,
        Mutation::CountFlushFromVote,
        Mutation::CommitBelowTermStart,
        Mutation::AppendBeforeElected,
        Mutation::HistoryBeforeTruncation,
        Mutation::NoTruncation,
        Mutation::TruncateBelowCommit,
        Mutation::AckBeforeFlush,
        Mutation::RetryFailedFsync,
        Mutation::NewSetAlone,
        Mutation::GenerationNotDurable,
        Mutation::RemoveUnconsumed,
        Mutation::DonorServesOldTerm,
        Mutation::KeepAnswersOverTruncation,
        Mutation::RecoverWithoutCut,
        Mutation::RecoverKeepsHistory,
        Mutation::RecoverBeforeHistory,
        Mutation::OfferUncommitted,
        Mutation::KeepTornTail,
        Mutation::CutDamage,
        Mutation::ServeUnverified,
        Mutation::EmptyDiskKeepsIdentity,
        Mutation::UploadUncommitted,
        Mutation::SkipJoint,
        Mutation::NewSetBeforeSettled,
        Mutation::DecommissionEarly,
        Mutation::LearnerCounts,
        Mutation::WaitForLearners,
        Mutation::JoinBeforeCaughtUp,
    ];
}

/// The rule that is broken in this core: none, unless a mutation test says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Broken(#[cfg(feature = "mutants")] pub(crate) Option<Mutation>);

impl Broken {
    /// Whether `rule` does not hold.
    pub(crate) fn is(self, rule: Mutation) -> bool {
        #[cfg(feature = "mutants")]
        return self.0 == Some(rule);
        #[cfg(not(feature = "mutants"))]
        {
            let _ = rule;
            false
        }
    }
}
