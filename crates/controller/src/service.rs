//! The gRPC service: each call checks its message, proposes or looks, and waits for the effect where it promises one.

mod branches;
mod restore;
mod safekeepers;
mod shards;
mod tenants;

use std::sync::Arc;

use lakebed_placement::{Command, Outcome, State};
use lakebed_proto::v1;
use lakebed_types::NodeId;
use tonic::{Request, Response, Status};

use crate::server::{Controller, PROPOSE_TIMEOUT};
use crate::wire;

/// The longest lease.
const MAX_LEASE_MS: u32 = 3_600_000;

/// The service of one controller.
pub(crate) struct Service(Arc<Controller>);

impl Service {
    pub(crate) fn new(controller: Arc<Controller>) -> Service {
        Service(controller)
    }

    async fn propose(&self, command: Command) -> Result<Outcome, Status> {
        self.0.leader().await?;
        let proposed = self.0.raft.propose(command, PROPOSE_TIMEOUT).await;
        proposed.map_err(wire::not_proposed)
    }

    /// Looks at a state that is as new as any answer given before.
    async fn look<T>(&self, look: impl FnOnce(&State) -> Result<T, Status>) -> Result<T, Status> {
        self.0.read_barrier().await?;
        look(&self.0.raft.state())
    }

    /// Calls that wait for nodes are for the member that drives them.
    async fn in_charge(&self) -> Result<(), Status> {
        match self.0.leader().await? {
            leader if leader == self.0.config.node_id => Ok(()),
            leader => Err(Status::unavailable(format!(
                "controller {leader} is in charge; ask that one"
            ))),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::controller_server::Controller for Service {
    async fn register_node(
        &self,
        request: Request<v1::RegisterNodeRequest>,
    ) -> Answer<v1::RegisterNodeResponse> {
        let request = request.into_inner();
        if request.node_id == 0 {
            return Err(Status::invalid_argument("node_id is 0"));
        }
        let node = NodeId(request.node_id);
        let (role, address) = (wire::role(request.role)?, wire::address(&request.address)?);
        let incarnation = request.incarnation;
        let known = {
            let state = self.0.raft.state();
            let same = |known: &lakebed_placement::Node| {
                (known.role, &known.address, known.incarnation) == (role, &address, incarnation)
            };
            state.nodes.get(&node).is_some_and(same)
        };
        // Repeated every few seconds by every node: not worth an entry in the log.
        if !known {
            self.propose(Command::RegisterNode {
                node,
                role,
                address: address.clone(),
                incarnation,
            })
            .await?;
            tracing::info!(%node, ?role, address, "node registered");
        }
        self.0.is_there(node);
        Ok(Response::new(v1::RegisterNodeResponse {}))
    }

    async fn create_tenant(
        &self,
        request: Request<v1::CreateTenantRequest>,
    ) -> Answer<v1::CreateTenantResponse> {
        Ok(Response::new(self.create_tenant(request.into_inner()).await?))
    }

    async fn split_tenant(&self, request: Request<v1::SplitTenantRequest>) -> Answer<v1::TenantInfo> {
        Ok(Response::new(self.split_tenant(request.into_inner()).await?))
    }

    async fn abort_split(&self, request: Request<v1::AbortSplitRequest>) -> Answer<v1::TenantInfo> {
        Ok(Response::new(self.abort_split(request.into_inner()).await?))
    }

    async fn move_shard(&self, request: Request<v1::MoveShardRequest>) -> Answer<v1::TenantInfo> {
        Ok(Response::new(self.move_shard(request.into_inner()).await?))
    }

    async fn finish_import(&self, request: Request<v1::FinishImportRequest>) -> Answer<v1::TenantInfo> {
        Ok(Response::new(self.finish_import(request.into_inner()).await?))
    }

    async fn get_tenant(&self, request: Request<v1::GetTenantRequest>) -> Answer<v1::TenantInfo> {
        let request = request.into_inner();
        let info = self.look(|state| {
            let (id, tenant) = wire::tenant(state, &request.tenant)?;
            Ok(wire::tenant_info(state, id, tenant))
        });
        Ok(Response::new(info.await?))
    }

    async fn list_tenants(&self, _: Request<v1::ListTenantsRequest>) -> Answer<v1::ListTenantsResponse> {
        let tenants = self.look(|state| {
            let info = |(id, tenant)| wire::tenant_info(state, id, tenant);
            let mut tenants: Vec<_> = state
                .tenants
                .iter()
                .map(|(id, tenant)| info((*id, tenant)))
                .collect();
            tenants.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(tenants)
        });
        let tenants = tenants.await?;
        Ok(Response::new(v1::ListTenantsResponse { tenants }))
    }

    async fn set_retention(&self, request: Request<v1::SetRetentionRequest>) -> Answer<v1::TenantInfo> {
        Ok(Response::new(self.set_retention(request.into_inner()).await?))
    }

    async fn restore_branch(
        &self,
        request: Request<v1::RestoreBranchRequest>,
    ) -> Answer<v1::RestoreBranchResponse> {
        Ok(Response::new(self.restore_branch(request.into_inner()).await?))
    }

    async fn delete_tenant(
        &self,
        request: Request<v1::DeleteTenantRequest>,
    ) -> Answer<v1::DeleteTenantResponse> {
        let request = request.into_inner();
        let tenant = self
            .look(|state| Ok(wire::tenant(state, &request.tenant)?.0))
            .await?;
        self.propose(Command::DeleteTenant { tenant }).await?;
        tracing::info!(%tenant, "tenant is being deleted");
        Ok(Response::new(v1::DeleteTenantResponse {}))
    }

    async fn resolve_branch(&self, request: Request<v1::ResolveBranchRequest>) -> Answer<v1::BranchInfo> {
        let request = request.into_inner();
        let name = wire::branch_name(&request.branch)?;
        let info = self.look(|state| {
            let tenant = wire::tenant(state, &request.tenant)?;
            Ok(wire::branch_info(state, tenant, wire::branch(tenant.1, &name)?))
        });
        Ok(Response::new(info.await?))
    }

    async fn create_branch(&self, request: Request<v1::CreateBranchRequest>) -> Answer<v1::BranchInfo> {
        Ok(Response::new(self.create_branch(request.into_inner()).await?))
    }

    async fn list_branches(
        &self,
        request: Request<v1::ListBranchesRequest>,
    ) -> Answer<v1::ListBranchesResponse> {
        let request = request.into_inner();
        let branches = self.look(|state| {
            let tenant = wire::tenant(state, &request.tenant)?;
            let names = tenant.1.branches.keys();
            names
                .map(|name| Ok(wire::branch_info(state, tenant, wire::branch(tenant.1, name)?)))
                .collect::<Result<Vec<_>, Status>>()
        });
        let branches = branches.await?;
        Ok(Response::new(v1::ListBranchesResponse { branches }))
    }

    async fn detach_branch(&self, request: Request<v1::DetachBranchRequest>) -> Answer<v1::BranchInfo> {
        let request = request.into_inner();
        // No default here: what is changed has to be named.
        let name = wire::name(&request.branch)?;
        let tenant = self
            .look(|state| Ok(wire::tenant(state, &request.tenant)?.0))
            .await?;
        let command = Command::DetachBranch {
            tenant,
            name: name.clone(),
        };
        if self.propose(command).await? == Outcome::Applied {
            tracing::info!(%tenant, branch = %name, "branch is being detached from its parent");
        }
        let info = self.look(|state| {
            let tenant = wire::tenant(state, &request.tenant)?;
            Ok(wire::branch_info(state, tenant, wire::branch(tenant.1, &name)?))
        });
        Ok(Response::new(info.await?))
    }

    async fn delete_branch(
        &self,
        request: Request<v1::DeleteBranchRequest>,
    ) -> Answer<v1::DeleteBranchResponse> {
        let request = request.into_inner();
        // No default here: what is deleted has to be named.
        let name = wire::name(&request.name)?;
        let tenant = self
            .look(|state| Ok(wire::tenant(state, &request.tenant)?.0))
            .await?;
        self.propose(Command::DeleteBranch {
            tenant,
            name: name.clone(),
        })
        .await?;
        tracing::info!(%tenant, branch = %name, "branch is being deleted");
        Ok(Response::new(v1::DeleteBranchResponse {}))
    }

    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Answer<v1::AcquireLeaseResponse> {
        let request = request.into_inner();
        let name = wire::name(&request.name)?;
        if !(1..=MAX_LEASE_MS).contains(&request.duration_ms) {
            return Err(Status::invalid_argument(format!(
                "duration_ms is {}; a lease lasts 1 to {MAX_LEASE_MS} milliseconds",
                request.duration_ms
            )));
        }
        self.propose(Command::AcquireLease {
            name,
            holder: request.holder,
            micros: request.duration_ms * 1000,
        })
        .await?;
        Ok(Response::new(v1::AcquireLeaseResponse {}))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Answer<v1::ReleaseLeaseResponse> {
        let request = request.into_inner();
        let name = wire::name(&request.name)?;
        self.propose(Command::ReleaseLease {
            name,
            holder: request.holder,
        })
        .await?;
        Ok(Response::new(v1::ReleaseLeaseResponse {}))
    }

    async fn change_safekeepers(
        &self,
        request: Request<v1::ChangeSafekeepersRequest>,
    ) -> Answer<v1::SafekeepersInfo> {
        Ok(Response::new(
            self.change_safekeepers(request.into_inner()).await?,
        ))
    }

    async fn abort_safekeeper_change(
        &self,
        request: Request<v1::AbortSafekeeperChangeRequest>,
    ) -> Answer<v1::SafekeepersInfo> {
        Ok(Response::new(
            self.abort_safekeeper_change(request.into_inner()).await?,
        ))
    }

    async fn get_safekeepers(
        &self,
        request: Request<v1::GetSafekeepersRequest>,
    ) -> Answer<v1::SafekeepersInfo> {
        let request = request.into_inner();
        let info = self.safekeepers((&request.tenant, &request.branch));
        Ok(Response::new(info.await?))
    }

    async fn report_settled(
        &self,
        request: Request<v1::ReportSettledRequest>,
    ) -> Answer<v1::ReportSettledResponse> {
        self.report_settled(request.into_inner()).await?;
        Ok(Response::new(v1::ReportSettledResponse {}))
    }

    async fn report_caught_up(
        &self,
        request: Request<v1::ReportCaughtUpRequest>,
    ) -> Answer<v1::ReportCaughtUpResponse> {
        self.report_caught_up(request.into_inner()).await?;
        Ok(Response::new(v1::ReportCaughtUpResponse {}))
    }

    async fn drain_safekeeper(
        &self,
        request: Request<v1::DrainSafekeeperRequest>,
    ) -> Answer<v1::DrainSafekeeperResponse> {
        let v1::DrainSafekeeperRequest { node_id, draining } = request.into_inner();
        let node = NodeId(node_id);
        self.propose(Command::DrainSafekeeper { node, draining }).await?;
        tracing::info!(%node, draining, "what is placed on a safekeeper changed");
        Ok(Response::new(v1::DrainSafekeeperResponse {}))
    }

    async fn get_status(&self, _: Request<v1::GetControllerStatusRequest>) -> Answer<v1::ControllerStatus> {
        // Also without a leader: this is what one looks at then.
        let raft = self.0.raft_status();
        let waiting_for = self.0.waiting();
        let state = self.0.raft.state();
        let node = |(id, node): (&NodeId, &lakebed_placement::Node)| v1::RegisteredNode {
            node: Some(v1::NodeLocation {
                node_id: id.0,
                address: node.address.clone(),
            }),
            role: match node.role {
                lakebed_placement::NodeRole::Safekeeper => v1::NodeRole::Safekeeper.into(),
                lakebed_placement::NodeRole::Pageserver => v1::NodeRole::Pageserver.into(),
            },
            draining: node.draining,
        };
        Ok(Response::new(v1::ControllerStatus {
            node_id: self.0.config.node_id,
            leader_id: raft.leader,
            term: raft.term,
            applied_index: raft.applied,
            nodes: state.nodes.iter().map(node).collect(),
            waiting_for,
        }))
    }
}
