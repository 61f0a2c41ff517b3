//! The pageserver: pages of the shards it owns, at any LSN inside retention.
//!
//! * [`data_directory`]: which page a byte of a Postgres data directory belongs to; what an import reads.
//! * [`import`]: the first images of a timeline.
//! * [`ingest`]: WAL records become versions of pages and entries of the [`catalogue`].
//! * [`timeline`]: where versions live, from memory to object storage, and how a page is read.
//! * [`basebackup`]: the files that a compute boots from.
//! * [`layer_store`], [`manifest`]: the durable parts. [`compaction`]: the task that merges layers, in the [`background`].
//!   [`deletion`]: what is left of a timeline goes.
//! * [`layer_handle`]: a layer, wherever it is; [`layer_disk`]: what of them is on local disk.
//! * [`reconstruct`]: replaying a page's values.
//! * [`page_cache`]: built pages, kept in memory.
//! * [`image_queue`]: pages whose chains reads found long get images.
//! * [`fill`]: what a shard begins with that is split off another.
//! * [`node`]: the shards that this process owns; [`feed`]: WAL comes in; [`service`]: gRPC; [`daemon`]: the process.
#![forbid(unsafe_code)]

mod background;
pub mod basebackup;
pub mod catalogue;
mod compaction;
pub mod config;
pub mod daemon;
pub mod data_directory;
pub mod deletion;
mod feed;
pub mod fill;
pub mod hot;
pub mod image_queue;
pub mod import;
pub mod ingest;
pub mod layer_disk;
pub mod layer_handle;
pub mod layer_store;
pub mod local_file;
pub mod manifest;
pub mod metrics;
pub mod node;
pub mod page_cache;
mod readers;
mod receive;
pub mod reconstruct;
pub mod service;
pub mod timeline;
