//! The task that uploads, for all timelines of a safekeeper, and allows removal.
//!
//! Every quarter of the upload interval it looks through the timelines. One that has committed WAL that is not uploaded
//! gets a *look*: the members report, one is elected, and that one uploads; the others take over its position. A
//! timeline that has nothing to do costs nothing: neither calls nor memory.
//!
//! A timeline without a record of its own, as a branch is before its first commit, gets an object too: one without WAL,
//! whose control state is what a restore makes the timeline of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use lakebed_blobstore::{BlobError, BlobStore};
use lakebed_types::{Lsn, NodeId};
use tokio::task::JoinSet;

use super::archive::Archive;
use super::objects::{WalObject, covered};
use super::pack::pack;
use super::peers::Peers;
use super::plan::{self, Report, Segment, ShardReport, Stretch};
use super::{BackupConfig, BackupError};
use crate::boundary;
use crate::data_dir::Name;
use crate::owner::Note;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};
use crate::view::View;
use crate::wal_files::WalFiles;

/// Timelines that are looked at at the same time; each may have a segment in memory.
const LOOKS_AT_A_TIME: usize = 3;
/// A member that is this much behind is not elected.
const SLACK_BYTES: u64 = 16 << 20;

/// What a safekeeper needs for WAL in object storage.
#[derive(Debug)]
pub struct Backup {
    /// How it is configured.
    pub config: BackupConfig,
    /// The store.
    pub store: BlobStore,
    /// The other safekeepers.
    pub peers: Arc<Peers>,
}

impl Backup {
    /// Opens the store.
    ///
    /// # Errors
    /// Its address.
    pub fn open(config: BackupConfig) -> Result<Backup, BlobError> {
        Ok(Backup {
            store: BlobStore::open(&config.store)?,
            peers: Arc::default(),
            config,
        })
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.config.upload_interval_ms)
    }

    /// A timeline's WAL in object storage.
    pub fn archive(&self, name: Name) -> Archive {
        Archive::new(self.store.clone(), name)
    }
}

/// What an operator is told about a timeline's WAL in object storage.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct BackupStatus {
    /// The member that was elected last, as this node sees it.
    pub uploader: Option<NodeId>,
    /// Why the last look failed; `None` after one that did not.
    pub last_error: Option<String>,
    /// When this node uploaded last.
    pub last_upload_unix_s: Option<u64>,
}

/// What is kept about a timeline between two looks.
#[derive(Default)]
struct Known {
    looked: Option<Instant>,
    /// As listed, and changed since by this node; only while it is the uploader.
    objects: Option<Vec<(WalObject, i64)>>,
    /// Up to here this node was seen to be free to remove its WAL.
    allowed: Lsn,
    /// The object of a timeline without WAL was seen to, by this node or the elected one, since this process started.
    founded: bool,
}

/// Works until the safekeeper ends.
pub(crate) async fn run(safekeeper: Arc<Safekeeper>, backup: Arc<Backup>) {
    let pause = (backup.interval() / 4).clamp(Duration::from_millis(20), Duration::from_secs(2));
    let ending = safekeeper.ending().clone();
    let mut known: BTreeMap<Name, Known> = BTreeMap::new();
    let mut busy = BTreeSet::new();
    let mut looks: JoinSet<(Name, Known)> = JoinSet::new();
    loop {
        tokio::select! {
            () = ending.cancelled() => break,
            Some(done) = looks.join_next(), if !looks.is_empty() => {
                if let Ok((name, kept)) = done {
                    busy.remove(&name);
                    known.insert(name, kept);
                } else {
                    // Its name is lost with it; a look that panicked must not keep its timeline from the next.
                    busy.clear();
                }
                continue;
            }
            () = tokio::time::sleep(pause) => {}
        }
        let timelines = safekeeper.timelines();
        known.retain(|name, _| timelines.iter().any(|timeline| timeline.name == *name));
        let mut behind = 0;
        for timeline in timelines {
            let name = timeline.name;
            let view = timeline.view().borrow().clone();
            behind += lag(&view);
            if busy.contains(&name) || looks.len() >= LOOKS_AT_A_TIME {
                continue;
            }
            match wants(&view, known.get(&name), &backup) {
                Wants::Nothing => drop(known.remove(&name)),
                Wants::Later => {}
                Wants::Look => {
                    let mut kept = known.remove(&name).unwrap_or_default();
                    busy.insert(name);
                    let (safekeeper, backup) = (safekeeper.clone(), backup.clone());
                    looks.spawn(async move {
                        look(&safekeeper, &backup, &timeline, &mut kept).await;
                        // The first WAL goes at once.
                        let waits = !(is_new(&view) && kept.founded);
                        kept.looked = waits.then(Instant::now);
                        (name, kept)
                    });
                }
            }
        }
        safekeeper.metrics().backup_lag_bytes.set(behind as i64);
    }
    // None of them may hold on to the data directory when this ends.
    looks.shutdown().await;
}

fn lag(view: &View) -> u64 {
    let backup = view.state.as_ref().map_or(view.commit, |state| state.backup);
    view.commit.0.saturating_sub(backup.0)
}

/// Whether the timeline has no WAL of its own.
fn is_new(view: &View) -> bool {
    let state = view.state.as_ref();
    state.is_some_and(|state| view.commit == state.timeline_start)
}

enum Wants {
    Nothing,
    Later,
    Look,
}

/// Whether it is time for a look. Half of the interval is for what a look takes, and for the next one to come.
fn wants(view: &View, known: Option<&Known>, backup: &Backup) -> Wants {
    let Some(state) = view.state.as_ref().filter(|_| view.stopped.is_none()) else {
        return Wants::Nothing;
    };
    let full = state.truncate.segment_number(state.segment_bytes) + backup.config.local_segments
        < view.commit.segment_number(state.segment_bytes);
    let is_new = is_new(view);
    let wait = match lag(view) {
        0 if is_new && known.is_some_and(|known| known.founded) => return Wants::Later,
        0 if is_new => backup.interval() / 2,
        0 if !full => return Wants::Nothing,
        0 => backup.interval(),
        lag if lag >= state.segment_bytes => backup.interval() / 8,
        _ => backup.interval() / 2,
    };
    let looked = known.and_then(|known| known.looked);
    if looked.is_none_or(|looked| looked.elapsed() >= wait) {
        Wants::Look
    } else {
        Wants::Later
    }
}

async fn look(safekeeper: &Safekeeper, backup: &Backup, timeline: &Timeline, known: &mut Known) {
    let Some(working) = &timeline.working else { return };
    let node = NodeId(safekeeper.config().node_id);
    let look = Look {
        safekeeper,
        backup,
        timeline,
        working,
        node,
        archive: backup.archive(timeline.name),
    };
    let done = tokio::select! {
        done = look.run(known) => done,
        () = safekeeper.ending().cancelled() => return,
    };
    if let Err(error) = &done {
        let (tenant, id) = timeline.name;
        tracing::warn!(%tenant, timeline = %id, %error, "WAL did not get to object storage; trying on");
        safekeeper.metrics().backup_failures.inc();
        // What is there is not known any more.
        known.objects = None;
    }
    timeline.change_backup_status(|status| status.last_error = done.err().map(|error| error.to_string()));
}

/// One look at one timeline.
struct Look<'a> {
    safekeeper: &'a Safekeeper,
    backup: &'a Backup,
    timeline: &'a Timeline,
    working: &'a Working,
    node: NodeId,
    archive: Archive,
}

impl Look<'_> {
    async fn run(&self, known: &mut Known) -> Result<(), BackupError> {
        let view = self.timeline.view().borrow().clone();
        let Some(state) = &view.state else { return Ok(()) };
        let mut members = state.membership.old.clone();
        members.extend(state.membership.new.iter().flatten());
        if !members.contains(&self.node) {
            return Ok(());
        }
        let reports = self.reports(&members, &view, state.backup).await;
        let elected = plan::elect(self.timeline.name.1, &members, &reports, SLACK_BYTES);
        self.timeline
            .change_backup_status(|status| status.uploader = elected);
        let consumed = plan::consumed(&members, &reports);
        if elected == Some(self.node) {
            self.upload(known, consumed).await?;
        } else {
            known.objects = None;
            let told = reports.iter().map(|report| report.backup).max();
            self.tell(Note::BackedUp(told.unwrap_or(Lsn::INVALID))).await;
        }
        known.founded |= elected.is_some();
        match consumed {
            Some(consumed) => self.allow_removal(known, consumed).await,
            None => Ok(()),
        }
    }

    /// What this node and the others say.
    async fn reports(&self, members: &BTreeSet<NodeId>, view: &View, backup: Lsn) -> Vec<Report> {
        let shards = self.timeline.shards.all().into_iter();
        let own = Report {
            node: self.node,
            works: true,
            commit: view.commit,
            backup,
            shards: shards
                .map(|(shard, progress)| ShardReport {
                    shard,
                    generation: progress.generation,
                    remote_consistent: progress.remote_consistent,
                    fed: self.timeline.shards.is_fed(shard),
                })
                .collect(),
        };
        let others = members.iter().filter(|member| **member != self.node);
        let asked = others.map(|member| self.backup.peers.ask(*member, self.timeline.name));
        let said = futures::future::join_all(asked).await;
        said.into_iter().flatten().chain([own]).collect()
    }

    async fn tell(&self, note: Note) {
        // Its owner ended: then nothing is to be told.
        let _ = self.working.notes.send(note).await;
    }

    /// Uploads until object storage has everything that was committed at the start of this look.
    async fn upload(&self, known: &mut Known, consumed: Option<Lsn>) -> Result<(), BackupError> {
        let mut objects = match known.objects.take() {
            Some(objects) => objects,
            None => self.archive.list().await?,
        };
        let commit = self.timeline.view().borrow().commit;
        if objects.is_empty() && self.working.files.start() == commit {
            let nothing = Stretch {
                begin: commit,
                end: commit,
                whole: false,
            };
            objects.push((self.put(nothing).await?, unix_s()));
        }
        let mut whole_done = false;
        loop {
            let names: Vec<WalObject> = objects.iter().map(|(object, _)| *object).collect();
            self.tell_coverage(&names).await;
            let Some(stretch) = self.next(&names, commit).await? else {
                break;
            };
            let object = self.put(stretch).await?;
            whole_done |= stretch.whole;
            objects.push((object, unix_s()));
        }
        if whole_done {
            objects = self.archive.list().await?;
        }
        let mut gone = plan::superfluous(&objects.iter().map(|(object, _)| *object).collect::<Vec<_>>());
        if let Some(consumed) = consumed {
            let retention = i64::try_from(self.backup.config.retention_s).unwrap_or(i64::MAX);
            let truncate = self.working.files.start();
            gone.extend(plan::expired(
                &objects,
                (truncate, consumed),
                unix_s().saturating_sub(retention),
            ));
        }
        if !gone.is_empty() {
            let paths = gone.iter().map(|object| self.archive.path(object)).collect();
            self.backup.store.delete_all(paths).await?;
            objects.retain(|(object, _)| !gone.contains(object));
            self.safekeeper.metrics().backup_deleted.inc_by(gone.len() as u64);
        }
        known.objects = Some(objects);
        Ok(())
    }

    async fn tell_coverage(&self, objects: &[WalObject]) {
        let backup = self
            .timeline
            .view()
            .borrow()
            .state
            .as_ref()
            .map(|state| state.backup);
        if let Some(backup) = backup {
            let reached = covered(backup, objects.iter());
            if reached > backup {
                self.tell(Note::BackedUp(reached)).await;
            }
        }
    }

    async fn next(&self, objects: &[WalObject], commit: Lsn) -> Result<Option<Stretch>, BackupError> {
        let files = self.working.files.clone();
        let whole = covered(files.start(), objects.iter().filter(|object| object.whole));
        let segment = tokio::task::spawn_blocking(move || segment_at(&files, whole, commit)).await??;
        Ok(plan::next_upload(segment, objects, commit))
    }

    async fn put(&self, stretch: Stretch) -> Result<WalObject, BackupError> {
        let state = self.timeline.view().borrow().state.clone();
        let state = state.ok_or_else(|| BackupError::NotWal("the timeline has no state".to_owned()))?;
        let object = WalObject {
            begin: stretch.begin,
            end: stretch.end,
            term: state.term_history.last_log_term(stretch.end),
            node: self.node,
            whole: stretch.whole,
        };
        let files = self.working.files.clone();
        let packed = tokio::task::spawn_blocking(move || pack(&files, &state, stretch.begin, stretch.end));
        let bytes = Bytes::from(packed.await??);
        let stored = bytes.len() as u64;
        match self
            .backup
            .store
            .put_if_absent(&self.archive.path(&object), bytes)
            .await
        {
            Ok(()) => {}
            // The same node, with another state around the same WAL. It counts if it is whole.
            Err(BlobError::Exists(_)) => self.check(&object).await?,
            Err(error) => return Err(error.into()),
        }
        let metrics = self.safekeeper.metrics();
        metrics.backup_objects.inc();
        metrics.backup_stored_bytes.inc_by(stored);
        metrics.backup_wal_bytes.inc_by(stretch.end.0 - stretch.begin.0);
        let now = u64::try_from(unix_s()).ok();
        self.timeline
            .change_backup_status(|status| status.last_upload_unix_s = now);
        Ok(object)
    }

    async fn check(&self, object: &WalObject) -> Result<(), BackupError> {
        let path = self.archive.path(object);
        for frame in self.archive.fetch(object).await?.frames() {
            frame.map_err(|source| BackupError::Frame {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Lets the acceptor remove WAL that every shard has, once whole segments of it were seen in object storage.
    async fn allow_removal(&self, known: &mut Known, consumed: Lsn) -> Result<(), BackupError> {
        let view = self.timeline.view().borrow().clone();
        let Some(state) = &view.state else { return Ok(()) };
        let keep = self.backup.config.local_segments;
        let first = plan::removable(consumed, view.commit, state.segment_bytes, keep);
        let at = Lsn(first.saturating_mul(state.segment_bytes));
        if at <= state.truncate || at <= known.allowed {
            return Ok(());
        }
        let files = self.working.files.clone();
        let target = tokio::task::spawn_blocking(move || boundary::at_or_below(&files, at))
            .await??
            .lsn;
        let listed = self.archive.list().await?;
        let wholes = listed
            .iter()
            .map(|(object, _)| object)
            .filter(|object| object.whole);
        if target > state.truncate && covered(state.truncate, wholes) >= target {
            self.tell(Note::Consumed(target)).await;
            known.allowed = at;
        }
        Ok(())
    }
}

/// The segment that begins at the boundary `whole`, up to where whole objects reach.
fn segment_at(files: &WalFiles, whole: Lsn, commit: Lsn) -> Result<Segment, BackupError> {
    let segment_bytes = u64::from(files.format().segment_bytes);
    let mut number = whole.segment_number(segment_bytes) + 1;
    // More than one step where a record is longer than a segment.
    while let Some(border) = number
        .checked_mul(segment_bytes)
        .map(Lsn)
        .filter(|border| *border <= commit)
    {
        let end = boundary::at_or_below(files, border)?.lsn;
        if end > whole {
            return Ok(Segment {
                begin: whole,
                end: Some(end),
            });
        }
        number += 1;
    }
    Ok(Segment {
        begin: whole,
        end: None,
    })
}

fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
