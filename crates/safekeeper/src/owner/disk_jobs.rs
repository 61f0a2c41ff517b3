//! What the owner has the disk do: batches, repairs, a look whether there is room again; and what becomes of it.

use std::time::Duration;

use lakebed_quorum::acceptor::{Acceptor, Input};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tonic::Status;

use super::{Outgoing, Owner, Repair};
use crate::disk::{Batch, Completion, Disk, DiskError};
use crate::scrub::heal::{self, Missing};
use crate::timeline::{self, Loaded};

/// How long a full disk is left alone before it is looked at again.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// What the disk is doing for an owner that is not on a thread of its own.
pub(super) type Job = JoinHandle<(Disk, Result<Vec<Completion>, DiskError>)>;

impl Owner {
    /// Executes the batch on this thread, which has nothing else to do.
    pub(super) async fn work_on_disk(&mut self) {
        let Some(mut disk) = self.disk.take() else { return };
        let batch = std::mem::take(&mut self.batch);
        self.metrics.disk_batches.inc();
        let result = disk.execute(batch);
        self.rooms.clear();
        self.barrier = false;
        self.job_done(Ok((disk, result))).await;
        // The answers go out before anything else is done.
        tokio::task::yield_now().await;
        if let Some(mut disk) = self.disk.take() {
            let done = disk.after_flush().map(|()| Vec::new());
            self.job_done(Ok((disk, done))).await;
        }
    }

    pub(super) fn start_job(&mut self) -> Option<(Job, Vec<OwnedSemaphorePermit>)> {
        let mut disk = self.disk.take()?;
        let batch = std::mem::take(&mut self.batch);
        self.metrics.disk_batches.inc();
        let job = tokio::task::spawn_blocking(move || {
            let result = disk.execute(batch);
            let result = result.and_then(|done| disk.after_flush().map(|()| done));
            (disk, result)
        });
        Some((job, std::mem::take(&mut self.rooms)))
    }

    /// Writes what has rotted, unless it was cut.
    pub(super) fn start_repair(&mut self, repair: Repair) -> Option<(Job, Vec<OwnedSemaphorePermit>)> {
        let job = match repair {
            Repair::Control(answer) => {
                let mut disk = self.disk.take()?;
                tokio::task::spawn_blocking(move || {
                    let done = disk.rewrite_control();
                    let _ = answer.send(done.as_ref().copied().map_err(ToString::to_string));
                    (disk, done.map(|()| Vec::new()))
                })
            }
            Repair::Wal(patch) if patch.truncations != self.truncations => {
                let _ = patch.answer.send(Err("WAL was cut meanwhile".to_owned()));
                return None;
            }
            Repair::Wal(patch) => {
                let (disk, files) = (self.disk.take()?, self.files.clone());
                tokio::task::spawn_blocking(move || {
                    // What could not be written is damaged as before.
                    let done = heal::replace(&files, patch.after, &patch.wal, Missing::Refuse);
                    let _ = patch.answer.send(done);
                    (disk, Ok(Vec::new()))
                })
            }
        };
        Some((job, Vec::new()))
    }

    pub(super) fn look_is_due(&self) -> bool {
        self.full
            .as_ref()
            .is_some_and(|(_, at)| tokio::time::Instant::now() >= *at)
    }

    /// Looks whether a full disk has room again.
    pub(super) fn start_look(&mut self) -> Option<(Job, Vec<OwnedSemaphorePermit>)> {
        let mut disk = self.disk.take()?;
        if let Some((_, at)) = &mut self.full {
            *at = tokio::time::Instant::now() + FULL_PAUSE;
        }
        let job = tokio::task::spawn_blocking(move || {
            let result = match disk.make_room() {
                Ok(()) => Ok(vec![Completion::Room]),
                Err(error) if error.is_full() => Ok(Vec::new()),
                Err(error) => Err(error),
            };
            (disk, result)
        });
        Some((job, Vec::new()))
    }

    pub(super) async fn job_done(
        &mut self,
        done: Result<(Disk, Result<Vec<Completion>, DiskError>), tokio::task::JoinError>,
    ) {
        let completions = match done {
            Ok((disk, Ok(completions))) => {
                self.disk = Some(disk);
                completions
            }
            Ok((disk, Err(error))) if error.is_full() => return self.disk_full(disk, &error).await,
            Ok((_, Err(error))) => return self.disk_failed(error.to_string()),
            Err(error) => return self.disk_failed(format!("the disk worker ended: {error}")),
        };
        for completion in completions {
            let input = match completion {
                Completion::Room => {
                    tracing::info!("the disk has room again");
                    self.full = None;
                    self.publish();
                    continue;
                }
                Completion::Flushed(lsn, time) => {
                    self.metrics
                        .flush_seconds
                        .observe(time.max(Duration::ZERO).as_secs_f64());
                    Input::FlushDone { lsn }
                }
                Completion::Persisted(seq) => {
                    self.metrics.control_writes.inc();
                    Input::ControlPersisted { seq }
                }
            };
            let commands = self.acceptor.handle(input);
            self.execute(commands, None);
        }
    }

    pub(super) fn disk_failed(&mut self, reason: String) {
        let commands = self.acceptor.handle(Input::IoFailed);
        self.execute(commands, None);
        self.stopped = Some(reason);
    }

    /// There was no room. Nothing is tried a second time: as after a crash, what the disk really holds is read, and a
    /// new acceptor begins with that. It has all that was ever said to be durable; a disk that does not fails.
    async fn disk_full(&mut self, disk: Disk, error: &DiskError) {
        let reason = format!("the disk is full, no WAL is taken until there is room: {error}");
        tracing::warn!(reason);
        self.metrics.full_disks.inc();
        for waiting in self.waiting.drain(..) {
            waiting
                .reply
                .send(Outgoing::End(Status::resource_exhausted(&reason)));
        }
        // Their control writes are lost, and the numbers of control writes begin anew: whoever ordered asks again.
        self.ordered.clear();
        self.batch = Batch::default();
        self.rooms.clear();
        let directory = disk.directory().to_owned();
        drop(disk);
        let flushed = self.acceptor.ends().0;
        let loaded = tokio::task::spawn_blocking(move || timeline::load(&directory, flushed)).await;
        let loaded = match loaded {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(error)) => {
                self.disk_failed(error.to_string());
                let damage = error.into_damage();
                self.view.send_modify(|view| view.damage = damage);
                return;
            }
            Err(error) => return self.disk_failed(error.to_string()),
        };
        let found = loaded.acceptor.ends().0;
        let Loaded {
            acceptor,
            intake,
            files,
            disk,
        } = loaded;
        // What was known to be committed still is; readers must not see it go back.
        let mut state = acceptor.state().clone();
        state.commit = state.commit.max(self.acceptor.state().commit);
        let Some(acceptor) = Acceptor::new(state, found) else {
            return self.disk_failed(format!("the positions do not fit the WAL, which ends at {found}"));
        };
        // Readers share the start of the files that they were given.
        self.files.raise_start(files.start());
        (self.acceptor, self.intake, self.disk) = (acceptor, intake, Some(disk));
        self.control = 0;
        self.full = Some((reason, tokio::time::Instant::now() + FULL_PAUSE));
        self.publish();
    }
}

/// Waits for the job; for ever when there is none.
pub(super) async fn finished(
    job: &mut Option<(Job, Vec<OwnedSemaphorePermit>)>,
) -> Result<(Disk, Result<Vec<Completion>, DiskError>), tokio::task::JoinError> {
    match job {
        Some((job, _)) => job.await,
        None => std::future::pending().await,
    }
}
