//! Client commands. Data goes to standard output, everything else to standard error.

pub mod branch;
pub mod compute;
pub mod status;

use anyhow::Context;
use lakebed_proto::connect;
use lakebed_proto::v1::controller_client::ControllerClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::cli::ClientArgs;
use crate::connection::Connection;
use crate::up::{layout, tenant};

/// The tier that a command is about.
pub struct Tier {
    /// A client of its controller.
    pub controller: ControllerClient<Channel>,
    /// Name of the tenant.
    pub tenant: String,
}

/// Connects to the controller of a tier.
pub async fn tier(args: &ClientArgs) -> anyhow::Result<Tier> {
    let connection = match &args.connect {
        Some(text) => text.parse()?,
        None => {
            let layout = layout::read(&layout::directory(args.dir.as_deref())?)?;
            Connection {
                controllers: vec![layout.controller()],
                tenant: tenant::TENANT.to_owned(),
                branch: None,
            }
        }
    };
    let mut last = None;
    for address in &connection.controllers {
        match connect(address).await {
            Ok(channel) => {
                return Ok(Tier {
                    controller: ControllerClient::new(channel),
                    tenant: connection.tenant,
                });
            }
            Err(error) => {
                last = Some(
                    anyhow::Error::from(error)
                        .context(format!("controller {address} does not answer: does it run?")),
                )
            }
        }
    }
    Err(last.context("no controller is given")?)
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
