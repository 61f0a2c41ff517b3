//! Client commands. Data goes to standard output, everything else to standard error.

pub mod branch;
pub mod compute;
pub mod explain;
pub mod restore;
pub mod safekeepers;
pub mod status;
pub mod tenant;

use anyhow::Context;
use lakebed_proto::connect;
use lakebed_proto::v1::controller_client::ControllerClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::cli::ClientArgs;
use crate::connection::Connection;
use crate::up::layout;
use crate::up::tenant as tenant_of_up;

/// The tenant that a command is about.
pub struct Tier {
    /// A client of its controller.
    pub controller: ControllerClient<Channel>,
    /// Name of the tenant.
    pub tenant: String,
}

/// Where the controllers are, and the tenant if one is named.
pub fn addresses(args: &ClientArgs) -> anyhow::Result<(Vec<String>, Option<String>)> {
    match &args.connect {
        Some(text) => {
            let connection: Connection = text.parse()?;
            Ok((connection.controllers, connection.tenant))
        }
        None => {
            let layout = layout::read(&layout::directory(args.dir.as_deref())?)?;
            Ok((vec![layout.controller()], Some(tenant_of_up::TENANT.to_owned())))
        }
    }
}

/// Connects to a controller; returns its address as well.
pub async fn controller(args: &ClientArgs) -> anyhow::Result<(String, ControllerClient<Channel>)> {
    let mut last = None;
    for address in addresses(args)?.0 {
        match connect(&address).await {
            Ok(channel) => return Ok((address, ControllerClient::new(channel))),
            Err(error) => {
                let what = format!("controller {address} does not answer: does it run?");
                last = Some(anyhow::Error::from(error).context(what));
            }
        }
    }
    Err(last.context("no controller is given")?)
}

/// Connects to the controller of a tenant.
pub async fn tier(args: &ClientArgs) -> anyhow::Result<Tier> {
    let tenant = addresses(args)?.1;
    let tenant = tenant.context("--connect names no tenant: lakebed://controller:port/TENANT")?;
    let (_, controller) = controller(args).await?;
    Ok(Tier { controller, tenant })
}

/// A status as an error for people.
pub fn told(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// A table for people.
pub fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    table
}
