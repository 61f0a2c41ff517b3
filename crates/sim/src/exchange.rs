//! Safekeepers that help each other without a compute (rule 11), and how a new member pulls a timeline.

use crate::disk::{offset, position};
use crate::invariants::{Checked, promises};
use crate::world::{Event, World};
use bytes::Bytes;
use lakebed_quorum::acceptor::{Input, Lack, Offer};
use lakebed_types::Lsn;

/// Bytes of WAL taken at a time.
const CHUNK: u64 = 64;

impl World {
    /// A node asks another for what it lacks of what that one knows to be committed.
    pub(crate) fn exchange(&mut self, n: usize) -> Checked {
        let peer = self.rng.index(self.nodes.len());
        if peer == n || self.rng.chance(self.faults.loss_permille) {
            return Ok(());
        }
        let (Some(acceptor), Some(from)) = (&self.nodes[n].acceptor, &self.nodes[peer].acceptor) else {
            return Ok(());
        };
        let offer = from.offer();
        let (begin, bytes) = match acceptor.lack(&offer) {
            Err(refusal) => {
                return crate::invariants::no_rejection::on_rejected(self.nodes[n].id, refusal);
            }
            Ok(Lack::Nothing) => return Ok(()),
            Ok(Lack::Commit(at) | Lack::History(at)) => (at, Bytes::new()),
            Ok(Lack::Wal { begin, end }) => {
                let end = end.min(Lsn(begin.0 + CHUNK));
                let Some(bytes) = self.offered(peer, &offer, begin, end)? else {
                    return Ok(());
                };
                (begin, Bytes::from(bytes))
            }
        };
        self.report.fetches += 1;
        let (life, delay) = (self.nodes[n].life, self.rng.range(1, self.faults.read_ms));
        self.after(
            delay,
            Event::Offered {
                node: n,
                life,
                offer,
                begin,
                bytes,
            },
        );
        Ok(())
    }

    fn offered(
        &mut self,
        peer: usize,
        offer: &Offer,
        begin: Lsn,
        end: Lsn,
    ) -> Result<Option<Vec<u8>>, crate::Violation> {
        let id = self.nodes[peer].id;
        let bytes = if begin < offer.start {
            Some(self.ledger.stored(begin, end).to_vec())
        } else {
            self.read_verified(peer, begin, end)?
        };
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
            return Ok(None);
        };
        promises::on_offer(&self.ledger, id, begin, &bytes)?;
        Ok(Some(bytes))
    }

    /// The answer arrives, perhaps late.
    pub(crate) fn take_offer(
        &mut self,
        n: usize,
        life: u64,
        offer: Offer,
        begin: Lsn,
        bytes: Bytes,
    ) -> Checked {
        if self.nodes[n].life != life {
            return Ok(());
        }
        self.node_input(n, Input::Recover { offer, begin, bytes }, None)?;
        // It goes on until it lacks nothing.
        if self.rng.chance(700) {
            self.after(1, Event::Exchange { node: n });
        }
        Ok(())
    }

    /// A node uploads what it knows to be committed; the slowest shard consumes it.
    pub(crate) fn upload_and_consume(&mut self, n: usize) -> Checked {
        let Some(acceptor) = &self.nodes[n].acceptor else {
            return Ok(());
        };
        let (commit, flush) = (acceptor.state().commit, acceptor.ends().0);
        let early = self.mutation == Some(lakebed_quorum::mutation::Mutation::UploadUncommitted);
        let (begin, end) = (self.ledger.uploaded(), if early { flush } else { commit });
        if begin < end
            && acceptor.state().truncate <= begin
            && let Some(bytes) = self.read_verified(n, begin, end)?
        {
            self.report.uploads += 1;
            self.ledger.store.extend_from_slice(&bytes);
            crate::invariants::uploads::check(&self.ledger)?;
        }
        if self.rng.chance(500) {
            self.ledger.consumed = self.ledger.consumed.max(commit);
        }
        let (uploaded, consumed) = (self.ledger.uploaded(), self.ledger.consumed);
        for n in 0..self.nodes.len() {
            if self.rng.chance(700) {
                self.node_input(n, Input::BackedUp { lsn: uploaded }, None)?;
                self.node_input(n, Input::Consumed { lsn: consumed }, None)?;
            }
        }
        Ok(())
    }

    /// WAL of a donor, which must be that of `term`.
    pub(crate) fn read_from_donor(
        &mut self,
        host: usize,
        n: usize,
        term: lakebed_types::Term,
        (begin, end): (Lsn, Lsn),
    ) -> Result<Option<Vec<u8>>, crate::Violation> {
        let node = &self.nodes[n];
        // Reads go by connections of their own.
        let reachable = !self.blocked_to_host(host, n);
        let Some(donor) = node.acceptor.as_ref().filter(|_| reachable) else {
            return Ok(None);
        };
        let removed = donor.state().truncate > begin;
        let end = if removed {
            end
        } else {
            end.min(position(node.disk.wal.len()))
        };
        if offset(begin) > offset(end) {
            return Ok(None);
        }
        let bytes = if removed {
            // It fetches what it does not have any more, because it uploaded it.
            self.ledger.stored(begin, end).to_vec()
        } else {
            match self.read_verified(n, begin, end)? {
                Some(bytes) => bytes,
                None => return Ok(None),
            }
        };
        // Also of what is stored: it is committed, but maybe by a later term, past the point where the two part.
        let end = Lsn(begin.0 + bytes.len() as u64);
        let node = &self.nodes[n];
        let serves = node
            .acceptor
            .as_ref()
            .is_some_and(|donor| donor.may_serve(term, end).is_ok());
        if !serves {
            return Ok(None);
        }
        promises::on_read(&self.ledger, node.id, term, begin, &bytes)?;
        Ok(Some(bytes))
    }
}
