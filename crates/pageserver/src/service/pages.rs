//! Pages on request: those that memory has at once, the others side by side.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lakebed_proto::convert;
use lakebed_proto::stream::pages::MAX_KEYS;
use lakebed_proto::v1::{self, PageStatus};
use lakebed_types::{Lsn, PageKey};
use tonic::Status;

use super::{invalid, read_point, timeline_id};
use crate::hot::PageName;
use crate::local_file::without_waiting;
use crate::node::{Node, NodeError};
use crate::timeline::read::Cost;
use crate::timeline::{Timeline, TimelineError};

/// Pages that are built before others of the same thread have a turn: some hundred microseconds.
const PAGES_A_TURN: usize = 32;

/// Answers one request.
pub(super) async fn get(
    node: &Arc<Node>,
    request: v1::GetPagesRequest,
) -> Result<v1::GetPagesResponse, Status> {
    let request_id = request.request_id;
    let count = request.keys.len();
    if count > MAX_KEYS {
        return Err(Status::invalid_argument(format!(
            "{count} keys in one request; at most {MAX_KEYS}"
        )));
    }
    // Failures that concern the whole request are told per page, so that the stream goes on.
    let whole = |status: PageStatus, message: String| {
        node.metrics.page_failures.inc_by(count as u64);
        let page = v1::PageResult {
            status: status.into(),
            page: Bytes::new(),
            message,
        };
        v1::GetPagesResponse {
            request_id,
            served_lsn: 0,
            pages: vec![page; count],
        }
    };
    let (tenant, shard) = convert::shard(request.shard.as_ref()).map_err(invalid)?;
    let timeline = match node.timeline(tenant, shard, timeline_id(&request.timeline)?) {
        Ok(timeline) => timeline,
        Err(error @ NodeError::NotAttached { .. }) => {
            return Ok(whole(PageStatus::WrongShard, error.to_string()));
        }
        Err(error) => return Ok(whole(PageStatus::Retry, error.to_string())),
    };
    let lsn = match read_point(&timeline, request.at).await {
        Ok(lsn) => lsn,
        Err(error) if error.code() == tonic::Code::OutOfRange => {
            node.metrics.pages_not_kept.inc_by(count as u64);
            return Ok(whole(PageStatus::Gone, error.message().to_owned()));
        }
        Err(error) if error.code() == tonic::Code::InvalidArgument => return Err(error),
        Err(error) => return Ok(whole(PageStatus::Retry, error.message().to_owned())),
    };
    let keys = request.keys.iter().map(|key| convert::page_key(key));
    let keys: Vec<PageKey> = keys.collect::<Result<_, _>>().map_err(invalid)?;
    // Those that are to be had at once; what the others miss is then fetched side by side.
    let begin = Instant::now();
    let mut pages = Vec::with_capacity(count);
    let mut missing = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        if at % PAGES_A_TURN == PAGES_A_TURN - 1 {
            tokio::task::yield_now().await;
        }
        let begin = Instant::now();
        match without_waiting(|| timeline.page_with(&node.pages, key, lsn)) {
            Err(error @ (TimelineError::Missing(_) | TimelineError::Cold)) => {
                missing.push((at, key, error));
                pages.push(v1::PageResult::default());
            }
            read => pages.push(answer(node, &timeline, (key, lsn), read, begin)),
        }
    }
    let timeline = &timeline;
    let obtained = missing.into_iter().map(|(at, key, error)| async move {
        let read = later(node, timeline, (*key, lsn), error).await;
        (at, answer(node, timeline, (key, lsn), read, begin))
    });
    for (at, page) in futures::future::join_all(obtained).await {
        if let Some(place) = pages.get_mut(at) {
            *place = page;
        }
    }
    Ok(v1::GetPagesResponse {
        request_id,
        served_lsn: lsn.0,
        pages,
    })
}

/// Makes a read again that could not be made at once.
async fn later(
    node: &Arc<Node>,
    timeline: &Arc<Timeline>,
    (key, lsn): (PageKey, Lsn),
    error: TimelineError,
) -> Result<(Bytes, Cost), TimelineError> {
    let error = match error {
        TimelineError::Cold => match from_disk(node, timeline, key, lsn).await {
            Err(error @ TimelineError::Missing(_)) => error,
            done => return done,
        },
        missing => missing,
    };
    let read = || timeline.page_with(&node.pages, &key, lsn);
    timeline.obtaining_after(error, read).await
}

/// A read that waits for the disk, on a thread of its own.
async fn from_disk(
    node: &Arc<Node>,
    timeline: &Arc<Timeline>,
    key: PageKey,
    lsn: Lsn,
) -> Result<(Bytes, Cost), TimelineError> {
    let internal =
        |error: &dyn std::fmt::Display| TimelineError::Internal(format!("a read from disk: {error}"));
    let _turn = node
        .disk_reads
        .acquire()
        .await
        .map_err(|error| internal(&error))?;
    node.metrics.pages_from_disk.inc();
    let (node, timeline) = (node.clone(), timeline.clone());
    let read = tokio::task::spawn_blocking(move || timeline.page_with(&node.pages, &key, lsn));
    read.await.map_err(|error| internal(&error))?
}

/// What a read came to, as it is answered and counted.
fn answer(
    node: &Node,
    timeline: &Timeline,
    (key, lsn): (&PageKey, Lsn),
    read: Result<(Bytes, Cost), TimelineError>,
    begin: Instant,
) -> v1::PageResult {
    match read {
        Ok((page, cost)) => {
            node.metrics.served(&cost, begin.elapsed());
            let identity = &timeline.identity;
            let name = PageName {
                tenant: identity.tenant,
                timeline: identity.timeline,
                shard: identity.shard,
                key: *key,
            };
            node.hot.read(name, lsn, &cost);
            if timeline.wants_image(&cost) && !node.images.offer(name) {
                node.metrics.read_images_refused.inc();
            }
            v1::PageResult {
                status: PageStatus::Ok.into(),
                page,
                message: String::new(),
            }
        }
        Err(error) => {
            node.metrics.page_failures.inc();
            let status = match error {
                TimelineError::WrongShard(_) => PageStatus::WrongShard,
                TimelineError::BeforeHistory { .. } | TimelineError::NotKept { .. } => PageStatus::Gone,
                TimelineError::Deleted(_) => PageStatus::Retry,
                _ if error.may_pass() => PageStatus::Retry,
                _ => PageStatus::Damaged,
            };
            let id = timeline.identity.timeline;
            match status {
                PageStatus::Retry => {
                    tracing::warn!(timeline = %id, %key, %lsn, %error, "page not served; asked again it may be");
                }
                _ => tracing::error!(timeline = %id, %key, %lsn, %error, "page not served"),
            }
            v1::PageResult {
                status: status.into(),
                page: Bytes::new(),
                message: format!("page {key} of timeline {id} at {lsn}: {error}"),
            }
        }
    }
}
