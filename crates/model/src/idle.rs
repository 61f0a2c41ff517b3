//! Proposers, streams and safekeepers that have no future, and what nobody learns from: the reductions that make two
//! proposers under a membership change small enough. [`Scenario::plain`] goes without them, so that verdicts can be
//! compared; and so does, by itself, a model with time, or with recovery from peers, to which they would not apply.
//!
//! Safety only is asked for, so one thing carries most of it: *a proposer that is over is, to everybody else, one that does
//! nothing any more*, and each can do nothing any more from any moment on, for no step has to be taken.
//!
//! * **A fence is not heard.** An answer that names a higher term ends its hearer and does nothing else, so it is left out.
//!   Once a node has promised a higher term, all that it will ever answer to a lower one is such. What is on its way to it
//!   in the lower term is refused without change, so it goes too, and the stream rests. Two exceptions. A greeting with a
//!   generation that is news to the node is adopted, whoever sent it; it stays. And an election that has not been won
//!   starts over, in another term, when the membership changes, and may then hear old answers: so where answers are slow,
//!   an election is treated like this only if no further change will reach it. (Where they are not slow, a refused
//!   vote request that waits in front of a greeting would be answered after the change, and leave the link stale until a
//!   tick. Here it goes, as with a stream that broke, and the election goes on: more can happen, not less.)
//! * **An election that too few can still vote in** (the others have promised the term to another, or a higher one) waits for
//!   nothing but another membership, under which it starts over in a term above. Its votes are forgotten; its requests stay
//!   until they would be refused, for a promise may come of them. Not while a greeting is on its way, nor where
//!   answers are slow and it may be told of a change.
//! * **A winner to whom all nodes have promised higher terms** hears nothing any more. It may be told of a
//!   membership and pass it on by greeting, so that is what is left of it: a *ghost*.
//! * **A proposer that has nothing on its way** and will not be told of another membership is over.
//! * **A proposer may end at any time** where what it left behind may then arrive in any order and repeatedly: a step of its
//!   own, that takes the place of the fences not heard. Where requests are not doubled, they end with their stream, and
//!   there is nothing to see of the end.
//! * **Nodes are not told the commit position.** They use it twice: to refuse a history that parts below it, and as donors,
//!   for readers of a higher term than theirs. The first is a violation that is seen without: if a winner's log lacks
//!   what a lower term committed, then when it wins, or when the lower term commits; and the history of a lower term than
//!   the one that committed is refused for its term, as the node that knows of the commit is in that term. The second never
//!   happens without lost disks, and the read checks that it does not. That a node believes what is not committed, or
//!   cuts below what it believes, is checked where nodes are told: in the models of one proposer and by `sim`.
//!   An append without WAL then says nothing, and is not sent. Who would have learned from its refusal that it is over, or
//!   that there is another membership, may be over or be told at any time anyway.
//! * **A donor read that would fail is not done**: without time, a failed read is not tried again, so it is like one that
//!   takes for ever. A donor that has promised a higher term will fail every read of a lower one.
//! * **A node that has left**, and that no proposer counts, reads from, or can come to know of, is like one that was never
//!   there, and so is all that is on its way to it.
//! * **The first change is decided at once**, when no proposer starts anew: a decision changes nothing but what proposers can
//!   be told, and they are told at any time later, or never. The next decision waits to be a step of its own: until it
//!   comes proposers may still be told the first.
//! * **Answers are heard at once** by a proposer that has won, will not be told of another membership and writes nothing more,
//!   even where they are slow. It sends what it sends to an acceptor because of that acceptor's answers alone, and each
//!   request may take as long on its way as answer and request together. The one thing that answers do in common is to
//!   count for commit: earlier, it asks more of whoever wins later. That the WAL is on a quorum is then checked when it was
//!   flushed and not later; whoever cuts it later has won without it, which is checked then.
//! * **Only time looks at** when somebody was heard of.

use crate::part::Part;
use crate::scenario::{NODES, Scenario};
use crate::state::{Compute, Node, State, slot};
use lakebed_quorum::message::Request;
use lakebed_quorum::proposer::Input;
use lakebed_types::{NodeId, Term};

fn is_greeting(request: &Request) -> bool {
    matches!(request, Request::Greeting { .. })
}

impl State {
    /// Whether no other configuration than the one in force will ever be decided.
    fn is_last(&self, scenario: &Scenario) -> bool {
        let target = scenario.target().map(|set| set.into_iter().collect());
        self.config.new.is_none() && target.is_none_or(|target| self.config.old == target)
    }

    /// Whether a proposer is under way and will not be told of another configuration.
    fn is_told(&self, compute: &Compute, scenario: &Scenario) -> bool {
        let generation = compute.core.membership().generation;
        compute.started && generation == self.config.generation && self.is_last(scenario)
    }

    /// Above which term a proposer hears nothing.
    pub(crate) fn deaf_above(&self, compute: &Compute, scenario: &Scenario) -> Option<Term> {
        let fixed = compute.core.history().is_some() || !scenario.slow_answers;
        let deaf = scenario.is_reduced() && compute.up && (fixed || self.is_told(compute, scenario));
        compute.core.term().filter(|_| deaf)
    }

    /// Proposers hear what they may as well hear now.
    pub(crate) fn hear(&mut self, scenario: &Scenario) {
        for c in 0..self.computes.len() {
            let at_once = |compute: &Part<Compute>| {
                let written = compute.core.history().is_some() && compute.written >= scenario.records;
                compute.up && written && self.is_told(compute, scenario)
            };
            if !self.computes.get(c).is_some_and(at_once) {
                continue;
            }
            for n in 0..NODES {
                let waits =
                    |compute: &Part<Compute>| compute.answers.get(n).is_some_and(|queue| !queue.is_empty());
                while self.computes.get(c).is_some_and(waits)
                    && let Some(answers) = self.computes.get_mut(c).and_then(|all| all.answers.get_mut(n))
                    && let Some(msg) = answers.pop_front()
                {
                    let from = NodeId(n as u64 + 1);
                    self.proposer_input(c, Input::Received { from, msg });
                }
            }
        }
    }

    /// See the module header.
    pub(crate) fn drop_idle(&mut self, scenario: &Scenario) {
        for c in 0..self.computes.len() {
            for n in 0..NODES {
                self.rest(c, n, scenario);
                self.drop_votes(c, n, scenario);
            }
        }
        self.drop_nodes(scenario);
        for c in 0..self.computes.len() {
            if self.cannot_win(c, scenario)
                && let Some(compute) = self.computes.get_mut(c)
            {
                compute.core.lose();
            }
            if self.is_left_alone(c, scenario)
                && let Some(compute) = self.computes.get_mut(c)
            {
                compute.ghost = true;
            }
        }
        for c in 0..self.computes.len() {
            let over = |compute: &Part<Compute>| {
                let way = compute.requests.iter().all(|queue| queue.is_empty())
                    && compute.answers.iter().all(|queue| queue.is_empty())
                    && compute.reads.is_empty();
                let writes = compute.core.history().is_some() && compute.written < scenario.records;
                compute.up && way && !writes && self.is_told(compute, scenario)
            };
            if self.computes.get(c).is_some_and(over)
                && let Some(compute) = self.computes.get_mut(c)
            {
                compute.up = false;
            }
        }
    }

    /// Takes out vote requests of an election that was lost, when they will be refused.
    fn drop_votes(&mut self, c: usize, n: usize, scenario: &Scenario) {
        let (Some(compute), Some(node)) = (self.computes.get(c), self.nodes.get(n)) else {
            return;
        };
        let promised = node.control.term;
        let refused = |request: &Request| matches!(request, Request::Vote { term, .. } if *term <= promised);
        let fixed = !scenario.slow_answers || self.is_told(compute, scenario);
        let lost = fixed && compute.up && compute.core.term().is_none() && !compute.ghost;
        let any = |compute: &Compute| {
            let queue = compute.requests.get(n);
            queue.is_some_and(|queue| queue.iter().any(refused))
        };
        if lost
            && any(compute)
            && let Some(queue) = self
                .computes
                .get_mut(c)
                .and_then(|compute| compute.requests.get_mut(n))
        {
            queue.retain(|request| !refused(request));
        }
    }

    /// Whether an election is under way that too few can still vote in.
    fn cannot_win(&self, c: usize, scenario: &Scenario) -> bool {
        let Some(compute) = self.computes.get(c) else {
            return false;
        };
        let core = &compute.core;
        let fixed = !scenario.slow_answers || self.is_told(compute, scenario);
        let Some(term) = core
            .term()
            .filter(|_| compute.up && fixed && core.history().is_none())
        else {
            return false;
        };
        let greets = compute.requests.iter().flatten().any(is_greeting);
        if greets || compute.answers.iter().any(|queue| !queue.is_empty()) {
            return false;
        }
        !core.membership().is_quorum(|id| {
            let asked = compute
                .requests
                .get(slot(id))
                .is_some_and(|queue| !queue.is_empty());
            let free = self
                .nodes
                .get(slot(id))
                .is_some_and(|node| node.control.term < term);
            core.has_vote(id) || asked && free
        })
    }

    /// Whether all nodes have promised higher terms than the one that a proposer has won.
    fn is_left_alone(&self, c: usize, scenario: &Scenario) -> bool {
        let Some(compute) = self.computes.get(c).filter(|compute| !compute.ghost) else {
            return false;
        };
        let Some(term) = compute
            .core
            .term()
            .filter(|_| compute.core.history().is_some() && compute.up)
        else {
            return false;
        };
        let told = self.is_told(compute, scenario);
        let heard = compute.answers.iter().all(|queue| queue.is_empty()) && compute.reads.is_empty();
        let mut nodes = self.nodes.iter().enumerate();
        heard
            && nodes.all(|(n, node)| {
                node.control.term > term || told && !self.config.contains(NodeId(n as u64 + 1))
            })
    }

    /// Takes out what is between a proposer and a node that has promised a higher term.
    fn rest(&mut self, c: usize, n: usize, scenario: &Scenario) {
        let (Some(compute), Some(node)) = (self.computes.get(c), self.nodes.get(n)) else {
            return;
        };
        let term = self
            .deaf_above(compute, scenario)
            .or(compute.ghost.then_some(Term(0)));
        let Some(term) = term.filter(|term| node.control.term > *term) else {
            return;
        };
        let known = node.control.membership.generation;
        let id = NodeId(n as u64 + 1);
        let news = |request: &Request| matches!(request, Request::Greeting { membership, .. } if membership.generation > known);
        let idle = |compute: &Compute| {
            let requests = compute.requests.get(n).is_none_or(|queue| queue.iter().all(news));
            let answers = compute
                .answers
                .get(n)
                .is_none_or(|queue| queue.iter().all(|msg| msg.term <= term));
            let reads = compute
                .reads
                .iter()
                .all(|read| read.donor != id || read.term > term);
            requests && answers && reads
        };
        let rests = compute.rests.get(n).is_none_or(|rests| *rests);
        let open = compute.requests.get(n).is_some_and(|queue| !queue.is_empty())
            || compute.answers.get(n).is_some_and(|queue| !queue.is_empty());
        if idle(compute) && (rests || open || compute.ghost) {
            return;
        }
        let Some(compute) = self.computes.get_mut(c).map(|compute| &mut **compute) else {
            return;
        };
        if let (Some(requests), Some(answers)) = (compute.requests.get_mut(n), compute.answers.get_mut(n)) {
            requests.retain(news);
            answers.retain(|msg| msg.term <= term);
            if requests.is_empty() && answers.is_empty() {
                compute.core.shelve(id);
                if let Some(rests) = compute.rests.get_mut(n) {
                    *rests = true;
                }
            }
        }
        compute.reads.retain(|read| read.donor != id || read.term > term);
    }

    /// Takes out the nodes that have left for good.
    fn drop_nodes(&mut self, scenario: &Scenario) {
        let told = |compute: &Part<Compute>| !compute.up || self.is_told(compute, scenario);
        if !self.is_last(scenario) || !self.computes.iter().all(told) {
            return;
        }
        for n in 0..NODES {
            let id = NodeId(n as u64 + 1);
            let mut reads = self.computes.iter().flat_map(|compute| &compute.reads);
            if self.config.contains(id) || reads.any(|read| read.donor == id) {
                continue;
            }
            let blank = Part::new(Node::new(scenario.first()));
            if let Some(node) = self.nodes.get_mut(n).filter(|node| **node != blank) {
                *node = blank;
            }
            for compute in &mut self.computes {
                let way = |compute: &Compute| {
                    compute.requests.get(n).is_some_and(|queue| !queue.is_empty())
                        || compute.answers.get(n).is_some_and(|queue| !queue.is_empty())
                };
                if way(compute) {
                    let compute = &mut **compute;
                    compute
                        .requests
                        .get_mut(n)
                        .into_iter()
                        .for_each(|queue| queue.clear());
                    compute
                        .answers
                        .get_mut(n)
                        .into_iter()
                        .for_each(|queue| queue.clear());
                }
            }
            if self.old.iter().any(|(to, _)| *to == n) {
                self.old.retain(|(to, _)| *to != n);
            }
        }
    }
}
