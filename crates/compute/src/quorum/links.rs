//! The tasks that keep streams to safekeepers open: one for each member whose address is known.

use std::collections::BTreeMap;

use lakebed_types::NodeId;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::link::{self, LinkEvent};
use super::members::Safekeepers;
use crate::config::WireWal;

#[derive(Debug)]
struct Kept {
    /// Number of the task, rising: events of an earlier one may still be on their way.
    task: u64,
    address: String,
    handle: AbortHandle,
}

/// See the module header. All end with this.
#[derive(Debug)]
pub(super) struct Links {
    kept: BTreeMap<NodeId, Kept>,
    tasks: JoinSet<()>,
    started: u64,
    wire: WireWal,
    events: mpsc::Sender<LinkEvent>,
}

impl Links {
    /// None yet.
    pub(super) fn new(wire: WireWal, events: mpsc::Sender<LinkEvent>) -> Links {
        Links {
            kept: BTreeMap::new(),
            tasks: JoinSet::new(),
            started: 0,
            wire,
            events,
        }
    }

    /// Whether this task is the one that keeps the stream to a node.
    pub(super) fn keeps(&self, node: NodeId, task: u64) -> bool {
        self.kept.get(&node).is_some_and(|kept| kept.task == task)
    }

    /// Starts and ends tasks so that there is one for each of these. Returns whose streams are closed: they left, or are
    /// elsewhere now.
    pub(super) fn open(&mut self, safekeepers: &Safekeepers) -> Vec<NodeId> {
        // Those that were ended before.
        while self.tasks.try_join_next().is_some() {}
        let addresses = &safekeepers.addresses;
        let ended = self
            .kept
            .extract_if(.., |node, kept| addresses.get(node) != Some(&kept.address));
        let closed: Vec<NodeId> = ended
            .map(|(node, kept)| {
                kept.handle.abort();
                node
            })
            .collect();
        for (node, address) in addresses {
            if self.kept.contains_key(node) {
                continue;
            }
            self.started += 1;
            let (task, address) = (self.started, address.clone());
            let keep = link::keep((*node, task), address.clone(), self.wire, self.events.clone());
            let handle = self.tasks.spawn(keep);
            let kept = Kept {
                task,
                address,
                handle,
            };
            self.kept.insert(*node, kept);
        }
        closed
    }
}
