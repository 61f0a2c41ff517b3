//! What one map has other than another, so that a manifest can be stored as its difference from an earlier one.
//!
//! It tells what is there afterwards and not what was done, so it means the same whatever a later version of this program
//! makes of an edit. Level 0 and the catalogue are lists of a few ids and stand whole; layers and partitions only where they
//! differ.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::PageKey;
use serde::{Deserialize, Serialize};

use super::{LayerMap, MapError, Partition};
use crate::{LayerDesc, LayerId, Superseded};

/// See the module header. Two follow each other with [`MapChange::then`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapChange {
    /// Layers that are not there any more.
    gone: BTreeSet<LayerId>,
    /// Layers that are new.
    new: BTreeMap<LayerId, LayerDesc>,
    /// All of level 0.
    level0: Vec<LayerId>,
    /// First pages of partitions that are not there any more.
    #[serde(
        with = "crate::key_text::keys",
        default,
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    joined: BTreeSet<PageKey>,
    /// Partitions that are new or other than before.
    partitions: Vec<Partition>,
    /// All of the catalogue.
    catalogue: Vec<LayerId>,
    /// Of new layers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    superseded: BTreeMap<LayerId, Superseded>,
}

impl MapChange {
    /// What both make together.
    pub fn then(self, later: MapChange) -> MapChange {
        let (mut gone, mut new, mut joined) = (self.gone, self.new, self.joined);
        let mut superseded = self.superseded;
        for id in later.gone {
            // What came in between was never in the map before both.
            if new.remove(&id).is_none() {
                gone.insert(id);
            }
        }
        new.extend(later.new);
        superseded.extend(later.superseded);
        superseded.retain(|id, _| new.contains_key(id));
        let changed = self.partitions.into_iter().chain(later.partitions);
        let mut partitions: BTreeMap<PageKey, Partition> =
            changed.map(|partition| (partition.from, partition)).collect();
        for from in later.joined {
            partitions.remove(&from);
            joined.insert(from);
        }
        MapChange {
            gone,
            new,
            level0: later.level0,
            joined,
            partitions: partitions.into_values().collect(),
            catalogue: later.catalogue,
            superseded,
        }
    }
}

impl LayerMap {
    /// What `next` has other than this.
    pub fn change_to(&self, next: &LayerMap) -> MapChange {
        // A manifest that says something else of the same layers: nothing of them needs to be looked at.
        if std::ptr::eq(self, next) {
            return MapChange {
                gone: BTreeSet::new(),
                new: BTreeMap::new(),
                level0: next.level0.clone(),
                joined: BTreeSet::new(),
                partitions: Vec::new(),
                catalogue: next.catalogue.clone(),
                superseded: BTreeMap::new(),
            };
        }
        let gone = self.layers.keys().filter(|id| !next.layers.contains_key(id));
        let new = next
            .layers
            .iter()
            .filter(|(id, desc)| self.layers.get(id) != Some(desc));
        let superseded = next.superseded.iter();
        let superseded = superseded.filter(|(id, of)| self.superseded.get(id) != Some(of));
        let of = |map: &LayerMap, from: &PageKey| {
            let at = map
                .partitions
                .binary_search_by_key(from, |partition| partition.from);
            at.ok().and_then(|at| map.partitions.get(at).cloned())
        };
        let froms = self.partitions.iter().map(|partition| partition.from);
        let changed = next.partitions.iter();
        let changed = changed.filter(|partition| of(self, &partition.from).as_ref() != Some(partition));
        MapChange {
            gone: gone.copied().collect(),
            new: new.map(|(id, desc)| (*id, *desc)).collect(),
            level0: next.level0.clone(),
            joined: froms.filter(|from| of(next, from).is_none()).collect(),
            partitions: changed.cloned().collect(),
            catalogue: next.catalogue.clone(),
            superseded: superseded.map(|(id, of)| (*id, of.clone())).collect(),
        }
    }

    /// The map after a change.
    ///
    /// # Errors
    /// See [`MapError`]: the change is of another map.
    pub fn changed(mut self, change: MapChange) -> Result<LayerMap, MapError> {
        for id in change.gone {
            self.layers.remove(&id).ok_or(MapError::Unknown(id))?;
            self.superseded.remove(&id);
        }
        self.superseded.extend(change.superseded);
        for (id, desc) in change.new {
            if self.layers.insert(id, desc).is_some() {
                return Err(MapError::Twice(id));
            }
        }
        let kept = self.partitions.into_iter();
        let kept = kept.filter(|partition| !change.joined.contains(&partition.from));
        let partitions = kept.chain(change.partitions);
        let partitions: BTreeMap<PageKey, Partition> =
            partitions.map(|partition| (partition.from, partition)).collect();
        let next = LayerMap {
            layers: self.layers,
            level0: change.level0,
            partitions: partitions.into_values().collect(),
            catalogue: change.catalogue,
            copied: self.copied,
            superseded: self.superseded,
        };
        next.check()?;
        Ok(next)
    }
}
