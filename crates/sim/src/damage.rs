//! Disks that are lost or rot, and what becomes of their nodes.
//!
//! A safekeeper whose disk is lost never answers again: what it promised is forgotten, so it may come back only as a
//! new member, in a configuration that counts on nothing it said before. One that finds a damaged record in its
//! committed WAL keeps its promises; it stops, and starts again with the record from object storage or a peer.

use crate::disk::{RECORD, are_whole, offset, position};
use crate::invariants::{Checked, readable, survivors};
use crate::node::Node;
use crate::world::{World, empty_acceptor};
use lakebed_quorum::mutation::Mutation;
use lakebed_types::Lsn;

impl World {
    /// A disk is gone, where the protocol can bear it.
    pub(crate) fn lose_disk(&mut self, n: usize) -> Checked {
        let id = self.nodes[n].id;
        let rotten = self.nodes.iter().any(|node| node.disk.rot.is_some());
        if rotten || self.nodes[n].gone || !survivors::suffice(&self.nodes, &self.ledger, Some(id)) {
            return Ok(());
        }
        self.report.lost_disks += 1;
        if self.mutation == Some(Mutation::EmptyDiskKeepsIdentity) {
            self.recreate_node(n);
            return readable::check(&self.nodes, &self.ledger);
        }
        self.wipe_node(n)
    }

    /// The timeline is no longer on this node.
    pub(crate) fn wipe_node(&mut self, n: usize) -> Checked {
        self.recreate_node(n);
        self.note(format_args!("node {} no longer has the timeline", n + 1));
        self.nodes[n].acceptor = None;
        self.nodes[n].gone = true;
        survivors::check(&self.nodes, &self.ledger)?;
        readable::check(&self.nodes, &self.ledger)
    }

    /// A node starts with an empty disk, in the configuration that was decided last.
    pub(crate) fn recreate_node(&mut self, n: usize) {
        self.break_streams(|stream| stream.node == n);
        let node = &mut self.nodes[n];
        let (id, life) = (node.id, node.life + 1);
        let lost = if node.gone {
            std::mem::take(&mut node.lost)
        } else {
            node.disk.solid().to_vec()
        };
        self.nodes[n] = Node::new(id, empty_acceptor(self.ledger.config.clone()), self.mutation);
        (self.nodes[n].life, self.nodes[n].lost) = (life, lost);
    }

    /// A byte of committed WAL rots, of which there is another copy.
    pub(crate) fn rot(&mut self, n: usize) {
        let committed = offset(self.nodes[n].disk.control.commit);
        let worn = self.nodes.iter().any(|node| node.gone || node.disk.rot.is_some());
        if committed == 0 || worn {
            return;
        }
        self.report.rotten_bytes += 1;
        self.nodes[n].disk.rot = Some(self.rng.index(committed));
    }

    /// WAL of a node, if it is whole. A node that finds damage stops.
    pub(crate) fn read_verified(
        &mut self,
        n: usize,
        begin: Lsn,
        end: Lsn,
    ) -> Result<Option<Vec<u8>>, crate::Violation> {
        let bytes = self.nodes[n].disk.read(begin, end);
        let damaged = bytes
            .as_ref()
            .is_some_and(|bytes| !are_whole(bytes, offset(begin)));
        if damaged && self.mutation != Some(Mutation::ServeUnverified) {
            self.crash_node(n)?;
            return Ok(None);
        }
        Ok(bytes)
    }

    /// Replaces the damaged record of a node that is down; false when nobody has it now.
    pub(crate) fn replace_damaged(&mut self, n: usize) -> bool {
        let Some(at) = self.nodes[n].disk.rot else {
            return true;
        };
        let at = at - at % RECORD;
        let (begin, end) = (position(at), position(at + RECORD));
        let offers = |node: &Node| {
            let acceptor = node
                .acceptor
                .as_ref()
                .filter(|a| a.state().commit >= end && a.state().truncate <= begin);
            acceptor
                .and_then(|_| node.disk.read(begin, end))
                .filter(|bytes| are_whole(bytes, at))
        };
        let stored = Some(self.ledger.stored(begin, end).to_vec()).filter(|bytes| bytes.len() == RECORD);
        let found = stored.or_else(|| {
            self.nodes
                .iter()
                .filter(|node| node.id != self.nodes[n].id)
                .find_map(offers)
        });
        // The disk's bytes are as they were written; that the copy equals them is what the protocol promises.
        let same = found.is_some_and(|bytes| self.nodes[n].disk.wal.get(at..at + RECORD) == Some(&bytes));
        if same {
            self.nodes[n].disk.rot = None;
            self.report.healed_records += 1;
        }
        same
    }
}
