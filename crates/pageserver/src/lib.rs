//! The pageserver: pages of the shards it owns, at any LSN inside retention.
//!
//! * [`data_directory`]: which page a byte of a Postgres data directory belongs to; what an import reads.
#![forbid(unsafe_code)]

pub mod data_directory;
