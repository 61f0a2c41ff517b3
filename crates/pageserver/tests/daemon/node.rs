//! A pageserver with one timeline, as `initdb` makes it.

use std::path::Path;
use std::sync::Arc;

use lakebed_pageserver::config::PageserverConfig;
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::manifest::Cluster;
use lakebed_pageserver::node::{Attachment, Node, Taken, TimelineSpec};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_types::{Generation, ShardCount, ShardIdentity, TenantId, TimelineId};

pub const TENANT: TenantId = TenantId([1; 16]);
pub const TIMELINE: TimelineId = TimelineId([2; 16]);

pub fn shard() -> ShardIdentity {
    ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap()
}

pub fn config(directory: &Path) -> PageserverConfig {
    PageserverConfig {
        node_id: 1,
        data_dir: directory.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        store: "memory:".to_owned(),
        flush_bytes: 1 << 20,
        image_deltas: 24,
        image_bytes: 16 << 10,
        index_cache_bytes: 1 << 20,
        rewind_s: 3600,
        lease_s: 900,
        page_cache_bytes: 1 << 20,
        disk_budget_bytes: None,
        disk_reserve_bytes: 0,
    }
}

/// Makes the timeline of a data directory.
pub async fn import(node: &Arc<Node>, files: &Path) -> Taken {
    let circumstances = Circumstances::default();
    let imported = node.import((TENANT, shard()), Generation(1), TIMELINE, files, circumstances);
    imported.await.unwrap()
}

/// Attaches the timeline, or says where its safekeepers are now.
pub async fn attach_to(node: &Arc<Node>, cluster: Cluster, safekeepers: Vec<String>) {
    let spec = TimelineSpec {
        timeline: TIMELINE,
        parent: None,
        cluster,
        safekeepers,
        kept: Kept::default(),
    };
    let attachment = Attachment {
        tenant: TENANT,
        shard: shard(),
        generation: Generation(1),
        timelines: vec![spec],
        retired: false,
    };
    node.attach(attachment).await.unwrap();
}
