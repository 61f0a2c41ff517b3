//! A model of election, commit and membership change, for the model checker stateright: every order of events, within
//! bounds, where the simulation in `sim` takes one at random.
//!
//! What runs is the real core of `lakebed_quorum`, not a description of it: proposers and acceptors are part of the
//! checked state. What the model replaces:
//!
//! * A disk never fails and never lags: an acceptor's commands take effect at once, and it is opened again from disk
//!   after each message, so that nothing is kept only in memory. What lies between a write and its fsync is `sim`'s.
//! * A record is one byte that names its term; positions are counts of records.
//! * A stream delivers in order, any time after sending, or never. Each request that was ever sent may arrive again,
//!   any number of times, also when its sender is long gone. Greetings are the exception: they are answered when a
//!   proposer begins, and never twice. Appends without WAL are not answered.
//! * Time passes once for a proposer: it then asks again where it waits.
//!
//! `normal` says which states count as one, and why nothing is lost by it; `idle` which proposers, streams and nodes have no
//! future, the other half of the same; `part` how little of a state a step copies and
//! hashes anew.
//!
//! The [`Scenario`] says which safekeepers, how many attempts at a term, how many records, and which changes of
//! membership. Safekeepers may also recover from each other, without a compute.
#![forbid(unsafe_code)]

mod acceptor;
mod compute;
mod control;
mod idle;
mod model;
mod normal;
mod part;
mod scenario;
mod state;

pub use model::{ReadOf, Step};
pub use scenario::{Change, Scenario};
pub use state::State;
