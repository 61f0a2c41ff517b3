//! A client that makes the output of `initdb` a tenant.
//!
//! ```text
//!  CreateTenant ─► lease ─► ImportTimeline on every shard ─► FinishImport ─► branch is ACTIVE
//! ```
//!
//! It may die at any step. The next call finds what it left: an import that was finished is waited for; one that was
//! not is thrown away with its tenant and done again under fresh ids, so that pages of two runs of `initdb` never mix.
//! A lease keeps two clients from throwing away each other's work; the tenant's id in `FinishImport` keeps a client
//! that lost its lease from finishing another one's.

mod error;
mod files;
mod source;
mod upload;

use std::path::Path;
use std::time::Duration;

pub use lakebed_placement::Retention;
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::{connect, v1};
use lakebed_types::TenantId;
use tonic::Code;
use tonic::transport::Channel;

pub use error::BootstrapError;
use files::DataDirectory;
pub use source::{ImportSource, ImportTarget};
pub use upload::{Gone, ShardUpload};

use crate::{random, wire};

const LEASE_MS: u32 = 15_000;
const RENEW_EVERY: Duration = Duration::from_secs(4);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is to be created.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its name.
    pub name: String,
    /// Name of its first branch; empty: `main`.
    pub branch: String,
    /// Number of shards; 0: as the controller is configured.
    pub shards: u32,
    /// Number of safekeepers; 0: as the controller is configured.
    pub safekeepers: u32,
    /// How long history is kept; none: the usual time.
    pub retention: Option<Retention>,
}

/// A tenant whose first branch can be used.
#[derive(Clone, Debug)]
pub struct Bootstrapped {
    /// Its first branch, as [`ResolveBranch`](v1::ResolveBranchRequest) tells it.
    pub branch: v1::BranchInfo,
    /// It was there before: the given data directory was not used.
    pub existed: bool,
}

/// Makes a tenant of a data directory that `initdb` made, or finds the tenant of that name. `patience` bounds the whole
/// call.
///
/// # Errors
/// See [`BootstrapError`]. It may be called again after any of them.
pub async fn create_tenant(
    controller: &str,
    tenant: &NewTenant,
    data_directory: &Path,
    patience: Duration,
) -> Result<Bootstrapped, BootstrapError> {
    let directory = DataDirectory::open(data_directory)?;
    create_tenant_from(controller, tenant, &directory, patience).await
}

/// As [`create_tenant`], of whatever `source` sends.
///
/// # Errors
/// See [`BootstrapError`]. It may be called again after any of them.
pub async fn create_tenant_from<S: ImportSource>(
    controller: &str,
    tenant: &NewTenant,
    source: &S,
    patience: Duration,
) -> Result<Bootstrapped, BootstrapError> {
    let result = tokio::time::timeout(patience, async {
        let channel = connect(controller)
            .await
            .map_err(|error| BootstrapError::connect(controller, &error))?;
        let client = ControllerClient::new(channel);
        Run {
            client,
            tenant,
            source,
        }
        .run()
        .await
    });
    result.await.unwrap_or(Err(BootstrapError::Patience {
        tenant: tenant.name.clone(),
        patience,
    }))
}

struct Run<'a, S> {
    client: ControllerClient<Channel>,
    tenant: &'a NewTenant,
    source: &'a S,
}

impl<S: ImportSource> Run<'_, S> {
    async fn run(mut self) -> Result<Bootstrapped, BootstrapError> {
        loop {
            let answer = self.ask_for_tenant().await?;
            let (tenant, branch) = match (answer.tenant, answer.branch) {
                (Some(tenant), Some(branch)) => (tenant, branch),
                // Being deleted: its timelines may be gone before itself.
                (Some(tenant), None) => (tenant, v1::BranchInfo::default()),
                (None, _) => return Err(BootstrapError::Answer("CreateTenant told no tenant".to_owned())),
            };
            let id = TenantId::from_slice(&tenant.tenant)
                .map_err(|error| BootstrapError::Answer(error.to_string()))?;
            match (tenant.state(), branch.state()) {
                (v1::TenantState::Active, _) => {
                    return Ok(Bootstrapped {
                        branch,
                        existed: answer.existed,
                    });
                }
                (v1::TenantState::Importing, v1::BranchState::Importing) if !answer.existed => {
                    let branch = self.import_under_lease(id, &tenant, &branch).await?;
                    return Ok(Bootstrapped {
                        branch,
                        existed: false,
                    });
                }
                (v1::TenantState::Importing, v1::BranchState::Importing) => self.throw_away(id).await?,
                // The import was finished, and its client did not live to see it.
                (v1::TenantState::Importing, _) => {
                    let finish = v1::FinishImportRequest {
                        tenant: id.to_string(),
                        start_lsn: branch.start_lsn,
                        last_record_start: branch.last_record_start,
                        cluster: branch.cluster,
                        consistent_lsn: branch.consistent_lsn,
                    };
                    self.client.finish_import(finish).await?;
                }
                (v1::TenantState::Deleting | v1::TenantState::Unspecified, _) => {
                    self.wait_until_gone(id).await?
                }
            }
        }
    }

    async fn ask_for_tenant(&mut self) -> Result<v1::CreateTenantResponse, BootstrapError> {
        let request = v1::CreateTenantRequest {
            name: self.tenant.name.clone(),
            branch: self.tenant.branch.clone(),
            shards: self.tenant.shards,
            safekeepers: self.tenant.safekeepers,
            retention: self.tenant.retention.map(wire::retention_to_wire),
        };
        Ok(self.client.create_tenant(request).await?.into_inner())
    }

    /// Deletes what a client that died left, unless that client is still at work.
    async fn throw_away(&mut self, id: TenantId) -> Result<(), BootstrapError> {
        let lease = Lease::new(self.client.clone(), id)?;
        lease.acquire().await?;
        tracing::info!(tenant = %id, "an unfinished import is thrown away and begun again");
        let request = v1::DeleteTenantRequest {
            tenant: id.to_string(),
        };
        self.client.delete_tenant(request).await?;
        lease.release().await;
        self.wait_until_gone(id).await
    }

    async fn wait_until_gone(&mut self, id: TenantId) -> Result<(), BootstrapError> {
        loop {
            let request = v1::GetTenantRequest {
                tenant: id.to_string(),
            };
            match self.client.get_tenant(request).await {
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(status) => return Err(status.into()),
                Ok(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    async fn import_under_lease(
        &self,
        id: TenantId,
        tenant: &v1::TenantInfo,
        branch: &v1::BranchInfo,
    ) -> Result<v1::BranchInfo, BootstrapError> {
        let lease = Lease::new(self.client.clone(), id)?;
        lease.acquire().await?;
        let imported = tokio::select! {
            imported = self.import(id, tenant, branch) => imported,
            lost = lease.keep() => Err(lost),
        };
        lease.release().await;
        imported
    }

    async fn import(
        &self,
        id: TenantId,
        tenant: &v1::TenantInfo,
        branch: &v1::BranchInfo,
    ) -> Result<v1::BranchInfo, BootstrapError> {
        let target = ImportTarget {
            tenant: id,
            timeline: branch.timeline.clone().unwrap_or_default().timeline,
            shards: tenant.shards.clone(),
        };
        let imported = self.source.import(&target).await?;
        let consistent = imported.consistent_lsn;
        let mut client = self.client.clone();
        let finish = v1::FinishImportRequest {
            tenant: id.to_string(),
            start_lsn: imported.start_lsn,
            last_record_start: imported.last_record_start,
            cluster: imported.cluster,
            consistent_lsn: if consistent > imported.start_lsn {
                consistent
            } else {
                0
            },
        };
        client.finish_import(finish).await?;
        let resolve = v1::ResolveBranchRequest {
            tenant: id.to_string(),
            branch: branch.name.clone(),
        };
        Ok(client.resolve_branch(resolve).await?.into_inner())
    }
}

/// The right to import one tenant, or to throw its import away.
struct Lease {
    client: ControllerClient<Channel>,
    name: String,
    holder: String,
}

impl Lease {
    fn new(client: ControllerClient<Channel>, tenant: TenantId) -> Result<Lease, BootstrapError> {
        let holder = random::number().map_err(BootstrapError::Random)?;
        Ok(Lease {
            client,
            name: format!("import-{tenant}"),
            holder: format!("{holder:016x}"),
        })
    }

    async fn take(&self) -> Result<(), tonic::Status> {
        let request = v1::AcquireLeaseRequest {
            name: self.name.clone(),
            holder: self.holder.clone(),
            duration_ms: LEASE_MS,
        };
        self.client.clone().acquire_lease(request).await.map(drop)
    }

    /// Waits for its former holder to finish or to be dead.
    async fn acquire(&self) -> Result<(), BootstrapError> {
        loop {
            match self.take().await {
                Ok(()) => return Ok(()),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    tracing::debug!(lease = self.name, "another client imports this tenant; waiting");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Extends it for as long as it is polled; returns when it is lost.
    async fn keep(&self) -> BootstrapError {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.take().await {
                Err(status) if status.code() == Code::FailedPrecondition => return BootstrapError::LeaseLost,
                // It runs on for a while; the next attempt may succeed.
                Err(status) => tracing::debug!(lease = self.name, %status, "not extended"),
                Ok(()) => {}
            }
        }
    }

    /// Best effort: it ends by itself.
    async fn release(&self) {
        let request = v1::ReleaseLeaseRequest {
            name: self.name.clone(),
            holder: self.holder.clone(),
        };
        if let Err(status) = self.client.clone().release_lease(request).await {
            tracing::debug!(lease = self.name, %status, "not released");
        }
    }
}
