//! The first tenant: `initdb`, imported.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use lakebed_compute::data_dir::Owner;
use lakebed_controller::bootstrap::{NewTenant, create_tenant};
use lakebed_proto::v1::controller_client::ControllerClient;
use lakebed_proto::{connect, v1};
use tonic::Code;

use super::layout::UpDirectory;
use super::target::Target;
use crate::client::told;
use crate::initdb::Initial;

/// Name of the tenant that `lakebed up` makes.
pub const TENANT: &str = "default";
/// Name of its first branch.
pub const BRANCH: &str = "main";
/// How long the import may take.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The branch that `lakebed up` serves.
pub fn first_branch() -> Target {
    Target::new(TENANT, BRANCH)
}

/// Whether that branch is there.
///
/// # Errors
/// The controller does not answer.
pub async fn has_first_branch(controller: &str) -> anyhow::Result<bool> {
    let mut client = ControllerClient::new(connect(controller).await?);
    let request = v1::ResolveBranchRequest {
        tenant: TENANT.to_owned(),
        branch: BRANCH.to_owned(),
    };
    match client.resolve_branch(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(told(status)),
    }
}

/// Runs `initdb` and imports what it made, unless that was done before.
///
/// # Errors
/// `initdb` fails, or the tier does not take its output. What is half done is finished by the next call.
pub async fn ensure(directory: &UpDirectory, pg_bin: &Path, owner: Owner) -> anyhow::Result<()> {
    let done = directory.path.join("imported");
    if done.exists() {
        return Ok(());
    }
    let initial = Initial::make(pg_bin, directory.path.join("initdb"), owner)?;
    let tenant = NewTenant {
        name: TENANT.to_owned(),
        branch: BRANCH.to_owned(),
        shards: directory.layout.pageserver_ports.len() as u32,
        safekeepers: directory.layout.safekeeper_ports.len() as u32,
        retention: None,
    };
    create_tenant(&directory.layout.controller(), &tenant, &initial.data(), PATIENCE)
        .await
        .context("making the first tenant")?;
    fs::write(&done, "").with_context(|| format!("writing {}", done.display()))
}
