//! The safekeeper quorum as a pure core: no IO, no clock, no random numbers.
//!
//! * [`history`]: which term wrote which range of the WAL, and where two histories part.
//! * [`membership`]: who counts, also while the set of acceptors changes (both sets must agree).
//! * [`message`]: what travels between a proposer and an acceptor.
//! * [`acceptor`]: one safekeeper's decisions for one timeline.
//!
//! * [`proposer`]: the compute side: election, commit, fencing and lease.
//!
//! An input goes in, a list of commands comes out; a driver executes the commands in order.
//! Positions: `truncate <= backup <= commit <= flush <= write`, checked after every input.
//! The driver hands over appends that end at a record boundary, so every position here is one.
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
