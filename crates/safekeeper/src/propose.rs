//! A proposer's stream: its messages go to the owner of the timeline, the answers come back when they are true.
//!
//! The first message is a greeting, which names the timeline. Messages are pipelined: up to
//! [`MAX_ANSWERS_DUE`] may wait for their answers, then reading stops until the proposer has taken some. A message
//! that makes no sense ends the stream with a status; one that the acceptor does not accept gets a refusal, and the
//! stream goes on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lakebed_proto::v1;
use lakebed_quorum::message::Request;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::Instrument;
use tracing::field::Empty;

use crate::data_dir::Name;
use crate::metrics::Live;
use crate::owner::{Mail, Outgoing};
use crate::server::Safekeeper;
use crate::timeline::Timeline;
use crate::unpack::Unpack;

/// Answers of one stream that may be due at a time.
pub const MAX_ANSWERS_DUE: usize = 1024;

/// Serves one stream until it ends; the reason goes out last.
pub(crate) async fn serve(
    safekeeper: Arc<Safekeeper>,
    inbound: Streaming<v1::ProposerMessage>,
    (out, shorten): (mpsc::Sender<Outgoing>, Arc<AtomicBool>),
) {
    let _live = Live::new(&safekeeper.metrics().proposers);
    let span = tracing::info_span!("propose", tenant = Empty, timeline = Empty);
    let taken = take_all(&safekeeper, inbound, &out, Unpack::new(shorten))
        .instrument(span.clone())
        .await;
    if let Err(status) = taken {
        tracing::info!(parent: &span, %status, "a proposer's stream ends");
        // A proposer that does not read its answers does not read this one either.
        let _ = out.try_send(Outgoing::End(status));
    }
}

async fn take_all(
    safekeeper: &Safekeeper,
    mut inbound: Streaming<v1::ProposerMessage>,
    out: &mpsc::Sender<Outgoing>,
    mut unpack: Unpack,
) -> Result<(), Status> {
    let ending = safekeeper.ending();
    let first = tokio::select! {
        first = inbound.message() => first?,
        () = ending.cancelled() => return Err(Safekeeper::unavailable()),
    };
    let Some(first) = first else { return Ok(()) };
    let (name, mut request) = unpack.request(first)?;
    let name = name.ok_or_else(|| Status::invalid_argument("the first message must be a greeting"))?;
    let timeline = safekeeper.timeline(name)?;
    let _live = Live::new(&timeline.proposers);
    let span = tracing::Span::current();
    span.record("tenant", tracing::field::display(name.0));
    span.record("timeline", tracing::field::display(name.1));
    loop {
        tokio::select! {
            taken = hand_over(&timeline, request, out) => taken?,
            () = ending.cancelled() => return Err(Safekeeper::unavailable()),
            status = stopped(&timeline) => return Err(status),
        }
        let message = tokio::select! {
            message = inbound.message() => message?,
            () = ending.cancelled() => return Err(Safekeeper::unavailable()),
            status = stopped(&timeline) => return Err(status),
        };
        let Some(message) = message else { return Ok(()) };
        let (again, next) = unpack.request(message)?;
        check_same(name, again)?;
        request = next;
    }
}

fn check_same(name: Name, again: Option<Name>) -> Result<(), Status> {
    match again {
        Some(other) if other != name => Err(Status::invalid_argument(
            "a stream is for the one timeline that its first greeting named",
        )),
        _ => Ok(()),
    }
}

async fn hand_over(
    timeline: &Timeline,
    request: Request,
    out: &mpsc::Sender<Outgoing>,
) -> Result<(), Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    let Ok(reply) = out.clone().reserve_owned().await else {
        return Err(Status::cancelled("the proposer no longer reads"));
    };
    let room = match &request {
        Request::Append { bytes, .. } if !bytes.is_empty() => {
            let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            working.room.clone().acquire_many_owned(bytes).await.ok()
        }
        _ => None,
    };
    let sent = working.mail.send(Mail { request, reply, room }).await;
    sent.map_err(|_| stopped_status(timeline))
}

/// Waits until the owner has gone. The view would tell as well, but it changes with every append.
async fn stopped(timeline: &Timeline) -> Status {
    if let Some(working) = &timeline.working {
        working.mail.closed().await;
    }
    stopped_status(timeline)
}

/// Why a timeline does not work.
pub(crate) fn stopped_status(timeline: &Timeline) -> Status {
    status_of(&timeline.view().borrow())
}

fn status_of(view: &crate::view::View) -> Status {
    let reason = view.stopped.as_deref().unwrap_or("it is ending");
    Status::failed_precondition(format!("the timeline is stopped: {reason}"))
}
