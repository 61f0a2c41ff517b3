//! The checked state: cores, disks, messages under way, and what only an onlooker knows.

use crate::part::Part;
use crate::scenario::{NODES, Scenario};
use lakebed_quorum::acceptor::Durable;
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Request, Response};
use lakebed_quorum::proposer::Proposer;
use lakebed_types::{Lsn, NodeId, PgVersion, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where the timeline starts.
pub(crate) const BASE: u64 = 1;

/// A safekeeper's disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub(crate) control: Durable,
    /// One byte for each record from the timeline's start on.
    pub(crate) wal: Vec<u8>,
}

/// A donor read under way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Read {
    pub(crate) acceptor: NodeId,
    pub(crate) donor: NodeId,
    pub(crate) term: Term,
    pub(crate) begin: Lsn,
    pub(crate) end: Lsn,
}

/// A proposer and its driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Compute {
    pub(crate) core: Proposer,
    /// Terms of earlier attempts are not above it.
    pub(crate) floor: Term,
    pub(crate) attempt: u8,
    /// Neither fenced nor lost.
    pub(crate) up: bool,
    /// Nobody will answer it any more but with a higher term; see `idle`.
    pub(crate) ghost: bool,
    /// It tells nobody the commit position; see `idle`.
    pub(crate) untold: bool,
    /// It has greeted the members.
    pub(crate) started: bool,
    /// The log, once a term is won.
    pub(crate) log: Vec<u8>,
    /// So many records of it are this attempt's.
    pub(crate) written: usize,
    pub(crate) ticked: bool,
    /// To each acceptor.
    pub(crate) requests: [VecDeque<Request>; NODES],
    /// From each acceptor.
    pub(crate) answers: [VecDeque<Response>; NODES],
    pub(crate) reads: BTreeSet<Read>,
    /// The streams on which nothing will come any more.
    pub(crate) rests: [bool; NODES],
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub(crate) nodes: Vec<Part<Node>>,
    pub(crate) computes: Vec<Part<Compute>>,
    /// Requests that may arrive again, with their receiver.
    pub(crate) old: Part<BTreeSet<(usize, Request)>>,
    /// The configuration that was decided last, and whether it has settled.
    pub(crate) config: Membership,
    pub(crate) settled: bool,
    pub(crate) aborted: bool,
    pub(crate) known: Part<Known>,
    /// What must never be.
    pub violation: Option<&'static str>,
}

/// What only an onlooker knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Known {
    /// For each term that was won, its winner's log.
    pub(crate) logs: BTreeMap<Term, Vec<u8>>,
    /// The donor's WAL when it voted: by term and node.
    pub(crate) votes: BTreeMap<(Term, NodeId), Vec<u8>>,
    pub(crate) committed: Vec<u8>,
    /// How far each term has committed, in records.
    pub(crate) commits: BTreeMap<Term, usize>,
}

/// Index of a position in a log.
pub(crate) fn index(lsn: Lsn) -> usize {
    usize::try_from(lsn.0.saturating_sub(BASE)).unwrap_or(usize::MAX)
}

/// Position of an index.
pub(crate) fn position(index: usize) -> Lsn {
    Lsn(BASE + index as u64)
}

/// Index of a node.
pub(crate) fn slot(id: NodeId) -> usize {
    usize::try_from(id.0.saturating_sub(1)).unwrap_or(usize::MAX)
}

impl Node {
    pub(crate) fn new(membership: Membership) -> Node {
        let history = TermHistory::new(vec![(Term(0), Lsn(BASE))]);
        Node {
            control: Durable {
                term: Term(0),
                term_history: history.unwrap_or_else(|_| unreachable!("one entry is a history")),
                membership,
                commit: Lsn(BASE),
                truncate: Lsn(BASE),
                backup: Lsn(BASE),
                timeline_start: Lsn(BASE),
                system_id: 7,
                pg_version: PgVersion::V15,
                // So small that each move of the commit position is written down.
                segment_bytes: 1,
            },
            wal: Vec::new(),
        }
    }
}

impl State {
    /// Empty safekeepers, and proposers that have not begun.
    pub(crate) fn first(scenario: &Scenario) -> State {
        let config = scenario.first();
        let mut state = State {
            nodes: vec![Part::new(Node::new(config.clone())); NODES],
            computes: Vec::new(),
            old: Part::new(BTreeSet::new()),
            config: config.clone(),
            settled: true,
            aborted: false,
            known: Part::new(Known::default()),
            violation: None,
        };
        for attempts in scenario.attempts {
            let mut compute = Compute::new(config.clone(), 1, Term(0), scenario);
            compute.up = attempts > 0;
            state.computes.push(Part::new(compute));
        }
        let anew = scenario.attempts.iter().any(|attempts| *attempts > 1);
        if scenario.is_reduced()
            && !anew
            && !scenario.abort
            && let Some(config) = state.next_config(scenario)
        {
            state.decide(config);
        }
        state
    }

    /// Notes that something is wrong; the first finding stays.
    pub(crate) fn ensure(&mut self, holds: bool, what: &'static str) {
        if !holds {
            self.violation.get_or_insert(what);
        }
    }
}
