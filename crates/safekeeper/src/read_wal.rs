//! Raw WAL for proposers and computes, and the boundaries in it.

use lakebed_proto::v1;
use lakebed_types::{Lsn, Term};
use tokio::sync::mpsc;
use tonic::Status;

use crate::boundary;
use crate::propose::stopped_status;
use crate::timeline::{Timeline, Working};
use crate::view::View;
use crate::wal_store::MAX_READ_BYTES;

/// Chunks that wait for the reader to take them.
pub const CHUNKS_AHEAD: usize = 2;

/// What is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    begin: Lsn,
    end: Lsn,
    committed_only: bool,
    /// The proposer on whose behalf flushed WAL is read; 0 when none is named.
    term: Term,
}

/// Checks a request against what is there now.
pub(crate) fn check(timeline: &Timeline, request: &v1::ReadWalRequest) -> Result<Range, Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    let (begin, end) = (Lsn(request.begin_lsn), Lsn(request.end_lsn));
    if begin > end {
        return Err(Status::invalid_argument(format!(
            "the range {begin} to {end} is empty"
        )));
    }
    let (what, limit) = {
        let view = timeline.view();
        let view = view.borrow();
        if view.stopped.is_some() {
            drop(view);
            return Err(stopped_status(timeline));
        }
        if request.committed_only {
            ("committed", view.commit)
        } else {
            ("flushed", view.flush)
        }
    };
    if begin < working.files.start() || end > limit {
        let reason = format!(
            "{begin} to {end} is not all {what} here: WAL starts at {} and is {what} to {limit}",
            working.files.start()
        );
        return Err(Status::out_of_range(reason));
    }
    Ok(Range {
        begin,
        end,
        committed_only: request.committed_only,
        term: Term(request.term),
    })
}

/// Sends the range in chunks.
pub(crate) async fn serve(
    timeline: std::sync::Arc<Timeline>,
    range: Range,
    out: mpsc::Sender<Result<v1::WalChunk, Status>>,
    read_bytes: prometheus_client::metrics::counter::Counter,
) {
    let Some(working) = timeline.working.as_ref() else {
        return;
    };
    let truncations = timeline.view().borrow().truncations;
    let mut at = range.begin;
    while at < range.end {
        let length = (range.end.0 - at.0).min(MAX_READ_BYTES as u64) as usize;
        let chunk = read(working, at, length).await.and_then(|wal| {
            // After the read: what was cut meanwhile may have been read as something else.
            let view = timeline.view();
            let view = view.borrow();
            may_serve(&view, &range, Lsn(at.0 + length as u64), truncations)?;
            Ok(v1::WalChunk {
                begin_lsn: at.0,
                wal: wal.into(),
            })
        });
        let failed = chunk.is_err();
        read_bytes.inc_by(if failed { 0 } else { length as u64 });
        if out.send(chunk).await.is_err() || failed {
            return;
        }
        at = Lsn(at.0 + length as u64);
    }
}

fn may_serve(view: &View, range: &Range, end: Lsn, truncations: u64) -> Result<(), Status> {
    if let Some(reason) = &view.stopped {
        return Err(Status::failed_precondition(format!(
            "the timeline is stopped: {reason}"
        )));
    }
    if range.committed_only || end <= view.commit {
        return Ok(());
    }
    if range.term.0 > 0 && view.term() > range.term {
        let reason = format!(
            "term {} was promised, WAL of term {} may be cut",
            view.term(),
            range.term
        );
        return Err(Status::aborted(reason));
    }
    if view.truncations != truncations || end > view.flush {
        return Err(Status::aborted("the WAL was cut while it was read: ask again"));
    }
    Ok(())
}

async fn read(working: &Working, at: Lsn, length: usize) -> Result<Vec<u8>, Status> {
    let files = working.files.clone();
    let read = tokio::task::spawn_blocking(move || files.read(at, length)).await;
    read.map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::data_loss(error.to_string()))
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
