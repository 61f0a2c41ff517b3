//! Messages between a proposer and an acceptor. Plain data; another crate gives them a wire format.

use crate::{history::TermHistory, membership::Membership};
use bytes::Bytes;
use lakebed_types::{Generation, Lsn, PgVersion, Term};

/// From a proposer; each carries the generation of the membership it acts under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// Identity first.
    Greeting {
        /// The proposer's whole configuration.
        membership: Membership,
        /// Postgres system identifier.
        system_id: u64,
        /// Major Postgres version.
        pg_version: PgVersion,
        /// WAL segment size in bytes.
        segment_bytes: u64,
    },
    /// Asks for a promise.
    Vote {
        /// Configuration.
        generation: Generation,
        /// The term to promise.
        term: Term,
    },
    /// The sender won `term`; this is its history, and the LSN where it believes the logs part.
    Elected {
        /// Configuration.
        generation: Generation,
        /// The term that was won.
        term: Term,
        /// The history, ending in `term`.
        history: TermHistory,
        /// The highest common point as the proposer computed it.
        common: Lsn,
    },
    /// WAL that follows what the acceptor has written.
    Append {
        /// Configuration.
        generation: Generation,
        /// The sender's term.
        term: Term,
        /// Position of the first byte.
        begin: Lsn,
        /// The WAL, ending at a record boundary.
        bytes: Bytes,
        /// The sender's commit position.
        commit: Lsn,
        /// WAL below it may go.
        truncate: Lsn,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    /// Another cluster, version or segment size.
    #[error("identity differs: another cluster, Postgres version or segment size")]
    Identity,
    /// The sender's membership generation is not the acceptor's.
    #[error("membership generation differs, the acceptor has {0:?}")]
    Generation(Generation),
    /// A term at least as high (vote) or higher (else) was promised: the sender is fenced.
    #[error("term {0:?} was promised")]
    Term(Term),
    /// Append without an applied Elected of that term.
    #[error("no history of this term was applied")]
    NotElected,
    /// The append does not start where the WAL ends.
    #[error("append must begin at {0}")]
    Gap(Lsn),
    /// The histories part elsewhere than the proposer believes: its picture of this acceptor is old.
    #[error("the histories do not part where the proposer says")]
    History,
    /// Nothing is common, not even the first entry: this is the WAL of another timeline.
    #[error("the histories have nothing in common: this is another timeline's WAL")]
    NoCommonHistory,
    /// A history would cut off committed WAL.
    #[error("history parts below commit {0}")]
    BelowCommit(Lsn),
}

/// From an acceptor; every position is on disk when it leaves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Response {
    /// The acceptor's configuration.
    pub generation: Generation,
    /// The acceptor's promised term.
    pub term: Term,
    /// What happened.
    pub body: Body,
}

/// What an acceptor answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    /// Greeting accepted; what the proposer needs to choose a term and, in a term it has won, to go on.
    Greeted {
        /// The acceptor's history.
        history: TermHistory,
        /// End of its flushed WAL.
        flush: Lsn,
        /// Its commit position.
        commit: Lsn,
        /// Start of its WAL.
        truncate: Lsn,
        /// Start of the timeline.
        timeline_start: Lsn,
    },
    /// Promise given.
    Voted {
        /// The acceptor's history.
        history: TermHistory,
        /// End of its flushed WAL.
        flush: Lsn,
        /// Start of its WAL.
        truncate: Lsn,
        /// Start of the timeline.
        timeline_start: Lsn,
    },
    /// The history is durable and the WAL ends at `flush`.
    Applied {
        /// End of its flushed WAL.
        flush: Lsn,
    },
    /// WAL is flushed up to here.
    Appended {
        /// End of its flushed WAL.
        flush: Lsn,
        /// Its commit position.
        commit: Lsn,
    },
    /// Refused.
    Refused(Refusal),
}
