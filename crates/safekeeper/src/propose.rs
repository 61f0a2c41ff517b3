//! A proposer's stream: its messages go to the owner of the timeline, the answers come back when they are true.
//!
//! The first message is a greeting, which names the timeline. Then the stream moves to the thread of that timeline
//! ([`crate::owner`]), so that a message goes from the socket to the disk and its answer back without another thread.
//! Messages are pipelined: up to [`MAX_ANSWERS_DUE`] may wait for their answers, then reading stops until the proposer
//! has taken some. A message that makes no sense ends the stream with a status; one that the acceptor does not accept
//! gets a refusal, and the stream goes on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::BytesMut;
use lakebed_proto::frame::{self, Frame, Inbound};
use lakebed_proto::stream::{door, end, part};
use lakebed_proto::v1;
use lakebed_quorum::message::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::Instrument;

use crate::data_dir::Name;
use crate::metrics::Live;
use crate::owner::{Mail, Outgoing};
use crate::pack::Pack;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};
use crate::unpack::Unpack;

/// Answers of one stream that may be due at a time.
pub const MAX_ANSWERS_DUE: usize = 1024;
/// Answers that go out in one write.
const ANSWERS_AT_ONCE: usize = 128;
/// How long a proposer may take to read why its stream ends.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// A stream whose proposer has greeted, on its way to the thread of the timeline.
pub(crate) struct Newcomer {
    safekeeper: Arc<Safekeeper>,
    timeline: Arc<Timeline>,
    socket: std::net::TcpStream,
    inbound: Inbound,
    unpack: Unpack,
    pack: Pack,
    greeting: Request,
    live: Live,
    span: tracing::Span,
}

/// Takes the greeting of a proposer, the first message behind the stream's preamble, and brings the stream to its timeline.
pub(crate) async fn greet(safekeeper: Arc<Safekeeper>, mut socket: TcpStream) {
    let live = Live::new(&safekeeper.metrics().proposers);
    let shorten = Arc::new(AtomicBool::new(false));
    let (mut inbound, mut unpack) = (Inbound::default(), Unpack::new(shorten.clone()));
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(door::PATIENCE, first(&mut socket, &mut inbound, &mut unpack)) => {
            greeted.unwrap_or_else(|_| Err(Status::deadline_exceeded("no greeting came")))
        }
        () = safekeeper.ending().cancelled() => Err(Safekeeper::unavailable()),
    };
    let found = greeted.and_then(|first| match first {
        Some((name, greeting)) => Ok(Some((safekeeper.timeline(name)?, greeting))),
        None => Ok(None),
    });
    let (timeline, greeting) = match found {
        Ok(Some(found)) => found,
        Ok(None) => return,
        Err(status) => return refuse(&mut socket, &status).await,
    };
    let Some(working) = &timeline.working else {
        return refuse(&mut socket, &stopped_status(&timeline)).await;
    };
    let (tenant, of) = timeline.name;
    let span = tracing::info_span!("propose", %tenant, timeline = %of);
    let pack = Pack::new(safekeeper.config().node_id, shorten);
    let socket = match socket.into_std() {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "a proposer's connection is lost"),
    };
    let newcomer = Newcomer {
        safekeeper: safekeeper.clone(),
        timeline: timeline.clone(),
        socket,
        inbound,
        unpack,
        pack,
        greeting,
        live,
        span,
    };
    tokio::select! {
        sent = working.streams.send(newcomer) => {
            if let Err(mpsc::error::SendError(newcomer)) = sent
                && let Ok(mut socket) = TcpStream::from_std(newcomer.socket)
            {
                refuse(&mut socket, &stopped_status(&timeline)).await;
            }
        }
        () = safekeeper.ending().cancelled() => {}
    }
}

/// The timeline that the first message names, and the message; `None` when the proposer has gone.
async fn first(
    socket: &mut TcpStream,
    inbound: &mut Inbound,
    unpack: &mut Unpack,
) -> Result<Option<(Name, Request)>, Status> {
    let first = loop {
        match inbound.next()? {
            Some(frame) => break message(frame)?,
            None if !matches!(socket.read_buf(inbound.room()).await, Ok(1..)) => return Ok(None),
            None => {}
        }
    };
    let (name, request) = unpack.request(first)?;
    let name = name.ok_or_else(|| Status::invalid_argument("the first message must be a greeting"))?;
    Ok(Some((name, request)))
}

fn message(frame: Frame<v1::ProposerMessage>) -> Result<v1::ProposerMessage, Status> {
    match frame {
        Frame::Message(message) => Ok(message),
        Frame::End(_) => Err(Status::invalid_argument(
            "only a safekeeper tells why a stream ends",
        )),
    }
}

/// Tells a proposer whose stream nobody serves why.
async fn refuse(socket: &mut TcpStream, status: &Status) {
    tracing::info!(%status, "a proposer's stream ends");
    end(socket, status).await;
}

/// Serves a stream until it ends; the reason goes out last. Runs on the thread of the timeline.
pub(crate) async fn serve(newcomer: Newcomer) {
    let Newcomer {
        safekeeper,
        timeline,
        socket,
        inbound,
        unpack,
        pack,
        greeting,
        live: _live,
        span,
    } = newcomer;
    let Some(working) = &timeline.working else { return };
    let here = Live::new(&timeline.proposers);
    let served = async {
        let (read, write) = match TcpStream::from_std(socket) {
            Ok(socket) => socket.into_split(),
            Err(error) => return tracing::warn!(%error, "a proposer's connection is lost"),
        };
        let (out, answers) = mpsc::channel(MAX_ANSWERS_DUE);
        let mut reading = Reading {
            safekeeper: &safekeeper,
            timeline: &timeline,
            working,
            read,
            inbound,
            unpack,
        };
        let writing = write_answers(write, answers, pack, here);
        tokio::pin!(writing);
        let write = tokio::select! {
            taken = reading.take_all(greeting, &out) => {
                if let Err(status) = taken {
                    tracing::info!(%status, "a proposer's stream ends");
                    // A proposer that does not read its answers does not read this one either.
                    let _ = out.try_send(Outgoing::End(status));
                }
                drop(out);
                tokio::time::timeout(END_PATIENCE, writing).await.ok().flatten()
            }
            // The owner has said why it ends, or the proposer takes no answers any more.
            write = &mut writing => write,
        };
        if let Some(write) = write
            && let Ok(mut socket) = reading.read.reunite(write)
        {
            part(&mut socket, &[]).await;
        }
    };
    served.instrument(span).await;
}

/// The receiving half of a stream.
struct Reading<'a> {
    safekeeper: &'a Safekeeper,
    timeline: &'a Timeline,
    working: &'a Working,
    read: OwnedReadHalf,
    inbound: Inbound,
    unpack: Unpack,
}

impl Reading<'_> {
    async fn take_all(&mut self, greeting: Request, out: &mpsc::Sender<Outgoing>) -> Result<(), Status> {
        let ending = self.safekeeper.ending();
        let mut request = greeting;
        loop {
            tokio::select! {
                biased;
                taken = self.hand_over(request, out) => taken?,
                () = ending.cancelled() => return Err(Safekeeper::unavailable()),
                status = self.stopped() => return Err(status),
            }
            request = loop {
                if let Some(frame) = self.inbound.next()? {
                    let (again, next) = self.unpack.request(message(frame)?)?;
                    check_same(self.timeline.name, again)?;
                    break next;
                }
                let stopped = self.working.mail.closed();
                tokio::select! {
                    biased;
                    read = self.read.read_buf(self.inbound.room()) => match read {
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return Ok(()),
                    },
                    () = ending.cancelled() => return Err(Safekeeper::unavailable()),
                    () = stopped => return Err(stopped_status(self.timeline)),
                }
            };
        }
    }

    async fn hand_over(&self, request: Request, out: &mpsc::Sender<Outgoing>) -> Result<(), Status> {
        let Ok(reply) = out.clone().reserve_owned().await else {
            return Err(Status::cancelled("the proposer no longer reads"));
        };
        let room = match &request {
            Request::Append { bytes, .. } if !bytes.is_empty() => {
                let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.working.room.clone().acquire_many_owned(bytes).await.ok()
            }
            _ => None,
        };
        let sent = self.working.mail.send(Mail { request, reply, room }).await;
        sent.map_err(|_| stopped_status(self.timeline))
    }

    /// Waits until the owner has gone. The view would tell as well, but it changes with every append.
    async fn stopped(&self) -> Status {
        self.working.mail.closed().await;
        stopped_status(self.timeline)
    }
}

/// Sends answers, all that are there in one write, until there will be none or the end was sent; the socket then, if
/// it works.
async fn write_answers(
    mut write: OwnedWriteHalf,
    mut answers: mpsc::Receiver<Outgoing>,
    mut pack: Pack,
    here: Live,
) -> Option<OwnedWriteHalf> {
    let (mut some, mut bytes) = (Vec::new(), BytesMut::new());
    let mut here = Some(here);
    while here.is_some() && answers.recv_many(&mut some, ANSWERS_AT_ONCE).await > 0 {
        for outgoing in some.drain(..) {
            match outgoing {
                // An answer is far shorter than a frame may be.
                Outgoing::Answer(answer) => drop(frame::put(&pack.answer(*answer), &mut bytes)),
                Outgoing::End(status) => {
                    frame::put_end(&status, &mut bytes);
                    // Who reads it finds that the timeline has no proposer here any more.
                    here = None;
                    break;
                }
            }
        }
        if write.write_all(&bytes).await.is_err() {
            return None;
        }
        bytes.clear();
    }
    Some(write)
}

fn check_same(name: Name, again: Option<Name>) -> Result<(), Status> {
    match again {
        Some(other) if other != name => Err(Status::invalid_argument(
            "a stream is for the one timeline that its first greeting named",
        )),
        _ => Ok(()),
    }
}

/// Why a timeline does not work.
pub(crate) fn stopped_status(timeline: &Timeline) -> Status {
    status_of(&timeline.view().borrow())
}

fn status_of(view: &crate::view::View) -> Status {
    let reason = view.stopped.as_deref().unwrap_or("it is ending");
    Status::failed_precondition(format!("the timeline is stopped: {reason}"))
}
