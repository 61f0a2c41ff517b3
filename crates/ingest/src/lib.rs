//! What one WAL record of Postgres 15 to 18 changes outside of the bytes of relation pages. No IO, no clock.
//!
//! Replaying a record has two halves. The sibling crate `redo` changes relation pages. This crate does the rest:
//!
//! * [`interpret`] reads one record into [`Effects`]: pages touched, visibility-map bits cleared, changes of SLRU
//!   pages ([`SlruDelta`]), and changes of the catalogue ([`CatalogueChange`]: sizes, drops, databases, relation
//!   maps, two-phase files, …). It needs the record alone, so any number of records can be read in any order.
//! * [`ControlState`] folds records into the values that the next checkpoint of this history would hold: counters
//!   and horizons. It is the one thing here that depends on what came before.
//! * [`route`] says which shards a record must reach.
//!
//! The rules are those of Postgres's own redo functions; each module names the C file that it follows. Bytes are
//! hostile until checked: a parser returns an error, never panics, and a record that is not understood to its last
//! byte is refused, because replaying half of it would be silent damage. Whoever receives an [`IngestError`] stops the
//! timeline in front of that record.
//!
//! Absent on purpose: page bytes (`redo`), growth of relations (whoever keeps sizes derives it from
//! [`Effects::touched`]), the free space map (a hint), and everything that hot standby does (locks, snapshots,
//! invalidations): the tier runs no queries.
#![forbid(unsafe_code)]

mod checkpoints;
mod control_state;
mod dbase;
mod delta;
mod effects;
mod error;
mod heap_vm;
#[cfg(test)]
mod hostile_tests;
mod interpret;
mod multixact;
pub mod names;
mod origin;
mod reader;
mod relmap;
pub mod rmgr;
mod route;
pub mod slru;
mod slru_records;
mod smgr;
mod tablespace;
#[cfg(test)]
mod testing;
mod twophase;
mod xact;

pub use control_state::{ControlState, ControlStateError};
pub use delta::{CLOG_ABORTED, CLOG_COMMITTED, DeltaError, MAX_MEMBER_STATUS, SlruDelta};
pub use effects::{CatalogueChange, Effects, Parameters, VmClear, VmTruncate, reaches_every_shard};
pub use error::IngestError;
pub use interpret::{interpret, interpret_into};
pub use relmap::relation_map_bytes;
pub use route::{Route, ShardSet, route};
pub use slru::SlruCut;
pub use twophase::two_phase_path;
