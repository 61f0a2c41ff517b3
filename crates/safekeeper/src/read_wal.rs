//! Raw WAL for proposers and computes, and the boundaries in it.
//!
//! A proposer ships what it reads here under its own history, so the bytes must be those of its log: the acceptor core
//! is asked about its term *after* each read, also for WAL that is committed. Without a proposer only committed WAL is
//! read, which never changes.

use std::sync::Arc;

use lakebed_proto::v1;
use lakebed_quorum::message::Refusal;
use lakebed_types::{Lsn, Term};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::boundary;
use crate::owner::Question;
use crate::propose::stopped_status;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};

/// Chunks that wait for the reader to take them.
pub const CHUNKS_AHEAD: usize = 2;
/// WAL in one chunk, in bytes: with all around it far below what a gRPC client takes by default.
pub const CHUNK_BYTES: usize = 512 << 10;

type Out = mpsc::Sender<Result<v1::WalChunk, Status>>;

/// What is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    begin: Lsn,
    end: Lsn,
    /// The proposer on whose behalf it is read; 0 when there is none.
    term: Term,
}

/// Checks a request against what is there now.
pub(crate) fn check(timeline: &Timeline, request: &v1::ReadWalRequest) -> Result<Range, Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    let (begin, end, term) = (Lsn(request.begin_lsn), Lsn(request.end_lsn), Term(request.term));
    if begin > end {
        return Err(Status::invalid_argument(format!(
            "the range {begin} to {end} ends before it begins"
        )));
    }
    let view = timeline.view().borrow().clone();
    if view.stopped.is_some() {
        return Err(stopped_status(timeline));
    }
    let (what, limit) = if request.committed_only {
        ("committed", view.commit)
    } else {
        ("flushed", view.flush)
    };
    let start = working.files.start();
    if begin < start || begin > limit {
        return Err(Status::out_of_range(format!(
            "{begin} is not {what} here: WAL starts at {start} and is {what} to {limit}"
        )));
    }
    // A proposer that looks for the end of a record does not know where the WAL ends here.
    let end = end.min(limit);
    if end > view.commit && term == Term(0) {
        return Err(Status::invalid_argument(format!(
            "WAL above commit {} is read on behalf of a proposer only, whose term this request lacks",
            view.commit
        )));
    }
    Ok(Range { begin, end, term })
}

/// Sends the range in chunks.
pub(crate) async fn serve(safekeeper: Arc<Safekeeper>, timeline: Arc<Timeline>, range: Range, out: Out) {
    tokio::select! {
        () = send(&safekeeper, &timeline, range, &out) => {}
        () = out.closed() => {}
        () = safekeeper.ending().cancelled() => {
            let _ = out.try_send(Err(Safekeeper::unavailable()));
        }
    }
}

async fn send(safekeeper: &Safekeeper, timeline: &Timeline, range: Range, out: &Out) {
    let mut at = range.begin;
    while at < range.end {
        let length = (range.end.0 - at.0).min(CHUNK_BYTES as u64) as usize;
        let chunk = chunk(timeline, range.term, at, length).await;
        let failed = chunk.is_err();
        if !failed {
            safekeeper.metrics().read_bytes.inc_by(length as u64);
        }
        if out.send(chunk).await.is_err() || failed {
            return;
        }
        at = Lsn(at.0 + length as u64);
    }
}

async fn chunk(timeline: &Timeline, term: Term, at: Lsn, length: usize) -> Result<v1::WalChunk, Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    let files = working.files.clone();
    let read = tokio::task::spawn_blocking(move || files.read(at, length)).await;
    let end = Lsn(at.0 + length as u64);
    if term > Term(0) {
        may_serve(timeline, working, term, end).await?;
    }
    if at < working.files.start() {
        let reason = format!("WAL at {at} was removed here meanwhile: read it from object storage");
        return Err(Status::out_of_range(reason));
    }
    let wal = read
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::data_loss(error.to_string()))?;
    Ok(v1::WalChunk {
        begin_lsn: at.0,
        wal: wal.into(),
    })
}

async fn may_serve(timeline: &Timeline, working: &Working, term: Term, end: Lsn) -> Result<(), Status> {
    let (answer, said) = oneshot::channel();
    let asked = working.questions.send(Question { term, end, answer }).await;
    let said = match asked {
        Ok(()) => said.await.ok(),
        Err(_) => None,
    };
    match said.ok_or_else(|| stopped_status(timeline))? {
        Ok(()) => Ok(()),
        Err(refusal @ Refusal::Gap(_)) => {
            let reason = format!("WAL to {end} was cut while it was read ({refusal}): ask again");
            Err(Status::out_of_range(reason))
        }
        Err(refusal) => Err(Status::aborted(format!(
            "WAL to {end} cannot be read for a proposer of term {term}: {refusal}"
        ))),
    }
}

/// The last boundary at or below a position.
pub(crate) async fn find_boundary(
    timeline: &Timeline,
    at_or_below: Lsn,
) -> Result<v1::FindBoundaryResponse, Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    let before = {
        let view = timeline.view();
        let view = view.borrow();
        (view.flush, view.truncations)
    };
    if at_or_below < working.files.start() {
        let reason = format!(
            "{at_or_below} lies before the WAL held here, which starts at {}",
            working.files.start()
        );
        return Err(Status::out_of_range(reason));
    }
    let (files, at) = (working.files.clone(), at_or_below.min(before.0));
    let found = tokio::task::spawn_blocking(move || boundary::at_or_below(&files, at)).await;
    let found = found.map_err(|error| Status::internal(error.to_string()))?;
    if timeline.view().borrow().truncations != before.1 {
        return Err(Status::aborted("the WAL was cut while it was read: ask again"));
    }
    let found = found.map_err(|error| Status::data_loss(error.to_string()))?;
    Ok(v1::FindBoundaryResponse {
        boundary_lsn: found.lsn.0,
        last_record_start: found.record_start.0,
    })
}
