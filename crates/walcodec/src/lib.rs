//! WAL in few bytes.
#![forbid(unsafe_code)]

pub mod choice;
mod coder;
mod image;
mod model;
mod pages;
mod records;
mod shape;
pub mod stream;
mod trial;
