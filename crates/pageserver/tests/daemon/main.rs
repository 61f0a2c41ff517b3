//! The pageserver among others: whom it gets WAL from, and who reads pages.

mod feed;
mod node;
mod page_stream;
