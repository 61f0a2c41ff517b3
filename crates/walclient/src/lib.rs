//! Protects a Postgres that somebody else runs: nothing is installed there, and nothing about it changes.
//!
//! ```text
//!  stock Postgres ──BASE_BACKUP──► backup ──files──► pageserver shards      once
//!        │  ▲
//!        │  └── committed position ──────────────┐
//!        └──START_REPLICATION──► follow ──whole records──► quorum ──► safekeepers
//! ```
//!
//! To the server it is a standby with a physical replication slot; to the tier it is the branch's one proposer, with a
//! term won as a compute wins one. What it reports as flushed is what a quorum has committed, so a server that names it
//! in `synchronous_standby_names` acknowledges commits only when they are on the quorum. What that cannot promise, and
//! how a base backup becomes a timeline: `docs/wal-client.md`.
#![forbid(unsafe_code)]

mod backup;
mod checkpoint;
mod client;
mod connection;
mod files;
mod follow;
mod progress;
mod server;
mod session;
mod tls;

pub use client::{ClientConfig, Ended, WalClient};
pub use progress::{Inspect, Phase};
