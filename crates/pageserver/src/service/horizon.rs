//! Where history begins that a window keeps, and leases.

use std::time::{SystemTime, UNIX_EPOCH};

use lakebed_proto::v1;
use lakebed_types::Lsn;
use tonic::Status;

use super::status;
use crate::timeline::Timeline;

/// Longest text that names who holds a lease, in bytes.
const MAX_HOLDER_BYTES: usize = 255;

/// The end of the last commit before the window, or the timeline's start.
///
/// Two clocks have to agree that time has passed: that of who asks and this node's. One that jumps ahead gives up nothing.
pub(super) fn find(
    timeline: &Timeline,
    request: &v1::FindHorizonRequest,
) -> Result<v1::FindHorizonResponse, Status> {
    let own = SystemTime::now().duration_since(UNIX_EPOCH);
    let own = own.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    let now = own.min(request.now_unix_micros);
    let cut = request.window_seconds.map(|seconds| {
        let micros = i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000_000);
        now.saturating_sub(micros)
    });
    let stored = timeline.disk_consistent();
    let newest = request
        .window_bytes
        .map(|bytes| Lsn(stored.0.saturating_sub(bytes)));
    let found = timeline.catalogue(|catalogue| {
        let by_time = cut
            .and_then(|cut| catalogue.lsn_at(cut))
            .map(|lsn| lsn.min(stored));
        let lsn = by_time.max(newest)?;
        catalogue.commit_at(lsn)
    });
    let start = timeline.identity.start;
    let (lsn, unix_micros) = found.filter(|(lsn, _)| *lsn > start).unwrap_or((start, 0));
    Ok(v1::FindHorizonResponse {
        lsn: lsn.0,
        unix_micros,
    })
}

/// Grants, renews or releases a lease.
pub(super) fn lease(
    timeline: &Timeline,
    request: &v1::LeaseHistoryRequest,
) -> Result<v1::LeaseHistoryResponse, Status> {
    let (lsn, holder) = (Lsn(request.lsn), request.holder.as_str());
    if holder.is_empty() || holder.len() > MAX_HOLDER_BYTES {
        return Err(Status::invalid_argument(
            "the holder of a lease is named by 1 to 255 bytes",
        ));
    }
    if request.release {
        timeline.release(lsn, holder);
        return Ok(v1::LeaseHistoryResponse { duration_ms: 0 });
    }
    super::check_consistent(timeline, lsn)?;
    let granted = timeline
        .lease(lsn, holder)
        .map_err(|error| status(error.into()))?;
    Ok(v1::LeaseHistoryResponse {
        duration_ms: u32::try_from(granted.as_millis()).unwrap_or(u32::MAX),
    })
}
