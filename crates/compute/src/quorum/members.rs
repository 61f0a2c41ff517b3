//! Who the safekeepers are, and how that changes under a running proposer.
//!
//! The controller's decisions come by two ways. The controller is asked now and then, and at once when a safekeeper
//! refuses this proposer because it has heard of a later generation. And a safekeeper that has heard tells it itself:
//! then the change goes on although no controller answers, as far as the addresses of its members are known.
//!
//! What is in force goes the other way: [`Members::settled`] is reported to the controller, which decides the next step, and
//! so is that those who are to join have caught up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{convert, quorum};
use lakebed_quorum::membership::Membership;
use lakebed_types::{Generation, NodeId};
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

use crate::branch::{Branch, Joining};

/// How long a safekeeper may take to tell its members.
const PATIENCE: Duration = Duration::from_secs(2);

/// The safekeepers of a branch at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Safekeepers {
    /// Who must agree.
    pub membership: Membership,
    /// Who gets the WAL in order to join.
    pub joining: Option<Joining>,
    /// `host:port` of each, as far as known, of those who are to join as well.
    pub addresses: BTreeMap<NodeId, String>,
}

impl From<&Branch> for Safekeepers {
    fn from(branch: &Branch) -> Safekeepers {
        Safekeepers {
            membership: branch.membership.clone(),
            joining: branch.joining.clone(),
            addresses: branch.safekeepers.clone(),
        }
    }
}

impl Safekeepers {
    /// Takes over what the controller says; true when the members are others. A controller may be behind the
    /// safekeepers: where members are is worth knowing all the same.
    fn told(&mut self, told: Safekeepers) -> bool {
        self.addresses.extend(told.addresses);
        if told.membership.generation >= self.membership.generation {
            self.joining = told.joining;
        }
        self.adopt(told.membership)
    }

    /// Who gets WAL and does not count, with the number of the attempt.
    pub(super) fn learners(&self) -> (u64, BTreeSet<NodeId>) {
        let joining = self.joining.as_ref();
        joining.map_or_else(Default::default, |joining| {
            (joining.attempt, joining.learners.clone())
        })
    }

    /// Takes over a later generation; true when it is one.
    fn adopt(&mut self, membership: Membership) -> bool {
        let later = membership.generation > self.membership.generation;
        if later {
            self.membership = membership;
        }
        let (members, (_, learners)) = (&self.membership, self.learners());
        self.addresses
            .retain(|node, _| members.contains(*node) || learners.contains(node));
        later
    }
}

/// A proposer's knowledge of its safekeepers, and its way to the control plane.
#[derive(Debug)]
pub struct Members {
    now: Safekeepers,
    /// What the controller said last.
    told: watch::Receiver<Safekeepers>,
    /// Wakes who asks the controller.
    stale: Arc<Notify>,
    /// The last generation that is in force, with all who joined in it caught up; 0 before the first.
    settled: watch::Sender<Generation>,
    /// The attempt whose learners have caught up, while they have.
    caught_up: watch::Sender<Option<u64>>,
}

impl Members {
    /// Begins with what `told` holds.
    pub fn new(
        told: watch::Receiver<Safekeepers>,
        stale: Arc<Notify>,
        settled: watch::Sender<Generation>,
        caught_up: watch::Sender<Option<u64>>,
    ) -> Members {
        let now = told.borrow().clone();
        Members {
            now,
            told,
            stale,
            settled,
            caught_up,
        }
    }

    /// Without a controller: changes are heard of from safekeepers alone, and nobody is told.
    pub fn of(branch: &Branch) -> Members {
        let (_, told) = watch::channel(Safekeepers::from(branch));
        let (settled, caught_up) = (watch::Sender::default(), watch::Sender::default());
        Members::new(told, Arc::default(), settled, caught_up)
    }

    /// What the controller says, now and later.
    pub fn told(&self) -> watch::Receiver<Safekeepers> {
        self.told.clone()
    }

    pub(super) fn now(&self) -> &Safekeepers {
        &self.now
    }

    /// Takes over what the controller said last; true when the members are others.
    pub(super) fn take_told(&mut self) -> bool {
        let told = self.told.borrow_and_update().clone();
        self.now.told(told)
    }

    /// Takes over what a safekeeper said; true when the members are others.
    pub(super) fn adopt(&mut self, membership: Membership) -> bool {
        self.now.adopt(membership)
    }

    /// The controller is to be asked at once.
    pub(super) fn ask(&self) {
        self.stale.notify_one();
    }

    pub(super) fn settled(&self, generation: Generation) {
        replace(&self.settled, generation);
    }

    /// Learners of this attempt have caught up, or none have.
    pub(super) fn caught_up(&self, attempt: Option<u64>) {
        replace(&self.caught_up, attempt);
    }
}

/// Says something else, if it is.
/// Waits until the controller has told something.
pub(super) async fn changed(told: &mut watch::Receiver<Safekeepers>) {
    if told.changed().await.is_err() {
        // Nobody asks it any more.
        std::future::pending::<()>().await;
    }
}

pub(crate) fn replace<T: PartialEq>(tell: &watch::Sender<T>, new: T) {
    tell.send_if_modified(|known| {
        let changed = *known != new;
        *known = new;
        changed
    });
}

/// The members that a safekeeper knows; `None` when it does not say.
pub(super) async fn ask(mut client: SafekeeperClient<Channel>, branch: Branch) -> Option<Membership> {
    let request = convert::timeline_ref(branch.tenant, branch.timeline);
    let said = tokio::time::timeout(PATIENCE, client.get_timeline_status(request)).await;
    let status = said.ok()?.ok()?.into_inner();
    quorum::membership(status.membership.as_ref()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safekeepers(generation: u64, nodes: &[u64]) -> Safekeepers {
        Safekeepers {
            membership: Membership {
                generation: Generation(generation),
                old: nodes.iter().copied().map(NodeId).collect(),
                new: None,
            },
            joining: None,
            addresses: nodes
                .iter()
                .map(|node| (NodeId(*node), format!("at{generation}:{node}")))
                .collect(),
        }
    }

    #[test]
    fn the_latest_generation_counts_whoever_tells_it() {
        let mut now = safekeepers(1, &[1, 2, 3]);
        // From a safekeeper, which knows no addresses.
        assert!(now.adopt(safekeepers(3, &[2, 3, 4]).membership));
        assert_eq!(
            now.addresses.keys().map(|node| node.0).collect::<Vec<_>>(),
            [2, 3]
        );
        // From a controller that is behind, about a safekeeper that has moved.
        assert!(!now.told(safekeepers(2, &[1, 2, 3, 4])));
        assert_eq!(now.membership.generation, Generation(3));
        let addresses: Vec<_> = now.addresses.values().map(String::as_str).collect();
        assert_eq!(addresses, ["at2:2", "at2:3", "at2:4"]);
        assert!(!now.told(safekeepers(3, &[2, 3, 4])));
        // Who is to join is reached, and is no member.
        let joins = |attempt| {
            Some(Joining {
                attempt,
                learners: [NodeId(7)].into(),
                within_bytes: 1,
            })
        };
        let with = |generation, attempt| Safekeepers {
            joining: joins(attempt),
            membership: safekeepers(generation, &[2, 3, 4]).membership,
            ..safekeepers(generation, &[2, 3, 4, 7])
        };
        assert!(!now.told(with(3, 1)));
        assert_eq!(now.addresses.len(), 4);
        assert!(!now.told(with(2, 9)), "a controller that is behind");
        assert_eq!(now.learners(), (1, [NodeId(7)].into()));
        assert!(!now.told(safekeepers(3, &[2, 3, 4])));
        assert_eq!((now.addresses.len(), now.learners()), (3, (0, [].into())));
        assert!(now.told(safekeepers(4, &[4])));
        assert_eq!(now, safekeepers(4, &[4]));
    }
}
