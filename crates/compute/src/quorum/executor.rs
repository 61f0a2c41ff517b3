//! Does what the proposer core says: sends, reads, tells.
//!
//! Nothing here waits, so that whoever has something for the core can give it: the task of the driver, and the thread that
//! reads Postgres's WAL. What takes time is a task of its own, whose [`Answer`] comes back through a channel.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Body, Request};
use lakebed_quorum::proposer::{Command, Input, Proposer, Source};
use lakebed_types::{Generation, Lsn, NodeId, Term};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::link::{LinkEvent, LinkEventKind, StreamId};
use super::links::Links;
use super::members::{self, Members};
use super::outbox::Outbox;
use super::pack::Pack;
use super::{Committed, Lost, PeerView, Standing, Won, read_wal};
use crate::branch::Branch;
use crate::local_wal::LocalWal;
use crate::spans::Spans;

/// WAL in one message.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;
/// A safekeeper is told the commit position with the next WAL, or after this time when there is none.
const COMMIT_NOTICE: Duration = Duration::from_millis(1);
/// Pause between two questions to safekeepers that know a later generation.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How one attempt at a term ended.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Try above this term.
    Again(Term),
    Lost(Lost),
}

#[derive(Debug)]
pub(super) struct Link {
    stream: StreamId,
    outbox: Outbox,
    client: SafekeeperClient<Channel>,
    pack: Pack,
}

/// What was asked beside the streams.
pub(super) enum Answer {
    /// Of a donor.
    Read {
        acceptor: NodeId,
        begin: Lsn,
        bytes: Option<Bytes>,
    },
    /// Of a safekeeper that knows a later generation.
    Members(Option<Membership>),
}

/// A generation that a quorum has, and the commit position then: who joins must reach it.
#[derive(Clone, Copy, Debug)]
struct Settling {
    generation: Generation,
    commit: Lsn,
}

/// The proposer and what belongs to its attempt. Streams and tasks end with it.
#[derive(Debug)]
pub(super) struct Core {
    proposer: Proposer,
    /// The tasks that keep streams open.
    pub(super) kept: Links,
    links: BTreeMap<NodeId, Link>,
    trouble: BTreeMap<NodeId, String>,
    /// What each safekeeper knows to be committed, as it said last.
    told: BTreeMap<NodeId, Lsn>,
    /// Commit positions that wait for the WAL that will carry them.
    notices: BTreeMap<NodeId, Request>,
    /// When they no longer wait.
    pub(super) notices_due: Option<tokio::time::Instant>,
    settling: Option<Settling>,
    /// A safekeeper has this generation, which is later than ours.
    later: Option<Generation>,
    asked_at: Option<Instant>,
    /// How it ended, for the task to see.
    pub(super) ended: Option<Attempt>,
    /// What runs beside: reads from donors, and questions about the members.
    reads: JoinSet<()>,
    asked: JoinSet<()>,
    answers: mpsc::Sender<Answer>,
    runtime: Handle,
}

impl Core {
    /// Must be called in the task's runtime.
    pub(super) fn new(proposer: Proposer, kept: Links, answers: mpsc::Sender<Answer>) -> Core {
        Core {
            proposer,
            kept,
            links: BTreeMap::new(),
            trouble: BTreeMap::new(),
            told: BTreeMap::new(),
            notices: BTreeMap::new(),
            notices_due: None,
            settling: None,
            later: None,
            asked_at: None,
            ended: None,
            reads: JoinSet::new(),
            asked: JoinSet::new(),
            answers,
            runtime: Handle::current(),
        }
    }
}

/// What the commands need, and what lasts from one attempt to the next.
#[derive(Debug)]
pub(super) struct Executor {
    pub(super) branch: Branch,
    pub(super) local: Arc<LocalWal>,
    pub(super) acks: Arc<dyn Committed>,
    pub(super) spans: Arc<Spans>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) members: Members,
}

impl Executor {
    /// Gives the core what happened, and does all that it says.
    pub(super) fn input(&self, core: &mut Core, input: Input) {
        let known = core.proposer.commit().is_valid();
        self.handle(core, input);
        if core.proposer.commit().is_valid() != known {
            // The boot goes on from here, and asks those that count: not only at the next tick.
            self.publish(core);
        }
    }

    /// What is looked after now and then.
    pub(super) fn tick(&self, core: &mut Core) {
        while core.reads.try_join_next().is_some() {}
        self.settle(core);
        self.report_caught_up(core);
        self.ask_members(core);
        self.publish(core);
    }

    /// Tells commit positions that no WAL took along.
    pub(super) fn send_notices(&self, core: &mut Core) {
        core.notices_due = None;
        for (to, notice) in std::mem::take(&mut core.notices) {
            if let Some(input) = self.send(core, to, notice) {
                self.handle(core, input);
            }
        }
    }

    pub(super) fn answered(&mut self, core: &mut Core, answer: Answer) {
        match answer {
            Answer::Read {
                acceptor,
                begin,
                bytes: Some(bytes),
            } => self.input(
                core,
                Input::WalRead {
                    acceptor,
                    begin,
                    bytes,
                },
            ),
            Answer::Read { acceptor, begin, .. } => {
                self.input(core, Input::WalReadFailed { acceptor, begin });
            }
            Answer::Members(Some(membership)) => {
                let changed = self.members.adopt(membership);
                self.open_links(core, changed);
            }
            Answer::Members(None) => {}
        }
    }

    pub(super) fn link_event(&self, core: &mut Core, event: LinkEvent) {
        if let Some(input) = self.input_of(core, event) {
            self.input(core, input);
        }
    }

    fn input_of(&self, core: &mut Core, event: LinkEvent) -> Option<Input> {
        let LinkEvent { node, stream, kind } = event;
        if !core.kept.keeps(node, stream.0) {
            // It left, or moved.
            return None;
        }
        match kind {
            LinkEventKind::Open { outbox, client, wire } => {
                core.notices.remove(&node);
                core.links.insert(
                    node,
                    Link {
                        stream,
                        outbox,
                        client,
                        pack: Pack::new(&self.branch, wire),
                    },
                );
                core.trouble.remove(&node);
                core.told.remove(&node);
                Some(Input::Connected(node))
            }
            LinkEventKind::Codec(codec) => {
                if let Some(link) = core.links.get_mut(&node).filter(|link| link.stream == stream) {
                    link.pack.greeted(codec);
                }
                None
            }
            LinkEventKind::Received(msg) => {
                let link = core.links.get_mut(&node).filter(|link| link.stream == stream);
                let current = link.is_some();
                if let Body::Appended { commit, flush } = msg.body
                    && let Some(link) = link
                {
                    link.pack.answered(flush);
                    core.told.insert(node, commit);
                }
                current.then_some(Input::Received {
                    from: node,
                    msg: *msg,
                })
            }
            LinkEventKind::Closed(error) => {
                if core.trouble.get(&node) != Some(&error) {
                    tracing::warn!(safekeeper = node.0, error, "stream to safekeeper broke");
                }
                core.trouble.insert(node, error);
                let known = core.links.get(&node).is_some_and(|link| link.stream == stream);
                if known {
                    core.notices.remove(&node);
                    core.links.remove(&node);
                }
                known.then_some(Input::Disconnected(node))
            }
        }
    }

    /// Gives the core an input and does what it says, and what follows from that.
    fn handle(&self, core: &mut Core, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for command in core.proposer.handle(input) {
                inputs.extend(self.execute(core, command));
            }
        }
    }

    fn execute(&self, core: &mut Core, command: Command) -> Option<Input> {
        match command {
            Command::Send { to, msg } => {
                if is_notice(&msg) {
                    // Under load the next append follows at once, and says all that this one says.
                    core.notices.insert(to, msg);
                    let due = tokio::time::Instant::now() + COMMIT_NOTICE;
                    core.notices_due.get_or_insert(due);
                    return None;
                }
                // Whatever goes out now says more, or begins anew.
                core.notices.remove(&to);
                return self.send(core, to, msg);
            }
            Command::ReadWal {
                acceptor,
                source,
                term,
                begin,
                end,
            } => {
                return self.read_wal(core, acceptor, source, term, (begin, end));
            }
            Command::ElectionWon { term, start, donor } => {
                tracing::info!(term = term.0, %start, donor = donor.0, "election won");
                let won = Won { term, start };
                self.standing.send_modify(|standing| standing.won = Some(won));
            }
            Command::CommitAdvanced(commit) => {
                let since = self.spans.committed(commit);
                self.acks.committed(commit);
                self.spans.released_since(since, commit);
                // Whoever waits for the commit position waits for the term's start. Nobody is woken for every commit.
                self.standing.send_if_modified(|standing| {
                    let booting = standing.won.is_none_or(|won| standing.commit < won.start);
                    standing.commit = commit;
                    booting
                });
                let kept = self.local.trim(core.proposer.needed_from(), commit);
                return kept.map(|start| Input::LocalTrimmed { start });
            }
            Command::Settled(generation) => {
                let commit = core.proposer.commit();
                core.settling = Some(Settling { generation, commit });
            }
            Command::Rejected { acceptor, refusal } => {
                tracing::error!(safekeeper = acceptor.0, %refusal, "safekeeper cannot take part");
                core.trouble.insert(acceptor, refusal.to_string());
            }
            Command::StaleMembership(generation) => {
                tracing::info!(%generation, "the safekeepers of this branch change");
                core.later = core.later.max(Some(generation));
                self.ask_members(core);
            }
            Command::ElectionLost(term) => core.ended = Some(Attempt::Again(term)),
            Command::Fenced(term) => core.ended = Some(Attempt::Lost(Lost::Fenced(term))),
            Command::LeaseExpired => core.ended = Some(Attempt::Lost(Lost::LeaseExpired)),
        }
        None
    }

    fn send(&self, core: &mut Core, to: NodeId, msg: Request) -> Option<Input> {
        let sent = core.links.get_mut(&to).is_some_and(|link| {
            pieces(msg).all(|piece| {
                let message = link.pack.message(piece, &self.branch);
                link.outbox.send(&message)
            })
        });
        if !sent && core.links.remove(&to).is_some() {
            // Too much waits or its stream has ended. Without its outbox the stream ends, and a new one is opened.
            core.trouble.insert(to, "too far behind".to_owned());
            return Some(Input::Disconnected(to));
        }
        None
    }

    fn read_wal(
        &self,
        core: &mut Core,
        acceptor: NodeId,
        source: Source,
        term: Term,
        (begin, end): (Lsn, Lsn),
    ) -> Option<Input> {
        let failed = Input::WalReadFailed { acceptor, begin };
        match source {
            Source::Local => Some(match self.local.read(begin, end) {
                Some(bytes) => Input::WalRead {
                    acceptor,
                    begin,
                    bytes,
                },
                None => failed,
            }),
            Source::Acceptor(donor) => {
                let Some(link) = core.links.get(&donor) else {
                    return Some(failed);
                };
                let (client, branch) = (link.client.clone(), self.branch.clone());
                let answers = core.answers.clone();
                let read = async move {
                    let bytes = read_wal::read(client, &branch, term, begin, end).await;
                    if let Err(error) = &bytes {
                        tracing::warn!(donor = donor.0, %begin, error = format!("{error:#}"), "donor does not give WAL");
                    }
                    let answer = Answer::Read {
                        acceptor,
                        begin,
                        bytes: bytes.ok(),
                    };
                    // Nobody waits for it when the attempt is over.
                    let _ = answers.send(answer).await;
                };
                core.reads.spawn_on(read, &core.runtime);
                None
            }
        }
    }

    /// Opens streams to those who joined or moved, closes those to the ones who left, and tells the core.
    pub(super) fn open_links(&self, core: &mut Core, changed: bool) {
        let now = self.members.now();
        for node in core.kept.open(now) {
            core.notices.remove(&node);
            core.told.remove(&node);
            core.trouble.remove(&node);
            if core.links.remove(&node).is_some() {
                self.handle(core, Input::Disconnected(node));
            }
        }
        if changed {
            let membership = now.membership.clone();
            tracing::info!(?membership, "the safekeepers are others");
            core.settling = None;
            self.handle(core, Input::Reconfigure { membership });
        }
        self.tell_learners(core);
        self.publish(core);
    }

    pub(super) fn tell_learners(&self, core: &mut Core) {
        let (attempt, learners) = self.members.now().learners();
        self.handle(core, Input::Learners { attempt, learners });
    }

    fn report_caught_up(&self, core: &Core) {
        let joining = self.members.now().joining.as_ref();
        let attempt = joining.and_then(|joining| core.proposer.caught_up(joining.within_bytes));
        self.members.caught_up(attempt);
    }

    /// Asks the controller and the safekeepers for a later generation that is known to exist.
    fn ask_members(&self, core: &mut Core) {
        let later = core
            .later
            .is_some_and(|later| later > self.members.now().membership.generation);
        while core.asked.try_join_next().is_some() {}
        let soon = core.asked_at.is_some_and(|at| at.elapsed() < ASK_AGAIN);
        if !later || soon || !core.asked.is_empty() {
            return;
        }
        core.asked_at = Some(Instant::now());
        self.members.ask();
        for link in core.links.values() {
            let ask = members::ask(link.client.clone(), self.branch.clone());
            let answers = core.answers.clone();
            let ask = async move {
                let _ = answers.send(Answer::Members(ask.await)).await;
            };
            core.asked.spawn_on(ask, &core.runtime);
        }
    }

    /// Reports a generation that is in force once all who join in it have everything that was committed by then: only
    /// so is a safekeeper that leaves really replaced.
    fn settle(&self, core: &mut Core) {
        let Some(Settling { generation, commit }) = core.settling else {
            return;
        };
        let members = core.proposer.membership();
        let caught_up = |node: &NodeId| {
            let flush = core.proposer.progress(*node).and_then(|(_, flush)| flush);
            members.old.contains(node) || flush >= Some(commit)
        };
        if members.new.iter().flatten().all(caught_up) {
            core.settling = None;
            tracing::info!(%generation, "the safekeepers of this generation are in force");
            self.standing
                .send_modify(|standing| standing.settled = generation);
            self.members.settled(generation);
        }
    }

    pub(super) fn publish(&self, core: &Core) {
        let now = self.members.now();
        let (membership, (_, learners)) = (&now.membership, now.learners());
        let view = |node: &NodeId| {
            let progress = core.proposer.progress(*node);
            let view = PeerView {
                address: now.addresses.get(node).cloned().unwrap_or_default(),
                learner: !membership.contains(*node),
                phase: progress.map(|(phase, _)| phase),
                flush: progress.and_then(|(_, flush)| flush),
                commit: core.told.get(node).copied(),
                trouble: core.trouble.get(node).cloned().unwrap_or_default(),
            };
            (node.0, view)
        };
        let members = membership.old.iter().chain(membership.new.iter().flatten());
        let peers: BTreeMap<u64, PeerView> = members.chain(&learners).map(view).collect();
        self.standing.send_if_modified(|standing| {
            let changed = standing.peers != peers || standing.generation != membership.generation;
            standing.peers = peers;
            standing.generation = membership.generation;
            changed
        });
    }
}

/// Whether a message only tells the commit position and renews the lease.
fn is_notice(msg: &Request) -> bool {
    matches!(msg, Request::Append { bytes, .. } if bytes.is_empty())
}

/// Cuts an append whose one record is longer than a message. The safekeeper puts records together again, so the pieces
/// need not end at record boundaries; each is answered, and the last answer says what the append asked for.
fn pieces(request: Request) -> impl Iterator<Item = Request> {
    let (whole, cut) = match request {
        Request::Append {
            generation,
            term,
            begin,
            bytes,
            commit,
            truncate,
        } if bytes.len() as u64 > CHUNK_BYTES => {
            let offsets = (0..bytes.len() as u64).step_by(CHUNK_BYTES as usize);
            let piece = move |offset: u64| Request::Append {
                generation,
                term,
                begin: Lsn(begin.0 + offset),
                bytes: bytes.slice(offset as usize..bytes.len().min((offset + CHUNK_BYTES) as usize)),
                commit,
                truncate,
            };
            (None, Some(offsets.map(piece)))
        }
        other => (Some(other), None),
    };
    whole.into_iter().chain(cut.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lakebed_types::Generation;

    #[test]
    fn a_long_record_goes_in_pieces_without_a_gap() {
        let bytes = Bytes::from(vec![7; 2 * CHUNK_BYTES as usize + 5]);
        let append = |begin, bytes| Request::Append {
            generation: Generation(1),
            term: Term(2),
            begin: Lsn(begin),
            bytes,
            commit: Lsn(8),
            truncate: Lsn(0),
        };
        let sent: Vec<Request> = pieces(append(100, bytes.clone())).collect();
        let cut = |from: u64, to: u64| append(100 + from, bytes.slice(from as usize..to as usize));
        let (one, two) = (CHUNK_BYTES, 2 * CHUNK_BYTES);
        assert_eq!(sent, [cut(0, one), cut(one, two), cut(two, two + 5)]);
        let short = append(100, Bytes::from_static(b"short"));
        assert_eq!(pieces(short.clone()).collect::<Vec<_>>(), [short]);
        let empty = append(100, Bytes::new());
        assert_eq!(pieces(empty.clone()).collect::<Vec<_>>(), [empty]);
    }
}
