//! `verify-wal`: does Lakebed's redo make of a stock cluster's WAL what Postgres makes of it?
//!
//! [`verify`](verify()) takes a base (a base backup, or the files of a stopped server) and a directory of WAL segments,
//! replays every record with our own redo, and compares in two ways:
//!
//! - with the images that a server puts into its records under `wal_consistency_checking`: the page after each change,
//!   as the server had it ([`compare::with_image`]);
//! - with the files of a copy that stock Postgres recovered from the same WAL ([`against`]).
//!
//! The stages: [`directory`] looks at a data directory; [`segments`] reads WAL; [`cluster`] is the replayed state, on
//! [`store`] for pages in bounded memory; [`redo`] is what is verified; [`compare`] decides what counts as equal, with
//! [`ahead`] for what a later record must show; [`fields`] names what differs; [`report`] is the outcome.
//!
//! A difference is never an error and an error never a difference: an error means that nothing more can be said.
//! Deliberately absent: following a switch of timelines inside the WAL, and everything that WAL does not carry.
#![forbid(unsafe_code)]

pub mod against;
pub mod ahead;
pub mod cluster;
pub mod compare;
pub mod directory;
mod error;
pub mod fields;
pub mod label;
pub mod redo;
pub mod report;
pub mod segments;
pub mod store;
mod verify;

pub use error::VerifyError;
pub use redo::{Native, Redo};
pub use report::Report;
pub use verify::{Progress, Request, verify};
