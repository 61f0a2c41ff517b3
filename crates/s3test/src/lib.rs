//! Object storage over the S3 protocol for tests: a server, and a proxy in front of it that makes trouble.
//!
//! This crate is for tests alone: what goes wrong is a panic that says what failed.
#![forbid(unsafe_code)]

mod proxy;
mod server;

pub use proxy::{Fault, FaultyProxy, Seen};
pub use server::{BUCKET, CREDENTIALS, S3Server};
