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
    /// Bytes of new WAL in memory, per timeline, that make a new layer.
    #[serde(default = "default_flush_bytes")]
    pub flush_bytes: usize,
    /// Deltas of one page since its last image that make a new image.
    #[serde(default = "default_image_deltas")]
    pub image_deltas: usize,
    /// Bytes of built pages that are kept in memory, of all timelines together; 0 keeps none.
    #[serde(default = "default_page_cache_bytes")]
    pub page_cache_bytes: usize,
}

fn default_page_cache_bytes() -> usize {
    256 << 20
}

fn default_flush_bytes() -> usize {
    64 << 20
}

fn default_image_deltas() -> usize {
    24
}
