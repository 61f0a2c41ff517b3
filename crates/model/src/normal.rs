//! One state for what cannot be told apart: what has no effect any more is taken out of it, so that the checker does not
//! visit the same future many times. Why each of these loses nothing:
//!
//! * **A proposer that is over**: only the highest term that it knew matters, to its next attempt. Its requests live on.
//! * **A proposer that has won** never looks again at who voted; **one that has chosen a term**, at the floor of the term and at
//!   promised terms that are not above it, since what it would choose next is above all of them; and none at the logs of peers
//!   that will be asked for them again before they are announced to
//!   ([`forget`](lakebed_quorum::proposer::Proposer::forget)).
//! * **Requests that may arrive again**, when their receiver will refuse them for ever or they change nothing: its promised
//!   term and its generation only grow, a refusal changes nothing, a vote or a history has its effect once, an append that
//!   begins below the end of what the same term wrote was taken (only a later term, or recovery from a peer, cuts WAL), and
//!   a commit position that is known is no news. So a request that was delivered is soon as good as gone, and requests that
//!   are delivered twice cost few states; the ones that matter are those of proposers that are over.
//! * **Commit notices** (appends without WAL) arrive as soon as they are next in their stream. A commit position that a node
//!   knows earlier only lets it refuse more: to cut below it, which counts as a violation. As a donor it gives more of what
//!   is committed, where without it would give nothing. A later notice could be refused and so end its sender, but a
//!   sender that is over is to all others one that does nothing more. Not where nodes recover from each other: what they
//!   offer depends on it.
//! * **Fields that nobody reads here**: an append's `truncate` (nothing is in object storage), an answer's commit position.
//! * **What the onlooker knows**: the donor's WAL in a vote, once that term's proposer has won or is over; the log of a term
//!   that no node's history, no request and no live proposer names. Nothing of it can reach anybody, and what it committed
//!   is remembered apart.
//! * **Which of two proposers is which**, where both may try equally often. A record names its term alone, and nobody hears
//!   the answer to a request that arrives again.
//!
//! Not used: that safekeepers are alike. A proposer takes the one with the highest number of equal donors, so exchanging two
//! is not exactly a symmetry.
//!
//! Under a broken rule some of these arguments fail. That can hide a violation, never make one up; the tests show that the
//! broken rules are found all the same.

use crate::part::Part;
use crate::scenario::Scenario;
use crate::state::{Compute, Node, State, index};
use lakebed_quorum::history::TermHistory;
use lakebed_quorum::message::Request;
use lakebed_types::Term;
use std::collections::BTreeSet;

impl State {
    /// See the module header.
    pub(crate) fn normalize(&mut self, scenario: &Scenario) {
        if scenario.is_reduced() {
            self.drop_idle(scenario);
        }
        for (compute, attempts) in self.computes.iter_mut().zip(scenario.attempts) {
            if compute.hash_of().is_some() {
                continue;
            }
            let floor = if compute.attempt < attempts {
                compute.floor.max(compute.core.term().unwrap_or_default())
            } else {
                Term(0)
            };
            if compute.ghost && compute.up {
                let members = compute.core.membership().clone();
                let requests = std::mem::take(&mut compute.requests);
                **compute = Compute {
                    started: true,
                    ghost: true,
                    requests,
                    ..Compute::new(members, compute.attempt, floor, scenario)
                };
            } else if !compute.up {
                let over = Compute::new(scenario.first(), compute.attempt, floor, scenario);
                **compute = Compute { up: false, ..over };
            } else {
                compute.core.forget();
                if scenario.is_reduced() {
                    compute.core.forget_time();
                }
            }
            compute.seal();
        }
        let same = |attempts: &u8| *attempts == scenario.attempts[0];
        if scenario.attempts.iter().all(same) {
            self.computes.sort_by_key(Part::hash_of);
        }
        self.nodes.iter_mut().for_each(Part::seal);
        self.drop_requests(scenario);
        self.old.seal();
        self.drop_knowledge();
        self.known.seal();
    }

    fn drop_requests(&mut self, scenario: &Scenario) {
        let (nodes, cuts) = (&self.nodes, scenario.exchange);
        let matters = |(n, request): &(usize, Request)| {
            nodes.get(*n).is_some_and(|node| may_matter(node, request, cuts))
        };
        if !self.old.iter().all(matters) {
            self.old.retain(matters);
        }
    }

    /// Votes and logs that no check can need any more.
    fn drop_knowledge(&mut self) {
        let mut asking = BTreeSet::new();
        let mut named = BTreeSet::new();
        for compute in self.computes.iter().filter(|compute| compute.up) {
            named.extend(compute.core.term());
            if compute.core.history().is_none() {
                asking.extend(compute.core.term());
            }
        }
        let terms = |history: &TermHistory| history.entries().iter().map(|entry| entry.0).collect::<Vec<_>>();
        for node in &self.nodes {
            named.extend(terms(&node.control.term_history));
        }
        let queued = self
            .computes
            .iter()
            .flat_map(|compute| compute.requests.iter().flatten());
        for request in self.old.iter().map(|(_, request)| request).chain(queued) {
            match request {
                Request::Elected { history, .. } => named.extend(terms(history)),
                Request::Append { term, .. } => named.extend([*term]),
                Request::Greeting { .. } | Request::Vote { .. } => {}
            }
        }
        let known = &self.known;
        if known.votes.keys().any(|(term, _)| !asking.contains(term)) {
            self.known.votes.retain(|(term, _), _| asking.contains(term));
        }
        if self.known.logs.keys().any(|term| !named.contains(term)) {
            self.known.logs.retain(|term, _| named.contains(term));
        }
    }
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
            bytes,
            commit,
            ..
        } => {
            let notice = bytes.is_empty() && *commit <= control.commit;
            let written = *term == last && (notice || index(*begin) < node.wal.len());
            *generation >= at && *term >= control.term && (!written || cuts)
        }
    }
}
