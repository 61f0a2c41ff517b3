//! The sidecar of a compute: it makes a stock Postgres stateless.
//!
//! ```text
//!  postgres + shim ──ring──► wal_source ──► local_wal ──► quorum ──► safekeepers
//!        │   ▲                    └──► acks ◄── commit ─────┘
//!        │   └─── futex: flush released ──┘
//!        └──unix socket──► files ──► pages, catalogue ──► pageserver shards
//! ```
//!
//! [`sidecar`] runs the stages: win a term, fetch the basebackup at its start, start Postgres, serve it until it ends
//! or has to. Nothing below the compute's directory is needed again.

pub mod acks;
pub mod branch;
pub mod caretaker;
pub mod catalogue;
pub mod config;
pub mod config_files;
pub mod control_plane;
pub mod data_dir;
pub mod files;
pub mod full_page_writes;
pub mod group_commit;
pub mod history_lease;
pub mod local_wal;
pub mod metrics;
pub mod old_wal;
pub mod own_config;
pub mod pages;
pub mod postgres;
pub mod programs;
pub mod quorum;
pub mod shared_memory;
pub mod sidecar;
pub mod spans;
pub mod wal_source;

pub use branch::Branch;
pub use config::ComputeConfig;
pub use sidecar::{Ended, Sidecar};
