//! What everybody but its owner may see of a timeline.
//!
//! The owner publishes a [`View`] after each step; readers, feeds and status pages look at it and wait for it to
//! change. Nothing here can change the timeline.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::recovery::Damage;
use lakebed_quorum::acceptor::Durable;
use lakebed_types::{Generation, Lsn, ShardIdentity, Term};

/// One moment of a timeline.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The acceptor's state, its `commit` perhaps an older one; `None` when its control file could not be read.
    pub state: Option<Arc<Durable>>,
    /// Everything below is committed, as far as this node knows.
    pub commit: Lsn,
    /// End of the WAL that survives a crash.
    pub flush: Lsn,
    /// End of the WAL that was accepted.
    pub write: Lsn,
    /// How often WAL was cut off since this process started.
    pub truncations: u64,
    /// Why the timeline stopped.
    pub stopped: Option<String>,
    /// It stopped because of this, and starts again when that is mended.
    pub damage: Option<Damage>,
    /// Why it takes no WAL for the time being, although it works: there is no room.
    pub full: Option<String>,
}

impl View {
    /// The highest promised term.
    pub fn term(&self) -> Term {
        self.state.as_ref().map_or(Term(0), |state| state.term)
    }

    /// Takes over the acceptor's state; true when anything changed.
    pub(crate) fn update(&mut self, state: &Durable, (flush, write): (Lsn, Lsn), truncations: u64) -> bool {
        let moved = (self.commit, self.flush, self.write, self.truncations)
            != (state.commit, flush, write, truncations);
        (self.commit, self.flush, self.write, self.truncations) = (state.commit, flush, write, truncations);
        // Commit changes with almost every append; histories and sets are copied only when they do.
        let same = self.state.as_ref().is_some_and(|old| {
            (old.term, old.truncate, old.backup) == (state.term, state.truncate, state.backup)
                && old.membership == state.membership
                && old.term_history == state.term_history
        });
        if !same {
            self.state = Some(Arc::new(state.clone()));
        }
        moved || !same
    }
}

/// How far a shard is, as it told last. `remote_consistent <= disk_consistent <= last_record`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The owner that told it.
    pub generation: Generation,
    /// Everything below was taken in.
    pub last_record: Lsn,
    /// Everything below is on the pageserver's disk.
    pub disk_consistent: Lsn,
    /// Everything below is in object storage.
    pub remote_consistent: Lsn,
}

/// The progress of every shard that ever asked for a feed, since this process started.
#[derive(Debug, Default)]
pub struct Shards {
    told: Mutex<BTreeMap<(u8, u8), Progress>>,
    /// Feeds that are open, of each shard.
    open: Mutex<BTreeMap<(u8, u8), usize>>,
}

/// A feed that is open, until this is dropped.
#[derive(Debug)]
pub struct OpenFeed {
    shards: Arc<Shards>,
    shard: (u8, u8),
}

impl Drop for OpenFeed {
    fn drop(&mut self) {
        let mut open = self.shards.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feeds) = open.get_mut(&self.shard) {
            *feeds = feeds.saturating_sub(1);
        }
    }
}

impl Shards {
    /// Takes note of a feed.
    pub fn open(self: &Arc<Self>, shard: ShardIdentity) -> OpenFeed {
        let shard = key(shard);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open.entry(shard).or_default() += 1;
        let shards = self.clone();
        OpenFeed { shards, shard }
    }

    /// Whether a shard is fed from here now.
    pub fn is_fed(&self, shard: (u8, u8)) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&shard).is_some_and(|feeds| *feeds > 0)
    }

    /// Takes note of a shard's owner. False when a newer owner was here.
    pub fn claim(&self, shard: ShardIdentity, generation: Generation, from: Lsn) -> bool {
        let mut map = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = map.entry(key(shard)).or_insert(Progress {
            generation,
            last_record: from,
            disk_consistent: Lsn::INVALID,
            remote_consistent: Lsn::INVALID,
        });
        if generation < entry.generation {
            return false;
        }
        entry.generation = generation;
        true
    }

    /// Takes progress from its owner. False when a newer owner was here.
    pub fn report(&self, shard: ShardIdentity, progress: Progress) -> bool {
        let mut map = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match map.get_mut(&key(shard)) {
            Some(entry) if entry.generation == progress.generation => {
                *entry = progress;
                true
            }
            _ => false,
        }
    }

    /// Whether this is still the newest owner.
    pub fn is_owner(&self, shard: ShardIdentity, generation: Generation) -> bool {
        let map = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(&key(shard))
            .is_some_and(|entry| entry.generation == generation)
    }

    /// Every shard as (count, index) with its progress.
    pub fn all(&self) -> Vec<((u8, u8), Progress)> {
        let map = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        map.iter().map(|(key, progress)| (*key, *progress)).collect()
    }

    /// The index of the shard that has taken in least, and the lowest of each position over all shards.
    pub fn slowest(&self) -> Option<(u8, Progress)> {
        let all = self.all();
        let ((_, index), mut slowest) = *all.iter().min_by_key(|(_, progress)| progress.last_record)?;
        for (_, other) in &all {
            slowest.disk_consistent = slowest.disk_consistent.min(other.disk_consistent);
            slowest.remote_consistent = slowest.remote_consistent.min(other.remote_consistent);
        }
        Some((index, slowest))
    }
}

fn key(shard: ShardIdentity) -> (u8, u8) {
    (shard.count().get(), shard.index())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lakebed_types::ShardCount;

    #[test]
    fn only_the_newest_owner_of_a_shard_is_believed() {
        let shard = ShardIdentity::new(1, ShardCount::new(2).unwrap()).unwrap();
        let progress = |generation, remote| Progress {
            generation: Generation(generation),
            last_record: Lsn(90),
            disk_consistent: Lsn(80),
            remote_consistent: Lsn(remote),
        };
        let shards = Shards::default();
        assert!(!shards.report(shard, progress(1, 40)), "nobody asked for a feed");
        assert!(shards.claim(shard, Generation(2), Lsn(8)));
        assert!(shards.report(shard, progress(2, 48)));
        assert!(!shards.claim(shard, Generation(1), Lsn(8)));
        assert!(!shards.report(shard, progress(1, 70)));
        assert_eq!(shards.all(), [((2, 1), progress(2, 48))]);
    }
}
