//! Why there is no branch point.

use lakebed_types::{Lsn, TimelineId};
use tonic::Status;

use crate::nodes::NodeError;
use crate::rfc3339;

/// Why there is no branch point.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BranchPointError {
    /// The tenant has no such timeline.
    #[error("there is no timeline {0}")]
    NoTimeline(TimelineId),
    /// Too few safekeepers answered.
    #[error("no quorum of the safekeepers of timeline {timeline} answered: {reasons}; try again")]
    NoQuorum {
        /// The timeline.
        timeline: TimelineId,
        /// What each said.
        reasons: String,
    },
    /// A quorum may have it, and nobody was told.
    #[error(
        "timeline {timeline} may be committed up to {possible}, but its compute ended before it told more than {known} to the \
         safekeepers; start a compute on that branch once (or the safekeepers that do not answer), or branch at {known}"
    )]
    CommitNotTold {
        /// The timeline.
        timeline: TimelineId,
        /// Up to where safekeepers were told.
        known: Lsn,
        /// Up to where a quorum may have it: safekeepers that do not answer may have everything.
        possible: Lsn,
    },
    /// Before the first position of the branch and its ancestors.
    #[error("{lsn} lies before the history of this branch, which starts at {start}")]
    BeforeHistory {
        /// Asked for.
        lsn: Lsn,
        /// The first position.
        start: Lsn,
    },
    /// In history that was given up.
    #[error(
        "{lsn} is older than the history that is kept of this branch, which begins at {horizon}, the last commit of {}",
        rfc3339::format(*.horizon_unix_micros)
    )]
    NotKept {
        /// Asked for, or what the time that was asked for means.
        lsn: Lsn,
        /// From where on every position will do.
        horizon: Lsn,
        /// Time of the commit there.
        horizon_unix_micros: i64,
    },
    /// After what is committed.
    #[error("{lsn} lies beyond the end of this branch, which is committed up to {end}")]
    BeyondEnd {
        /// Asked for.
        lsn: Lsn,
        /// Up to where it is committed.
        end: Lsn,
    },
    /// Before the oldest ancestor was created: the tenant, or a branch that was detached.
    #[error(
        "the time lies before the history of this branch, which starts at {}",
        rfc3339::format(*.created_unix_micros)
    )]
    TimeBeforeHistory {
        /// When that was.
        created_unix_micros: i64,
    },
    /// After now.
    #[error("the time lies in the future")]
    Future,
    /// The owner of shard 0 is not known.
    #[error("shard 0 of the tenant has no pageserver with a known address; wait until one registers")]
    NoCatalogue,
    /// A node did not answer.
    #[error("{0}; try again")]
    Node(#[from] NodeError),
    /// A safekeeper's answer contradicts its question.
    #[error(
        "asked for the last record boundary at or below {lsn}, a safekeeper answered {boundary} after a record at {last_record}"
    )]
    Nonsense {
        /// Asked for.
        lsn: Lsn,
        /// Answered.
        boundary: Lsn,
        /// Answered.
        last_record: Lsn,
    },
}

impl From<BranchPointError> for Status {
    fn from(error: BranchPointError) -> Status {
        use BranchPointError::*;
        let text = error.to_string();
        match error {
            NoTimeline(_) => Status::not_found(text),
            NoQuorum { .. } | NoCatalogue | Node(_) => Status::unavailable(text),
            CommitNotTold { .. } => Status::failed_precondition(text),
            BeforeHistory { .. } | NotKept { .. } | BeyondEnd { .. } | TimeBeforeHistory { .. } | Future => {
                Status::out_of_range(text)
            }
            Nonsense { .. } => Status::internal(text),
        }
    }
}
