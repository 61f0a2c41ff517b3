//! Creating a tenant, and the end of its import.

use lakebed_placement::{Command, Rejection, Retention, State, Tenant, TenantState, TimelineState, choose};
use lakebed_proto::v1;
use lakebed_types::{Lsn, ShardCount, TenantId, TimelineId};
use tonic::Status;

use super::Service;
use crate::{random, wire};

fn random_id() -> Result<[u8; 16], Status> {
    random::id().map_err(|error| Status::internal(format!("random numbers of the operating system: {error}")))
}

impl Service {
    pub(super) async fn create_tenant(
        &self,
        request: v1::CreateTenantRequest,
    ) -> Result<v1::CreateTenantResponse, Status> {
        let (name, branch) = (wire::name(&request.name)?, wire::branch_name(&request.branch)?);
        let count = match request.shards {
            0 => ShardCount::new(self.0.config.default_shards),
            shards => u8::try_from(shards).ok().and_then(ShardCount::new),
        };
        let count = count.ok_or_else(|| {
            Status::invalid_argument(format!("{} shards: a tenant has 1 to 128", request.shards))
        })?;
        let safekeepers = match request.safekeepers {
            0 => usize::from(self.0.config.default_safekeepers),
            safekeepers => usize::try_from(safekeepers).unwrap_or(usize::MAX),
        };
        let retention = match &request.retention {
            Some(told) => wire::retention(told)?,
            None => Retention::USUAL,
        };
        self.in_charge().await?;
        let chosen = self.look(|state| {
            if state.find_tenant(name.as_str()).is_some() {
                return Ok(None);
            }
            let shards = choose::shards(state, count, None).map_err(wire::cannot_place)?;
            let safekeepers = choose::safekeepers(state, safekeepers).map_err(wire::cannot_place)?;
            Ok(Some((shards, safekeepers)))
        });
        let mut existed = true;
        if let Some((shards, safekeepers)) = chosen.await? {
            let command = Command::CreateTenant {
                tenant: TenantId(random_id()?),
                name: name.clone(),
                branch: branch.clone(),
                timeline: TimelineId(random_id()?),
                shards,
                safekeepers,
                retention,
            };
            let proposed = self.0.raft.propose(command, crate::server::PROPOSE_TIMEOUT).await;
            match proposed {
                Ok(_) => existed = false,
                // Two asked at the same time; the answer is the same as if one had come later.
                Err(crate::raft_node::ProposeError::Rejected(Rejection::TenantExists(_))) => {}
                Err(error) => return Err(wire::not_proposed(error)),
            }
        }
        let what = format!("tenant '{name}'");
        let wait = self.0.wait_until(&what, |state, observed| {
            let (id, tenant) = wire::tenant(state, name.as_str())?;
            if existed {
                check_equal(tenant, &branch, &request)?;
            }
            let attached = |(shard, placed)| observed.is_attached(id, shard, &placed);
            let ready = tenant.state == TenantState::Deleting || tenant.shards_in_force().all(attached);
            Ok(ready.then(|| answer(state, (id, tenant), existed)))
        });
        wait.await
    }

    pub(super) async fn set_retention(
        &self,
        request: v1::SetRetentionRequest,
    ) -> Result<v1::TenantInfo, Status> {
        let retention = request
            .retention
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("the message lacks its field 'retention'"))?;
        let retention = wire::retention(retention)?;
        let tenant = self
            .look(|state| Ok(wire::tenant(state, &request.tenant)?.0))
            .await?;
        self.propose(Command::SetRetention { tenant, retention }).await?;
        tracing::info!(%tenant, ?retention, "what is kept of history changed");
        self.look(|state| {
            let found = state.tenants.get(&tenant);
            let found = found.ok_or_else(|| wire::rejected(&Rejection::NoTenant(tenant.to_string())))?;
            Ok(wire::tenant_info(state, tenant, found))
        })
        .await
    }

    pub(super) async fn finish_import(
        &self,
        request: v1::FinishImportRequest,
    ) -> Result<v1::TenantInfo, Status> {
        let cluster = wire::cluster(request.cluster.as_ref())?;
        self.in_charge().await?;
        let tenant = self
            .look(|state| Ok(wire::tenant(state, &request.tenant)?.0))
            .await?;
        self.propose(Command::FinishImport {
            tenant,
            start_lsn: Lsn(request.start_lsn),
            start_last_record: Lsn(request.last_record_start),
            cluster,
            consistent_lsn: Lsn(request.consistent_lsn),
        })
        .await?;
        let what = format!("the import of tenant {tenant}");
        let wait = self.0.wait_until(&what, |state, _| {
            let found = state.tenants.get(&tenant);
            let found = found.ok_or_else(|| wire::rejected(&Rejection::NoTenant(tenant.to_string())))?;
            match found.state {
                TenantState::Importing => Ok(None),
                TenantState::Active => Ok(Some(wire::tenant_info(state, tenant, found))),
                state => Err(wire::rejected(&Rejection::TenantIs {
                    name: found.name.clone(),
                    state,
                })),
            }
        });
        wait.await
    }
}

/// Whether a request is the one that created the tenant, as far as it says.
fn check_equal(
    tenant: &Tenant,
    branch: &lakebed_placement::Name,
    request: &v1::CreateTenantRequest,
) -> Result<(), Status> {
    if request.shards != 0 && request.shards as usize != tenant.shards.len() {
        return Err(Status::already_exists(format!(
            "tenant '{}' already exists, with {} shards",
            tenant.name,
            tenant.shards.len()
        )));
    }
    // A tenant that is being deleted has no branches; its state tells enough.
    if tenant.state == TenantState::Importing && !tenant.branches.contains_key(branch) {
        return Err(Status::already_exists(format!(
            "tenant '{}' already exists, with another first branch",
            tenant.name
        )));
    }
    Ok(())
}

fn answer(state: &State, tenant: (TenantId, &Tenant), existed: bool) -> v1::CreateTenantResponse {
    // Branches that were detached have no parent either, and are younger.
    let roots = tenant
        .1
        .timelines
        .iter()
        .filter(|(_, timeline)| timeline.parent.is_none());
    let root = roots.min_by_key(|(id, timeline)| {
        let leaving = timeline.state == TimelineState::Deleting;
        (leaving, timeline.created_unix_micros, **id)
    });
    v1::CreateTenantResponse {
        tenant: Some(wire::tenant_info(state, tenant.0, tenant.1)),
        branch: root.map(|(id, timeline)| wire::branch_info(state, tenant, (*id, timeline))),
        existed,
    }
}
