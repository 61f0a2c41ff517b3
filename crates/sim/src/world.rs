//! The simulated world: nodes, hosts, streams, faults, and the queue of what happens next.
//!
//! One event at a time, by virtual time and then by order of creation. Whatever is random comes from the seed. An
//! event returns an error only when an invariant does not hold; the run ends there.

use crate::chaos::Faults;
use crate::disk::RECORD;
use crate::host::Host;
use crate::invariants::{Checked, Violation, progress};
use crate::ledger::Ledger;
use crate::network::Stream;
use crate::node::Node;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::{Options, Report};
use bytes::Bytes;
use lakebed_quorum::acceptor::{Durable, Offer};
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Request, Response};
use lakebed_quorum::mutation::Mutation;
use lakebed_quorum::proposer::Source;
use lakebed_types::{Generation, Lsn, NodeId, PgVersion, Term};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Acceptors that exist at most.
pub(crate) const NODES: u64 = 5;
/// Size of a WAL segment here; commit is persisted often enough to matter.
pub(crate) const SEGMENT_BYTES: u64 = 1024;

/// What may happen. Events of a node or host carry its life: those of an earlier one do nothing.
#[derive(Debug)]
pub(crate) enum Event {
    StartHost {
        host: usize,
        life: u64,
    },
    Tick {
        host: usize,
        life: u64,
    },
    Produce {
        host: usize,
        life: u64,
    },
    Connect {
        host: usize,
        life: u64,
        node: usize,
    },
    Closed {
        stream: usize,
    },
    ToAcceptor {
        stream: usize,
        msg: Request,
    },
    /// A request that a dead stream delivers once more; nobody hears the answer.
    Ghost {
        node: usize,
        from: NodeId,
        msg: Request,
    },
    ToProposer {
        stream: usize,
        msg: Response,
    },
    DiskDone {
        node: usize,
        life: u64,
        queue: usize,
    },
    RestartNode {
        node: usize,
        life: u64,
    },
    Reconfigure {
        host: usize,
        life: u64,
    },
    Read {
        host: usize,
        life: u64,
        acceptor: usize,
        source: Source,
        term: Term,
        begin: Lsn,
        end: Lsn,
    },
    /// A node asks a peer for committed WAL.
    Exchange {
        node: usize,
    },
    Offered {
        node: usize,
        life: u64,
        offer: Offer,
        begin: Lsn,
        bytes: Bytes,
    },
    /// The controller goes on from this generation.
    NextStep {
        generation: Generation,
    },
    /// The controller hears that the learners of this attempt are as close as they have to be, `commit` having been the
    /// commit position of the proposer that says so.
    CaughtUp {
        attempt: u64,
        commit: Lsn,
    },
    Chaos,
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) faults: Faults,
    pub(crate) ledger: Ledger,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) trace: Trace,
    pub(crate) report: Report,
}

/// The control state of an acceptor that is created for a timeline without WAL.
pub(crate) fn empty_acceptor(membership: Membership) -> Durable {
    let base = crate::disk::BASE;
    let history = TermHistory::new(vec![(Term(0), base)]);
    Durable {
        term: Term(0),
        term_history: history.unwrap_or_else(|_| unreachable!("one entry is a history")),
        membership,
        commit: base,
        truncate: base,
        backup: base,
        timeline_start: base,
        system_id: 7,
        pg_version: PgVersion::V15,
        segment_bytes: SEGMENT_BYTES,
    }
}

impl World {
    pub(crate) fn new(seed: u64, options: &Options) -> World {
        let mut rng = Rng::new(seed);
        let count = if rng.chance(250) { NODES } else { 3 };
        let members = Membership {
            generation: Generation(1),
            old: (1..=count).map(NodeId).collect(),
            new: None,
        };
        let node = |id| Node::new(NodeId(id), empty_acceptor(members.clone()), options.mutation);
        let nodes = (1..=NODES).map(node).collect();
        let faults = Faults::new(&mut rng);
        let mut world = World {
            rng,
            now: 0,
            queue: BinaryHeap::new(),
            order: 0,
            nodes,
            hosts: vec![Host::new(NodeId(101)), Host::new(NodeId(102))],
            streams: Vec::new(),
            faults,
            ledger: Ledger::new(members),
            mutation: options.mutation,
            trace: Trace::new(options.hash_trace, options.keep_trace),
            report: Report::default(),
        };
        world.after(0, Event::StartHost { host: 0, life: 0 });
        let late = world.rng.range(0, 3000);
        world.after(late, Event::StartHost { host: 1, life: 0 });
        world.after(300, Event::Chaos);
        world
    }

    /// Lets `event` happen in `delay` milliseconds.
    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Lets `event` happen at `at`.
    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        let order = self.order;
        self.queue.push(Reverse(Scheduled { at, order, event }));
    }

    /// Runs `events` events with faults, heals everything, and runs on until all is well.
    pub(crate) fn run(&mut self, events: u64) -> Checked {
        while self.report.events < events {
            self.step()?;
        }
        self.heal()?;
        let (healed, target) = (self.now, self.ledger.commit().0 + 8 * RECORD as u64);
        while !progress::healthy(&self.nodes, &self.ledger, Lsn(target)) {
            if self.now - healed > progress::BOUND_MS {
                return progress::too_late(&self.nodes, &self.ledger, Lsn(target));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Adds a line to the event log.
    pub(crate) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.step(format_args!("{:>6} ms  {what}", self.now));
    }

    fn step(&mut self) -> Checked {
        let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else {
            return Err(Violation {
                invariant: "progress",
                detail: "nothing is left to happen".to_owned(),
            });
        };
        self.now = self.now.max(at);
        self.report.events += 1;
        self.note(format_args!("{event}"));
        match event {
            Event::StartHost { host, life } => self.start_host(host, life),
            Event::Tick { host, life } => self.tick(host, life),
            Event::Produce { host, life } => self.produce(host, life),
            Event::Connect { host, life, node } => self.connect(host, life, node),
            Event::Closed { stream } => self.closed(stream),
            Event::ToAcceptor { stream, msg } => self.deliver_request(stream, msg),
            Event::Ghost { node, from, msg } => self.request(node, from, msg, None),
            Event::ToProposer { stream, msg } => self.deliver_response(stream, msg),
            Event::DiskDone { node, life, queue } => self.disk_done(node, life, queue),
            Event::RestartNode { node, life } => self.restart_node(node, life),
            Event::Read {
                host,
                life,
                acceptor,
                source,
                term,
                begin,
                end,
            } => self.read(host, life, acceptor, source, term, (begin, end)),
            Event::Reconfigure { host, life } => self.reconfigure(host, life),
            Event::Exchange { node } => self.exchange(node),
            Event::Offered {
                node,
                life,
                offer,
                begin,
                bytes,
            } => self.take_offer(node, life, offer, begin, bytes),
            Event::NextStep { generation } => self.next_step(generation),
            Event::CaughtUp { attempt, commit } => self.caught_up(attempt, commit),
            Event::Chaos => self.chaos(),
        }
    }
}
