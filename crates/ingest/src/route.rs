//! Which shards a record must reach.
//!
//! Rules (1) to (3) of "Shards" in `docs/architecture.md`: the owners of the pages that the record touches, named or
//! not; every shard if the catalogue change says so; shard 0 for everything else that is not a relation page. For a
//! record that shard 0 does not get, it is told what it must know of it: sizes of relations and the transaction id.
//! Hints are complete here; whoever sends them leaves out what shard 0 was told before.
//!
//! Shard 0 gets every record of an extension's resource manager: a pageserver without the plug-in must stop in front of
//! it, whether or not the record touches a page.

use lakebed_types::shard::shard_of;
use lakebed_types::{PageKey, RelTag, ShardCount, ShardIndex};
use lakebed_wal::record::{DecodedRecord, FIRST_CUSTOM_MANAGER};

use crate::control_state;
use crate::effects::{Effects, reaches_every_shard};

/// A set of a tenant's shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet(u128);

impl ShardSet {
    /// All shards of a tenant.
    pub fn all(count: ShardCount) -> ShardSet {
        ShardSet(u128::MAX >> (128 - u32::from(count.get())))
    }

    /// Adds a shard. Indexes are below 128 ([`ShardCount::MAX`]); others are ignored.
    pub fn insert(&mut self, shard: ShardIndex) {
        self.0 |= 1u128.checked_shl(u32::from(shard)).unwrap_or(0);
    }

    /// Whether the shard is in the set.
    pub fn contains(self, shard: ShardIndex) -> bool {
        1u128
            .checked_shl(u32::from(shard))
            .is_some_and(|bit| self.0 & bit != 0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The shards, ascending.
    pub fn iter(self) -> impl Iterator<Item = ShardIndex> {
        (0..ShardCount::MAX).filter(move |&shard| self.contains(shard))
    }
}

/// Where a record goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Shards that get the whole record. Empty for a record without any effect.
    pub shards: ShardSet,
    /// For shard 0 when it does not get the record: forks and the size in blocks that they have at least, each once.
    pub extents: Vec<(RelTag, u32)>,
    /// For shard 0 when it does not get the record: the record's transaction id, if it has one.
    pub xid: Option<u32>,
}

/// Decides where a record goes, given its [`crate::interpret`]ed effects.
pub fn route(record: &DecodedRecord, effects: &Effects, count: ShardCount) -> Route {
    if effects.catalogue.iter().any(reaches_every_shard) {
        return Route {
            shards: ShardSet::all(count),
            ..Route::default()
        };
    }
    let mut route = Route::default();
    for &(rel, block) in &effects.touched {
        route.shards.insert(shard_of(&PageKey::Rel { rel, block }, count));
    }
    for page in effects.unnamed_pages() {
        route.shards.insert(shard_of(&page, count));
    }
    let outside_relations =
        !(effects.catalogue.is_empty() && effects.slru.is_empty() && effects.commit_ts.is_empty());
    let custom = record.rmid >= FIRST_CUSTOM_MANAGER;
    if outside_relations || custom || control_state::changes_more_than_xid(record) {
        route.shards.insert(0);
    }
    if !route.shards.contains(0) {
        route.xid = (record.xid != 0).then_some(record.xid);
        for &(rel, block) in &effects.touched {
            let blocks = block.saturating_add(1);
            match route.extents.iter_mut().find(|(told, _)| *told == rel) {
                Some((_, told)) => *told = blocks.max(*told),
                None => route.extents.push((rel, blocks)),
            }
        }
    }
    route
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
