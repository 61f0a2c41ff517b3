//! Whether a compute, or another proposer, is connected to the safekeepers of a timeline.

use futures::future::join_all;
use lakebed_placement::{State, Timeline};
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{convert, v1};
use lakebed_types::{NodeId, TenantId, TimelineId};

use crate::nodes::Nodes;
use crate::reconciler::PEER_PATIENCE;

/// Who is to be asked, taken from the state before any of them is.
pub(crate) struct Members {
    name: v1::TimelineRef,
    set: lakebed_placement::SafekeeperSet,
    addresses: Vec<(NodeId, String)>,
}

impl Members {
    pub fn of(state: &State, tenant: TenantId, (id, timeline): (TimelineId, &Timeline)) -> Members {
        let set = timeline.safekeepers.clone();
        let address = |node: NodeId| Some((node, state.nodes.get(&node)?.address.clone()));
        Members {
            name: convert::timeline_ref(tenant, id),
            addresses: set.members().into_iter().filter_map(address).collect(),
            set,
        }
    }

    /// True when one of them has a proposer, false when a quorum has none: a compute is connected to more than the others.
    ///
    /// # Errors
    /// Too few answer to tell; what each said.
    pub async fn have_proposer(&self, nodes: &Nodes) -> Result<bool, String> {
        let asked = self.addresses.iter().map(async |(node, address)| {
            let request = self.name.clone();
            let said = nodes.call(address, PEER_PATIENCE, async |channel| {
                SafekeeperClient::new(channel).get_timeline_status(request).await
            });
            (*node, said.await.map(|status| status.proposers))
        });
        let said = join_all(asked).await;
        if said
            .iter()
            .any(|(_, proposers)| matches!(proposers, Ok(count) if *count > 0))
        {
            return Ok(true);
        }
        let silent = |node: NodeId| {
            let answered = said.iter().find(|(who, _)| *who == node);
            answered.is_some_and(|(_, proposers)| proposers.is_ok())
        };
        match self.set.is_quorum(silent) {
            true => Ok(false),
            false => {
                let errors = said.iter().filter_map(|(_, said)| said.as_ref().err());
                let errors: Vec<String> = errors.map(ToString::to_string).collect();
                Err(errors.join("; "))
            }
        }
    }
}
