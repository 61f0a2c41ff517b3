//! A pageserver's configuration, a TOML file.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that a pageserver is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageserverConfig {
    /// Number of this node, unique among pageservers.
    pub node_id: u64,
    /// Directory for layers: a cache of object storage, and nothing that cannot be fetched again.
    pub data_dir: PathBuf,
    /// Address of the gRPC service.
    pub listen: SocketAddr,
    /// Address of the admin HTTP service.
    pub admin_listen: SocketAddr,
    /// Object storage: `file:///directory`.
    pub store: String,
    /// Bytes of new WAL in memory, per timeline, that make a new layer; layers that are merged have about as many.
    #[serde(default = "default_flush_bytes")]
    pub flush_bytes: usize,
    /// Deltas of one page since its last image that make a new image.
    #[serde(default = "default_image_deltas")]
    pub image_deltas: u32,
    /// Bytes of those deltas that make one.
    #[serde(default = "default_image_bytes")]
    pub image_bytes: u64,
    /// Bytes of index blocks of layers that are kept in memory, per timeline.
    #[serde(default = "default_index_cache_bytes")]
    pub index_cache_bytes: usize,
    /// Seconds that a manifest, and the layers that only it names, are kept after there is a newer one. When WAL is lost
    /// that layers already had, they are taken back to one of these (`lakebed wal restore --rewind-layers`), so this
    /// must be longer than WAL takes to get to object storage.
    #[serde(default = "default_rewind_s")]
    pub rewind_s: u64,
    /// Seconds for which a compute may go on reading at the LSN at which it booted, without renewing its lease of that; and
    /// for which nothing is given up after a start. The same on every pageserver of a tenant.
    #[serde(default = "default_lease_s")]
    pub lease_s: u64,
    /// Bytes of layers that are kept on local disk; layers that were read longest ago go when there are more. Without it
    /// `disk_reserve_bytes` alone is the bound. It counts layers that object storage has: what is just written comes on top.
    #[serde(default)]
    pub disk_budget_bytes: Option<u64>,
    /// Bytes that layers leave free on the file system of `data_dir`.
    #[serde(default = "default_disk_reserve_bytes")]
    pub disk_reserve_bytes: u64,
    /// Bytes of built pages that are kept in memory, of all timelines together; 0 keeps none.
    #[serde(default = "default_page_cache_bytes")]
    pub page_cache_bytes: usize,
}

fn default_disk_reserve_bytes() -> u64 {
    1 << 30
}

fn default_page_cache_bytes() -> usize {
    256 << 20
}

fn default_flush_bytes() -> usize {
    64 << 20
}

fn default_image_deltas() -> u32 {
    24
}

fn default_image_bytes() -> u64 {
    16 << 10
}

fn default_index_cache_bytes() -> usize {
    64 << 20
}

fn default_rewind_s() -> u64 {
    3600
}

fn default_lease_s() -> u64 {
    900
}
