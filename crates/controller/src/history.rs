//! The task that lets history go: it moves the horizon of each timeline behind its tenant's window, and deletes branches
//! whose time is over.
//!
//! ```text
//!  window, this clock ─► shard 0: the last commit before the window ─► RaiseHorizon (raft) ─► planner: shards are told
//! ```
//!
//! Where the horizon may be is asked of the pageserver that has the index of commit times, which uses the earlier of its own
//! clock and this one. This one does not run faster than the monotonic clock since the task began to be in charge, so a step of
//! the system's clock gives up nothing by itself. Nothing waits for this task: while no controller is there, history is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use lakebed_placement::{Command, Horizon, Retention, State, TenantState, TimelineState};
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::{convert, v1};
use lakebed_types::{Lsn, TenantId, TimelineId};
use tokio_util::sync::CancellationToken;

use crate::in_use::Members;
use crate::nodes::NodeError;
use crate::raft_node::unix_micros;
use crate::server::{Controller, PROPOSE_TIMEOUT};

/// Pause between two looks at what is due.
const LOOK: Duration = Duration::from_secs(1);
/// Timelines that are asked about at a time.
const AT_A_TIME: usize = 8;
/// How long a pageserver may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A horizon follows its window in so many steps: each is an entry in the log.
const STEPS: u64 = 128;
const SHORTEST_STEP: Duration = Duration::from_secs(1);
const LONGEST_STEP: Duration = Duration::from_secs(3600);
/// Of a window in bytes alone.
const STEP_BY_BYTES: Duration = Duration::from_secs(60);

/// How often a horizon is looked at.
fn step(retention: &Retention) -> Duration {
    let by_time = retention
        .seconds
        .map(|seconds| Duration::from_secs(seconds / STEPS));
    let by_bytes = retention.bytes.map(|_| STEP_BY_BYTES);
    let step = by_time.into_iter().chain(by_bytes).min().unwrap_or(LONGEST_STEP);
    step.clamp(SHORTEST_STEP, LONGEST_STEP)
}

/// The system's clock, without its steps ahead.
struct Clock {
    began: Instant,
    began_unix_micros: i64,
}

impl Clock {
    fn new() -> Clock {
        Clock {
            began: Instant::now(),
            began_unix_micros: unix_micros(),
        }
    }

    fn now(&self) -> i64 {
        self.at(self.began.elapsed(), unix_micros())
    }

    fn at(&self, elapsed: Duration, system_unix_micros: i64) -> i64 {
        let elapsed = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        system_unix_micros.min(self.began_unix_micros.saturating_add(elapsed))
    }
}

/// A timeline whose horizon is to be looked at.
struct Due {
    tenant: TenantId,
    timeline: TimelineId,
    /// Of shard 0.
    address: String,
    retention: Retention,
    /// Where it is, or the start.
    known: Lsn,
}

/// Runs until `stop`.
pub(crate) async fn run(controller: Arc<Controller>, stop: CancellationToken) {
    let (mut clock, mut looked) = (None, BTreeMap::new());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if !controller.raft_status().in_charge {
            (clock, looked) = (None, BTreeMap::new());
            continue;
        }
        let now = clock.get_or_insert_with(Clock::new).now();
        let work = async {
            let due = due(&controller.raft.state(), &mut looked);
            let raises = due.into_iter().map(|due| raise(&controller, due, now));
            let raised = futures::stream::iter(raises).buffer_unordered(AT_A_TIME);
            raised.for_each(async |()| {}).await;
            expire(&controller, now).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

/// What was not looked at for a step.
fn due(state: &State, looked: &mut BTreeMap<TimelineId, Instant>) -> Vec<Due> {
    let (mut due, mut there, now) = (Vec::new(), BTreeSet::new(), Instant::now());
    for (&id, tenant) in &state.tenants {
        let shard = tenant
            .shards
            .first()
            .and_then(|shard| state.nodes.get(&shard.node));
        let (Some(node), TenantState::Active, false) = (shard, tenant.state, tenant.retention.keeps_all())
        else {
            continue;
        };
        let step = step(&tenant.retention);
        for (&timeline, found) in &tenant.timelines {
            there.insert(timeline);
            let rests = looked.get(&timeline).is_some_and(|at| now < *at + step);
            if found.state != TimelineState::Active || rests {
                continue;
            }
            looked.insert(timeline, now);
            due.push(Due {
                tenant: id,
                timeline,
                address: node.address.clone(),
                retention: tenant.retention,
                known: found.horizon.lsn.max(found.start_lsn),
            });
        }
    }
    looked.retain(|timeline, _| there.contains(timeline));
    due
}

/// Raises the horizon of a timeline, if it may be. What does not work is tried again after the next step.
async fn raise(controller: &Controller, due: Due, now_unix_micros: i64) {
    let Due {
        tenant,
        timeline,
        known,
        ..
    } = due;
    let horizon = match find(controller, &due, now_unix_micros).await {
        Ok(horizon) => horizon,
        Err(error) => {
            tracing::debug!(%tenant, %timeline, %error, "where history may begin is not known");
            return;
        }
    };
    if horizon.lsn <= known {
        return;
    }
    let command = Command::RaiseHorizon {
        tenant,
        timeline,
        horizon,
    };
    match controller.raft.propose(command, PROPOSE_TIMEOUT).await {
        Ok(_) => {
            tracing::debug!(%tenant, %timeline, horizon = %horizon.lsn, "history before this is given up")
        }
        Err(error) => tracing::info!(%tenant, %timeline, %error, "history is not given up yet"),
    }
}

async fn find(controller: &Controller, due: &Due, now_unix_micros: i64) -> Result<Horizon, NodeError> {
    let request = v1::FindHorizonRequest {
        timeline: Some(convert::timeline_ref(due.tenant, due.timeline)),
        now_unix_micros,
        window_seconds: due.retention.seconds,
        window_bytes: due.retention.bytes,
    };
    let found = controller.nodes.call(&due.address, PATIENCE, async |channel| {
        PageserverClient::new(channel).find_horizon(request).await
    });
    let found = found.await?;
    Ok(Horizon {
        lsn: Lsn(found.lsn),
        unix_micros: found.unix_micros,
    })
}

/// Deletes branches whose time is over and that nobody uses.
async fn expire(controller: &Controller, now_unix_micros: i64) {
    let over: Vec<(TenantId, TimelineId, Members)> = {
        let state = controller.raft.state();
        let timelines = state.tenants.iter().flat_map(|(id, tenant)| {
            // The last branch stays: it is not even asked about.
            let alone = tenant.branches.len() <= 1;
            let live = |child: TimelineId| {
                let mut children = tenant.children(child);
                children.any(|(_, child)| child.state != TimelineState::Deleting)
            };
            let over = tenant.timelines.iter().filter(move |(id, timeline)| {
                let over = timeline
                    .expires_unix_micros
                    .is_some_and(|at| at <= now_unix_micros);
                over && !alone && timeline.state == TimelineState::Active && !live(**id)
            });
            over.map(|(timeline, found)| (*id, *timeline, Members::of(&state, *id, (*timeline, found))))
        });
        timelines.collect()
    };
    for (tenant, timeline, members) in over {
        match members.have_proposer(&controller.nodes).await {
            Ok(false) => {}
            Ok(true) => continue,
            Err(reasons) => {
                tracing::debug!(%tenant, %timeline, reasons, "whether an expired branch is used is not known");
                continue;
            }
        }
        let command = Command::ExpireBranch { tenant, timeline };
        match controller.raft.propose(command, PROPOSE_TIMEOUT).await {
            Ok(_) => tracing::info!(%tenant, %timeline, "the branch's time is over; it is being deleted"),
            Err(error) => tracing::info!(%tenant, %timeline, %error, "an expired branch is not deleted yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ahead_gives_up_nothing() {
        let clock = Clock {
            began: Instant::now(),
            began_unix_micros: 1_000_000,
        };
        let second = Duration::from_secs(1);
        // Elapsed seconds, the system's clock, what counts.
        let rows = [
            (1, 2_000_000, 2_000_000),
            (1, 900_000_000, 2_000_000),
            (5, 3_000_000, 3_000_000),
        ];
        for (elapsed, system, expected) in rows {
            assert_eq!(clock.at(second * elapsed, system), expected);
        }
    }

    #[test]
    fn a_horizon_follows_its_window_in_steps() {
        let of = |seconds, bytes| step(&Retention { seconds, bytes }).as_secs();
        assert_eq!(of(Some(3), None), 1);
        assert_eq!(of(Some(86_400), None), 675);
        assert_eq!(of(Some(u64::MAX), None), 3600);
        assert_eq!(of(Some(86_400), Some(1)), 60);
        assert_eq!(of(None, Some(1)), 60);
    }
}
