//! The client's side of Postgres's replication protocol, as pure code: bytes in, messages out, and back.
//!
//! ```text
//!  bytes ──► Frames ──► Backend messages ──► auth        answers to authentication requests
//!                                       ├──► replication WAL, keepalives, status updates
//!                                       └──► backup      base backup ──► tar ──► files
//! ```
//!
//! The formats are those of the manual's chapter "Frontend/Backend Protocol" (message formats, streaming replication).
//! Everything comes from a server that may be broken or hostile: lengths are bounded before anything is kept, and what
//! does not parse is an error that names it.
#![forbid(unsafe_code)]

pub mod auth;
pub mod backup;
pub mod channel_binding;
pub mod frontend;
pub mod message;
pub mod replication;
pub mod tar;
pub mod target;

pub use message::{Backend, Frames, ServerError, WireError};
pub use target::{Binding, SslMode, Target};
