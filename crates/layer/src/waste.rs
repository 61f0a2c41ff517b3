//! How much of a partition nobody reads any more, as far as its layers' LSNs tell.
//!
//! An estimate that decides when a merge is worth its work, and nothing else: what is dropped then is decided value by value.
//! Three things make waste:
//! - the horizon has moved on since history was last rewritten: of a layer of history, the part that was superseded at LSNs that
//!   fell out of the window since; of one of level 0, the part whose own LSNs did;
//! - a single LSN is not read any more, because a branch was deleted or a lease has ended: what was kept below the horizon is
//!   shared out evenly among the LSNs that it was kept for;
//! - pages are gone, and with them their current versions: nothing takes their place, so somebody has to say how much that is
//!   ([`DeadBytes`]).
//!
//! After a rewrite the estimate of what it dropped is zero, so each byte of waste causes at most one.

use std::collections::BTreeMap;

use lakebed_types::Lsn;

use crate::{LayerDesc, LayerId, LayerKind, LayerMap, PageRange, Partition, ReadPoints};

/// Of current layers and those of level 0, the bytes of pages that were dropped or truncated after everything in the layer that is
/// theirs, and that the window does not need any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadBytes {
    of: BTreeMap<LayerId, u64>,
}

impl DeadBytes {
    /// So many more.
    pub fn add(&mut self, layer: LayerId, bytes: u64) {
        let dead = self.of.entry(layer).or_default();
        *dead = dead.saturating_add(bytes);
    }

    /// Forgets layers that are not there any more.
    pub fn forget_all_but(&mut self, map: &LayerMap) {
        self.of.retain(|layer, _| map.get(*layer).is_some());
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.of.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn of(&self, layer: LayerId) -> u64 {
        self.of.get(&layer).copied().unwrap_or_default()
    }
}

/// Estimates for the partitions of one map.
pub(crate) struct Waste<'a> {
    map: &'a LayerMap,
    points: &'a ReadPoints,
    /// Among how many partitions each level-0 layer is shared.
    shares: BTreeMap<LayerId, u64>,
}

impl<'a> Waste<'a> {
    pub fn new(map: &'a LayerMap, points: &'a ReadPoints) -> Waste<'a> {
        let mut shares = BTreeMap::new();
        for (range, partition) in map.partitions() {
            for desc in map.level0_of(range, partition) {
                *shares.entry(desc.id).or_default() += 1;
            }
        }
        Waste { map, points, shares }
    }

    /// Whether at least one byte in `one_in` of what the partition has is waste that a merge with its history drops.
    pub fn is_worth_a_merge(&self, range: PageRange, partition: &Partition, one_in: u64) -> bool {
        let (mut bytes, mut waste) = (0u64, 0u64);
        let merged = partition.history.iter().chain(&partition.current);
        let merged = merged.filter_map(|id| self.map.get(*id));
        for desc in merged.chain(self.map.level0_of(range, partition)) {
            let share = self.share(desc, desc.bytes);
            bytes = bytes.saturating_add(share);
            if desc.kind != LayerKind::Current {
                waste = waste.saturating_add(self.of_layer(desc, share, partition));
            }
        }
        waste > 0 && waste.saturating_mul(one_in.max(1)) >= bytes
    }

    /// Whether at least one byte in `one_in` of what a merge without history rewrites is dead.
    pub fn has_dead(&self, range: PageRange, partition: &Partition, one_in: u64, dead: &DeadBytes) -> bool {
        let current = partition.current.iter().filter_map(|id| self.map.get(*id));
        let layers = current.chain(self.map.level0_of(range, partition));
        let (bytes, gone) = layers.fold((0u64, 0u64), |(bytes, gone), desc| {
            let dead = dead.of(desc.id).min(desc.bytes);
            (
                bytes.saturating_add(self.share(desc, desc.bytes)),
                gone.saturating_add(self.share(desc, dead)),
            )
        });
        gone > 0 && gone.saturating_mul(one_in.max(1)) >= bytes
    }

    /// What is a partition's of bytes of a layer.
    fn share(&self, desc: &LayerDesc, bytes: u64) -> u64 {
        match desc.kind {
            LayerKind::Level0 => bytes / self.shares.get(&desc.id).copied().unwrap_or(1).max(1),
            _ => bytes,
        }
    }

    fn of_layer(&self, desc: &LayerDesc, bytes: u64, partition: &Partition) -> u64 {
        let horizon = self.points.horizon().unwrap_or(Lsn::MAX);
        // LSNs that fell out of the window since: from the last rewrite's horizon to this one.
        let from = desc.first.max(partition.reclaimed);
        let fallen = desc.last.min(horizon).0.saturating_sub(from.0);
        let span = desc.last.0.saturating_sub(desc.first.0);
        let superseded = self.map.superseded(desc.id);
        let superseded = superseded.map(|superseded| superseded.part(bytes, (partition.reclaimed, horizon)));
        let by_horizon = match span {
            _ if let Some(part) = superseded => u128::from(part),
            // Images of one LSN, which is the branch point of a branch that was detached: once the window is past it, what
            // is still read of them belongs into the current layer.
            0 if desc.kind == LayerKind::History
                && desc.last < horizon
                && partition.reclaimed <= desc.last =>
            {
                u128::from(bytes)
            }
            0 => 0,
            _ => u128::from(bytes) * u128::from(fallen) / u128::from(span),
        };
        let held = |lsn: &&Lsn| **lsn >= desc.first;
        let pinned = partition.pinned.iter().filter(held);
        let ended = pinned.clone().filter(|lsn| !self.points.contains(**lsn)).count();
        // The last one stands for the window: what is read at its beginning.
        let by_points = u128::from(bytes) * ended as u128 / (pinned.count() as u128 + 1);
        u64::try_from((by_horizon + by_points).min(u128::from(bytes))).unwrap_or(bytes)
    }
}
