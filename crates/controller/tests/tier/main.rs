//! The controller with real safekeepers and pageservers, over TCP, on disk.

mod branches;
mod nodes;
mod operator;
mod requests;
mod tenants;
mod tier;
mod wal;
