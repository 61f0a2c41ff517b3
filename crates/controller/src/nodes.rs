//! Connections to safekeepers and pageservers, one per address, and the errors of calls on them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lakebed_proto::connect;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Why a call on a node gave no answer that can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NodeError {
    /// Nobody answered at the address: certainly not done.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// `host:port`.
        address: String,
        /// What the transport said.
        reason: String,
    },
    /// The node refused, or failed in the middle.
    #[error("{address} answered {:?}: {}", .status.code(), .status.message())]
    Answered {
        /// `host:port`.
        address: String,
        /// What it said.
        status: Box<Status>,
    },
    /// No answer in time; whether it was done is unknown.
    #[error("{address} did not answer within {patience:?}")]
    TimedOut {
        /// `host:port`.
        address: String,
        /// How long it was waited for.
        patience: Duration,
    },
}

impl NodeError {
    /// The code of a node's own answer.
    pub fn code(&self) -> Option<Code> {
        match self {
            NodeError::Answered { status, .. } => Some(status.code()),
            NodeError::Connect { .. } | NodeError::TimedOut { .. } => None,
        }
    }
}

/// Open connections by address. Bounded by [`keep`](Self::keep): only registered nodes have one.
#[derive(Debug, Default)]
pub struct Nodes {
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Nodes {
    fn channels(&self) -> MutexGuard<'_, BTreeMap<String, Channel>> {
        // A map operation does not panic half-way; what is there is whole.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects where needed, calls, and waits no longer than `patience` for both.
    pub async fn call<T, F>(
        &self,
        address: &str,
        patience: Duration,
        request: impl FnOnce(Channel) -> F + Send,
    ) -> Result<T, NodeError>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let result = tokio::time::timeout(patience, async {
            let channel = self.channel(address).await?;
            request(channel).await.map_err(|status| NodeError::Answered {
                address: address.to_owned(),
                status: Box::new(status),
            })
        });
        let timed_out = || NodeError::TimedOut {
            address: address.to_owned(),
            patience,
        };
        let result = result.await.unwrap_or_else(|_| Err(timed_out()));
        // A connection that failed is made anew: the node may have moved behind the address.
        if let Err(error) = &result
            && matches!(error.code(), None | Some(Code::Unavailable | Code::Unknown))
        {
            self.channels().remove(address);
        }
        result.map(Response::into_inner)
    }

    async fn channel(&self, address: &str) -> Result<Channel, NodeError> {
        if let Some(channel) = self.channels().get(address) {
            return Ok(channel.clone());
        }
        let channel = connect(address).await.map_err(|error| NodeError::Connect {
            address: address.to_owned(),
            reason: with_causes(&error),
        })?;
        self.channels().insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Closes the connections to all other addresses.
    pub fn keep(&self, addresses: &BTreeSet<&str>) {
        self.channels()
            .retain(|address, _| addresses.contains(address.as_str()));
    }
}

/// The transport's own text is "transport error"; the reason lies below.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
