//! Drives the proposer core: streams to the safekeepers, a clock, and the WAL.
//!
//! The core is given what happens, one thing at a time, and what it says is done before the next ([`executor`]). Who has
//! new WAL gives it to the core himself ([`Written`]), and is not back before it is in the sockets; everything else goes
//! through one task. A lost election is tried again after a random pause, in a higher term, with new streams. Being fenced and
//! losing the lease are final: they are told at once, and the owner of Postgres stops it.
//!
//! The safekeepers may change meanwhile ([`Members`]): streams to those who join are opened, and the core is told.

mod executor;
mod handover;
mod link;
mod links;
mod members;
mod outbox;
mod pack;
pub mod read_wal;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakebed_quorum::proposer::{Config, Input, Phase, Proposer};
use lakebed_types::{Generation, Lsn, Term};
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::branch::Branch;
use crate::config::ProposerConfig;
use crate::local_wal::LocalWal;
use crate::spans::Spans;
use executor::{Answer, Attempt, Core, Executor};
use handover::Running;
pub use handover::{Taken, Written, written};
use links::Links;
pub(crate) use members::replace;
pub use members::{Members, Safekeepers};

/// The core's clock.
const TICK: Duration = Duration::from_millis(50);
/// An election without progress for this long is lost.
const ELECTION: Duration = Duration::from_secs(5);
/// Pause after a lost election, at least and at most.
const ELECTION_PAUSE_MS: std::ops::Range<u64> = 50..400;
/// WAL on its way to one safekeeper.
const IN_FLIGHT_BYTES: u64 = 16 << 20;
/// Events that wait for the task.
const EVENTS: usize = 1024;
/// Answers to what was asked beside the streams that wait for it.
const ANSWERS: usize = 16;

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

/// Who is told each commit position, at once and in order. It is called with the core locked and must not block.
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
    /// Where this compute's WAL comes from.
    pub written: Taken,
    /// What a commit takes.
    pub spans: Arc<Spans>,
    /// Where it tells.
    pub standing: watch::Sender<Standing>,
    /// Who the safekeepers are.
    pub members: Members,
    /// Ends it.
    pub stop: CancellationToken,
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
    pub async fn run(self) {
        let Driver {
            branch,
            config,
            local,
            acks,
            written,
            spans,
            standing,
            members,
            stop,
        } = self;
        let began = Instant::now();
        let mut floor = Term(0);
        let mut executor = Some(Executor {
            branch,
            local: local.clone(),
            acks,
            spans,
            standing: standing.clone(),
            members,
        });
        let lost = loop {
            let Some(ready) = executor.take() else {
                break Lost::Stopped;
            };
            let attempt = tokio::select! {
                attempt = attempt(ready, config, &written, floor, began) => attempt,
                () = stop.cancelled() => Attempt::Lost(Lost::Stopped),
            };
            // None after a panic in it, which was told.
            executor = written.take_running().map(|running| running.executor);
            match attempt {
                Attempt::Lost(lost) => break lost,
                Attempt::Again(term) => {
                    tracing::info!(term = term.0, "election lost; trying again");
                    standing.send_modify(|standing| standing.elections_lost += 1);
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
                    lease_ms = config.lease_ms,
                    "no quorum of safekeepers: the lease is over"
                );
            }
            Lost::Stopped => {}
        }
        local.close();
        if let Some(executor) = &executor {
            executor.members.caught_up(None);
        }
        standing.send_modify(|standing| standing.lost = Some(lost));
        // Not before it is told why: who waits for commits would only see that nobody tells them any more.
        drop(executor);
    }
}

/// What the task is woken for.
enum Event {
    Tick,
    Members,
    Link(link::LinkEvent),
    Answer(Answer),
    Written,
    NoticesDue,
}

/// One attempt at a term, with `executor` in `written` as long as it lasts.
async fn attempt(
    executor: Executor,
    config: ProposerConfig,
    written: &Taken,
    floor: Term,
    began: Instant,
) -> Attempt {
    let now = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let core_config = Config {
        membership: executor.members.now().membership.clone(),
        system_id: executor.branch.system_id,
        pg_version: executor.branch.version,
        segment_bytes: u64::from(executor.branch.segment_bytes),
        lease_ms: config.lease_ms,
        heartbeat_ms: config.heartbeat_ms,
        election_ms: ELECTION.as_millis() as u64,
        chunk_bytes: executor::CHUNK_BYTES,
        in_flight_bytes: IN_FLIGHT_BYTES,
    };
    let (sender, mut events) = mpsc::channel(EVENTS);
    let (answer, mut answers) = mpsc::channel(ANSWERS);
    let proposer = Proposer::new(core_config, floor, now());
    // Its streams end with this attempt: a proposer never hears what was said to another.
    let mut core = Core::new(proposer, Links::new(config.wire_wal, sender), answer);
    let mut told = executor.members.told();
    core.kept.open(executor.members.now());
    executor.tell_learners(&mut core);
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    if !written.run(Running { executor, core }) {
        return Attempt::Lost(Lost::Stopped);
    }
    let mut notices_due = None;
    loop {
        let event = tokio::select! {
            biased;
            _ = clock.tick() => Event::Tick,
            () = members::changed(&mut told) => Event::Members,
            Some(answer) = answers.recv() => Event::Answer(answer),
            Some(event) = events.recv() => Event::Link(event),
            () = written.changed() => Event::Written,
            () = due(notices_due) => Event::NoticesDue,
        };
        let next = written.with(|Running { executor, core }| {
            match event {
                Event::Tick => {
                    executor.input(core, Input::Tick { now_ms: now() });
                    executor.tick(core);
                }
                Event::Members => {
                    let changed = executor.members.take_told();
                    executor.open_links(core, changed);
                }
                Event::Answer(answer) => executor.answered(core, answer),
                Event::Link(event) => executor.link_event(core, event),
                Event::Written => {}
                Event::NoticesDue => executor.send_notices(core),
            }
            notices_due = core.notices_due;
            let ended = core.ended.take();
            if ended.is_some() {
                executor.publish(core);
            }
            ended
        });
        match next {
            Some(None) if written.is_closed() => return Attempt::Lost(Lost::Stopped),
            Some(None) => {}
            Some(Some(ended)) => return ended,
            // It panicked, which was told.
            None => return Attempt::Lost(Lost::Stopped),
        }
    }
}

async fn due(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
