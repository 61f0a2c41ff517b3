//! The task that compacts one timeline, beside its feed.
//!
//! After each flush it plans, and merges in slices. Between two slices others get their turn: one merge runs at a time on a
//! node ([`Turns`](crate::node::Turns)), below reads in priority, and as long as pages are served it rests longer than it
//! works. Merges that are late, so that reads suffer for them, have the priority of reads and rest as long as they work. Each
//! cut of a merge counts when its manifest is stored; whatever interrupts the task, it is planned again from there. Now and
//! then it removes objects that nothing names.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::manifest::ManifestError;
use crate::node::Node;
use crate::timeline::compaction::{Next, Running, Slice};
use crate::timeline::detach::Basing;
use crate::timeline::{Timeline, TimelineError};

/// Work between two looks at others.
const SLICE: Duration = Duration::from_millis(20);
/// As long as pages are served, and merges are not late, it rests so many times as long as it works.
const REST: u32 = 3;
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Objects are removed this often.
const SWEEP: Duration = Duration::from_secs(60);

/// Runs until stopped, or until another node owns the shard.
pub async fn run(node: Arc<Node>, timeline: Arc<Timeline>, stop: CancellationToken) {
    let identity = &timeline.identity;
    let span = tracing::info_span!("compaction", tenant = %identity.tenant, timeline = %identity.timeline, shard = %identity.shard);
    let work = work(&node, &timeline).instrument(span);
    // What is cancelled in the middle has not happened.
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn work(node: &Node, timeline: &Arc<Timeline>) {
    let mut flushed = timeline.watch_disk_consistent();
    let mut sweep = Instant::now() + SWEEP;
    loop {
        flushed.borrow_and_update();
        let mut done = compact(node, timeline).await;
        if done.is_ok() && Instant::now() >= sweep {
            sweep = Instant::now() + SWEEP;
            done = timeline.sweep().await.map(|removed| {
                node.metrics.objects_removed.inc_by(removed as u64);
            });
        }
        node.tell_kept();
        let next = match done {
            Ok(()) => sweep,
            Err(TimelineError::Manifest(error @ ManifestError::Superseded { .. })) => {
                tracing::warn!(%error, "compaction ends");
                return;
            }
            Err(error) => {
                node.metrics.compaction_failures.inc();
                tracing::warn!(%error, "compaction failed; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        tokio::select! {
            changed = flushed.changed() => if changed.is_err() { return },
            () = timeline.history_may_have_changed() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// Does everything that is to be done now.
async fn compact(node: &Node, timeline: &Arc<Timeline>) -> Result<(), TimelineError> {
    loop {
        match timeline.plan_compaction().await? {
            Next::Nothing => return timeline.leave_parent().await,
            Next::Catalogue(layers) => timeline.merge_catalogue(layers).await?,
            Next::Merge(running) => merge(node, timeline, running).await?,
            Next::Base(basing) => base(node, timeline, basing).await?,
        }
    }
}

/// One range of a branch that is being detached. Merges go before the next one.
async fn base(node: &Node, timeline: &Arc<Timeline>, basing: Box<Basing>) -> Result<(), TimelineError> {
    let metrics = &node.metrics;
    let mut basing = basing;
    loop {
        let (served, before) = (metrics.pages.get(), timeline.detached().pages_done);
        let turn = node.turns.next().await;
        let begin = Instant::now();
        let (goes_on, based) = timeline.base_for(basing, SLICE).await?;
        let worked = begin.elapsed();
        let pages = timeline.detached().pages_done - before;
        metrics.pages_detached.inc_by(pages);
        if let Some(based) = based {
            return timeline.commit_base(based).await;
        }
        drop(turn);
        if metrics.pages.get() > served {
            rest(timeline, worked).await;
        }
        basing = goes_on;
    }
}

/// While pages are served: even below all others in priority, work takes caches and the memory's time.
async fn rest(timeline: &Timeline, worked: Duration) {
    let times = if timeline.merges_are_late() { 1 } else { REST };
    tokio::time::sleep(worked.saturating_mul(times)).await;
}

async fn merge(node: &Node, timeline: &Arc<Timeline>, running: Box<Running>) -> Result<(), TimelineError> {
    let metrics = &node.metrics;
    let mut next = Some(running);
    while let Some(running) = next.take() {
        let (served, before) = (metrics.pages.get(), running.count());
        let turn = node.turns.next().await;
        let begin = Instant::now();
        let slice = timeline.merge_for(running, SLICE).await?;
        let worked = begin.elapsed();
        let (running, finished, goes_on) = match slice {
            Slice::Pause(running) => (running, None, true),
            Slice::Cut(running, finished) => (running, Some(finished), true),
            Slice::Done(running, finished) => (running, Some(finished), false),
        };
        if let Some(finished) = finished {
            timeline.commit_merge(finished).await?;
            metrics.merges.inc();
        }
        drop(turn);
        metrics.merged(&before, &running.count());
        if goes_on {
            next = Some(running);
            if metrics.pages.get() > served {
                rest(timeline, worked).await;
            }
        }
    }
    Ok(())
}
