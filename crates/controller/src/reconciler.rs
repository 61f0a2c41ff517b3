//! Drives the nodes toward what the state says.
//!
//! ```text
//!  state, observed ─► plan ─► due steps ─► tasks: call a node, propose what it confirmed ─► state, observed
//! ```
//!
//! The plan is made anew after each change, so nothing has to be remembered: a controller that restarts at any step
//! plans what is left. A step that fails is repeated with growing pauses for as long as it is planned; so is one that
//! only began something at a node, until it is done there. A node that registers anew is a different step, and is called
//! at once. Steps on the same object of one node are never under way together, so that a late creation cannot overtake a
//! deletion.

mod call;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lakebed_placement::plan::{Action, timed_out};
use lakebed_placement::{Call, Command, Intent, NodeRole, Observed, plan};
use lakebed_types::{NodeId, ShardIdentity, TenantId, TimelineId};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::raft_node::unix_micros;
use crate::server::{Controller, PROPOSE_TIMEOUT};
pub(crate) use call::{CallError, PEER_PATIENCE, Progress};

/// Steps under way at a time.
const MAX_RUNNING: usize = 32;
/// Steps that failed or are under way, as shown to people.
const MAX_WAITING_SHOWN: usize = 100;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// While something has a deadline, the clock is looked at so often.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// What steps under way must not share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Shard(NodeId, TenantId, ShardIdentity),
    Safekeeper(NodeId, TimelineId),
    Proposal(Command),
}

fn lane(intent: &Intent) -> Lane {
    match intent {
        Intent::Propose(command) => Lane::Proposal(command.clone()),
        Intent::Call(call) => match &call.action {
            Action::AttachShard { shard, .. }
            | Action::CreateOnShard { shard, .. }
            | Action::DeleteOnShard { shard, .. }
            | Action::DetachOnShard { shard, .. }
            | Action::FillShard { shard, .. }
            | Action::RetireShard { shard }
            | Action::TakeOverShard { shard, .. }
            | Action::DropShard { shard } => Lane::Shard(call.node, call.tenant, shard.shard),
            Action::CreateOnSafekeeper { timeline, .. }
            | Action::TellSafekeeper { timeline, .. }
            | Action::DeleteOnSafekeeper { timeline }
            | Action::LeaveSafekeeper { timeline } => Lane::Safekeeper(call.node, *timeline),
        },
    }
}

/// A step that failed, or only began what it is to bring about, and is still planned.
struct Failed {
    times: u32,
    due: Instant,
    error: String,
    /// How far it is, when nothing but time is lacking.
    under_way: Option<Progress>,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.under_way {
            Some(progress) => write!(out, "{} ({progress})", self.error),
            None => write!(out, "{} (tried {} times)", self.error, self.times),
        }
    }
}

struct Reconciler {
    controller: Arc<Controller>,
    running: JoinSet<(Intent, Result<(), CallError>)>,
    lanes: BTreeSet<Lane>,
    failed: BTreeMap<Intent, Failed>,
}

/// Runs until `stop`.
pub(crate) async fn run(controller: Arc<Controller>, stop: CancellationToken) {
    let mut reconciler = Reconciler {
        controller: controller.clone(),
        running: JoinSet::new(),
        lanes: BTreeSet::new(),
        failed: BTreeMap::new(),
    };
    let mut status = controller.raft.status();
    loop {
        let in_charge = status.borrow_and_update().in_charge;
        let next_due = if in_charge {
            reconciler.start_steps()
        } else {
            reconciler.rest();
            None
        };
        let due = async {
            match next_due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            changed = status.changed() => if changed.is_err() {
                // The raft member is gone; why, it said itself.
                break;
            },
            Some(finished) = reconciler.running.join_next() => reconciler.finish(finished),
            () = due => {}
        }
    }
    reconciler.running.shutdown().await;
}

impl Reconciler {
    /// Starts what is planned and due; returns when something else becomes due.
    fn start_steps(&mut self) -> Option<Instant> {
        let (planned, deadline) = self.plan();
        self.failed.retain(|intent, _| planned.contains(intent));
        let now = Instant::now();
        for intent in &planned {
            if self.running.len() >= MAX_RUNNING {
                break;
            }
            let rests = self.failed.get(intent).is_some_and(|failed| failed.due > now);
            if rests || !self.lanes.insert(lane(intent)) {
                continue;
            }
            let (controller, intent) = (self.controller.clone(), intent.clone());
            self.running.spawn(async move {
                let result = take_step(&controller, &intent).await;
                (intent, result)
            });
        }
        self.show_waiting();
        // What is due and has no lane or no room is started when a step ends.
        let repeated = self.failed.values().map(|failed| failed.due);
        repeated.filter(|due| *due > now).chain(deadline).min()
    }

    /// What is planned, and when the time of something that waits is over.
    fn plan(&mut self) -> (Vec<Intent>, Option<Instant>) {
        let controller = &self.controller;
        let raft = controller.raft_status();
        let state = controller.raft.state();
        let addresses: BTreeSet<&str> = state.nodes.values().map(|node| node.address.as_str()).collect();
        controller.nodes.keep(&addresses);

        let metrics = &controller.metrics;
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, to: usize| {
            gauge.set(i64::try_from(to).unwrap_or(i64::MAX));
        };
        metrics.in_charge.set(1);
        metrics
            .applied_index
            .set(i64::try_from(raft.applied).unwrap_or(i64::MAX));
        metrics.term.set(i64::try_from(raft.term).unwrap_or(i64::MAX));
        set(&metrics.nodes, state.nodes.len());
        set(&metrics.tenants, state.tenants.len());
        let timelines = state.tenants.values().map(|tenant| tenant.timelines.len());
        set(&metrics.timelines, timelines.sum());
        let changing = state
            .tenants
            .values()
            .flat_map(|tenant| tenant.timelines.values());
        let changing = changing.filter(|timeline| {
            timeline.joining.is_some() || timeline.safekeepers.next.is_some() || !timeline.has_settled()
        });
        set(&metrics.safekeepers_changing, changing.count());

        // Only tells those who wait when something they could wait for went away, which nobody does.
        controller.observed.send_if_modified(|observed| {
            observed.prune(&state);
            false
        });
        let now = unix_micros();
        let (over, next) = timed_out(&state, now);
        let left = next.map(|at| Duration::from_micros(at.saturating_sub(now).unsigned_abs()));
        // The clock of the deadline may jump, that of the pause does not.
        let deadline = left.map(|left| Instant::now() + left.min(LOOK_AT_CLOCK));
        let mut planned = plan(&state, &controller.observed.borrow());
        planned.extend(over);
        (planned, deadline)
    }

    fn finish(&mut self, finished: Result<(Intent, Result<(), CallError>), tokio::task::JoinError>) {
        let (intent, result) = match finished {
            Ok(finished) => finished,
            Err(error) => {
                // A panic in a step. Which lane it held is not known, so all steps begin anew.
                tracing::error!(%error, "a step of the reconciler failed");
                self.rest();
                return;
            }
        };
        self.lanes.remove(&lane(&intent));
        let metrics = &self.controller.metrics;
        let Err(error) = result else {
            metrics.calls.inc();
            self.failed.remove(&intent);
            return;
        };
        let under_way = match error {
            CallError::UnderWay(progress) => Some(progress),
            _ => None,
        };
        match under_way {
            Some(_) => metrics.calls.inc(),
            None => metrics.call_failures.inc(),
        };
        let error = error.to_string();
        let step = call::describe(&intent);
        let times = self
            .failed
            .get(&intent)
            .map_or(1, |failed| failed.times.saturating_add(1));
        // Once per reason; the pauses in between are short.
        match self.failed.get(&intent) {
            Some(before) if before.error == error => tracing::debug!(step, error, times, "still not done"),
            _ if under_way.is_some() => tracing::info!(step, "under way; it goes on at the node"),
            _ => tracing::warn!(step, error, "not done; it will be repeated"),
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << times.min(10)).min(LONGEST_PAUSE);
        let due = Instant::now() + pause;
        let failed = Failed {
            times,
            due,
            error,
            under_way,
        };
        self.failed.insert(intent, failed);
    }

    /// Another member is in charge: whatever is under way is its business now.
    fn rest(&mut self) {
        self.running.abort_all();
        self.running = JoinSet::new();
        self.lanes.clear();
        self.failed.clear();
        self.controller.metrics.in_charge.set(0);
        self.controller.observed.send_replace(Observed::default());
        self.show_waiting();
    }

    fn show_waiting(&self) {
        let metrics = &self.controller.metrics;
        metrics
            .waiting
            .set(i64::try_from(self.failed.len()).unwrap_or(i64::MAX));
        let shown = self.failed.iter().take(MAX_WAITING_SHOWN);
        let text = |(intent, failed): (&Intent, &Failed)| format!("{}: {failed}", call::describe(intent));
        self.controller.set_waiting(shown.map(text).collect());
    }
}

/// One step: a call and the command that remembers it, or a command alone.
async fn take_step(controller: &Controller, intent: &Intent) -> Result<(), CallError> {
    let command = match intent {
        Intent::Propose(command) => Some(command.clone()),
        Intent::Call(call) => {
            call::execute(&controller.nodes, call).await?;
            tracing::info!(step = call::describe(intent), "done");
            confirm(controller, call)
        }
    };
    if let Some(command) = command {
        controller.raft.propose(command, PROPOSE_TIMEOUT).await?;
    }
    Ok(())
}

fn confirm(controller: &Controller, call: &Call) -> Option<Command> {
    let mut command = None;
    controller
        .observed
        .send_modify(|observed| command = observed.done(call));
    command
}

/// What a node is called in texts for people.
fn role_text(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Safekeeper => "safekeeper",
        NodeRole::Pageserver => "pageserver",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_told_with_its_progress_and_reads_the_same_each_time() {
        let progress = |done| Progress {
            done,
            known: 10,
            of: "pages",
        };
        let error = |done| CallError::UnderWay(progress(done));
        // Otherwise each look would be logged.
        assert_eq!(error(3).to_string(), error(4).to_string());
        let shown = |under_way, error: &str| {
            let failed = Failed {
                times: 7,
                due: Instant::now(),
                error: error.to_owned(),
                under_way,
            };
            failed.to_string()
        };
        assert_eq!(
            shown(Some(progress(3)), &error(3).to_string()),
            "it is under way (3 of 10 pages)"
        );
        assert_eq!(shown(None, "no"), "no (tried 7 times)");
    }
}
