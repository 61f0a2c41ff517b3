//! Raw WAL for proposers and computes, and the boundaries in it.
//!
//! A proposer ships what it reads here under its own history, so the bytes must be those of its log: the acceptor core
//! is asked about its term *after* each read, also for WAL that is committed. Without a proposer only committed WAL is
//! read, which never changes.
//!
//! What leaves was checked: it is decoded on its way, from the boundary before the range to the one behind it, so that a
//! byte that the disk changed is an error and is never passed on.
//!
//! What was removed here is read from object storage. It is committed, but maybe by a later term than the proposer's, past
//! the point where the two part: so the core is asked then too.

use std::sync::Arc;

use lakebed_proto::v1;
use lakebed_quorum::message::Refusal;
use lakebed_types::{Lsn, Term};
use lakebed_wal::page::WalFormat;
use lakebed_wal::stream::WalDecoder;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::backup::BackupError;
use crate::backup::archive::{Archive, Reader};
use crate::boundary;
use crate::checked_wal::CheckedWal;
use crate::owner::Question;
use crate::propose::stopped_status;
use crate::recovery::Boundary;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};
use crate::wal_store::WalStoreError;

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
    /// A boundary at or behind `end`, up to which WAL is read to check the last record.
    limit: Lsn,
    /// The proposer on whose behalf it is read; 0 when there is none.
    term: Term,
}

/// Checks a request against what is there now.
pub(crate) fn check(
    timeline: &Timeline,
    request: &v1::ReadWalRequest,
    archive: Option<&Archive>,
) -> Result<Range, Status> {
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
    let archived = archive.is_some()
        && view
            .state
            .as_ref()
            .is_some_and(|state| begin >= state.timeline_start);
    if (begin < start && !archived) || begin > limit {
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
    let limit = if term > Term(0) { view.flush } else { view.commit };
    Ok(Range {
        begin,
        end,
        limit,
        term,
    })
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
    let archive = safekeeper.archive(timeline.name);
    let mut reader = Reader::default();
    let mut checked = None;
    let mut at = range.begin;
    while at < range.end {
        let length = (range.end.0 - at.0).min(CHUNK_BYTES as u64) as usize;
        let local = timeline
            .working
            .as_ref()
            .map_or(Lsn::INVALID, |working| working.files.start());
        let chunk = match &archive {
            Some(archive) if at < local => {
                archived_chunk(timeline, &range, (archive, &mut reader), (at, length)).await
            }
            _ => chunk(timeline, &range, &mut checked, (at, length)).await,
        };
        let sent = chunk.as_ref().map(|chunk| chunk.wal.len() as u64);
        let sent = sent.unwrap_or_default();
        safekeeper.metrics().read_bytes.inc_by(sent);
        if out.send(chunk).await.is_err() || sent == 0 {
            return;
        }
        at = Lsn(at.0 + sent);
    }
}

/// At most `length` bytes that are not here any more.
async fn archived_chunk(
    timeline: &Timeline,
    range: &Range,
    (archive, reader): (&Archive, &mut Reader),
    (at, length): (Lsn, usize),
) -> Result<v1::WalChunk, Status> {
    let read = archive.read(reader, at).await;
    let mut wal = read.map_err(|error| Status::out_of_range(error.to_string()))?;
    wal.truncate(length);
    if let Some(working) = timeline.working.as_ref().filter(|_| range.term > Term(0)) {
        may_serve(timeline, working, range.term, Lsn(at.0 + wal.len() as u64)).await?;
    }
    Ok(v1::WalChunk { begin_lsn: at.0, wal })
}

async fn chunk(
    timeline: &Timeline,
    range: &Range,
    checked: &mut Option<CheckedWal>,
    (at, length): (Lsn, usize),
) -> Result<v1::WalChunk, Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    let (files, term, limit) = (working.files.clone(), range.term, range.limit);
    let before = checked.take();
    let read = tokio::task::spawn_blocking(move || {
        let mut checked = match before {
            Some(checked) => checked,
            None => CheckedWal::new(&files, at)?,
        };
        let wal = checked.take(&files, at, length, limit)?;
        Ok::<_, WalStoreError>((checked, wal))
    });
    let read = read.await;
    let end = Lsn(at.0 + length as u64);
    if term > Term(0) {
        may_serve(timeline, working, term, end).await?;
    }
    if at < working.files.start() {
        let reason = format!("WAL at {at} was removed here meanwhile: read it from object storage");
        return Err(Status::out_of_range(reason));
    }
    let (reader, wal) = read
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::data_loss(error.to_string()))?;
    *checked = Some(reader);
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

/// The last boundary at or below a position, or if that is 0 below what is known as committed.
pub(crate) async fn find_boundary(
    timeline: &Timeline,
    at_or_below: Lsn,
    archive: Option<&Archive>,
) -> Result<v1::FindBoundaryResponse, Status> {
    let working = timeline
        .working
        .as_ref()
        .ok_or_else(|| stopped_status(timeline))?;
    let (before, commit) = {
        let view = timeline.view();
        let view = view.borrow();
        ((view.flush, view.truncations), view.commit)
    };
    let at_or_below = match at_or_below.is_valid() {
        true => at_or_below,
        false => commit,
    };
    let removed = archive.zip(timeline_start(timeline).filter(|start| at_or_below >= *start));
    let format = working.files.format();
    if at_or_below < working.files.start()
        && let Some((archive, start)) = removed
    {
        return archived_boundary(archive, format, start, at_or_below).await;
    }
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
    if !found.record_start.is_valid()
        && let Some((archive, start)) = removed
        && found.lsn > start
    {
        // The record that ends where local WAL begins.
        return archived_boundary(archive, format, start, found.lsn).await;
    }
    Ok(boundary_to_wire(found))
}

fn boundary_to_wire(found: Boundary) -> v1::FindBoundaryResponse {
    v1::FindBoundaryResponse {
        boundary_lsn: found.lsn.0,
        last_record_start: found.record_start.0,
    }
}

/// First LSN of the timeline's own history, as far as its state is known.
pub(crate) fn timeline_start(timeline: &Timeline) -> Option<Lsn> {
    timeline
        .view()
        .borrow()
        .state
        .as_ref()
        .map(|state| state.timeline_start)
}

/// The last boundary at or below `at` in object storage, with the record that ends there.
async fn archived_boundary(
    archive: &Archive,
    format: WalFormat,
    timeline_start: Lsn,
    at: Lsn,
) -> Result<v1::FindBoundaryResponse, Status> {
    let found = decode_archived(archive, format, timeline_start, at).await;
    let found = found.map_err(|error| Status::out_of_range(error.to_string()))?;
    Ok(boundary_to_wire(found))
}

/// As [`boundary::at_or_below`], of WAL that was removed here.
///
/// # Errors
/// Object storage, or what it returned.
pub(crate) async fn decode_archived(
    archive: &Archive,
    format: WalFormat,
    timeline_start: Lsn,
    at: Lsn,
) -> Result<Boundary, BackupError> {
    let mut reader = Reader::default();
    let mut begin = at;
    loop {
        if begin <= timeline_start {
            return Ok(Boundary {
                lsn: timeline_start,
                record_start: Lsn::INVALID,
            });
        }
        // Again from further back when no record ends in the frame.
        begin = archive.boundary_before(&mut reader, begin).await?;
        let mut decoder = WalDecoder::new(format, begin, Lsn::INVALID);
        let mut found = None;
        while decoder.fed_to() < at {
            let from = decoder.fed_to();
            let mut wal = archive.read(&mut reader, from).await?;
            wal.truncate(usize::try_from(at.0 - from.0).unwrap_or(usize::MAX));
            decoder.feed(&wal);
            while let Some(record) = decoder
                .next_raw()
                .map_err(|error| BackupError::NotWal(error.to_string()))?
            {
                found = Some(Boundary {
                    lsn: record.end,
                    record_start: record.start,
                });
            }
        }
        if let Some(found) = found {
            return Ok(found);
        }
    }
}
