//! The safekeeper quorum as a pure core: no IO, no clock, no random numbers.
//!
//! * [`history`]: which term wrote which range of the WAL, and where two histories part.
//! * [`membership`]: who counts, also while the set of acceptors changes (both sets must agree).
//! * [`message`]: what travels between a proposer and an acceptor.
//! * [`acceptor`]: one safekeeper's decisions for one timeline.
//! * [`proposer`]: the compute side: election, catch-up, commit, fencing and lease.
//!
//! An input goes in, a list of commands comes out; a driver executes them. The crate `sim` proves the two together.
//! Positions: `truncate <= backup <= commit <= flush <= write`, checked after every input.
//!
//! # What a driver owes
//!
//! **Both.** One task owns a core: no two inputs at a time. The commands of one input are done before those of the
//! next, in the order given. A stream delivers in order and without gaps, or breaks. Every position that enters is a
//! record boundary; who sends bytes cuts them there.
//!
//! **Acceptor.**
//! 1. `WriteWal`, `FlushWal` and `TruncateWal` of a timeline take effect in order and their completions are reported
//!    in order; so do `PersistControl`s among each other. The two kinds may run side by side, with one exception:
//!    a `PersistControl` waits for every `TruncateWal` before it. One `fdatasync` may serve several `FlushWal`s.
//! 2. `PersistControl` is done when the file was replaced, renamed and its directory fsynced. `WriteWal` begins
//!    where the written WAL ends. `FlushDone` names the end of what the fsync covered, not what was written since.
//! 3. `TruncateWal` waits for a flush under way, cuts, and fsyncs the cut before anything behind it starts.
//!    When it is *queued*, every reply whose condition [waits for WAL](acceptor::When::waits_for_wal) is dropped:
//!    the flush that it would see is one of other bytes. Its stream may live on: the proposer asks again.
//! 4. A `Reply` is kept until [`is_met`](acceptor::Acceptor::is_met), asked after every completion, and then sent on
//!    the stream that the request came by. When that stream is gone the reply is dropped, never sent on a newer one.
//! 5. A failed or short write, a failed fsync, a full disk: `IoFailed`, never a second try. After `StopTimeline` all
//!    waiting replies are dropped; the timeline is opened again from disk, after its WAL was read to find its end and
//!    that end was fsynced, as a new [`Acceptor`](acceptor::Acceptor). An end below what is known to have been durable
//!    is damage, not an end: there is no acceptor before [`mend`](acceptor::mend) says that all is there again.
//! 6. WAL below `truncate` of a control write is removed after that write is on disk. The queue holds writes of
//!    commit rarely; what readers of committed WAL may see is `state().commit` in memory.
//! 7. Bytes read for another proposer's `ReadWal` are sent only if [`may_serve`](acceptor::Acceptor::may_serve) says
//!    so *after* they were read.
//! 8. A peer's [`Offer`](acceptor::Offer) is answered with `Recover`: WAL that was asked for of it, read and its
//!    checksums verified, ending at a record boundary at or below its commit. It may be late, doubled or lost.
//!
//! **Proposer.**
//! 1. Streams to all members are opened and reopened by the driver; `Connected`, then only what that stream
//!    delivers, then `Disconnected`. It ticks several times in a heartbeat, with a monotonic clock.
//! 2. `ReadWal` is answered with `WalRead` of the same `begin`, ending at a record boundary at or below `end`; if the
//!    first record is longer than that, with that one record. When the source cannot: `WalReadFailed`. A donor's
//!    answer counts only if it passed rule 7 above, committed WAL included. Nothing but the core composes an `Append`.
//! 3. Between `ElectionWon` and the first `CommitAdvanced` Postgres does not run. What Postgres writes is reported as
//!    `LocalWal` at record boundaries, from `start` on. `CommitAdvanced` releases waiting flushes of Postgres.
//! 4. `Fenced`, `LeaseExpired` and `ElectionLost` end this proposer. For the first two Postgres is stopped *before*
//!    anything else happens. A next attempt waits a random time and starts above the term that was named.
//! 5. A membership change goes one generation at a time: old, joint, new. The next is proposed only after `Settled`
//!    of the one before. Giving up a joint configuration is a further generation with the old set.
//! 6. So that no commit waits for who joins to catch up, the joint generation is decided when those who join, as
//!    learners, [are close](proposer::Proposer::caught_up). Safety needs nothing of the kind.
#![forbid(unsafe_code)]

pub mod acceptor;
#[cfg(test)]
mod acceptor_tests;
pub mod history;
pub mod membership;
pub mod message;
#[doc(hidden)]
pub mod mutation;
pub mod proposer;
#[cfg(test)]
mod proposer_tests;
#[cfg(test)]
mod recover_tests;
