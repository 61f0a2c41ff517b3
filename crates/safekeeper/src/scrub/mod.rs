//! The scrubber: reads all flushed WAL and the control file of every timeline again and again, or when it is told to,
//! finds bytes that the disk no longer returns as they were written, and heals WAL.
//!
//! * [`check`]: a stretch of WAL, record by record: CRCs, links, page headers.
//! * [`sources`]: the same bytes from another safekeeper or from object storage.
//! * [`heal`]: writing them, checked by the same decoder.
//! * [`mending`]: timelines that were found damaged when they were read at the start.
//!
//! One timeline at a time, a stretch at a time, at a bounded rate. What is committed never changes, so nothing that the
//! timeline's owner does meanwhile can be mistaken for damage but the removal of old WAL, which is looked for. Above it
//! WAL may be cut and written anew: what was read is believed only if no cut came meanwhile, and what takes its place is
//! written by the owner's disk worker, in the order of the cuts. It also writes a control file anew of which a copy has
//! rotted.
//!
//! What cannot be healed stays in the status and in `scrub_damaged`, and the timeline goes on: every way out of a
//! safekeeper checks what it reads, so the damaged record is refused and nothing else.

pub mod check;
pub mod heal;
pub mod mending;
pub mod sources;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use lakebed_types::Lsn;
use serde::Deserialize;
use tokio::sync::{Notify, oneshot};

use crate::control_file;
use crate::owner::{Patch, Repair};
use crate::recovery::Boundary;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};
use check::{Finding, STRETCH_BYTES};
use heal::Missing;
use sources::Remedy;

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
    /// While a round goes through it: up to here it was read.
    pub reading_lsn: Option<Lsn>,
    /// Damage that was found and could not be healed in the last round.
    pub damage: Vec<String>,
    /// Stretches of WAL that were healed since the process started.
    pub healed: u64,
}

/// Most findings that one round keeps; more say nothing new.
const MAX_FINDINGS: usize = 100;

/// The passes through all timelines: how many there were, and how somebody starts one.
#[derive(Debug, Default)]
pub struct Passes {
    wanted: Notify,
    asked: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    timelines: AtomicU64,
    timelines_done: AtomicU64,
}

impl Passes {
    /// Starts a pass now, or when the one that is under way has ended; its number, to be waited for in the status.
    pub fn start(&self) -> u64 {
        let number = self.begun.load(Ordering::Acquire) + 1;
        self.asked.fetch_max(number, Ordering::AcqRel);
        self.wanted.notify_one();
        number
    }

    /// What an operator is told: numbers of passes since the process started, and how far the present one is.
    pub fn status_json(&self) -> serde_json::Value {
        let number = |of: &AtomicU64| of.load(Ordering::Acquire);
        let (ended, begun) = (number(&self.ended), number(&self.begun));
        serde_json::json!({
            "running": begun > ended || number(&self.asked) > begun,
            "passes_begun": begun,
            "passes_ended": ended,
            "timelines": number(&self.timelines),
            "timelines_done": number(&self.timelines_done),
        })
    }
}

/// Works until the safekeeper ends.
pub(crate) async fn run(safekeeper: Arc<Safekeeper>) {
    let ending = safekeeper.ending().clone();
    let passes = safekeeper.scrub_passes();
    let rounds = async {
        loop {
            let interval = Duration::from_millis(safekeeper.config().scrub.interval_ms.max(10));
            // Whatever comes first, so an error of the timeout is as good as none.
            let _ = tokio::time::timeout(interval, passes.wanted.notified()).await;
            pass(&safekeeper, passes).await;
        }
    };
    tokio::select! {
        () = rounds => {}
        () = ending.cancelled() => {}
    }
}

async fn pass(safekeeper: &Safekeeper, passes: &Passes) {
    let timelines = safekeeper.timelines();
    passes.timelines.store(timelines.len() as u64, Ordering::Release);
    passes.timelines_done.store(0, Ordering::Release);
    passes.begun.fetch_add(1, Ordering::AcqRel);
    for timeline in timelines {
        round(safekeeper, &timeline).await;
        passes.timelines_done.fetch_add(1, Ordering::AcqRel);
    }
    passes.ended.fetch_add(1, Ordering::AcqRel);
}

/// Where a round through a timeline is.
struct Place {
    at: Boundary,
    /// The last place of it that was known to be committed: it survives every cut.
    committed: Boundary,
    /// Cuts up to then.
    truncations: u64,
}

/// Reads all of a timeline once.
async fn round(safekeeper: &Safekeeper, timeline: &Timeline) {
    let Some(working) = &timeline.working else { return };
    let mut status = ScrubStatus::default();
    let mut place = Place {
        at: start_of(working),
        committed: start_of(working),
        truncations: timeline.view().borrow().truncations,
    };
    loop {
        let view = timeline.view().borrow().clone();
        if view.stopped.is_some() {
            return;
        }
        if view.truncations != place.truncations {
            (place.at, place.truncations) = (place.committed, view.truncations);
        }
        if place.at.lsn < working.files.start() {
            place.at = start_of(working);
        }
        if place.at.lsn <= view.commit {
            place.committed = place.at;
        }
        if place.at.lsn >= view.flush || status.damage.len() >= MAX_FINDINGS {
            break;
        }
        place.at = stretch(safekeeper, timeline, working, &place, &mut status).await;
        timeline.change_scrub_status(|shown| shown.reading_lsn = Some(place.at.lsn));
    }
    status.checked_lsn = place.at.lsn;
    control(safekeeper, timeline, working, &mut status).await;
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
    place: &Place,
    status: &mut ScrubStatus,
) -> Boundary {
    let at = place.at;
    let (commit, flush) = reach(timeline);
    // Not across the commit position: what is found is either of the one kind or of the other.
    let limit = if at.lsn < commit { commit } else { flush };
    let looked = look(working, at, limit).await;
    if timeline.view().borrow().truncations != place.truncations && limit > commit {
        return place.committed;
    }
    let (after, reason) = match looked {
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
    let healed = match mend(safekeeper, timeline, working, (after, limit), place.truncations).await {
        Ok(source) => better(working, after, limit).await.map(|next| (source, next)),
        Err(why) => Err(why),
    };
    match healed {
        Ok((source, next)) => {
            tracing::info!(timeline = %timeline.name.1, at = %after.lsn, source, "WAL was healed");
            safekeeper.metrics().scrub_healed.inc();
            status.healed += 1;
            next
        }
        // What was cut meanwhile is damaged no more.
        Err(_) if limit > commit && timeline.view().borrow().truncations != place.truncations => {
            place.committed
        }
        Err(why) => {
            let what = format!(
                "WAL at {} is damaged ({reason}) and was not healed: {why}",
                after.lsn
            );
            found(safekeeper, status, what);
            check::skip(&working.files, after, limit)
        }
    }
}

/// Commit and flush position.
fn reach(timeline: &Timeline) -> (Lsn, Lsn) {
    let view = timeline.view();
    let view = view.borrow();
    (view.commit, view.flush)
}

/// Replaces what is damaged behind `after` and was flushed up to `below`; says who had it.
async fn mend(
    safekeeper: &Safekeeper,
    timeline: &Timeline,
    working: &Working,
    (after, below): (Boundary, Lsn),
    truncations: u64,
) -> Result<String, String> {
    let view = timeline.view().borrow().clone();
    let state = view.state.as_ref().ok_or("its state is not known")?;
    let own = lakebed_quorum::acceptor::Durable {
        commit: view.commit,
        ..(**state).clone()
    };
    let place = (after.lsn, below);
    let found = sources::find(safekeeper, timeline.name, &own, place, |remedy| async move {
        match remedy {
            Remedy::Cut => Err("it was given up, and goes with the next history".to_owned()),
            Remedy::Wal(wal) if after.lsn < view.commit => {
                let files = working.files.clone();
                let written =
                    tokio::task::spawn_blocking(move || heal::replace(&files, after, &wal, Missing::Refuse));
                written.await.map_err(|error| error.to_string())?
            }
            Remedy::Wal(wal) => patch(working, after, wal, truncations).await,
        }
    });
    found.await
}

/// Has the owner write what may be cut.
async fn patch(working: &Working, after: Boundary, wal: Vec<u8>, truncations: u64) -> Result<(), String> {
    let (answer, said) = oneshot::channel();
    let patch = Patch {
        truncations,
        after,
        wal,
        answer,
    };
    let ending = "the timeline is ending";
    let sent = working.repairs.send(Repair::Wal(patch)).await;
    sent.map_err(|_| ending)?;
    said.await.map_err(|_| ending)?
}

/// Looks at the copies of the control file, and has the owner write them anew when one is damaged.
async fn control(safekeeper: &Safekeeper, timeline: &Timeline, working: &Working, status: &mut ScrubStatus) {
    let damage = copies(working).await;
    if damage.is_empty() {
        return;
    }
    tracing::error!(timeline = %timeline.name.1, ?damage, "the control file is damaged");
    let (answer, said) = oneshot::channel();
    let asked = working.repairs.send(Repair::Control(answer)).await;
    let written = match (asked, said.await) {
        (Ok(()), Ok(Ok(()))) => copies(working).await,
        (Ok(()), Ok(Err(why))) => vec![why],
        _ => return, // The timeline is ending.
    };
    if written.is_empty() {
        tracing::info!(timeline = %timeline.name.1, "the control file was healed");
        safekeeper.metrics().scrub_healed.inc();
        status.healed += 1;
        return;
    }
    let (damage, why) = (damage.join("; "), written.join("; "));
    let what = format!("the control file is damaged ({damage}) and was not healed: {why}");
    found(safekeeper, status, what);
}

async fn copies(working: &Working) -> Vec<String> {
    let files = working.files.clone();
    let looked = tokio::task::spawn_blocking(move || control_file::damage(files.directory())).await;
    looked.unwrap_or_else(|error| vec![error.to_string()])
}

/// WAL is healed when it reads well: a disk may refuse what was written, too. How far it is good now.
async fn better(working: &Working, after: Boundary, limit: Lsn) -> Result<Boundary, String> {
    match look(working, after, limit).await {
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

async fn look(working: &Working, at: Boundary, limit: Lsn) -> Result<Boundary, Finding> {
    let files = working.files.clone();
    let to = Lsn(limit.0.min(at.lsn.0.saturating_add(STRETCH_BYTES)));
    let looked = tokio::task::spawn_blocking(move || check::check(&files, at, to, limit)).await;
    looked.unwrap_or_else(|error| {
        Err(Finding::Damage {
            after: at,
            reason: error.to_string(),
        })
    })
}
