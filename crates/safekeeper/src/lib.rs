//! A safekeeper: a Paxos acceptor for WAL, and the source of WAL for pageservers.
//!
//! [`server`] is the whole daemon as a library. Its data directory ([`data_dir`]) holds a directory per timeline:
//!
//! | name | content |
//! |---|---|
//! | `control` | the acceptor's durable state ([`control_file`]), in a checked envelope, replaced atomically ([`durable_file`]) |
//! | `000000010000000000000001` … | WAL segments in Postgres's own format and naming ([`wal_store`]) |
//!
//! Each timeline ([`timeline`]) has one task ([`owner`]) that changes it: it feeds the acceptor core of
//! `lakebed-quorum` and executes its commands on [`disk`]. It has a thread of its own while a proposer is connected. WAL is cut at record boundaries on its way in
//! ([`intake`]). Everybody else sees a [`view`] of it and reads the segment files beside the owner ([`wal_files`],
//! [`boundary`]). Messages are served, behind [`door`], by [`propose`], [`read_wal`] and [`feed`] ([`selection`]); [`wire`] checks what arrives.
//!
//! [`backup`] brings committed WAL to object storage and lets go of what is safe there.
//!
//! [`scrub`] finds bytes on disk that are no longer what was written, and heals them.
//!
//! [`recovery`] finds where the WAL ends after a crash, and by a [`flush_mark`] whether it ends too soon: a timeline whose
//! WAL is damaged says nothing until it is whole again ([`scrub::mending`]). A failed write or fsync is reported once and stops the
//! timeline (a full disk does not: [`owner`]): after a failed fsync the kernel may have dropped the data and marked the pages clean, so a second fsync
//! that succeeds proves nothing. The directory has to be opened again, which reads what is really there.
#![forbid(unsafe_code)]

pub mod backup;
pub mod boundary;
pub mod checked_wal;
pub mod config;
pub mod control_file;
pub mod data_dir;
pub mod decoded;
pub mod disk;
pub mod durable_file;
pub mod feed;
pub mod flush_mark;
pub mod intake;
pub mod metrics;
pub mod owner;
mod pack;
pub mod propose;
pub mod read_wal;
pub mod recovery;
pub mod scrub;
mod seat;
pub mod selection;
pub mod server;
mod service;
pub mod timeline;
mod unpack;
pub mod view;
pub mod wal_files;
pub mod wal_store;
pub mod wire;

pub use config::SafekeeperConfig;
pub use server::{Safekeeper, run};
