//! What making a branch costs in a pageserver by itself: one of this process, on object storage in memory.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use lakebed_blobstore::BlobStore;
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::manifest::{Cluster, Parent};
use lakebed_pageserver::node::{Attachment, Node, TimelineSpec};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_types::{Generation, Lsn, ShardCount, ShardIdentity, TenantId, TimelineId};

use super::replayed::node;
use super::stats::Samples;
use super::synthetic::{Stored, Wanted};
use super::tier::PrivateTier;
use crate::initdb::Initial;

const TENANT: TenantId = TenantId([1; 16]);
const PARENT: TimelineId = TimelineId([2; 16]);
const BRANCH: TimelineId = TimelineId([3; 16]);

/// A fresh cluster, stored, and no pageserver that has it.
pub struct Alone {
    home: std::path::PathBuf,
    store: BlobStore,
    stored: Stored,
    shard: ShardIdentity,
    generation: Generation,
    cluster: Cluster,
    start: Lsn,
}

impl Alone {
    /// Imports a fresh `initdb`.
    ///
    /// # Errors
    /// It fails.
    pub async fn import(tier: &PrivateTier) -> anyhow::Result<Alone> {
        let one = ShardCount::new(1).and_then(|count| ShardIdentity::new(0, count));
        let shard = one.context("one shard")?;
        let home = tier.home().join("alone");
        let store = BlobStore::open("memory:")?;
        let generation = Generation(1);
        let initial = Initial::make(&tier.pg_bin, tier.home().join("alone-initdb"), tier.owner)?;
        let node = node(&home, &store, &[])?;
        let (key, data) = ((TENANT, shard), initial.data());
        let imported = node.import(key, generation, PARENT, &data, Circumstances::default());
        let taken = imported.await?;
        node.stop().await;
        Ok(Alone {
            home,
            stored: Stored::of(&store, PARENT).await?,
            store,
            shard,
            generation,
            cluster: taken.cluster,
            start: taken.start,
        })
    }

    /// Makes the parent as large as wanted, then branches of it, as the gRPC service does; deletes each.
    ///
    /// # Errors
    /// The pageserver refuses.
    pub async fn measure(&mut self, wanted: Wanted, runs: u32) -> anyhow::Result<Samples> {
        self.stored.make(wanted).await?;
        self.generation.0 += 1;
        let node = node(&self.home, &self.store, &[])?;
        self.attach(&node, PARENT, None).await?;
        let parent = Parent {
            timeline: PARENT,
            lsn: self.start,
        };
        let mut samples = Samples::default();
        // As in the tier, the first one is not counted.
        for run in 0..=runs {
            let began = Instant::now();
            self.attach(&node, BRANCH, Some(parent)).await?;
            if run > 0 {
                samples.push(began.elapsed().as_secs_f64() * 1e3);
            }
            let key = (TENANT, self.shard);
            node.delete_timeline(key, self.generation, BRANCH).await?;
        }
        node.stop().await;
        Ok(samples)
    }

    async fn attach(
        &self,
        node: &Arc<Node>,
        timeline: TimelineId,
        parent: Option<Parent>,
    ) -> anyhow::Result<()> {
        let spec = TimelineSpec {
            timeline,
            parent,
            cluster: self.cluster,
            safekeepers: Vec::new(),
            kept: Kept::default(),
        };
        let attachment = Attachment {
            tenant: TENANT,
            shard: self.shard,
            generation: self.generation,
            timelines: vec![spec],
            retired: false,
        };
        Ok(node.attach(attachment).await?)
    }
}
