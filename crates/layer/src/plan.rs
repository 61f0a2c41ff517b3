//! What to merge next, and when.
//!
//! A partition is merged when it has [`PlanPolicy::level0`] layers of level 0 to take over: reads there ask so many
//! layers more. The one with the most goes first. A partition whose history is in many layers is rewritten with it, and so is
//! one of which a part is probably read by nobody any more (`waste` estimates it), or that has copies from before the shard was
//! split, with the pages of others ([`LayerMap::copies`]); one with pages that are gone, without its history. A merge's outputs are
//! cut at [`PlanPolicy::layer_bytes`], and each cut is a change of its own: what was merged counts from then on, whether or not the
//! merge goes on.

use lakebed_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::waste::{DeadBytes, Waste};
use crate::{LayerId, LayerMap, PageRange, Partition, ReadPoints};

/// Merges are late when there is so many times what one waits for.
const LATE: usize = 2;
/// A catalogue layer is written again with those after it when they have one byte for so many of its own.
const CATALOGUE_RATIO: u64 = 4;

/// When to merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanPolicy {
    /// Level-0 layers that one partition has to take over before it is merged; at least 1.
    pub level0: usize,
    /// Size of a current layer at which a merge begins the next partition.
    pub layer_bytes: u64,
    /// Layers of history that one partition may have.
    pub history: usize,
    /// A partition is rewritten when one byte in so many is probably read by nobody any more; at least 1.
    pub waste: u64,
    /// Catalogue layers that there may be; then the newest of them become one.
    pub catalogue: usize,
}

impl Default for PlanPolicy {
    fn default() -> PlanPolicy {
        PlanPolicy {
            level0: 4,
            layer_bytes: 256 << 20,
            history: 8,
            waste: 8,
            catalogue: 16,
        }
    }
}

/// What a partition's history was rewritten for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// The horizon of the read points.
    pub horizon: Lsn,
    /// Read points below it that something may have been kept for.
    pub pinned: Vec<Lsn>,
}

/// A merge of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its pages.
    pub pages: PageRange,
    /// The partition as it is.
    pub of: Partition,
    /// What will be in the new layers.
    pub through: Lsn,
    /// Layers to read, from the oldest values to the newest.
    pub inputs: Vec<LayerId>,
    /// Whether all history is among them, and what of it is still read.
    pub reclaims: Option<Reclaimed>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A merge.
    Merge(Box<Job>),
    /// Making one of these catalogue layers, which follow each other.
    Catalogue(Vec<LayerId>),
}

/// What to do next, if anything.
pub fn plan(map: &LayerMap, points: &ReadPoints, policy: &PlanPolicy, dead: &DeadBytes) -> Option<Plan> {
    let ripe = map
        .partitions()
        .map(|(range, partition)| (map.level0_of(range, partition).count(), range, partition))
        .filter(|(count, ..)| *count >= policy.level0.max(1))
        // The first of the greatest.
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    if let Some((_, range, partition)) = ripe {
        let worth = Waste::new(map, points).is_worth_a_merge(range, partition, policy.waste);
        let reclaims = match worth && !partition.history.is_empty() {
            true => Some(reclaimed(map, range, partition, points)),
            false => reclaims_many(map, range, partition, points, policy),
        };
        return Some(Plan::Merge(Box::new(job(map, range, partition, reclaims))));
    }
    if map.catalogue().len() >= policy.catalogue.max(2) {
        return Some(Plan::Catalogue(catalogue_run(map)));
    }
    let waste = Waste::new(map, points);
    map.partitions().find_map(|(range, partition)| {
        let worth =
            waste.is_worth_a_merge(range, partition, policy.waste) || map.has_copies(range, partition);
        let reclaims = worth.then(|| reclaimed(map, range, partition, points));
        let reclaims = reclaims.or_else(|| reclaims_many(map, range, partition, points, policy));
        let merges = reclaims.is_some() || waste.has_dead(range, partition, policy.waste, dead);
        merges.then(|| Plan::Merge(Box::new(job(map, range, partition, reclaims))))
    })
}

/// Whether reads suffer for merges that were not done: of all that a merge can wait for, this is not any more.
pub fn is_late(map: &LayerMap, policy: &PlanPolicy) -> bool {
    let many = LATE * policy.level0.max(1);
    map.partitions()
        .any(|(range, partition)| map.level0_of(range, partition).take(many).count() >= many)
}

/// The newest catalogue layers, from the first on that those after it are worth writing again for: so that each byte is
/// written a few times, however large the catalogue is.
fn catalogue_run(map: &LayerMap) -> Vec<LayerId> {
    let layers = map.catalogue();
    let bytes = |id: &LayerId| map.get(*id).map_or(0, |desc| desc.bytes);
    let (mut after, mut from) = (0u64, layers.len().saturating_sub(2));
    for (at, id) in layers.iter().enumerate().rev() {
        if bytes(id) <= after.saturating_mul(CATALOGUE_RATIO) {
            from = from.min(at);
        }
        after = after.saturating_add(bytes(id));
    }
    layers.get(from..).unwrap_or_default().to_vec()
}

/// What history is rewritten for, if it is in too many layers.
fn reclaims_many(
    map: &LayerMap,
    range: PageRange,
    partition: &Partition,
    points: &ReadPoints,
    policy: &PlanPolicy,
) -> Option<Reclaimed> {
    let many = partition.history.len() > policy.history;
    many.then(|| reclaimed(map, range, partition, points))
}

fn reclaimed(map: &LayerMap, range: PageRange, partition: &Partition, points: &ReadPoints) -> Reclaimed {
    let horizon = points.horizon().unwrap_or(Lsn::MAX);
    let level0 = map.level0_of(range, partition).map(|desc| desc.first);
    let history = partition.history.iter().filter_map(|id| map.get(*id));
    let oldest = history.map(|desc| desc.first).chain(level0).min();
    let pinned = points.below(horizon).filter(|lsn| Some(*lsn) >= oldest);
    Reclaimed {
        horizon,
        pinned: pinned.collect(),
    }
}

/// Merges a partition's level 0, and with `reclaims` its history.
fn job(map: &LayerMap, pages: PageRange, partition: &Partition, reclaims: Option<Reclaimed>) -> Job {
    // A flush of nothing but drops makes a layer of the catalogue only; it says that there is nothing of pages up to then.
    let newest = map.level0_layers().next_back().map(|desc| desc.last);
    let catalogue = map.catalogue().last().and_then(|id| map.get(*id));
    let newest = newest.max(catalogue.map(|desc| desc.last));
    let history = partition.history.iter().filter(|_| reclaims.is_some());
    let level0 = map.level0_of(pages, partition).map(|desc| desc.id);
    Job {
        pages,
        of: partition.clone(),
        through: newest.unwrap_or_default().max(partition.through),
        inputs: history.chain(&partition.current).copied().chain(level0).collect(),
        reclaims,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
