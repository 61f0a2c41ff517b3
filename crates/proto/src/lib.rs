//! The wire: generated gRPC code, and checked conversions between it and [`lakebed_types`].
//!
//! The schema is in `proto/`. A message that arrived is not trusted: it becomes a domain value through
//! [`convert`], which refuses what the schema cannot forbid (an identifier that is not 16 bytes, a fork that does
//! not exist). Domain types never appear in the schema, and generated types never leave the edge of a daemon.
#![forbid(unsafe_code)]

mod connect;
pub mod convert;
pub mod differences;
pub mod frame;
pub mod outbound;
pub mod quorum;
pub mod stream;

pub use connect::{connect, connect_lazy};

/// Generated from `proto/*.proto`; documented there.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("lakebed.v1");
}
