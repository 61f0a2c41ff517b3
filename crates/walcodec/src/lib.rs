//! WAL in few bytes.
#![forbid(unsafe_code)]

pub mod choice;
mod coder;
mod model;
mod pages;
mod records;
mod shape;
pub mod stream;
