//! A change of the layers becomes durable.
//!
//! In the order that [`durable_steps`] says: new layers to object storage, then a manifest that names them. Objects that
//! it does not name any more stay until every manifest that names them is deleted ([`Timeline::sweep`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use lakebed_layer::{Durable, Edit, LayerDesc, LayerId, LayerMap, durable_steps};
use lakebed_types::{Generation, Lsn, PageKey, TimelineId};

use super::{Layers, State, Timeline, TimelineError};
use crate::background;
use crate::layer_handle::LayerHandle;
use crate::manifest::log::Log;
use crate::manifest::{self, Gone, Manifest, ManifestError, Parent, Version};

/// What a manifest says besides its layers, and the next one may say otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// See [`Manifest::parent`].
    pub parent: Option<Parent>,
    /// See [`Manifest::based`].
    pub based: Option<PageKey>,
    /// See [`Manifest::branches`].
    pub branches: BTreeMap<TimelineId, Lsn>,
    /// See [`Manifest::horizon`].
    pub horizon: Lsn,
}

/// What the manifest has besides the layers.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// Of the last manifest that may have been stored.
    pub sequence: u64,
    /// What was stored; `None` before there is a manifest.
    pub log: Option<Log>,
    pub gone: Vec<Gone>,
    /// By the last one that was stored.
    pub said: Said,
    /// Generation of the owner that took over.
    pub superseded: Option<Generation>,
    /// The timeline is deleted: nothing may be stored any more.
    pub deleted: bool,
}

impl Commits {
    /// Whether there is a manifest.
    pub fn stored(&self) -> bool {
        self.log.is_some()
    }
}

impl Timeline {
    /// Stores `new` layers, which are on local disk, and a manifest with the change; then it counts. `and` is done
    /// together with it.
    pub(super) async fn commit(
        self: &Arc<Self>,
        commits: &mut Commits,
        edit: Option<Edit>,
        new: &[LayerDesc],
        flushed: Lsn,
        and: impl FnOnce(&mut State),
    ) -> Result<(), TimelineError> {
        let said = commits.said.clone();
        self.commit_saying(commits, edit, new, (flushed, said), and).await
    }

    /// As [`Timeline::commit`], with a manifest that says this. Whoever waits for it may be gone in the middle, and others
    /// store manifests after: so nothing of it is remembered before it is stored.
    pub(super) async fn commit_saying(
        self: &Arc<Self>,
        commits: &mut Commits,
        edit: Option<Edit>,
        new: &[LayerDesc],
        (flushed, said): (Lsn, Said),
        and: impl FnOnce(&mut State),
    ) -> Result<(), TimelineError> {
        if commits.deleted {
            return Err(TimelineError::Deleted(self.identity.timeline));
        }
        let layers = self.read(|state| state.layers.clone());
        let Some(edit) = edit else {
            // Costs the same however many layers there are.
            self.store_manifest(commits, &layers.map, &[], (flushed, said))
                .await?;
            self.write(and);
            return Ok(());
        };
        let steps = durable_steps(&layers.map, &edit, new)?;
        let removed = steps.iter().filter_map(|step| match step {
            Durable::Remove(id) => Some(*id),
            _ => None,
        });
        let removed: Vec<LayerId> = removed.collect();
        let (mut open, mut and) = (layers.open.clone(), Some(and));
        let mut retired = Vec::new();
        for step in steps {
            match step {
                Durable::Store(id) => {
                    for desc in new.iter().filter(|desc| desc.id == id) {
                        self.files.upload(desc).await?;
                        open.insert(id, LayerHandle::of_new(desc, &self.files)?);
                    }
                }
                Durable::Commit(map) => {
                    let map = Arc::from(map);
                    self.store_manifest(commits, &map, &removed, (flushed, said.clone()))
                        .await?;
                    // Nothing may fail from here on: what the manifest calls gone must not be named again.
                    for handle in open.values().filter(|handle| map.get(handle.desc.id).is_none()) {
                        retired.push(handle.clone());
                    }
                    open.retain(|id, _| map.get(*id).is_some());
                    let layers = Layers {
                        map,
                        open: std::mem::take(&mut open),
                    };
                    self.write(|state| {
                        state.layers = Arc::new(layers);
                        and.take().into_iter().for_each(|and| and(state));
                    });
                }
                // Its object goes when no manifest names it.
                Durable::Remove(id) => {
                    let of_it = retired.iter().filter(|handle| handle.desc.id == id);
                    of_it.for_each(|handle| handle.retire());
                }
            }
        }
        Ok(())
    }

    /// Stores the next manifest. A sequence number is used once: of an attempt that failed it is unknown whether it will
    /// yet take effect.
    async fn store_manifest(
        &self,
        commits: &mut Commits,
        map: &Arc<LayerMap>,
        removed: &[LayerId],
        (flushed, said): (Lsn, Said),
    ) -> Result<(), TimelineError> {
        let identity = &self.identity;
        if let Some(found) = commits.superseded {
            return Err(self.superseded(found).into());
        }
        commits.sequence += 1;
        let version: Version = (identity.generation, commits.sequence);
        let newly = removed.iter().map(|layer| Gone {
            layer: *layer,
            since: version,
        });
        let gone: Vec<Gone> = commits.gone.iter().copied().chain(newly).collect();
        let manifest = Manifest {
            format: manifest::FORMAT,
            cluster: identity.cluster,
            parent: said.parent,
            start: identity.start,
            consistent: identity.consistent,
            disk_consistent: flushed,
            map: map.clone(),
            gone: gone.clone(),
            branches: said.branches.clone(),
            horizon: said.horizon,
            leases: self.history(|history| history.leases_below(said.horizon)),
            based: said.based,
        };
        let following = commits.log.as_ref().and_then(|log| log.follow(&manifest));
        let bytes = match &following {
            Some(following) => self.manifests.write_following(version, following).await?,
            None => self.manifests.write(version, &manifest).await?,
        };
        tracing::debug!(timeline = %identity.timeline, sequence = version.1, bytes, whole = following.is_none(), "a manifest is stored");
        if let Some((found, _)) = self.manifests.newer_than(version).await? {
            commits.superseded = Some(found);
            return Err(self.superseded(found).into());
        }
        // Only now: after a failure the next manifest may name these layers again, and what it stored is not followed.
        commits.gone = gone;
        commits.said = said;
        match &mut commits.log {
            Some(log) => log.stored(version, manifest, following, bytes),
            None => commits.log = Some(Log::new(version, manifest, bytes)),
        }
        Ok(())
    }

    fn superseded(&self, found: Generation) -> ManifestError {
        ManifestError::Superseded {
            directory: self.manifests.directory().to_owned(),
            found,
            own: self.identity.generation,
        }
    }

    /// Keeps `lsn` readable for a branch, durably, whatever comes later.
    ///
    /// # Errors
    /// The LSN is not readable any more, or see [`TimelineError`].
    pub async fn add_branch(self: &Arc<Self>, branch: TimelineId, lsn: Lsn) -> Result<(), TimelineError> {
        let mut commits = self.commits.lock().await;
        if commits.said.branches.get(&branch) == Some(&lsn) {
            return Ok(());
        }
        self.check_kept(lsn)?;
        let mut said = commits.said.clone();
        said.branches.insert(branch, lsn);
        self.say(&mut commits, said).await
    }

    /// Stores a manifest that says something else of the same layers.
    async fn say(self: &Arc<Self>, commits: &mut Commits, said: Said) -> Result<(), TimelineError> {
        let flushed = self.disk_consistent();
        self.commit_saying(commits, None, &[], (flushed, said), |_| {})
            .await?;
        self.history_mut(|history| history.set_branches(commits.said.branches.clone()));
        Ok(())
    }

    /// Whether a branch hangs here.
    pub async fn has_branch(&self, branch: TimelineId) -> bool {
        self.commits.lock().await.said.branches.contains_key(&branch)
    }

    /// Forgets a branch that was deleted, durably: what it read is given up with the next merge.
    ///
    /// # Errors
    /// See [`TimelineError`]; what the branch read stays then.
    pub async fn remove_branch(self: &Arc<Self>, branch: TimelineId) -> Result<(), TimelineError> {
        let mut commits = self.commits.lock().await;
        let mut said = commits.said.clone();
        if said.branches.remove(&branch).is_none() {
            return Ok(());
        }
        self.say(&mut commits, said).await?;
        self.history_news.notify_one();
        Ok(())
    }

    /// Deletes manifests that are older than is kept, then objects that only they named. How many objects went.
    ///
    /// # Errors
    /// See [`TimelineError`]; what is left goes another time.
    pub async fn sweep(&self) -> Result<usize, TimelineError> {
        let mut commits = self.commits.lock().await;
        if let Some(found) = commits.superseded {
            return Err(self.superseded(found).into());
        }
        let listed = self.manifests.list().await?;
        let Some((newest, now)) = listed
            .last()
            .map(|(version, listed)| (*version, listed.written_unix_s))
        else {
            return Ok(0);
        };
        if newest.0 > self.identity.generation {
            commits.superseded = Some(newest.0);
            return Err(self.superseded(newest.0).into());
        }
        // By the store's clock. The newest one of those is what there was so long ago, so it stays.
        let keep = i64::try_from(self.thresholds.rewind_seconds).unwrap_or(i64::MAX);
        let old = listed
            .iter()
            .rev()
            .find(|(_, listed)| listed.written_unix_s <= now.saturating_sub(keep));
        let Some((oldest_kept, _)) = old else {
            return Ok(0);
        };
        let mut oldest_kept = *oldest_kept;
        // Newest first: what is left after a crash still has what it builds on.
        let versions = listed.iter().rev().map(|(version, _)| *version);
        if versions.clone().any(|version| version < oldest_kept) {
            // It is read with what it follows.
            oldest_kept = self.manifests.whole_of(oldest_kept).await?;
        }
        let deleted: Vec<Version> = versions.filter(|version| *version < oldest_kept).collect();
        self.manifests.delete(&deleted).await?;
        let named = |gone: &Gone| self.read(|state| state.layers.map.get(gone.layer).is_some());
        let old = |gone: &&Gone| gone.since <= oldest_kept && !named(gone);
        let (gone, kept): (Vec<Gone>, Vec<Gone>) = commits.gone.iter().partition(old);
        let layers: Vec<LayerId> = gone.iter().map(|gone| gone.layer).collect();
        self.files.remove_objects(&layers).await?;
        commits.gone = kept;
        Ok(layers.len())
    }
}

/// Runs what nobody waits for, below reads in priority.
pub(super) async fn in_background<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, TimelineError> + Send + 'static,
) -> Result<T, TimelineError> {
    background::run(name, work)
        .await
        .map_err(TimelineError::Internal)?
}

/// Runs what reads and writes files where it may take its time.
pub(super) async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, TimelineError> + Send + 'static,
) -> Result<T, TimelineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| TimelineError::Internal(format!("{name}: {error}")))?
}
