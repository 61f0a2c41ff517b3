//! How long the first of several commits waits for the others, found out while Postgres runs.
//!
//! Postgres flushes WAL under a lock, so one flush is on its way to the quorum at a time. Who comes to commit meanwhile
//! waits for the next one, and whom a flush releases comes back while the next is on its way already: so many sessions
//! become two groups that take turns, and a commit takes two flushes. `commit_delay` makes who begins a flush wait until
//! others have come. How long that pays depends on the flush and on how soon sessions come back, and both are known here:
//! a commit's record tells when it was logged ([`lakebed_wal::commit_time`]).
//!
//! * [`meter`]: what happened in the last seconds. Pure.
//! * [`policy`]: the delay that fits it. Pure.
//! * [`GroupCommit`] is the task: it writes the delay into the file that the sidecar owns, and has Postgres read it.
//!
//! A delay that is too long costs time and nothing else; safety does not depend on it.

pub mod meter;
pub mod policy;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::own_config::OwnConfig;
use crate::spans::Spans;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(500);
/// How long it waits for enough commits to tell something.
const LONGEST: Duration = Duration::from_secs(10);
/// Least time between two changes: each has all processes of Postgres read their configuration.
const REST: Duration = Duration::from_secs(2);

/// The task.
#[derive(Debug)]
pub struct GroupCommit {
    /// What is measured.
    pub spans: Arc<Spans>,
    /// Where the delay is written.
    pub own: Arc<OwnConfig>,
    /// The delay as it was set last, in microseconds, for status.
    pub delay_us: Arc<AtomicU32>,
}

impl GroupCommit {
    /// Follows the load until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut changed: Option<Instant> = None;
        let mut since = Instant::now();
        while stop
            .run_until_cancelled(tokio::time::sleep(PERIOD))
            .await
            .is_some()
        {
            if changed.is_some_and(|at| at.elapsed() < REST) {
                continue;
            }
            if self.spans.commits_in_window() < policy::MIN_COMMITS && since.elapsed() < LONGEST {
                continue;
            }
            let present = self.delay_us.load(Ordering::Relaxed);
            let window = self.spans.take_window();
            since = Instant::now();
            let wanted = policy::delay_us(present, &window);
            tracing::debug!(?window, wanted, "what commits did");
            if wanted == present {
                continue;
            }
            match self.own.change(|settings| settings.commit_delay_us = wanted) {
                Ok(()) => {
                    tracing::info!(
                        commit_delay_us = wanted,
                        before_us = present,
                        commits = window.commits,
                        flushes = window.flushes,
                        flush_us = window.mean_flush_us(),
                        "commits wait for each other as long as that pays"
                    );
                    self.delay_us.store(wanted, Ordering::Relaxed);
                }
                Err(error) => tracing::warn!(%error, "commit_delay stays as it was"),
            }
            changed = Some(Instant::now());
            // What was measured until now had the old delay.
            self.spans.take_window();
            since = Instant::now();
        }
    }
}
