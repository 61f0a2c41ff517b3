//! Disks that are lost or rot, and what becomes of their nodes.
//!
//! A safekeeper whose disk is lost never answers again: what it promised is forgotten, so it may come back only as a
//! new member, in a configuration that counts on nothing it said before. One that finds a damaged record in WAL that it
//! flushed keeps its promises; it stops, and starts again with the record from object storage or a peer, or without it
//! when all have given it up.

use crate::disk::{RECORD, are_whole, offset, position};
use crate::invariants::{Checked, ensure, readable, survivors};
use crate::node::Node;
use crate::world::{World, empty_acceptor};
use lakebed_quorum::acceptor::mend::{Copy, Mend, mend};
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

    /// A byte of flushed WAL rots. If it is committed there is another copy.
    pub(crate) fn rot(&mut self, n: usize) {
        let durable = self.nodes[n].disk.known_durable();
        let worn = self.nodes.iter().any(|node| node.gone || node.disk.rot.is_some());
        if durable == 0 || worn {
            return;
        }
        let at = self.rng.index(durable);
        self.report.rotten_bytes += 1;
        self.report.rotten_uncommitted += u64::from(at >= offset(self.nodes[n].disk.control.commit));
        self.nodes[n].disk.rot = Some(at);
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

    /// Replaces the damaged record of a node that is down, or cuts it off where nobody needs it; false when nobody can
    /// help now.
    pub(crate) fn replace_damaged(&mut self, n: usize) -> Result<bool, crate::Violation> {
        let Some(at) = self.nodes[n].disk.rot else {
            return Ok(true);
        };
        let at = at - at % RECORD;
        let (begin, end) = (position(at), position(at + RECORD));
        let own = &self.nodes[n].disk.control;
        let below = position(self.nodes[n].disk.known_durable());
        let mut found = None;
        if end <= own.commit {
            found = Some(self.ledger.stored(begin, end).to_vec()).filter(|bytes| bytes.len() == RECORD);
        }
        for node in self.nodes.iter().filter(|node| node.id != self.nodes[n].id) {
            let Some(acceptor) = node.acceptor.as_ref().filter(|_| found.is_none()) else {
                continue;
            };
            let copy = Copy {
                history: &acceptor.state().term_history,
                commit: acceptor.state().commit,
                end: acceptor.ends().0,
            };
            match mend(own, (begin, below), copy) {
                Mend::Wal { end: until } if until >= end => {
                    // What it does not have any more it uploaded.
                    let read = match acceptor.state().truncate <= begin {
                        true => node.disk.read(begin, end),
                        false => Some(self.ledger.stored(begin, end).to_vec()),
                    };
                    found = read.filter(|bytes| bytes.len() == RECORD && are_whole(bytes, at));
                }
                Mend::Cut => {
                    self.report.damage_cut += 1;
                    self.note(format_args!("node {} cuts damage at {begin}", n + 1));
                    self.nodes[n].disk.cut_damage();
                    return Ok(true);
                }
                Mend::Wal { .. } | Mend::Nothing => {}
            }
        }
        let Some(bytes) = found else {
            return Ok(false);
        };
        // The disk's bytes are as they were written; that the copy equals them is what the protocol promises.
        let disk = &mut self.nodes[n].disk;
        ensure(disk.wal.get(at..at + RECORD) == Some(&bytes), "promises", || {
            format!("node {} is mended at {begin} with other WAL than it had", n + 1)
        })?;
        disk.rot = None;
        self.report.healed_records += 1;
        Ok(true)
    }
}
