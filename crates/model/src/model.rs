//! What can happen next, for the checker, and what must hold.

use crate::part::Part;
use crate::scenario::{COMPUTES, Change, NODES, Scenario};
use crate::state::{Compute, Read, State};
use lakebed_quorum::message::Request;
use lakebed_quorum::proposer::Input;
use lakebed_types::NodeId;
use stateright::{Model, Property};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// A proposer begins: it greets every member.
    Start(usize),
    /// The next request of a proposer reaches an acceptor.
    Deliver(usize, usize),
    /// A request arrives once more, or after its sender is gone; nobody hears the answer.
    Again(usize, Request),
    /// The next answer of an acceptor reaches a proposer.
    Answer(usize, usize),
    /// A donor read is done.
    Read(usize, Box<ReadOf>),
    /// Postgres writes a record.
    Write(usize),
    /// Time passes for a proposer.
    Tick(usize),
    /// A proposer crashes, or tries again.
    Restart(usize),
    /// A proposer crashes, and what it sent may arrive in any order.
    End(usize),
    /// The controller takes the next step of a change.
    Decide,
    /// The controller gives a change up.
    Abort,
    /// A proposer is told the configuration.
    Tell(usize),
    /// An acceptor recovers from another, one step.
    Exchange(usize, usize),
}

/// Which donor read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReadOf(Read);

impl Model for Scenario {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(self)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violation.is_some() {
            return;
        }
        for (c, compute) in state.computes.iter().enumerate() {
            if compute.attempt < self.attempts.get(c).copied().unwrap_or(0) {
                steps.push(Step::Restart(c));
            }
            if !compute.up {
                continue;
            }
            if !compute.started {
                steps.push(Step::Start(c));
                continue;
            }
            let (requests, answers) = (compute.requests.iter(), compute.answers.iter());
            steps.extend(
                requests
                    .enumerate()
                    .filter(|q| !q.1.is_empty())
                    .map(|q| Step::Deliver(c, q.0)),
            );
            steps.extend(
                answers
                    .enumerate()
                    .filter(|q| !q.1.is_empty())
                    .map(|q| Step::Answer(c, q.0)),
            );
            steps.extend(
                compute
                    .reads
                    .iter()
                    .map(|read| Step::Read(c, Box::new(ReadOf(read.clone())))),
            );
            if compute.core.history().is_some() && compute.written < self.records {
                steps.push(Step::Write(c));
            }
            let sent = compute.requests.iter().flatten();
            let mut late = sent.filter(|request| !matches!(request, Request::Greeting { .. }));
            if self.is_reduced() && self.duplicates && late.next().is_some() {
                steps.push(Step::End(c));
            }
            if self.ticks && !compute.ticked {
                steps.push(Step::Tick(c));
            }
            if compute.core.membership().generation < state.config.generation {
                steps.push(Step::Tell(c));
            }
        }
        steps.extend(
            state
                .old
                .iter()
                .map(|(n, request)| Step::Again(*n, request.clone())),
        );
        if state.next_config(self).is_some() {
            steps.push(Step::Decide);
        }
        if state.abort_config(self).is_some() {
            steps.push(Step::Abort);
        }
        if self.exchange {
            let pairs = (0..NODES).flat_map(|n| (0..NODES).map(move |peer| (n, peer)));
            steps.extend(
                pairs
                    .filter(|(n, peer)| n != peer)
                    .map(|(n, peer)| Step::Exchange(n, peer)),
            );
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Start(c) => {
                state.computes.get_mut(c)?.started = true;
                state.connect_all(c);
                for n in 0..NODES {
                    state.deliver(c, n, self);
                }
            }
            Step::Deliver(c, n) => state.deliver(c, n, self)?,
            Step::Again(n, request) => {
                state.ask(n, COMPUTES, request, self);
            }
            Step::Answer(c, n) => {
                let msg = state.computes.get_mut(c)?.answers.get_mut(n)?.pop_front()?;
                let from = NodeId(n as u64 + 1);
                state.proposer_input(c, Input::Received { from, msg });
            }
            Step::Read(c, read) => state.read(c, &read.0, self),
            Step::Write(c) => state.write(c),
            Step::Tick(c) => {
                state.computes.get_mut(c)?.ticked = true;
                state.proposer_input(c, Input::Tick { now_ms: 5 });
            }
            Step::Restart(c) => state.restart(c, self),
            Step::End(c) => state.end_attempt(c, self),
            Step::Decide => {
                let config = state.next_config(self)?;
                state.decide(config);
            }
            Step::Abort => {
                let config = state.abort_config(self)?;
                state.decide(config);
            }
            Step::Tell(c) => state.tell(c),
            Step::Exchange(n, peer) => state.exchange(n, peer, self),
        }
        if self.is_reduced() {
            state.hear(self);
        } else if !self.exchange {
            state.deliver_notices(self);
        }
        for c in 0..COMPUTES {
            // One that was over before has nothing left.
            let over = |compute: &Part<Compute>| !compute.up && compute.hash_of().is_none();
            if state.computes.get(c).is_some_and(over) {
                state.end_attempt(c, self);
            }
        }
        state.normalize(self);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always(Scenario::SAFETY, |_, state| state.violation.is_none()),
            Property::<Self>::sometimes(Scenario::PROGRESS, |_, state| !state.known.committed.is_empty()),
            Property::<Self>::sometimes(Scenario::TWO_TERMS, |_, state| state.known.logs.len() > 1),
        ];
        if self.change != Change::None {
            properties.push(Property::<Self>::sometimes(Scenario::CHANGED, |model, state| {
                let target = model.target().map(|set| set.into_iter().collect());
                state.settled
                    && Some(&state.config.old) == target.as_ref()
                    && !state.known.committed.is_empty()
            }));
        }
        properties
    }
}
