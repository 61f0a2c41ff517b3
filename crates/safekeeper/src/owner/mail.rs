//! What others ask of a timeline's owner, and what it answers.
//!
//! Each kind has a queue of its own with a bound of its own, so that one does not keep up the others: proposers' requests,
//! readers' questions, what became of WAL elsewhere, the controllers' orders, repairs and new streams.

use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Refusal, Request, Response};
use lakebed_types::{Lsn, Term};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::Status;

use crate::recovery::Boundary;
use crate::view::Progress;

/// Requests that wait for their owner.
pub const MAILBOX_MESSAGES: usize = 128;
/// Readers' questions that wait for their owner.
pub const MAX_QUESTIONS: usize = 64;
/// Notes that wait for their owner.
pub const MAX_NOTES: usize = 16;
/// Orders that wait for their owner.
pub const MAX_ORDERS: usize = 4;
/// Streams that wait for their owner.
pub const MAX_NEWCOMERS: usize = 8;
/// Repairs that wait for their owner.
pub const MAX_REPAIRS: usize = 1;

/// A request of a proposer.
#[derive(Debug)]
pub struct Mail {
    /// The request.
    pub request: Request,
    /// Where the answer goes: there is always room for it.
    pub reply: mpsc::OwnedPermit<Outgoing>,
    /// Room for its bytes, given back when they are on disk.
    pub room: Option<OwnedSemaphorePermit>,
}

/// What goes out on a proposer's stream.
#[derive(Debug)]
pub enum Outgoing {
    /// The answer to a request.
    Answer(Box<Answer>),
    /// The end of the stream, and why.
    End(Status),
}

/// An answer to a proposer. Its positions and its term are on disk.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the core says.
    pub response: Response,
    /// The acceptor's configuration.
    pub membership: Membership,
    /// Its commit position.
    pub commit: Lsn,
    /// The shard that is furthest behind, and the lowest positions of all.
    pub slowest: Option<(u8, Progress)>,
    /// More than the core says about a refusal.
    pub reason: Option<String>,
}

/// Whether WAL that was read may go out on behalf of a proposer; asked after the bytes were read.
#[derive(Debug)]
pub struct Question {
    /// The proposer's term.
    pub term: Term,
    /// Where the bytes end.
    pub end: Lsn,
    /// What the core says.
    pub answer: oneshot::Sender<Result<(), Refusal>>,
}

/// The members from now on, as the controller says.
#[derive(Debug)]
pub struct Order {
    /// The configuration.
    pub membership: Membership,
    /// Told when it is on disk; the configuration here, when that is another one and not lower.
    pub answer: oneshot::Sender<Result<(), Membership>>,
}

/// WAL that takes the place of what rotted above the commit position. Below it nobody has to be asked.
#[derive(Debug)]
pub struct Patch {
    /// Cuts that came before it was read; after another one it is void.
    pub truncations: u64,
    /// The boundary that it follows.
    pub after: Boundary,
    /// Whole records.
    pub wal: Vec<u8>,
    /// Told when it is on disk, or why it is not, in words.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// What the disk no longer returns as it was written, and what only the owner may write.
#[derive(Debug)]
pub enum Repair {
    /// WAL that may be cut.
    Wal(Patch),
    /// The control file. Told when it is on disk.
    Control(oneshot::Sender<Result<(), String>>),
}

/// What became of WAL elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It is in object storage up to here.
    BackedUp(Lsn),
    /// Every shard has it, up to here, and object storage as well.
    Consumed(Lsn),
}
