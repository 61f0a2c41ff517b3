//! Why a tenant was not made.

use std::path::PathBuf;
use std::time::Duration;

use lakebed_types::TenantId;
use tonic::Status;

/// Why a tenant was not made. The call may be repeated: it takes up, or throws away, what was left.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A file of the data directory cannot be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The data directory is not one that the tier takes over.
    #[error("{} cannot be imported: {reason}", .path.display())]
    Unsuitable {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Nobody answers at an address.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// `host:port`.
        address: String,
        /// What the transport said.
        reason: String,
    },
    /// The controller refused or failed.
    #[error("the controller answered {:?}: {}", .0.code(), .0.message())]
    Controller(Box<Status>),
    /// A pageserver refused or failed.
    #[error("importing shard {shard} on {address}: {:?}: {}", .status.code(), .status.message())]
    Pageserver {
        /// Index of the shard.
        shard: u32,
        /// `host:port` of its owner.
        address: String,
        /// What it said.
        status: Box<Status>,
    },
    /// The shards did not import the same cluster.
    #[error("the shards of tenant {tenant} did not all import this data directory; create the tenant again")]
    ShardsDiffer {
        /// The tenant.
        tenant: TenantId,
    },
    /// Another client took over, since this one did not extend its lease in time.
    #[error("another client took over the import")]
    LeaseLost,
    /// An answer that the schema allows and that makes no sense.
    #[error("an answer makes no sense: {0}")]
    Answer(String),
    /// Not done in time.
    #[error("tenant '{tenant}' was not ready within {patience:?}; call again to take up what is there")]
    Patience {
        /// Its name.
        tenant: String,
        /// How long it was waited.
        patience: Duration,
    },
    /// The operating system gave no random numbers.
    #[error("random numbers of the operating system: {0}")]
    Random(std::io::Error),
    /// What sends the files failed.
    #[error("{reason}")]
    Source {
        /// Why.
        reason: String,
        /// It would fail again.
        hopeless: bool,
    },
    /// A task of this process failed.
    #[error("reading the data directory failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<Status> for BootstrapError {
    fn from(status: Status) -> BootstrapError {
        BootstrapError::Controller(Box::new(status))
    }
}

impl BootstrapError {
    pub(super) fn connect(address: &str, error: &tonic::transport::Error) -> BootstrapError {
        BootstrapError::Connect {
            address: address.to_owned(),
            reason: crate::nodes::with_causes(error),
        }
    }
}
