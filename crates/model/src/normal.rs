//! One state for what cannot be told apart: what has no effect any more is taken out of it, so that the checker does not
//! visit the same future many times.
//!
//! * The core of a proposer that is over, but for the highest term that it knew.
//! * Votes of terms whose proposer is over or has won: they were kept to check the winner.
//! * Requests that may arrive again, when their receiver will refuse them for ever: its promised term and its generation
//!   only grow, and a refusal changes nothing. Neither does an append that begins below the end of what the same term
//!   wrote: only a later term, or recovery from a peer, cuts WAL.
//! * Which of two proposers is which, where both may try equally often. A record names its term alone, and nobody hears the
//!   answer to a request that arrives again.
//!
//! With a broken rule nothing is known of what a receiver refuses, so that such requests stay.

use crate::scenario::Scenario;
use crate::state::{Compute, Node, State, index};
use lakebed_quorum::message::Request;
use lakebed_types::Term;
use std::hash::{DefaultHasher, Hash, Hasher};

impl State {
    /// See the module header.
    pub(crate) fn normalize(&mut self, scenario: &Scenario) {
        for (compute, attempts) in self.computes.iter_mut().zip(scenario.attempts) {
            if !compute.up {
                let floor = if compute.attempt < attempts {
                    compute.floor.max(compute.core.term().unwrap_or_default())
                } else {
                    Term(0)
                };
                let over = Compute::new(scenario.first(), compute.attempt, floor, scenario);
                *compute = Compute { up: false, ..over };
            }
        }
        if scenario
            .attempts
            .iter()
            .all(|attempts| *attempts == scenario.attempts[0])
        {
            self.computes.sort_by_cached_key(fingerprint);
        }
        let asking = |term: Term| {
            let mut computes = self.computes.iter();
            computes.any(|c| c.up && c.core.term() == Some(term) && c.core.history().is_none())
        };
        self.votes.retain(|(term, _), _| asking(*term));
        if scenario.sabotage.is_none() {
            let nodes = &self.nodes;
            let cuts = scenario.exchange;
            self.old
                .retain(|(n, request)| nodes.get(*n).is_some_and(|node| may_matter(node, request, cuts)));
        }
    }
}

fn fingerprint(compute: &Compute) -> u64 {
    let mut hasher = DefaultHasher::new();
    compute.hash(&mut hasher);
    hasher.finish()
}

fn may_matter(node: &Node, request: &Request, cuts: bool) -> bool {
    let control = &node.control;
    let (at, last) = (control.membership.generation, control.term_history.last().0);
    match request {
        Request::Greeting { .. } => true,
        Request::Vote { generation, term } => *generation >= at && *term > control.term,
        Request::Elected { generation, term, .. } => {
            *generation >= at && *term >= control.term && (*term != last || cuts)
        }
        Request::Append {
            generation,
            term,
            begin,
            ..
        } => {
            let written = *term == last && index(*begin) < node.wal.len();
            *generation >= at && *term >= control.term && (!written || cuts)
        }
    }
}
