//! The safekeeper's disk: what an acceptor of the quorum promised, and the WAL it accepted.
//!
//! A timeline is one directory:
//!
//! | name | content |
//! |---|---|
//! | `control` | the acceptor's durable state, in a checked envelope, replaced atomically ([`durable_file`]) |
//! | `000000010000000000000001` … | WAL segments in Postgres's own format and naming ([`wal_store`]) |
//!
//! [`recovery`] finds where the WAL ends after a crash. Both report a failed write or fsync once and refuse to go on: after a failed fsync the kernel may have dropped
//! the data and marked the pages clean, so a second fsync that succeeds proves nothing. The directory has to be
//! opened again, which reads what is really there.
#![forbid(unsafe_code)]

pub mod boundary;
pub mod config;
pub mod control_file;
pub mod data_dir;
pub mod decoded;
pub mod disk;
pub mod durable_file;
pub mod intake;
pub mod metrics;
pub mod owner;
pub mod recovery;
pub mod timeline;
pub mod view;
pub mod wal_files;
pub mod wal_store;
