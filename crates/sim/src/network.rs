//! Streams between hosts and nodes: ordered, without gaps, until they break; delays, loss, partitions, also one-way.
//!
//! A message that is lost breaks its stream: what follows on it is lost as well, and both ends find out some time
//! later. What the proposer's end sent before may still arrive after it has opened a new stream, as TCP allows, and
//! now and then an old request arrives twice, which is more than TCP allows.

use crate::disk::offset;
use crate::invariants::Checked;
use crate::world::{Event, World};
use bytes::Bytes;
use lakebed_quorum::message::{Request, Response};
use lakebed_quorum::proposer::{Input, Source};
use lakebed_types::{Lsn, NodeId, Term};

/// One stream, also when it is history.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) host: usize,
    pub(crate) host_life: u64,
    pub(crate) node: usize,
    node_life: u64,
    /// Nothing is delivered to the acceptor or to the proposer any more.
    cut: [bool; 2],
    /// When the last message of a direction arrives.
    last: [u64; 2],
    closing: bool,
}

/// Index of a direction in [`Stream`].
const TO_ACCEPTOR: usize = 0;
const TO_PROPOSER: usize = 1;

impl World {
    fn delay(&mut self) -> u64 {
        if self.rng.chance(20) {
            self.rng.range(20, 400)
        } else {
            self.rng.range(1, 8)
        }
    }

    fn blocked(&self, host: usize, node: usize, direction: usize) -> bool {
        self.faults.blocked.contains(&(host, node, direction))
    }

    /// Whether nothing comes from a node to a host.
    pub(crate) fn blocked_to_host(&self, host: usize, node: usize) -> bool {
        self.blocked(host, node, TO_PROPOSER)
    }

    /// A host tries to open a stream.
    pub(crate) fn connect(&mut self, host: usize, life: u64, node: usize) -> Checked {
        let Some(id) = self.nodes.get(node).map(|n| n.id) else {
            return Ok(());
        };
        let h = &self.hosts[host];
        if h.life != life
            || h.core.as_ref().is_none_or(|c| c.progress(id).is_none())
            || h.streams[node].is_some()
        {
            return Ok(());
        }
        let up = self.nodes[node].acceptor.is_some();
        if !up || self.blocked(host, node, TO_ACCEPTOR) || self.blocked(host, node, TO_PROPOSER) {
            let delay = self.rng.range(50, 400);
            self.after(delay, Event::Connect { host, life, node });
            return Ok(());
        }
        self.streams.push(Stream {
            host,
            host_life: life,
            node,
            node_life: self.nodes[node].life,
            cut: [false; 2],
            last: [self.now; 2],
            closing: false,
        });
        self.hosts[host].streams[node] = Some(self.streams.len() - 1);
        self.host_input(host, Input::Connected(id))
    }

    /// Breaks what `which` selects; the hosts find out later.
    pub(crate) fn break_streams(&mut self, which: impl Fn(&Stream) -> bool) {
        for s in 0..self.streams.len() {
            if which(&self.streams[s]) {
                self.streams[s].cut = [true; 2];
                self.close_later(s);
            }
        }
    }

    fn close_later(&mut self, s: usize) {
        if !self.streams[s].closing {
            self.streams[s].closing = true;
            let delay = self.rng.range(5, 800);
            self.after(delay, Event::Closed { stream: s });
        }
    }

    /// The host finds out that a stream is dead.
    pub(crate) fn closed(&mut self, s: usize) -> Checked {
        let (host, life, node) = (
            self.streams[s].host,
            self.streams[s].host_life,
            self.streams[s].node,
        );
        if self.hosts[host].life != life || self.hosts[host].streams[node] != Some(s) {
            return Ok(());
        }
        self.hosts[host].streams[node] = None;
        let delay = self.rng.range(5, 300);
        self.after(delay, Event::Connect { host, life, node });
        self.host_input(host, Input::Disconnected(self.nodes[node].id))
    }

    /// When the next message of `direction` arrives, if it does.
    fn arrival(&mut self, s: usize, direction: usize) -> Option<u64> {
        if self.streams[s].cut[direction] {
            return None;
        }
        let (host, node) = (self.streams[s].host, self.streams[s].node);
        if self.blocked(host, node, direction) || self.rng.chance(self.faults.loss_permille) {
            self.report.losses += 1;
            self.streams[s].cut[direction] = true;
            self.close_later(s);
            return None;
        }
        let at = (self.now + self.delay()).max(self.streams[s].last[direction]);
        self.streams[s].last[direction] = at;
        Some(at)
    }

    pub(crate) fn send_to_acceptor(&mut self, host: usize, to: NodeId, msg: Request) {
        let node = usize::try_from(to.0 - 1).unwrap_or(usize::MAX);
        let Some(Some(stream)) = self.hosts[host].streams.get(node).copied() else {
            return;
        };
        let Some(at) = self.arrival(stream, TO_ACCEPTOR) else {
            return;
        };
        if !self.faults.healed && self.rng.chance(10) {
            let (late, from) = (self.rng.range(1, 4000), self.hosts[host].id);
            let msg = msg.clone();
            self.report.duplicates += 1;
            self.at(at + late, Event::Ghost { node, from, msg });
        }
        self.at(at, Event::ToAcceptor { stream, msg });
    }

    pub(crate) fn send_to_proposer(&mut self, stream: usize, msg: Response) {
        if let Some(at) = self.arrival(stream, TO_PROPOSER) {
            self.at(at, Event::ToProposer { stream, msg });
        }
    }

    pub(crate) fn deliver_request(&mut self, stream: usize, msg: Request) -> Checked {
        let s = &self.streams[stream];
        let (node, from) = (s.node, self.hosts[s.host].id);
        if self.nodes[node].life != s.node_life {
            return Ok(());
        }
        self.request(node, from, msg, Some(stream))
    }

    pub(crate) fn deliver_response(&mut self, stream: usize, msg: Response) -> Checked {
        let s = &self.streams[stream];
        let host = s.host;
        if self.hosts[host].streams[s.node] != Some(stream) || self.hosts[host].life != s.host_life {
            return Ok(());
        }
        let from = self.nodes[s.node].id;
        self.host_input(host, Input::Received { from, msg })
    }

    /// A host reads WAL for an acceptor: its own, another acceptor's, or from object storage.
    pub(crate) fn read(
        &mut self,
        host: usize,
        life: u64,
        acceptor: usize,
        source: Source,
        term: Term,
        (begin, end): (Lsn, Lsn),
    ) -> Checked {
        if self.hosts[host].life != life {
            return Ok(());
        }
        let found = match source {
            Source::Local => self.hosts[host]
                .log
                .get(offset(begin)..offset(end))
                .map(<[u8]>::to_vec),
            Source::Acceptor(id) => match self.nodes.iter().position(|n| n.id == id) {
                Some(n) => self.read_from_donor(host, n, term, (begin, end))?,
                None => None,
            },
        };
        let bytes = found.filter(|bytes| !bytes.is_empty()).map(Bytes::from);
        let acceptor = self.nodes[acceptor].id;
        let input = match bytes {
            Some(bytes) => Input::WalRead {
                acceptor,
                begin,
                bytes,
            },
            None => Input::WalReadFailed { acceptor, begin },
        };
        self.host_input(host, input)
    }
}
