//! What a proposer knows of one acceptor.

use crate::history::TermHistory;
use lakebed_types::{Lsn, Term};

/// Where an acceptor stands, for status pages and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No stream.
    Disconnected,
    /// Greeted, or about to be.
    Greeting,
    /// Asked for its vote, or waiting for the election's end.
    Voting,
    /// Told the history, not yet applied.
    Elected,
    /// Receives WAL from before the term.
    CatchingUp,
    /// Receives this term's WAL.
    Streaming,
    /// Refused what it was asked; waits for a new stream or membership.
    Refused,
}

/// The state of the stream to an acceptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) enum Link {
    #[default]
    Down,
    /// Greeting is on its way.
    Greeting,
    /// Greeted; no term is chosen yet.
    Greeted,
    /// Vote is on its way.
    Voting,
    /// Voted, or cannot vote in this term; waits for the election.
    Waiting,
    /// Elected is on its way.
    Announced,
    /// The history is applied; receives WAL.
    Following(Following),
    /// Our picture of it is old: greeted again after a pause.
    Stale,
    /// Out until it reconnects.
    Refused,
}

/// The appends to an acceptor that applied the history.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Following {
    /// Where the next append begins.
    pub(super) next: Lsn,
    /// Where the read under way begins.
    pub(super) reading: Option<Lsn>,
    /// The last read failed: wait for a tick.
    pub(super) failed: bool,
    /// Failed reads, to take turns among sources.
    pub(super) failures: usize,
    /// The commit position that it was told.
    pub(super) commit_sent: Lsn,
}

/// One acceptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub(super) link: Link,
    /// Its promised term and its log, as it last told.
    pub(super) term: Term,
    pub(super) log: Option<(TermHistory, Lsn)>,
    /// Its vote in this term.
    pub(super) vote: Option<(TermHistory, Lsn)>,
    /// Flush reported after this term's Elected was applied under this generation; never an older one.
    pub(super) flush: Option<Lsn>,
    pub(super) heard_ms: Option<u64>,
    pub(super) sent_ms: u64,
}

impl Peer {
    pub(super) fn phase(&self, start: Lsn) -> Phase {
        match &self.link {
            Link::Down => Phase::Disconnected,
            Link::Greeting | Link::Greeted | Link::Stale => Phase::Greeting,
            Link::Voting | Link::Waiting => Phase::Voting,
            Link::Announced => Phase::Elected,
            Link::Following(f) if f.next < start => Phase::CatchingUp,
            Link::Following(_) => Phase::Streaming,
            Link::Refused => Phase::Refused,
        }
    }
}
