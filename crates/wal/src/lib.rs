//! Postgres WAL: format, decoding and encoding. No IO, no clock.
//!
//! Bytes become records in two steps: [`stream`] checks [`page`] headers, puts records together and verifies CRC and
//! links; [`parse`] takes one record apart into a [`record::DecodedRecord`]. The first step suffices to know where
//! records end, which is all that a safekeeper's acceptor needs.
//!
//! [`segment`] names the files. [`control`] reads and writes the control file, [`boot`] makes the checkpoint that a
//! stateless compute starts on, [`full_page_writes`] follows the one setting that changes what WAL holds, and
//! [`commit_time`] tells when transactions were committed.
#![forbid(unsafe_code)]

pub mod boot;
pub mod commit_time;
pub mod control;
pub mod full_page_writes;
pub mod page;
pub mod parse;
pub mod record;
pub mod segment;
pub mod stream;
