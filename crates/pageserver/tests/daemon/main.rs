//! The pageserver among others: whom it gets WAL from, who reads pages, and what is given up.

mod deletion;
mod feed;
mod node;
mod page_stream;
