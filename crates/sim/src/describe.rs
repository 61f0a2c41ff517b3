//! The event log in words: one line for each event, with what a reader needs to follow a run.

use crate::disk::{CONTROL, WAL};
use crate::world::Event;
use lakebed_quorum::message::{Body, Request, Response};
use std::fmt::{self, Display, Formatter};

impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Event::StartHost { host, life } => write!(f, "compute {host} starts, life {life}"),
            Event::Tick { host, .. } => write!(f, "compute {host} ticks"),
            Event::Produce { host, .. } => write!(f, "compute {host} writes"),
            Event::Connect { host, node, .. } => write!(f, "compute {host} connects to {}", Node(node)),
            Event::Closed { stream } => write!(f, "stream {stream} is found dead"),
            Event::ToAcceptor { stream, msg } => write!(f, "stream {stream} > {}", Asked(msg)),
            Event::Ghost { node, from, msg } => {
                write!(f, "{} hears again, of {from}: {}", Node(node), Asked(msg))
            }
            Event::ToProposer { stream, msg } => write!(f, "stream {stream} < {}", Answered(msg)),
            Event::DiskDone { node, queue, .. } => {
                let what = [(WAL, "WAL"), (CONTROL, "control file")];
                let what = what.iter().find(|w| w.0 == *queue).map_or("", |w| w.1);
                write!(f, "{} finishes an operation on its {what}", Node(node))
            }
            Event::RestartNode { node, .. } => write!(f, "{} starts", Node(node)),
            Event::Reconfigure { host, .. } => write!(f, "compute {host} is told the configuration"),
            Event::Read {
                host,
                acceptor,
                source,
                term,
                begin,
                end,
                ..
            } => {
                let to = Node(acceptor);
                write!(
                    f,
                    "compute {host} reads {begin}..{end} of term {term} for {to} from {source:?}"
                )
            }
            Event::Exchange { node } => write!(f, "{} asks a peer for what is committed", Node(node)),
            Event::Offered {
                node,
                offer,
                begin,
                bytes,
                ..
            } => {
                let (to, commit, len) = (Node(node), offer.commit, bytes.len());
                write!(
                    f,
                    "{to} gets {len} bytes at {begin} of a peer's WAL committed to {commit}"
                )
            }
            Event::NextStep { generation } => {
                write!(f, "the controller goes on from generation {generation}")
            }
            Event::CaughtUp { attempt, .. } => {
                write!(
                    f,
                    "the controller hears that learners may join, attempt {attempt}"
                )
            }
            Event::Chaos => write!(f, "something happens:"),
        }
    }
}

/// A node by its index.
struct Node<'a>(&'a usize);

impl Display for Node<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0 + 1)
    }
}

struct Asked<'a>(&'a Request);

impl Display for Asked<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Request::Greeting { membership, .. } => {
                write!(f, "greeting, generation {}", membership.generation)
            }
            Request::Vote { generation, term } => write!(f, "vote for term {term}? generation {generation}"),
            Request::Elected {
                generation,
                term,
                history,
                common,
            } => {
                let history = history.entries();
                write!(
                    f,
                    "elected in term {term}, generation {generation}, common {common}, {history:?}"
                )
            }
            Request::Append {
                generation,
                term,
                begin,
                bytes,
                commit,
                truncate,
            } => {
                let len = bytes.len();
                write!(
                    f,
                    "append {len} bytes at {begin}, term {term}, generation {generation}, commit {commit}, truncate {truncate}"
                )
            }
        }
    }
}

struct Answered<'a>(&'a Response);

impl Display for Answered<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Response {
            generation,
            term,
            body,
        } = self.0;
        match body {
            Body::Greeted {
                flush,
                commit,
                history,
                ..
            } => {
                write!(
                    f,
                    "greeted, flush {flush}, commit {commit}, {:?}",
                    history.entries()
                )?;
            }
            Body::Voted { flush, history, .. } => write!(f, "voted, flush {flush}, {:?}", history.entries())?,
            Body::Applied { flush } => write!(f, "applied, flush {flush}")?,
            Body::Appended { flush, commit } => write!(f, "appended, flush {flush}, commit {commit}")?,
            Body::Refused(refusal) => write!(f, "refused: {refusal}")?,
        }
        write!(f, ", term {term}, generation {generation}")
    }
}
