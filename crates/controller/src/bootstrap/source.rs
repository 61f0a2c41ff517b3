//! Where a tenant's first images come from.

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use lakebed_proto::v1;
use lakebed_types::TenantId;

use super::error::BootstrapError;
use super::files::DataDirectory;
use super::upload::import_shard;
use crate::wire::cluster_to_wire;

/// Shards that are sent to at a time.
const UPLOADS_AT_A_TIME: usize = 4;

/// The timeline that is to get its first images.
#[derive(Clone, Debug)]
pub struct ImportTarget {
    /// Tenant.
    pub tenant: TenantId,
    /// Id of the timeline, 16 bytes.
    pub timeline: Bytes,
    /// Every shard of the tenant, with its owner.
    pub shards: Vec<v1::ShardLocation>,
}

impl ImportTarget {
    /// Checks that all shards imported the same, and returns what they say.
    ///
    /// # Errors
    /// They did not, or there is none.
    pub fn agreed(&self, answers: &[v1::ImportResponse]) -> Result<v1::ImportResponse, BootstrapError> {
        let tenant = self.tenant;
        let first = answers
            .first()
            .ok_or_else(|| BootstrapError::Answer(format!("tenant {tenant} has no shards")))?;
        if answers.iter().any(|other| other != first) {
            return Err(BootstrapError::ShardsDiffer { tenant });
        }
        Ok(*first)
    }
}

/// What sends a cluster's files to the shards.
pub trait ImportSource: Sync {
    /// Sends everything to every shard, each at least what it owns, and returns what all of them say. It may be called
    /// again, for another target, when an earlier import came to nothing.
    fn import(
        &self,
        target: &ImportTarget,
    ) -> impl Future<Output = Result<v1::ImportResponse, BootstrapError>> + Send;
}

impl ImportSource for DataDirectory {
    async fn import(&self, target: &ImportTarget) -> Result<v1::ImportResponse, BootstrapError> {
        // Owned by its upload each: a future that borrows them here would not be `Send`.
        let uploads: Vec<_> = target
            .shards
            .iter()
            .cloned()
            .map(|shard| import_shard(self.clone(), target.tenant, shard, target.timeline.clone()))
            .collect();
        let answers: Vec<v1::ImportResponse> = stream::iter(uploads)
            .buffer_unordered(UPLOADS_AT_A_TIME)
            .try_collect()
            .await?;
        let agreed = target.agreed(&answers)?;
        if agreed.cluster != Some(cluster_to_wire(self.cluster()))
            || self.checkpoint() != agreed.last_record_start
        {
            return Err(BootstrapError::ShardsDiffer {
                tenant: target.tenant,
            });
        }
        Ok(agreed)
    }
}
