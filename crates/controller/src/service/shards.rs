//! More shards for a tenant, and other owners for the ones that it has.

use lakebed_placement::{Command, Outcome, choose};
use lakebed_proto::v1;
use lakebed_types::{NodeId, ShardCount, TenantId};
use tonic::Status;

use super::Service;
use crate::wire;

impl Service {
    async fn tenant(&self, name_or_id: &str) -> Result<TenantId, Status> {
        self.look(|state| Ok(wire::tenant(state, name_or_id)?.0)).await
    }

    async fn info(&self, name_or_id: &str) -> Result<v1::TenantInfo, Status> {
        let info = self.look(|state| {
            let (id, tenant) = wire::tenant(state, name_or_id)?;
            Ok(wire::tenant_info(state, id, tenant))
        });
        info.await
    }

    pub(super) async fn split_tenant(
        &self,
        request: v1::SplitTenantRequest,
    ) -> Result<v1::TenantInfo, Status> {
        let tenant = self.tenant(&request.tenant).await?;
        let wanted = u8::try_from(request.shards).ok().and_then(ShardCount::new);
        let wanted = wanted.ok_or_else(|| {
            Status::invalid_argument(format!("{} shards: a tenant has 1 to 128", request.shards))
        })?;
        let chosen =
            self.look(|state| choose::shards(state, wanted, Some(tenant)).map_err(wire::cannot_place));
        let shards = chosen.await?;
        if self.propose(Command::SplitShards { tenant, shards }).await? == Outcome::Applied {
            tracing::info!(%tenant, shards = wanted.get(), "tenant is being split into more shards");
        }
        self.info(&request.tenant).await
    }

    pub(super) async fn abort_split(&self, request: v1::AbortSplitRequest) -> Result<v1::TenantInfo, Status> {
        let tenant = self.tenant(&request.tenant).await?;
        if self.propose(Command::AbortSplit { tenant }).await? == Outcome::Applied {
            tracing::info!(%tenant, "the split of a tenant is called off");
        }
        self.info(&request.tenant).await
    }

    pub(super) async fn move_shard(&self, request: v1::MoveShardRequest) -> Result<v1::TenantInfo, Status> {
        let tenant = self.tenant(&request.tenant).await?;
        let shard = u8::try_from(request.shard);
        let shard =
            shard.map_err(|_| Status::invalid_argument(format!("there is no shard {}", request.shard)))?;
        let to = NodeId(request.node_id);
        if self.propose(Command::MoveShard { tenant, shard, to }).await? == Outcome::Applied {
            tracing::info!(%tenant, shard, %to, "a shard has another owner");
        }
        self.info(&request.tenant).await
    }
}
