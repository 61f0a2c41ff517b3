//! The scrubber: reads all committed WAL and the control file of every timeline again and again, finds bytes that the
//! disk no longer returns as they were written, and heals WAL.
//!
//! * [`check`]: a stretch of WAL, record by record: CRCs, links, page headers.
//! * [`heal`]: the same bytes from another safekeeper or from object storage, checked by the same decoder.
//!
//! One timeline at a time, a stretch at a time, at a bounded rate. Only what is committed is looked at: it never
//! changes, so nothing that the timeline's owner does meanwhile can be mistaken for damage but the removal of old WAL,
//! which is looked for. A control file is replaced as a whole with the next change of state; damage is reported.
//!
//! What cannot be healed stays in the status and in `scrub_damaged`, and the timeline goes on: every way out of a
//! safekeeper checks what it reads, so the damaged record is refused and nothing else.

pub mod check;
pub mod heal;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lakebed_types::Lsn;
use serde::Deserialize;

use crate::control_file;
use crate::recovery::Boundary;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};
use check::{Finding, STRETCH_BYTES};

/// How WAL is scrubbed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// Pause between the end of a round through all timelines and the next, in milliseconds.
    pub interval_ms: u64,
    /// Bytes of WAL that are read in a second, at most.
    pub bytes_per_second: u64,
}

impl Default for ScrubConfig {
    fn default() -> ScrubConfig {
        ScrubConfig {
            interval_ms: 24 * 3600 * 1000,
            bytes_per_second: 16 << 20,
        }
    }
}

/// What an operator is told about a timeline's scrubbing.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct ScrubStatus {
    /// When a round through it ended last.
    pub last_round_unix_s: Option<u64>,
    /// Up to here it was read in that round.
    pub checked_lsn: Lsn,
    /// Damage that was found and could not be healed in the last round.
    pub damage: Vec<String>,
    /// Stretches of WAL that were healed since the process started.
    pub healed: u64,
}

/// Most findings that one round keeps; more say nothing new.
const MAX_FINDINGS: usize = 100;

/// Works until the safekeeper ends.
pub(crate) async fn run(safekeeper: Arc<Safekeeper>) {
    let ending = safekeeper.ending().clone();
    let rounds = async {
        loop {
            tokio::time::sleep(Duration::from_millis(
                safekeeper.config().scrub.interval_ms.max(10),
            ))
            .await;
            for timeline in safekeeper.timelines() {
                round(&safekeeper, &timeline).await;
            }
        }
    };
    tokio::select! {
        () = rounds => {}
        () = ending.cancelled() => {}
    }
}

/// Reads all of a timeline once.
async fn round(safekeeper: &Safekeeper, timeline: &Timeline) {
    let Some(working) = &timeline.working else { return };
    let mut status = ScrubStatus::default();
    let mut at = start_of(working);
    loop {
        let view = timeline.view().borrow().clone();
        if view.stopped.is_some() {
            return;
        }
        if at.lsn < working.files.start() {
            at = start_of(working);
        }
        if at.lsn >= view.commit || status.damage.len() >= MAX_FINDINGS {
            break;
        }
        at = stretch(safekeeper, timeline, working, at, view.commit, &mut status).await;
        status.checked_lsn = at.lsn;
    }
    if let Err(error) = control_file::load(working.files.directory()) {
        found(safekeeper, &mut status, error.to_string());
    }
    status.last_round_unix_s = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .map(|time| time.as_secs());
    timeline.change_scrub_status(|old| {
        status.healed += old.healed;
        *old = status;
    });
}

fn start_of(working: &Working) -> Boundary {
    Boundary {
        lsn: working.files.start(),
        record_start: Lsn::INVALID,
    }
}

/// Checks one stretch, and heals it if need be; where the next begins.
async fn stretch(
    safekeeper: &Safekeeper,
    timeline: &Timeline,
    working: &Working,
    at: Boundary,
    commit: Lsn,
    status: &mut ScrubStatus,
) -> Boundary {
    let (after, reason) = match look(working, at, commit).await {
        Ok(next) => {
            let read = next.lsn.0 - at.lsn.0;
            safekeeper.metrics().scrub_bytes.inc_by(read);
            let rate = safekeeper.config().scrub.bytes_per_second.max(1);
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
            return next;
        }
        Err(_) if at.lsn < working.files.start() => return start_of(working),
        Err(Finding::Damage { after, reason }) => (after, reason),
        Err(Finding::Files(error)) => (at, error.to_string()),
    };
    tracing::error!(timeline = %timeline.name.1, at = %after.lsn, reason, "WAL on disk is damaged");
    let healed = match heal::heal(safekeeper, timeline, working, after, commit).await {
        Ok(source) => better(working, after, commit).await.map(|next| (source, next)),
        Err(why) => Err(why),
    };
    match healed {
        Ok((source, next)) => {
            tracing::info!(timeline = %timeline.name.1, at = %after.lsn, source, "WAL was healed");
            safekeeper.metrics().scrub_healed.inc();
            status.healed += 1;
            next
        }
        Err(why) => {
            let what = format!(
                "WAL at {} is damaged ({reason}) and was not healed: {why}",
                after.lsn
            );
            found(safekeeper, status, what);
            check::skip(&working.files, after, commit)
        }
    }
}

/// WAL is healed when it reads well: a disk may refuse what was written, too. How far it is good now.
async fn better(working: &Working, after: Boundary, commit: Lsn) -> Result<Boundary, String> {
    match look(working, after, commit).await {
        Ok(next) => Ok(next),
        Err(Finding::Damage { after: next, .. }) if next.lsn > after.lsn => Ok(next),
        Err(Finding::Damage { reason, .. }) => Err(format!("it reads no better afterwards: {reason}")),
        Err(Finding::Files(error)) => Err(format!("it reads no better afterwards: {error}")),
    }
}

fn found(safekeeper: &Safekeeper, status: &mut ScrubStatus, what: String) {
    safekeeper.metrics().scrub_damaged.inc();
    tracing::error!(what, "damage that was not healed");
    status.damage.push(what);
}

async fn look(working: &Working, at: Boundary, commit: Lsn) -> Result<Boundary, Finding> {
    let files = working.files.clone();
    let to = Lsn(commit.0.min(at.lsn.0.saturating_add(STRETCH_BYTES)));
    let looked = tokio::task::spawn_blocking(move || check::check(&files, at, to, commit)).await;
    looked.unwrap_or_else(|error| {
        Err(Finding::Damage {
            after: at,
            reason: error.to_string(),
        })
    })
}
