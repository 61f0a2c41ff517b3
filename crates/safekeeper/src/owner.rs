//! The one task that owns a timeline: it feeds the acceptor core and executes its commands.
//!
//! ```text
//! streams ──► mailbox ──► intake ──► acceptor ──► batch ──► disk (one worker at a time)
//!    ▲                                  │  ▲                      │
//!    └───────── waiting replies ◄───────┘  └──── completions ◄────┘
//! ```
//!
//! While a proposer is connected all of this is on one thread ([`crate::seat`]): what has arrived is taken, written and
//! flushed once, and answered. Without one the owner is a task among others, and leaves the disk to a thread that may
//! block. Either way one flush serves all appends that came meanwhile. A reply is sent when what it says is on disk. Mailbox, batch and
//! bytes in flight are bounded; a proposer that sends faster waits.
//!
//! A proposer's history may cut WAL, so it is taken only when the disk is idle, and nothing else is taken before
//! its consequences are on disk: no flush of bytes that are gone can be mistaken for one of those that replace them.
//!
//! A full disk is not a failed one. What waited for it is answered with `RESOURCE_EXHAUSTED`, the timeline is read again
//! from disk as after a crash ([`Owner::disk_full`]), and goes on without taking WAL: it reads, tells its positions and
//! keeps a proposer's lease. When there is room again it takes WAL again.

mod disk_jobs;
mod mail;

use std::sync::Arc;
use std::time::Instant;

use lakebed_quorum::acceptor::{Acceptor, Command, Input, When};
use lakebed_quorum::membership::Membership;
use lakebed_quorum::message::{Body, Refusal, Request, Response};
use lakebed_types::NodeId;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::boundary;
use crate::disk::{Batch, Disk};
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::propose::{self, Newcomer};
use crate::seat;
use crate::view::{Shards, View};
use crate::wal_files::WalFiles;
use disk_jobs::{Job, finished};
pub use mail::{
    Answer, MAILBOX_MESSAGES, MAX_NEWCOMERS, MAX_NOTES, MAX_ORDERS, MAX_QUESTIONS, MAX_REPAIRS, Mail, Note,
    Order, Outgoing, Patch, Question, Repair,
};

/// Operations that wait for the disk.
const MAX_BATCH_OPERATIONS: usize = 256;

struct Waiting {
    since: Instant,
    when: When,
    reply: mpsc::OwnedPermit<Outgoing>,
    answer: Answer,
}

/// Where what others want of an owner arrives.
pub(crate) struct Inboxes {
    pub(crate) mailbox: mpsc::Receiver<Mail>,
    pub(crate) questions: mpsc::Receiver<Question>,
    pub(crate) notes: mpsc::Receiver<Note>,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) repairs: mpsc::Receiver<Repair>,
    pub(crate) newcomers: mpsc::Receiver<Newcomer>,
}

/// Why an owner stops working where it is.
pub(crate) enum Leave {
    /// For good.
    Ended,
    /// A proposer has come: this is its stream.
    ForThread(Box<Newcomer>),
    /// The last proposer has gone.
    FromThread,
}

/// See the module header.
pub(crate) struct Owner {
    acceptor: Acceptor,
    intake: Intake,
    files: WalFiles,
    /// Absent while a job has it.
    disk: Option<Disk>,
    batch: Batch,
    rooms: Vec<OwnedSemaphorePermit>,
    waiting: Vec<Waiting>,
    /// Orders that are carried out once this control write is on disk.
    ordered: Vec<(u64, oneshot::Sender<Result<(), Membership>>)>,
    mailbox: mpsc::Receiver<Mail>,
    questions: mpsc::Receiver<Question>,
    notes: mpsc::Receiver<Note>,
    orders: mpsc::Receiver<Order>,
    repairs: mpsc::Receiver<Repair>,
    newcomers: mpsc::Receiver<Newcomer>,
    /// Streams that are served on its thread; `None` while it has none.
    serving: Option<JoinSet<()>>,
    /// A history that waits for the disk to be idle.
    held: Option<Mail>,
    /// The same of a repair.
    repair: Option<Repair>,
    /// A history's consequences are on their way to the disk.
    barrier: bool,
    /// Last control write asked for.
    control: u64,
    truncations: u64,
    view: Arc<watch::Sender<View>>,
    shards: Arc<Shards>,
    metrics: Metrics,
    stopped: Option<String>,
    /// Why there is no room, and when to look again. Tokio's clock: nothing but the pause depends on it.
    full: Option<(String, tokio::time::Instant)>,
}

impl Owner {
    pub(crate) fn new(
        (acceptor, intake): (Acceptor, Intake),
        (files, disk): (WalFiles, Disk),
        inboxes: Inboxes,
        (view, shards): (Arc<watch::Sender<View>>, Arc<Shards>),
        metrics: Metrics,
    ) -> Owner {
        let Inboxes {
            mailbox,
            questions,
            notes,
            orders,
            repairs,
            newcomers,
        } = inboxes;
        let owner = Owner {
            acceptor,
            intake,
            files,
            disk: Some(disk),
            batch: Batch::default(),
            rooms: Vec::new(),
            waiting: Vec::new(),
            ordered: Vec::new(),
            mailbox,
            questions,
            notes,
            orders,
            repairs,
            newcomers,
            serving: None,
            held: None,
            repair: None,
            barrier: false,
            control: 0,
            truncations: 0,
            view,
            shards,
            metrics,
            stopped: None,
            full: None,
        };
        owner.publish();
        owner
    }

    /// Works until it is told to end, or the disk fails: on a thread of its own while proposers are connected.
    pub(crate) async fn run(mut self, end: CancellationToken) {
        loop {
            match self.work(&end).await {
                Leave::ForThread(newcomer) => match seat::take(self, *newcomer, end.clone()).await {
                    Some(owner) => self = owner,
                    None => return,
                },
                Leave::Ended | Leave::FromThread => return,
            }
        }
    }

    /// Takes its place on the thread that it is on now, and serves a stream there.
    pub(crate) fn sit_down(&mut self, newcomer: Newcomer) {
        self.serving
            .get_or_insert_default()
            .spawn(propose::serve(newcomer));
    }

    /// Leaves the thread: its streams are told why, unless they have ended.
    pub(crate) async fn stand_up(&mut self, leave: &Leave) {
        if matches!(leave, Leave::Ended) {
            self.mailbox.close();
            while self.mailbox.try_recv().is_ok() {}
            self.waiting.clear();
        }
        if let Some(mut serving) = self.serving.take() {
            while serving.join_next().await.is_some() {}
        }
    }

    /// Works until there is a reason not to do it here.
    pub(crate) async fn work(&mut self, end: &CancellationToken) -> Leave {
        let mut job: Option<(Job, Vec<OwnedSemaphorePermit>)> = None;
        let mut ending = false;
        let mut left = false;
        while self.stopped.is_none() {
            let open =
                !ending && self.held.is_none() && !self.barrier && self.batch.len() < MAX_BATCH_OPERATIONS;
            if job.is_none() {
                if !self.batch.is_empty() {
                    if self.serving.is_none() {
                        job = self.start_job();
                    } else if !open || self.mailbox.is_empty() {
                        self.work_on_disk().await;
                        continue;
                    }
                } else if let Some(mail) = self.held.take() {
                    self.history(mail).await;
                    self.barrier = !self.batch.is_empty();
                    continue;
                } else if let Some(repair) = self.repair.take() {
                    job = self.start_repair(repair);
                } else if ending {
                    break;
                } else if self.look_is_due() {
                    job = self.start_look();
                } else if left
                    && self.serving.as_ref().is_some_and(JoinSet::is_empty)
                    && self.newcomers.is_empty()
                {
                    return Leave::FromThread;
                }
            }
            let look = self.full.as_ref().filter(|_| job.is_none()).map(|(_, at)| *at);
            let here = self.serving.is_some();
            let idle = job.is_none() && self.batch.is_empty();
            tokio::select! {
                biased;
                done = finished(&mut job) => {
                    job = None;
                    self.barrier = false;
                    self.job_done(done).await;
                }
                () = due(look) => {}
                () = end.cancelled(), if !ending => ending = true,
                Some(question) = self.questions.recv() => {
                    let _ = question.answer.send(self.acceptor.may_serve(question.term, question.end));
                }
                Some(repair) = self.repairs.recv(), if open && self.repair.is_none() => self.repair = Some(repair),
                Some(note) = self.notes.recv(), if open => self.noted(note),
                Some(order) = self.orders.recv(), if open => self.ordered(order),
                Some(newcomer) = self.newcomers.recv(), if open && (here || idle) => match here {
                    true => self.sit_down(newcomer),
                    false => return Leave::ForThread(Box::new(newcomer)),
                },
                () = one_left(&mut self.serving) => left = true,
                mail = self.mailbox.recv(), if open => match mail {
                    Some(mail) => self.take(mail),
                    None => ending = true,
                },
            }
        }
        if let Some((job, _)) = job {
            // It holds the files; whoever waits for this task may remove them.
            let _ = job.await;
        }
        if let Some(reason) = self.stopped.take() {
            tracing::error!(reason, "timeline stopped");
            self.metrics.timelines_stopped.inc();
            self.metrics.timelines_running.dec();
            self.view.send_modify(|view| view.stopped = Some(reason));
        }
        Leave::Ended
    }

    fn take(&mut self, mail: Mail) {
        self.metrics.requests.inc();
        match mail.request {
            Request::Elected { .. } => self.held = Some(mail),
            Request::Append { .. } => self.append(mail),
            Request::Greeting { .. } | Request::Vote { .. } => self.hand_over(mail),
        }
    }

    fn hand_over(&mut self, mail: Mail) {
        let commands = self.acceptor.handle(Input::Request {
            // The core uses it as a return address; this answer's address is its permit.
            from: NodeId(0),
            request: mail.request,
        });
        // Bytes that were refused take up nothing: no disk job will come that gives their room back.
        let written = commands
            .iter()
            .any(|command| matches!(command, Command::WriteWal { .. }));
        self.rooms.extend(mail.room.filter(|_| written));
        self.execute(commands, Some(mail.reply));
    }

    /// What became of WAL elsewhere counts for its removal here.
    fn noted(&mut self, note: Note) {
        let input = match note {
            Note::BackedUp(lsn) => Input::BackedUp { lsn },
            Note::Consumed(lsn) => Input::Consumed { lsn },
        };
        let commands = self.acceptor.handle(input);
        self.execute(commands, None);
    }

    /// Rule 10: a higher generation is adopted, and confirmed when it is on disk.
    fn ordered(&mut self, order: Order) {
        let Order { membership, answer } = order;
        let commands = self.acceptor.handle(Input::Reconfigure {
            membership: membership.clone(),
        });
        self.execute(commands, None);
        let here = &self.acceptor.state().membership;
        if *here != membership {
            let _ = answer.send(Err(here.clone()));
            return;
        }
        tracing::info!(generation = membership.generation.0, "the members were told");
        // It may have been in memory before, on its way to the disk.
        self.ordered.push((self.control, answer));
        self.send_replies();
    }

    /// Cuts the append at a record boundary and hands that over.
    fn append(&mut self, mail: Mail) {
        let Mail { request, reply, room } = mail;
        let Request::Append {
            generation,
            term,
            mut begin,
            mut bytes,
            commit,
            truncate,
        } = request
        else {
            return;
        };
        let state = self.acceptor.state();
        let (_, write) = self.acceptor.ends();
        let mut decoded = None;
        let current = generation == state.membership.generation && term == state.term;
        if current
            && !bytes.is_empty()
            && let Some((reason, _)) = &self.full
        {
            self.metrics.refusals.inc();
            reply.send(Outgoing::End(Status::resource_exhausted(reason)));
            return;
        }
        if current && (begin == self.intake.expected() || begin == write) {
            let before = self.intake.boundary();
            if begin != self.intake.expected() {
                // The same proposer begins anew at the boundary, after a broken stream.
                self.intake.restart(before);
            }
            match self.intake.accept(bytes) {
                Ok(whole) => (begin, bytes) = (write, whole),
                Err(error) => {
                    tracing::warn!(%begin, %error, "refused what a proposer sent");
                    self.metrics.refusals.inc();
                    let status = Status::invalid_argument(format!("the append at {begin}: {error}"));
                    reply.send(Outgoing::End(status));
                    return;
                }
            }
            decoded = Some(before);
        } else {
            // The core refuses it, and knows why best.
            bytes = bytes::Bytes::new();
        }
        self.metrics.accepted_bytes.inc_by(bytes.len() as u64);
        let commit = self.intake.round_down(commit);
        let request = Request::Append {
            generation,
            term,
            begin,
            bytes,
            commit,
            truncate,
        };
        self.hand_over(Mail { request, reply, room });
        if let Some(before) = decoded {
            if self.acceptor.ends().1 == self.intake.boundary().lsn {
                self.intake.forget_below(self.acceptor.state().commit);
            } else {
                self.intake.restart(before);
            }
        }
    }

    /// Takes a history while the disk is idle.
    async fn history(&mut self, mail: Mail) {
        let Request::Elected { term, history, .. } = &mail.request else {
            return;
        };
        let term = *term;
        let state = self.acceptor.state();
        let (_, write) = self.acceptor.ends();
        let common = state.term_history.common_point(write, history);
        let mut end = self.intake.boundary();
        // Other histories are refused by the core before they cut anything.
        if let Some(common) = common
            && term >= state.term
            && (state.commit..write).contains(&common)
        {
            let files = self.files.clone();
            let search = tokio::task::spawn_blocking(move || boundary::at_or_below(&files, common));
            match search.await {
                Ok(Ok(found)) if found.lsn == common => end = found,
                Ok(Ok(found)) => {
                    let reason = format!(
                        "the histories part at {common}, inside the record after {}",
                        found.lsn
                    );
                    return self.refuse(mail.reply, Refusal::History, reason);
                }
                Ok(Err(error)) => return self.disk_failed(error.to_string()),
                Err(error) => return self.disk_failed(error.to_string()),
            }
        }
        self.hand_over(mail);
        let applied = self.acceptor.state().term_history.last().0 == term;
        if applied && self.acceptor.ends().1 == end.lsn {
            // Its WAL begins at a boundary; the beginning of a record of somebody else is void.
            self.intake.restart(end);
        }
    }

    fn execute(&mut self, commands: Vec<Command>, mut reply: Option<mpsc::OwnedPermit<Outgoing>>) {
        for command in commands {
            match command {
                Command::PersistControl { seq, state } => {
                    self.control = seq;
                    self.files.raise_start(state.truncate);
                    self.batch.control(seq, state);
                }
                Command::WriteWal { begin, bytes } => self.batch.write(begin, bytes),
                Command::FlushWal => self.batch.flush(),
                Command::TruncateWal { lsn } => {
                    tracing::info!(%lsn, "WAL is cut where the new proposer's history parts from it");
                    self.truncations += 1;
                    self.waiting.retain(|waiting| !waiting.when.waits_for_wal());
                    self.batch.truncate(lsn);
                }
                Command::Reply { msg, when, .. } => {
                    if let Some(reply) = reply.take() {
                        self.keep(reply, msg, when, None);
                    }
                }
                Command::StopTimeline { reason } => {
                    self.waiting.clear();
                    self.stopped = Some(reason.to_owned());
                }
            }
        }
        // Before the replies: who got one sees what it says. And before the disk cuts WAL: who reads it looks
        // afterwards.
        self.publish();
        self.send_replies();
    }

    /// Keeps an answer until what it says is on disk.
    fn keep(
        &mut self,
        reply: mpsc::OwnedPermit<Outgoing>,
        response: Response,
        when: When,
        reason: Option<String>,
    ) {
        if let Body::Refused(refusal) = &response.body {
            tracing::debug!(%refusal, reason, "refused a proposer's request");
            self.metrics.refusals.inc();
        }
        let answer = Answer {
            response,
            membership: self.acceptor.state().membership.clone(),
            commit: self.acceptor.state().commit,
            slowest: self.shards.slowest(),
            reason,
        };
        self.waiting.push(Waiting {
            since: Instant::now(),
            when,
            reply,
            answer,
        });
    }

    /// Refuses what the core cannot know to be wrong.
    fn refuse(&mut self, reply: mpsc::OwnedPermit<Outgoing>, refusal: Refusal, reason: String) {
        let state = self.acceptor.state();
        let response = Response {
            generation: state.membership.generation,
            term: state.term,
            body: Body::Refused(refusal),
        };
        // Its term and generation are promises: they leave when they are on disk.
        self.keep(reply, response, When::AfterControl(self.control), Some(reason));
        self.send_replies();
    }

    fn send_replies(&mut self) {
        let acceptor = &self.acceptor;
        for waiting in self
            .waiting
            .extract_if(.., |waiting| acceptor.is_met(waiting.when))
        {
            if matches!(waiting.answer.response.body, Body::Appended { .. }) {
                self.metrics
                    .append_seconds
                    .observe(waiting.since.elapsed().as_secs_f64());
            }
            waiting.reply.send(Outgoing::Answer(Box::new(waiting.answer)));
        }
        let done = |(control, _): &mut (u64, _)| acceptor.is_met(When::AfterControl(*control));
        for (_, answer) in self.ordered.extract_if(.., done) {
            let _ = answer.send(Ok(()));
        }
    }

    fn publish(&self) {
        self.view.send_if_modified(|view| {
            let full = self.full.as_ref().map(|(reason, _)| reason);
            let changed = view.full.as_ref() != full;
            if changed {
                view.full = full.cloned();
            }
            view.update(self.acceptor.state(), self.acceptor.ends(), self.truncations) || changed
        });
    }
}

async fn due(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a stream; for ever when there is none.
async fn one_left(serving: &mut Option<JoinSet<()>>) {
    match serving {
        Some(serving) if !serving.is_empty() => drop(serving.join_next().await),
        _ => std::future::pending().await,
    }
}
