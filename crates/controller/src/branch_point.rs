//! Where a new branch starts: a record boundary of the parent or of one of its ancestors.
//!
//! * **head**: what a quorum of the parent's safekeepers has committed, so that a branch made after a commit was
//!   acknowledged has it; also if that quorum's other half does not answer now;
//! * **LSN**: moved down to the last record boundary by a safekeeper that holds it committed;
//! * **time**: the last commit at or before it, by the index of the pageserver that keeps shard 0, after that has
//!   ingested the head.
//!
//! Nothing is changed here. The result goes into a command, and the state machine checks it once more.

mod ask;
mod error;

use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use lakebed_placement::branch_point::{Awaited, Head, history_start, holder};
use lakebed_placement::{State, Tenant, Timeline};
use lakebed_types::{Lsn, TenantId, TimelineId};
use tokio::time::timeout;

use crate::nodes::Nodes;
use ask::{Ask, Reports};
pub(crate) use error::BranchPointError;

/// How long it is waited for what is committed to be known as such: the proposer's next message says it.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
/// The pauses between two looks at the safekeepers: the first, and the longest that they grow to.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// How much longer than for the head it is waited for a committed boundary that was asked for beside it.
const LAST_PATIENCE: Duration = Duration::from_millis(5);
/// How far a time may lie in the future of this controller's clock.
const CLOCK_TOLERANCE_MICROS: i64 = 60_000_000;

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Everything that is committed now.
    Head,
    /// The last boundary at or below.
    Lsn(Lsn),
    /// The last commit at or before, in microseconds since 1970.
    Time(i64),
}

/// Where a branch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BranchPoint {
    /// The timeline whose own WAL holds it: the one asked for, or an ancestor.
    pub parent: TimelineId,
    /// A record boundary.
    pub lsn: Lsn,
    /// Start of the record that ends there.
    pub last_record: Lsn,
}

/// Finds where a branch of `timeline` starts. Works on a copy of the state: nodes are asked on the way.
pub(crate) async fn find(
    nodes: &Nodes,
    state: &State,
    (tenant_id, tenant): (TenantId, &Tenant),
    timeline: TimelineId,
    at: At,
    now_unix_micros: i64,
) -> Result<BranchPoint, BranchPointError> {
    let ask = Ask {
        nodes,
        state,
        tenant_id,
        tenant,
    };
    let mut seen = None;
    let lsn = match at {
        At::Head => {
            let look = look_at_head(&ask, timeline).await?;
            let known = look.head.known;
            seen = Some((timeline, look));
            known
        }
        At::Lsn(lsn) => lsn,
        At::Time(micros) if micros > now_unix_micros.saturating_add(CLOCK_TOLERANCE_MICROS) => {
            return Err(BranchPointError::Future);
        }
        At::Time(micros) => by_time(&ask, timeline, micros).await?,
    };
    let parent = holder(tenant, timeline, lsn).ok_or_else(|| BranchPointError::BeforeHistory {
        lsn,
        start: history_start(tenant, timeline),
    })?;
    // Who told the head need not be asked for it again.
    let seen = seen.and_then(|(of, seen)| (of == parent).then_some(seen));
    boundary(&ask, parent, lsn, seen).await
}

/// What is known of a timeline's end.
struct Look {
    head: Head,
    reports: Reports,
    /// A committed boundary, if somebody was asked for one: often the last.
    boundary: Option<(Lsn, Lsn)>,
}

/// The head, and at the same time the last boundary of what one safekeeper knows as committed: mostly that is the head, and nobody
/// needs to be asked again.
async fn look_at_head(ask: &Ask<'_>, timeline: TimelineId) -> Result<Look, BranchPointError> {
    let one = get(ask.tenant, timeline)?
        .safekeepers
        .members()
        .into_iter()
        .next();
    let last = async {
        match one {
            Some(one) => ask.last_committed(one, timeline).await,
            None => None,
        }
    };
    let (told, last) = (pin!(told_head(ask, timeline, None)), pin!(last));
    let ((head, reports), boundary) = match select(told, last).await {
        // Who does not answer is not waited for: another one may be asked.
        Either::Left((told, last)) => (told?, timeout(LAST_PATIENCE, last).await.ok().flatten()),
        Either::Right((last, told)) => (told.await?, last),
    };
    Ok(Look {
        head,
        reports,
        boundary,
    })
}

fn get(tenant: &Tenant, timeline: TimelineId) -> Result<&Timeline, BranchPointError> {
    tenant
        .timelines
        .get(&timeline)
        .ok_or(BranchPointError::NoTimeline(timeline))
}

/// The head with the reports that tell it, once everything up to `needed` is known as committed, or everything that may have been
/// acknowledged by now.
async fn told_head(
    ask: &Ask<'_>,
    timeline: TimelineId,
    needed: Option<Lsn>,
) -> Result<(Head, Reports), BranchPointError> {
    let deadline = tokio::time::Instant::now() + COMMIT_PATIENCE;
    let mut awaited = needed.map_or_else(Awaited::all, Awaited::upto);
    let (mut pause, longest) = LOOK_AGAIN;
    loop {
        let (head, reports) = ask.head(timeline).await?;
        // Beyond the end waiting would not help.
        if needed.is_some_and(|needed| needed > head.possible) || awaited.is_known(&head) {
            return Ok((head, reports));
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(BranchPointError::CommitNotTold {
                timeline,
                known: head.known,
                possible: head.possible,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(longest);
    }
}

/// The last boundary at or below `lsn`, which lies at or after the timeline's start.
async fn boundary(
    ask: &Ask<'_>,
    id: TimelineId,
    lsn: Lsn,
    seen: Option<Look>,
) -> Result<BranchPoint, BranchPointError> {
    let timeline = get(ask.tenant, id)?;
    // Before safekeepers are asked, which may not have the WAL any more either.
    let horizon = timeline.horizon;
    if lsn < horizon.lsn {
        return Err(BranchPointError::NotKept {
            lsn,
            horizon: horizon.lsn,
            horizon_unix_micros: horizon.unix_micros,
        });
    }
    let start = BranchPoint {
        parent: id,
        lsn: timeline.start_lsn,
        last_record: timeline.start_last_record,
    };
    if lsn == timeline.start_lsn {
        return Ok(start);
    }
    let Look {
        head,
        reports,
        boundary,
    } = match seen {
        Some(seen) => seen,
        None => {
            let (head, reports) = told_head(ask, id, Some(lsn)).await?;
            Look {
                head,
                reports,
                boundary: None,
            }
        }
    };
    if lsn > head.known {
        return Err(BranchPointError::BeyondEnd { lsn, end: head.known });
    }
    let (boundary, last_record) = match boundary {
        Some(found) if found.0 == lsn => found,
        _ => ask.boundary(id, lsn, reports).await?,
    };
    if boundary == timeline.start_lsn {
        return Ok(start);
    }
    if boundary > lsn || boundary < timeline.start_lsn || last_record < timeline.start_lsn {
        return Err(BranchPointError::Nonsense {
            lsn,
            boundary,
            last_record,
        });
    }
    Ok(BranchPoint {
        parent: id,
        lsn: boundary,
        last_record,
    })
}

/// End of the last commit at or before a time, in this timeline's history.
async fn by_time(ask: &Ask<'_>, timeline: TimelineId, micros: i64) -> Result<Lsn, BranchPointError> {
    let (head, _) = told_head(ask, timeline, None).await?;
    ask.ingested(timeline, head.known).await?;
    // What counts of an ancestor ends where the branch toward us begins.
    let (mut id, mut end) = (timeline, head.known);
    // Bounded by the number of timelines, so that even a cycle in damaged data ends.
    for _ in 0..=ask.tenant.timelines.len() {
        let this = get(ask.tenant, id)?;
        // With the copy of what it read from its parent, a shard may have commits before the start: those are not its own.
        let own = ask.lsn_by_time(id, micros).await?;
        if let Some(found) = own.filter(|found| *found >= this.start_lsn) {
            return Ok(found.min(end));
        }
        let Some(parent) = this.parent else {
            // Nothing was committed yet, but the cluster was there. Of one that was detached: what it was at times before
            // it was made only its former parent could tell.
            return if micros >= this.created_unix_micros {
                Ok(this.start_lsn)
            } else {
                Err(BranchPointError::TimeBeforeHistory {
                    created_unix_micros: this.created_unix_micros,
                })
            };
        };
        (id, end) = (parent, end.min(this.start_lsn));
    }
    Err(BranchPointError::NoTimeline(id))
}
