//! Drives the proposer core: streams to the safekeepers, a clock, and the WAL.
//!
//! One task owns the core. It is given what happens, one thing at a time, and does what the core says before the
//! next. A lost election is tried again after a random pause, in a higher term, with new streams. Being fenced and
//! losing the lease are final: they are told at once, and the owner of Postgres stops it.
//!
//! The safekeepers may change meanwhile ([`Members`]): streams to those who join are opened, and the core is told.

mod link;
mod links;
mod members;
mod outbox;
mod pack;
pub mod read_wal;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Body, Request};
use lakebed_quorum::proposer::{Command, Config, Input, Phase, Proposer, Source};
use lakebed_types::{Generation, Lsn, NodeId, Term};
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::branch::Branch;
use crate::config::ProposerConfig;
use crate::local_wal::LocalWal;
use crate::spans::Spans;
use link::{LinkEvent, LinkEventKind, StreamId};
use links::Links;
pub(crate) use members::replace;
pub use members::{Members, Safekeepers};
use outbox::Outbox;
use pack::Pack;

/// The core's clock.
const TICK: Duration = Duration::from_millis(50);
/// A safekeeper is told the commit position with the next WAL, or after this time when there is none.
const COMMIT_NOTICE: Duration = Duration::from_millis(1);
/// An election without progress for this long is lost.
const ELECTION: Duration = Duration::from_secs(5);
/// Pause after a lost election, at least and at most.
const ELECTION_PAUSE_MS: std::ops::Range<u64> = 50..400;
/// WAL in one message.
const CHUNK_BYTES: u64 = 1 << 20;
/// WAL on its way to one safekeeper.
const IN_FLIGHT_BYTES: u64 = 16 << 20;
/// Pause between two questions to safekeepers that know a later generation.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Events that wait for the task.
const EVENTS: usize = 1024;

/// A term that was won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Won {
    /// The term.
    pub term: Term,
    /// Its first position: the compute boots here.
    pub start: Lsn,
}

/// Why the quorum is of no more use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Another compute has this higher term.
    Fenced(Term),
    /// No quorum for the length of the lease.
    LeaseExpired,
    /// It was told to stop.
    Stopped,
}

/// One safekeeper as the driver sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Where it is.
    pub address: String,
    /// It does not count: it is to join.
    pub learner: bool,
    /// Where it stands.
    pub phase: Option<Phase>,
    /// End of its WAL that counts.
    pub flush: Option<Lsn>,
    /// What it knows to be committed, as it said last on the stream that is open.
    pub commit: Option<Lsn>,
    /// What was wrong last; empty while it works.
    pub trouble: String,
}

/// Where the quorum stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The term, once won.
    pub won: Option<Won>,
    /// Everything below is on a quorum; zero until the term's start is.
    pub commit: Lsn,
    /// Why it ended.
    pub lost: Option<Lost>,
    /// By node.
    pub peers: BTreeMap<u64, PeerView>,
    /// Elections lost so far.
    pub elections_lost: u64,
    /// Generation of the safekeepers that this compute acts under.
    pub generation: Generation,
    /// The last generation that came into force.
    pub settled: Generation,
}

/// Who is told each commit position, at once and in order. It is called in the driver's task and must not block.
pub trait Committed: std::fmt::Debug + Send + Sync {
    /// A quorum has everything below `lsn`.
    fn committed(&self, lsn: Lsn);
}

/// What the driver works with.
#[derive(Debug)]
pub struct Driver {
    /// The branch.
    pub branch: Branch,
    /// Lease and heartbeat.
    pub config: ProposerConfig,
    /// This compute's WAL.
    pub local: Arc<LocalWal>,
    /// Who waits for it to be committed.
    pub acks: Arc<dyn Committed>,
    /// End of this compute's WAL.
    pub written: watch::Receiver<Lsn>,
    /// What a commit takes.
    pub spans: Arc<Spans>,
    /// Where it tells.
    pub standing: watch::Sender<Standing>,
    /// Who the safekeepers are.
    pub members: Members,
    /// Ends it.
    pub stop: CancellationToken,
}

/// How one attempt at a term ended.
enum Attempt {
    /// Try above this term.
    Again(Term),
    Lost(Lost),
}

struct Link {
    stream: StreamId,
    outbox: Outbox,
    client: SafekeeperClient<Channel>,
    pack: Pack,
}

/// Answer of a donor.
struct DonorRead {
    acceptor: NodeId,
    begin: Lsn,
    bytes: Option<Bytes>,
}

/// A generation that a quorum has, and the commit position then: who joins must reach it.
#[derive(Clone, Copy)]
struct Settling {
    generation: Generation,
    commit: Lsn,
}

struct Core {
    proposer: Proposer,
    /// The tasks that keep streams open.
    kept: Links,
    links: BTreeMap<NodeId, Link>,
    trouble: BTreeMap<NodeId, String>,
    /// What each safekeeper knows to be committed, as it said last.
    told: BTreeMap<NodeId, Lsn>,
    reads: JoinSet<DonorRead>,
    /// Commit positions that wait for the WAL that will carry them.
    notices: BTreeMap<NodeId, Request>,
    notices_due: Option<tokio::time::Instant>,
    settling: Option<Settling>,
    /// A safekeeper has this generation, which is later than ours.
    later: Option<Generation>,
    /// What safekeepers say of it.
    asked: JoinSet<Option<Membership>>,
    asked_at: Option<Instant>,
    ended: Option<Attempt>,
    won: Option<Won>,
}

impl Standing {
    /// Whether every member that takes part knows all that is committed.
    pub fn all_told(&self) -> bool {
        let part = self.peers.values().filter(|peer| peer.trouble.is_empty());
        let mut part = part.filter(|peer| !peer.learner);
        part.all(|peer| peer.flush.is_none() || peer.commit >= Some(self.commit))
    }
}

impl Driver {
    /// Works until stopped, fenced or without a quorum for too long.
    pub async fn run(mut self) {
        let began = Instant::now();
        let (mut floor, stop) = (Term(0), self.stop.clone());
        let lost = loop {
            let attempt = tokio::select! {
                attempt = self.attempt(floor, began) => attempt,
                () = stop.cancelled() => Attempt::Lost(Lost::Stopped),
            };
            match attempt {
                Attempt::Lost(lost) => break lost,
                Attempt::Again(term) => {
                    tracing::info!(term = term.0, "election lost; trying again");
                    self.standing.send_modify(|standing| standing.elections_lost += 1);
                    floor = floor.max(term);
                    let pause = rand::rngs::StdRng::from_os_rng().random_range(ELECTION_PAUSE_MS);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
        };
        match &lost {
            Lost::Fenced(term) => tracing::error!(term = term.0, "fenced: another compute has this branch"),
            Lost::LeaseExpired => {
                tracing::error!(
                    lease_ms = self.config.lease_ms,
                    "no quorum of safekeepers: the lease is over"
                );
            }
            Lost::Stopped => {}
        }
        self.local.close();
        self.members.caught_up(None);
        self.standing.send_modify(|standing| standing.lost = Some(lost));
    }

    async fn attempt(&mut self, floor: Term, began: Instant) -> Attempt {
        let now = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            membership: self.members.now().membership.clone(),
            system_id: self.branch.system_id,
            pg_version: self.branch.version,
            segment_bytes: u64::from(self.branch.segment_bytes),
            lease_ms: self.config.lease_ms,
            heartbeat_ms: self.config.heartbeat_ms,
            election_ms: ELECTION.as_millis() as u64,
            chunk_bytes: CHUNK_BYTES,
            in_flight_bytes: IN_FLIGHT_BYTES,
        };
        let (sender, mut events) = mpsc::channel(EVENTS);
        let mut core = Core {
            proposer: Proposer::new(config, floor, now()),
            // Ends with this attempt: a proposer never hears what was said to another.
            kept: Links::new(self.config.wire_wal, sender),
            links: BTreeMap::new(),
            trouble: BTreeMap::new(),
            told: BTreeMap::new(),
            reads: JoinSet::new(),
            notices: BTreeMap::new(),
            notices_due: None,
            settling: None,
            later: None,
            asked: JoinSet::new(),
            asked_at: None,
            ended: None,
            won: None,
        };
        core.kept.open(self.members.now());
        self.tell_learners(&mut core);
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.written.mark_changed();
        loop {
            let input = tokio::select! {
                biased;
                _ = clock.tick() => {
                    let input = Input::Tick { now_ms: now() };
                    self.handle(&mut core, input);
                    self.settle(&mut core);
                    self.report_caught_up(&core);
                    self.ask_members(&mut core);
                    self.publish(&core);
                    None
                }
                () = self.members.changed() => {
                    let changed = self.members.take_told();
                    self.open_links(&mut core, changed);
                    None
                }
                Some(said) = core.asked.join_next() => {
                    if let Ok(Some(membership)) = said {
                        let changed = self.members.adopt(membership);
                        self.open_links(&mut core, changed);
                    }
                    None
                }
                Some(event) = events.recv() => self.link_event(&mut core, event),
                changed = self.written.changed() => match changed {
                    Ok(()) => {
                        let (since, end) = (self.spans.taken(), *self.written.borrow_and_update());
                        self.handle(&mut core, Input::LocalWal { end });
                        self.spans.sent_since(since, end);
                        None
                    }
                    Err(_) => return Attempt::Lost(Lost::Stopped),
                },
                () = due(core.notices_due) => {
                    core.notices_due = None;
                    for (to, notice) in std::mem::take(&mut core.notices) {
                        if let Some(input) = self.send(&mut core, to, notice) {
                            self.handle(&mut core, input);
                        }
                    }
                    None
                }
                Some(read) = core.reads.join_next() => read.ok().map(|read| match read.bytes {
                    Some(bytes) => Input::WalRead { acceptor: read.acceptor, begin: read.begin, bytes },
                    None => Input::WalReadFailed { acceptor: read.acceptor, begin: read.begin },
                }),
            };
            if let Some(input) = input {
                let known = core.proposer.commit().is_valid();
                self.handle(&mut core, input);
                if core.proposer.commit().is_valid() != known {
                    // The boot goes on from here, and asks those that count: not only at the next tick.
                    self.publish(&core);
                }
            }
            if let Some(ended) = core.ended.take() {
                self.publish(&core);
                return ended;
            }
        }
    }

    fn link_event(&self, core: &mut Core, event: LinkEvent) -> Option<Input> {
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
                core.won = Some(won);
                self.standing.send_modify(|standing| standing.won = Some(won));
            }
            Command::CommitAdvanced(commit) => {
                let since = self.spans.committed(commit);
                self.acks.committed(commit);
                self.spans.released_since(since);
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
                core.reads.spawn(async move {
                    let bytes = read_wal::read(client, &branch, term, begin, end).await;
                    if let Err(error) = &bytes {
                        tracing::warn!(donor = donor.0, %begin, error = format!("{error:#}"), "donor does not give WAL");
                    }
                    DonorRead {
                        acceptor,
                        begin,
                        bytes: bytes.ok(),
                    }
                });
                None
            }
        }
    }

    /// Opens streams to those who joined or moved, closes those to the ones who left, and tells the core.
    fn open_links(&self, core: &mut Core, changed: bool) {
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

    fn tell_learners(&self, core: &mut Core) {
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
        let soon = core.asked_at.is_some_and(|at| at.elapsed() < ASK_AGAIN);
        if !later || soon || !core.asked.is_empty() {
            return;
        }
        core.asked_at = Some(Instant::now());
        self.members.ask();
        for link in core.links.values() {
            core.asked
                .spawn(members::ask(link.client.clone(), self.branch.clone()));
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

    fn publish(&self, core: &Core) {
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

async fn due(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
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
