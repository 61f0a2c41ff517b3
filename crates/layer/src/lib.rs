//! Versions of pages: how they are kept in memory, in files, and put together for a read.
//!
//! - A [`Value`] is one version of one page: a whole image, or what redo needs of one WAL record (a delta).
//! - A [`MemoryLayer`] takes values as they are ingested.
//! - A layer *file* holds the values of a range of LSNs, contiguous per page; [`file`] encodes and checks it.
//! - A [`Chain`] collects values from layers, newest first, until one that stands for itself.
//!
//! The crate is pure: it sees bytes and places in files, never a file. What a value does to a page is the business of
//! `redo` and `ingest`.
#![forbid(unsafe_code)]

mod chain;
pub mod file;
mod memory;
mod value;

pub use chain::Chain;
pub use memory::MemoryLayer;
pub use value::{Value, ValueKind};

#[cfg(test)]
mod tests;
