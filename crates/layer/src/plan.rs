//! What to merge next, and when.
//!
//! A partition is merged when it has [`PlanPolicy::level0`] layers of level 0 to take over: reads there ask so many
//! layers more. The one with the most goes first. A partition whose history is in many layers, or mostly past the
//! horizon, is rewritten with its history. A merge's outputs are cut at [`PlanPolicy::layer_bytes`], and each cut is a
//! change of its own: what was merged counts from then on, whether or not the merge goes on.

use lakebed_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::{LayerId, LayerMap, PageRange, Partition, ReadPoints};

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
    /// History is rewritten when the horizon has moved on by so many bytes of WAL.
    pub reclaim_bytes: u64,
    /// Catalogue layers that become one.
    pub catalogue: usize,
}

impl Default for PlanPolicy {
    fn default() -> PlanPolicy {
        PlanPolicy {
            level0: 4,
            layer_bytes: 256 << 20,
            history: 8,
            reclaim_bytes: 1 << 30,
            catalogue: 16,
        }
    }
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
    /// Whether all history is among them, and the horizon.
    pub reclaims: Option<Lsn>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A merge.
    Merge(Box<Job>),
    /// Copying the sections of these layers, the oldest ones, into one.
    Catalogue(Vec<LayerId>),
}

/// What to do next, if anything.
pub fn plan(map: &LayerMap, points: &ReadPoints, policy: &PlanPolicy) -> Option<Plan> {
    let ripe = map
        .partitions()
        .map(|(range, partition)| (map.level0_of(range, partition).count(), range, partition))
        .filter(|(count, ..)| *count >= policy.level0.max(1))
        // The first of the greatest.
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    if let Some((_, range, partition)) = ripe {
        return Some(Plan::Merge(Box::new(job(
            map,
            range,
            partition,
            reclaims(partition, points, policy),
        ))));
    }
    if map.catalogue().len() >= policy.catalogue.max(2) {
        return Some(Plan::Catalogue(map.catalogue().to_vec()));
    }
    map.partitions().find_map(|(range, partition)| {
        let horizon = reclaims(partition, points, policy)?;
        Some(Plan::Merge(Box::new(job(map, range, partition, Some(horizon)))))
    })
}

/// The horizon, if history is to be rewritten.
fn reclaims(partition: &Partition, points: &ReadPoints, policy: &PlanPolicy) -> Option<Lsn> {
    let horizon = points.horizon().unwrap_or(Lsn::MAX);
    let passed = horizon.checked_sub(partition.reclaimed).unwrap_or(0);
    let wanted = partition.history.len() > policy.history
        || (!partition.history.is_empty() && passed >= policy.reclaim_bytes.max(1));
    wanted.then_some(horizon)
}

/// Merges a partition's level 0, and with `reclaims` its history.
fn job(map: &LayerMap, pages: PageRange, partition: &Partition, reclaims: Option<Lsn>) -> Job {
    let newest = map.level0_layers().next_back().map(|desc| desc.last);
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
