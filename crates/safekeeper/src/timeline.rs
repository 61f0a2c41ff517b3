//! One timeline as the rest of the safekeeper holds it: a handle to its owner task, and what may be read of it.
//!
//! A timeline that cannot be opened, or whose disk failed, is still there to be looked at: stopped, with the reason.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use lakebed_proto::v1;
use lakebed_quorum::acceptor::{Acceptor, Durable};
use lakebed_types::Lsn;
use lakebed_wal::page::{WAL_PAGE_BYTES, WalFormat};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backup::uploader::BackupStatus;
use crate::control_file::{self, ControlFile, ControlFileError};
use crate::data_dir::{DataDirError, Name};
use crate::decoded::DecodedWal;
use crate::disk::Disk;
use crate::durable_file::DurableFileError;
use crate::intake::{Intake, IntakeError};
use crate::metrics::Metrics;
use crate::owner::{
    Inboxes, MAILBOX_MESSAGES, MAX_NEWCOMERS, MAX_NOTES, MAX_ORDERS, MAX_QUESTIONS, MAX_REPAIRS, Mail, Note,
    Order, Owner, Question, Repair,
};
use crate::propose::Newcomer;
use crate::recovery::{self, Boundary, Damage};
use crate::scrub::ScrubStatus;
use crate::view::{Shards, View};
use crate::wal_files::WalFiles;
use crate::wal_store::{WalStore, WalStoreError, segment_path};
use crate::{durable_file, wire};

/// Bytes of WAL that proposers of one timeline may have in flight.
pub const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;

const SCAN_BYTES: u64 = 1 << 20;

/// Why a timeline cannot work.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its control file.
    #[error(transparent)]
    Control(#[from] ControlFileError),
    /// Its WAL.
    #[error(transparent)]
    Wal(#[from] WalStoreError),
    /// A file or directory.
    #[error(transparent)]
    File(#[from] DurableFileError),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The WAL that was found is not valid.
    #[error("the WAL on disk is damaged: {0}")]
    Decode(#[from] IntakeError),
    /// WAL that was durable is missing or damaged.
    #[error(
        "{0}; it is fetched from the other safekeepers or object storage. Keep these files. Do not create the timeline \
         anew under this safekeeper's id, which would forget the terms that it promised"
    )]
    Damaged(Damage),
    /// Positions contradict each other.
    #[error("the positions in the control file do not fit the WAL, which ends at {0}")]
    Positions(Lsn),
}

impl LoadError {
    /// What is to be mended, when that is all.
    pub fn into_damage(self) -> Option<Damage> {
        match self {
            LoadError::Damaged(damage) => Some(damage),
            _ => None,
        }
    }
}

/// The format of a timeline's WAL.
pub fn wal_format(state: &Durable) -> WalFormat {
    WalFormat {
        version: state.pg_version,
        timeline: 1,
        system_identifier: state.system_id,
        segment_bytes: u32::try_from(state.segment_bytes).unwrap_or(u32::MAX),
    }
}

/// Puts the files of a new timeline into a directory, durably. It has no WAL below `truncate`.
pub fn create(directory: &Path, state: &Durable) -> Result<(), LoadError> {
    recovery::create(directory, wal_format(state), state.truncate)?;
    // Last, and with it the names in the directory.
    ControlFile::create(directory, state)?;
    Ok(())
}

/// A timeline's files, read and found in order.
pub struct Loaded {
    pub(crate) acceptor: Acceptor,
    pub(crate) intake: Intake,
    pub(crate) files: WalFiles,
    pub(crate) disk: Disk,
}

impl Loaded {
    /// The files that [`create`] makes or made for this process, which it need not read and make durable once more:
    /// `directory` is where they are to be used.
    ///
    /// # Errors
    /// The state is none of a new timeline.
    pub(crate) fn just_created(directory: &Path, state: &Durable) -> Result<Loaded, LoadError> {
        check_segments(state)?;
        let (format, start) = (wal_format(state), state.truncate);
        let known = Boundary {
            lsn: start,
            record_start: Lsn::INVALID,
        };
        let positions = || LoadError::Positions(start);
        if state.commit != start {
            return Err(positions());
        }
        let store = WalStore::just_created(directory, state.segment_bytes, start);
        Ok(Loaded {
            acceptor: Acceptor::new(state.clone(), start).ok_or_else(positions)?,
            intake: Intake::new(format, known),
            files: WalFiles::new(directory, format, start),
            disk: Disk::new(ControlFile::just_created(directory, state), store),
        })
    }
}

fn check_segments(state: &Durable) -> Result<(), ControlFileError> {
    let valid =
        state.segment_bytes.is_power_of_two() && (WAL_PAGE_BYTES..=1 << 30).contains(&state.segment_bytes);
    valid
        .then_some(())
        .ok_or(ControlFileError::Damaged("segment size"))
}

/// Reads a timeline from disk, whose WAL is known to have been durable up to `at_least`. Blocks.
pub fn load(directory: &Path, at_least: Lsn) -> Result<Loaded, LoadError> {
    // A process that ended may have left what it wrote in the kernel's hands alone: what is acted on must be on disk.
    let control = ControlFile::open(directory)?;
    let state = control.state().clone();
    check_segments(&state)?;
    // A crash may have come before the removal of what lies below; it is removed with the next control write.
    let (format, start, commit) = (wal_format(&state), state.truncate, state.commit);
    let files = WalFiles::new(directory, format, start);
    let (known, end) = recovery::end(&files, commit, at_least)?;
    let end = end.lsn;
    sync_segments(directory, state.segment_bytes, (commit, end))?;
    let store = match WalStore::open(directory, state.segment_bytes, start, end) {
        // A file that is missing far below: nothing above has been touched yet.
        Err(error @ WalStoreError::Damaged { .. }) => {
            recovery::check_committed(&files, commit, end)?;
            return Err(error.into());
        }
        opened => opened?,
    };
    let mut intake = Intake::new(format, known);
    while intake.expected() < end {
        let at = intake.expected();
        let length = (end.0 - at.0).min(SCAN_BYTES);
        intake.accept(Bytes::from(files.read(at, length as usize)?))?;
    }
    let acceptor = Acceptor::new(state, end).ok_or(LoadError::Positions(end))?;
    Ok(Loaded {
        acceptor,
        intake,
        files,
        disk: Disk::new(control, store),
    })
}

/// Cuts what lies behind `end` off, durably: the disk does not return it, and nobody needs it. Blocks.
pub(crate) fn cut(directory: &Path, end: Lsn) -> Result<(), LoadError> {
    let state = control_file::load(directory)?;
    sync_segments(directory, state.segment_bytes, (state.commit, end))?;
    WalStore::open(directory, state.segment_bytes, state.truncate, end)?;
    Ok(())
}

fn sync_segments(
    directory: &Path,
    segment_bytes: u64,
    (from, to): (Lsn, Lsn),
) -> Result<(), DurableFileError> {
    for number in from.segment_number(segment_bytes)..=to.segment_number(segment_bytes) {
        match sync_file(&segment_path(directory, segment_bytes, number)) {
            // The end may be the border to a segment that is not there yet.
            Err(DurableFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

fn sync_file(path: &Path) -> Result<(), DurableFileError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(durable_file::DurableFileError::io(path))
}

/// What works in a timeline that is not stopped.
#[derive(Debug)]
pub struct Working {
    /// To its owner.
    pub mail: mpsc::Sender<Mail>,
    /// To its owner, from readers of WAL that is not committed yet.
    pub questions: mpsc::Sender<Question>,
    /// To its owner, about WAL elsewhere.
    pub notes: mpsc::Sender<Note>,
    /// To its owner, from the controller.
    pub orders: mpsc::Sender<Order>,
    /// To its owner, from the scrubber.
    pub repairs: mpsc::Sender<Repair>,
    /// To its owner, streams of proposers that have greeted.
    pub(crate) streams: mpsc::Sender<Newcomer>,
    /// Room for WAL in flight, in bytes.
    pub room: Arc<Semaphore>,
    /// Its WAL on disk.
    pub files: WalFiles,
    /// Its committed WAL as records, shared by all feeds.
    pub decoded: DecodedWal,
}

/// A timeline; see the module header.
#[derive(Debug)]
pub struct Timeline {
    /// Its name.
    pub name: Name,
    /// How far its shards are.
    pub shards: Arc<Shards>,
    /// `None` when it could not be opened.
    pub working: Option<Working>,
    view: Arc<watch::Sender<View>>,
    end: CancellationToken,
    owner: Mutex<Option<JoinHandle<()>>>,
    backup: std::sync::Mutex<BackupStatus>,
    scrub: std::sync::Mutex<ScrubStatus>,
    /// Open streams of proposers.
    pub proposers: Gauge,
    metrics: Metrics,
    /// In one of the gauges.
    counted: AtomicBool,
}

impl Timeline {
    /// Opens the timeline in this directory and starts its owner.
    pub async fn open(name: Name, directory: PathBuf, metrics: &Metrics) -> Arc<Timeline> {
        let path = directory.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&path, Lsn::INVALID)).await;
        let (reason, damage) = match loaded {
            Ok(Ok(loaded)) => return Self::start(name, loaded, metrics),
            Ok(Err(error)) => (error.to_string(), error.into_damage()),
            Err(error) => (format!("reading it failed: {error}"), None),
        };
        tracing::error!(tenant = %name.0, timeline = %name.1, reason, "timeline is not started");
        metrics.timelines_stopped.inc();
        let view = View {
            state: control_file::load(&directory).ok().map(Arc::new),
            stopped: Some(reason),
            damage,
            ..View::default()
        };
        Arc::new(Timeline {
            name,
            shards: Arc::default(),
            working: None,
            view: Arc::new(watch::Sender::new(view)),
            end: CancellationToken::new(),
            owner: Mutex::default(),
            backup: std::sync::Mutex::default(),
            scrub: std::sync::Mutex::default(),
            proposers: Gauge::default(),
            metrics: metrics.clone(),
            counted: AtomicBool::new(true),
        })
    }

    /// Starts the owner of a timeline that was read.
    pub(crate) fn start(name: Name, loaded: Loaded, metrics: &Metrics) -> Arc<Timeline> {
        let span = tracing::info_span!("timeline", tenant = %name.0, timeline = %name.1);
        let Loaded {
            acceptor,
            intake,
            files,
            disk,
        } = loaded;
        let (flush, _) = acceptor.ends();
        tracing::info!(parent: &span, term = %acceptor.state().term, %flush, "timeline started");
        let (mail, mailbox) = mpsc::channel(MAILBOX_MESSAGES);
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        let (notes, noted) = mpsc::channel(MAX_NOTES);
        let (orders, ordered) = mpsc::channel(MAX_ORDERS);
        let (repairs, repaired) = mpsc::channel(MAX_REPAIRS);
        let (streams, newcomers) = mpsc::channel(MAX_NEWCOMERS);
        let view = Arc::new(watch::Sender::new(View::default()));
        let shards = Arc::new(Shards::default());
        let end = CancellationToken::new();
        metrics.timelines_running.inc();
        let owner = Owner::new(
            (acceptor, intake),
            (files.clone(), disk),
            Inboxes {
                mailbox,
                questions: asked,
                notes: noted,
                orders: ordered,
                repairs: repaired,
                newcomers,
            },
            (view.clone(), shards.clone()),
            metrics.clone(),
        );
        let owner = tokio::spawn(owner.run(end.clone()).instrument(span));
        let working = Working {
            mail,
            questions,
            notes,
            orders,
            repairs,
            streams,
            room: Arc::new(Semaphore::new(MAX_IN_FLIGHT_BYTES)),
            decoded: DecodedWal::new(files.clone(), metrics.clone()),
            files,
        };
        Arc::new(Timeline {
            name,
            shards,
            working: Some(working),
            view,
            end,
            owner: Mutex::new(Some(owner)),
            backup: std::sync::Mutex::default(),
            scrub: std::sync::Mutex::default(),
            proposers: Gauge::default(),
            metrics: metrics.clone(),
            counted: AtomicBool::new(true),
        })
    }

    /// What can be seen of it now, and when it changes.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub(crate) fn change_backup_status(&self, change: impl FnOnce(&mut BackupStatus)) {
        change(&mut self.backup.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn change_scrub_status(&self, change: impl FnOnce(&mut ScrubStatus)) {
        change(&mut self.scrub.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Its damage is as it was, or another one; why that was not mended now.
    pub(crate) fn still_damaged(&self, damage: Damage, why: &str) {
        let reason = format!("{damage}; nobody could help yet: {why}");
        tracing::warn!(timeline = %self.name.1, reason, "WAL is damaged");
        self.view.send_modify(|view| {
            view.stopped = Some(reason);
            view.damage = Some(damage);
        });
    }

    /// What is wrong is not, or no longer, damage of its WAL: somebody must look at it.
    pub(crate) fn cannot_be_mended(&self, reason: &str) {
        tracing::error!(timeline = %self.name.1, reason, "timeline is not started");
        self.view.send_modify(|view| {
            view.stopped = Some(reason.to_owned());
            view.damage = None;
        });
    }

    /// Ends its owner, and with it every stream; its files are no longer in use when this returns.
    pub async fn end(&self, reason: &str) {
        self.end.cancel();
        if let Some(owner) = self.owner.lock().await.take() {
            let _ = owner.await;
        }
        let mut was_running = false;
        self.view.send_if_modified(|view| {
            was_running = view.stopped.is_none();
            view.stopped.get_or_insert_with(|| reason.to_owned());
            was_running
        });
        if self.counted.swap(false, Ordering::Relaxed) {
            let gauge = if was_running {
                &self.metrics.timelines_running
            } else {
                &self.metrics.timelines_stopped
            };
            gauge.dec();
        }
    }

    /// Its status, for the wire.
    pub fn status(&self) -> v1::SafekeeperTimelineStatus {
        v1::SafekeeperTimelineStatus {
            proposers: u32::try_from(self.proposers.get()).unwrap_or_default(),
            ..wire::status(self.name, &self.view.borrow(), &self.shards)
        }
    }

    /// Its status, for people and scripts.
    pub fn status_json(&self) -> serde_json::Value {
        let view = self.view.borrow().clone();
        let shards = self.shards.all().into_iter().map(|((count, index), progress)| {
            serde_json::json!({
                "shard": format!("{index}of{count}"),
                "generation": progress.generation,
                "last_record_lsn": progress.last_record,
                "disk_consistent_lsn": progress.disk_consistent,
                "remote_consistent_lsn": progress.remote_consistent,
            })
        });
        let mut json = serde_json::json!({
            "tenant": self.name.0,
            "timeline": self.name.1,
            "stopped_reason": view.stopped,
            "proposers": self.proposers.get(),
            "full_reason": view.full,
            "commit_lsn": view.commit,
            "flush_lsn": view.flush,
            "write_lsn": view.write,
            "shards": shards.collect::<Vec<_>>(),
        });
        if let Some(state) = &view.state {
            json["term"] = state.term.0.into();
            json["membership_generation"] = state.membership.generation.0.into();
            json["start_lsn"] = state.timeline_start.to_string().into();
            json["truncate_lsn"] = state.truncate.to_string().into();
            let backup = self.backup.lock().unwrap_or_else(PoisonError::into_inner);
            json["scrub"] = serde_json::json!(*self.scrub.lock().unwrap_or_else(PoisonError::into_inner));
            json["backup"] = serde_json::json!(*backup);
            json["backup_lsn"] = state.backup.to_string().into();
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lakebed_quorum::history::TermHistory;
    use lakebed_quorum::membership::Membership;
    use lakebed_types::{Generation, NodeId, PgVersion, Term};

    use super::*;

    #[test]
    fn what_was_just_created_is_what_a_restart_would_read() {
        const SEGMENT: u64 = 1 << 20;
        // The beginning of a segment, of a page, and the middle of a page.
        for start in [3 * SEGMENT, 3 * SEGMENT + 8192, 3 * SEGMENT + 20_000] {
            let home = tempfile::tempdir().unwrap();
            let (made, used) = (home.path().join("t.creating"), home.path().join("t"));
            let begin = Lsn(start);
            let state = Durable {
                term: Term(0),
                term_history: TermHistory::new(vec![(Term(0), begin)]).unwrap(),
                membership: Membership {
                    generation: Generation(1),
                    old: BTreeSet::from([NodeId(1)]),
                    new: None,
                },
                commit: begin,
                truncate: begin,
                backup: begin,
                timeline_start: begin,
                system_id: 7,
                pg_version: PgVersion::V16,
                segment_bytes: SEGMENT,
            };
            let created = Loaded::just_created(&used, &state).unwrap();
            std::fs::create_dir(&made).unwrap();
            create(&made, &state).unwrap();
            std::fs::rename(&made, &used).unwrap();
            let read = load(&used, Lsn::INVALID).unwrap();
            let text = |loaded: &Loaded| {
                let Loaded {
                    acceptor,
                    intake,
                    files,
                    disk,
                } = loaded;
                format!("{acceptor:?} {intake:?} {files:?} {disk:?}")
            };
            assert_eq!(text(&created), text(&read), "start {begin}");
        }
    }
}
