//! Layers are merged, as [`plan()`] says.
//!
//! The read points are all LSNs from the horizon on, and below it branch points, leases, and the LSNs at which databases
//! were copied ([`super::history`]). Before each plan the horizon rises as far as it may.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use lakebed_layer::format::IndexCache;
use lakebed_layer::{
    DeadBytes, Edit, Finished, Job, LayerDesc, LayerId, LayerKind, MapError, Merge, MergeCount, MergeError,
    MergeRules, Plan, ReadPoints, Step, is_late, plan,
};

use super::commit::{blocking, in_background};
use super::detach::Basing;
use super::read::Redo;
use super::{Layers, Timeline, TimelineError};
use crate::catalogue::thin::{Progress, ThinnedTimes};
use crate::catalogue::{self, Catalogue};
use crate::layer_store::{LayerSink, LayerStoreError};
use crate::local_file::LocalFile;

/// Bytes of index blocks that are kept while one looks for pages that are gone.
const DEAD_INDEX_BYTES: usize = 4 << 20;

/// A merge that runs.
pub struct Running {
    merge: Merge<LocalFile, LayerSink>,
    /// LSNs that it keeps.
    points: ReadPoints,
}

/// What is to be done next.
pub enum Next {
    /// Nothing.
    Nothing,
    /// Catalogue layers become one.
    Catalogue(Vec<LayerId>),
    /// A merge, which has begun.
    Merge(Box<Running>),
    /// The next range of a branch that is being detached.
    Base(Box<Basing>),
}

/// What a slice of a merge did.
pub enum Slice {
    /// Time is up; there is more to do.
    Pause(Box<Running>),
    /// Layers are complete; they count once they are committed. There is more to do.
    Cut(Box<Running>, Box<Finished<LayerSink>>),
    /// The same, and nothing is left.
    Done(Box<Running>, Box<Finished<LayerSink>>),
}

impl Running {
    /// What was done so far.
    pub fn count(&self) -> MergeCount {
        self.merge.count()
    }
}

impl From<MergeError<TimelineError>> for TimelineError {
    fn from(error: MergeError<TimelineError>) -> TimelineError {
        match error {
            MergeError::Read(error) => error.into(),
            MergeError::Write(error) => error.into(),
            MergeError::Create(source) => LayerStoreError::Create(source).into(),
            MergeError::Image { source, .. } => source,
        }
    }
}

impl Timeline {
    /// Plans the next step of compaction.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub async fn plan_compaction(self: &Arc<Self>) -> Result<Next, TimelineError> {
        self.advance_history().await?;
        let points = self.read_points().await;
        self.thin_catalogue(&points).await;
        let layers = self.read(|state| state.layers.clone());
        let dead = self.count_dead(&layers, &points).await;
        let job: Job = match plan(&layers.map, &points, &self.thresholds.plan, &dead) {
            None => return Ok(self.next_base().await?.map_or(Next::Nothing, Next::Base)),
            Some(Plan::Catalogue(layers)) => return Ok(Next::Catalogue(layers)),
            Some(Plan::Merge(job)) => *job,
        };
        let rules = MergeRules {
            images: self.thresholds.images,
            points,
            layer_bytes: self.thresholds.plan.layer_bytes,
            shard: self.identity.shard,
        };
        let mut readers = Vec::new();
        // Held by the merge from here on.
        for id in &job.inputs {
            readers.push(self.obtaining(|| layers.reader(*id)).await?);
        }
        let points = rules.points.clone();
        let merge = Merge::new(job, rules, readers);
        Ok(Next::Merge(Box::new(Running { merge, points })))
    }

    /// Whether merges have the priority of reads, because there are too many layers to read from.
    pub fn merges_are_late(&self) -> bool {
        self.read(|state| is_late(&state.layers.map, &self.thresholds.plan))
    }

    /// Goes on with a merge for about `time`, below reads in priority unless [merges are late](is_late). Nothing counts before it
    /// is committed.
    ///
    /// # Errors
    /// See [`TimelineError`]; the merge is over then, and may be planned again.
    pub async fn merge_for(
        self: &Arc<Self>,
        mut running: Box<Running>,
        time: Duration,
    ) -> Result<Slice, TimelineError> {
        let timeline = self.clone();
        let work = move || {
            let begin = Instant::now();
            loop {
                let Running { merge, points } = &mut *running;
                let mut images = Redo {
                    timeline: &timeline,
                    points,
                };
                match merge.step(&mut &*timeline.files, &mut images)? {
                    Step::Page if begin.elapsed() >= time => return Ok(Slice::Pause(running)),
                    Step::Page => {}
                    Step::Cut(finished) => return Ok(Slice::Cut(running, finished)),
                    Step::Done(finished) => return Ok(Slice::Done(running, finished)),
                }
            }
        };
        let done = match self.merges_are_late() {
            true => blocking("a merge", work).await,
            false => in_background("a merge", work).await,
        };
        match done {
            // Planned again it finds the layer whole, or says that it cannot be had.
            Err(error @ TimelineError::Read(_)) => {
                let error = self.read(|state| state.layers.clone()).blame(error);
                let damage = error.to_string();
                self.obtaining_after(error, || Ok::<_, TimelineError>(())).await?;
                Err(TimelineError::MergeMetDamage(damage))
            }
            done => done,
        }
    }

    /// Makes what a merge finished count.
    ///
    /// # Errors
    /// See [`TimelineError`]; nothing has changed then, and the merge is over.
    pub async fn commit_merge(
        self: &Arc<Self>,
        finished: Box<Finished<LayerSink>>,
    ) -> Result<(), TimelineError> {
        let Finished { merged, sinks } = *finished;
        let new: Vec<LayerDesc> = sinks.iter().map(|(_, desc)| *desc).collect();
        let timeline = self.clone();
        let seal = move || {
            for (sink, desc) in sinks {
                timeline.files.seal(desc.id, sink)?;
            }
            Ok(())
        };
        blocking("a merge", seal).await?;
        self.commit_layers(Edit::Merge(Box::new(merged)), &new).await
    }

    /// Makes one of catalogue layers, without what nobody reads any more.
    ///
    /// # Errors
    /// See [`TimelineError`]; nothing has changed then.
    pub async fn merge_catalogue(self: &Arc<Self>, replaced: Vec<LayerId>) -> Result<(), TimelineError> {
        let points = self.read_points().await;
        // Together: a branch that is detached gets what it had from its parent and gives up the other at once.
        let (layers, parent) = self.read(|state| (state.layers.clone(), state.parent.clone()));
        let is_first = layers.map.catalogue().first() == replaced.first();
        let from_the_beginning = is_first && parent.is_none();
        let (timeline, inputs) = (self.clone(), replaced.clone());
        let merge = move || {
            let whole = timeline.identity.shard.keeps_catalogue();
            let (mut catalogue, mut lsns) = (Catalogue::default(), None);
            for id in &inputs {
                let sections = timeline.obtaining_here(|| layers.sections(*id))?;
                for (lsn, entry) in catalogue::from_sections(sections)? {
                    // One that was split off shard 0 has all of it.
                    if whole || entry.is_of_lives() {
                        catalogue.add(lsn, &entry);
                    }
                }
                let desc = layers.map.get(*id).ok_or(MapError::Unknown(*id))?;
                let (first, _) = lsns.unwrap_or((desc.first, desc.last));
                lsns = Some((first, desc.last));
            }
            catalogue.thin(&points, from_the_beginning);
            let sections = catalogue::to_sections(&catalogue.entries());
            timeline.write_layer(LayerKind::Catalogue, lsns.unwrap_or_default(), &sections, |_| {
                Ok(())
            })
        };
        let with = blocking("a merge of the catalogue", merge).await?;
        self.commit_layers(Edit::Catalogue { replaced, with }, &[with])
            .await
    }

    /// Counts what pages that are gone have in layers, once nobody in the window reads them. A layer that cannot be had now is
    /// no reason to merge nothing: it is looked at again before the next plan.
    async fn count_dead(self: &Arc<Self>, layers: &Arc<Layers>, points: &ReadPoints) -> DeadBytes {
        let settled = self.disk_consistent().min(points.horizon().unwrap_or_default());
        let ended = self.catalogue(|catalogue| catalogue.pages_ended(settled).to_vec());
        let mut dead = self.dead();
        dead.forget_all_but(&layers.map);
        if !ended.is_empty() {
            let (timeline, layers, mut found, count) =
                (self.clone(), layers.clone(), dead.clone(), ended.len());
            let look = move || {
                let cache = IndexCache::new(DEAD_INDEX_BYTES);
                for (lsn, pages) in &ended {
                    for desc in layers.map.passed_by(*lsn, pages) {
                        let bytes =
                            || Ok::<_, TimelineError>(layers.reader(desc.id)?.bytes_of(pages, &cache)?);
                        found.add(desc.id, timeline.obtaining_here(bytes)?);
                    }
                }
                Ok(found)
            };
            match blocking("looking for pages that are gone", look).await {
                Ok(found) => {
                    dead = found;
                    // Entries come at the end only.
                    self.catalogue.change(|catalogue| catalogue.forget_ends(count));
                }
                Err(error) => {
                    tracing::warn!(%error, "how much of the layers is dropped tables is not known yet")
                }
            }
        }
        let mut known = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone_from(&dead);
        dead
    }

    /// Bytes in layers of pages that are gone, as of the last time that somebody looked.
    pub(super) fn dead(&self) -> DeadBytes {
        let dead = self.dead.lock();
        dead.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives up versions of the resident catalogue, if that is worth while.
    async fn thin_catalogue(&self, points: &ReadPoints) {
        let more = self.thresholds.catalogue_versions;
        let wants = self.catalogue(|catalogue| catalogue.wants_thinning(more));
        if !wants {
            return;
        }
        let mut next = Some(Progress::default());
        while let Some(progress) = next {
            next = self
                .catalogue
                .change(|catalogue| catalogue.thin_slice(points, progress));
            tokio::task::yield_now().await;
        }
        let times = ThinnedTimes::of(self.catalogue(Catalogue::times), points);
        self.catalogue.change(|catalogue| catalogue.replace_times(times));
    }

    async fn commit_layers(self: &Arc<Self>, edit: Edit, new: &[LayerDesc]) -> Result<(), TimelineError> {
        let mut commits = self.commits.lock().await;
        let flushed = self.disk_consistent();
        let done = self.commit(&mut commits, Some(edit), new, flushed, |_| {}).await;
        if done.is_err() {
            self.files
                .remove_local(&new.iter().map(|desc| desc.id).collect::<Vec<_>>());
        }
        done
    }

    /// Compacts until there is nothing to do. For tests; the daemon's task is [`crate::compaction`].
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub async fn compact(self: &Arc<Self>) -> Result<MergeCount, TimelineError> {
        let mut total = MergeCount::default();
        loop {
            let mut running = match self.plan_compaction().await? {
                Next::Nothing => {
                    self.leave_parent().await?;
                    return Ok(total);
                }
                Next::Catalogue(layers) => {
                    self.merge_catalogue(layers).await?;
                    continue;
                }
                Next::Base(basing) => {
                    if let (_, Some(based)) = self.base_for(basing, Duration::MAX).await? {
                        self.commit_base(based).await?;
                    }
                    continue;
                }
                Next::Merge(running) => running,
            };
            loop {
                let done;
                (running, done) = match self.merge_for(running, Duration::MAX).await? {
                    Slice::Pause(running) => (running, false),
                    Slice::Cut(running, finished) => {
                        self.commit_merge(finished).await?;
                        (running, false)
                    }
                    Slice::Done(running, finished) => {
                        self.commit_merge(finished).await?;
                        (running, true)
                    }
                };
                if done {
                    break;
                }
            }
            total = sum(total, running.count());
        }
    }
}

fn sum(a: MergeCount, b: MergeCount) -> MergeCount {
    MergeCount {
        pages: a.pages + b.pages,
        values: a.values + b.values,
        dropped: a.dropped + b.dropped,
        images: a.images + b.images,
        bytes_read: a.bytes_read + b.bytes_read,
        bytes_written: a.bytes_written + b.bytes_written,
    }
}
