//! The layers of a timeline, and which of them a read asks.
//!
//! ```text
//!   LSN ▲   level 0, every page    │ 0/900..0/A00 │
//!       │                          │ 0/800..0/900 │
//!       │   current   ┌────────────┬──────┴───────┐
//!       │             │ a..m       │ m..          │   newest image of each page, and the deltas above it
//!       │   history   │ older      │ older        │   what retention still needs
//! ```
//!
//! The key space is cut into *partitions*. Each has one current layer and some of history, and has taken over level 0 up
//! to its `through`; a read asks the level-0 layers above that, then the current layer, then history from the newest on.
//! In current and history layers a page's values begin with one that stands alone, so that exactly one of them has what
//! a read needs, and index and filter tell which: a read is one block there, at whatever LSN, and one more in each
//! level-0 layer that has the page.
//!
//! A map is a value: [`LayerMap::apply`] makes the next one. Its JSON form is what a manifest stores.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_types::{Generation, Lsn, PageKey};
use serde::{Deserialize, Serialize};

use crate::{LayerDesc, LayerId, LayerKind, Reclaimed, Superseded};

mod difference;

pub use difference::MapChange;

/// A range of pages, and the layers that were made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Its first page; the next partition begins where it ends.
    #[serde(with = "crate::key_text::key")]
    pub from: PageKey,
    /// Everything at or below this LSN is in its current and history layers.
    pub through: Lsn,
    /// The current layer, if there are pages.
    pub current: Option<LayerId>,
    /// History, oldest first. A layer that was made of a larger partition is in several lists.
    pub history: Vec<LayerId>,
    /// Horizon of the read points when history was last rewritten as a whole.
    pub reclaimed: Lsn,
    /// Single LSNs for which something was kept then, or by a merge since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<Lsn>,
}

/// See the module header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMap {
    layers: BTreeMap<LayerId, LayerDesc>,
    /// Oldest first.
    level0: Vec<LayerId>,
    /// Ascending; the first begins at the lowest page.
    partitions: Vec<Partition>,
    /// Layers of sections, oldest first.
    catalogue: Vec<LayerId>,
    /// See [`LayerMap::copies`]. Not written where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copied: Option<Generation>,
    /// See [`Merged::superseded`]; of layers that were made before this was noted there is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    superseded: BTreeMap<LayerId, Superseded>,
}

/// Pages next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// First page.
    pub from: PageKey,
    /// First page after it, if there is one.
    pub to: Option<PageKey>,
}

impl PageRange {
    /// Whether the page is inside.
    pub fn contains(&self, key: &PageKey) -> bool {
        self.from <= *key && self.to.is_none_or(|to| *key < to)
    }

    /// Whether a layer may have pages inside.
    pub fn meets(&self, desc: &LayerDesc) -> bool {
        desc.pages_span
            .is_some_and(|(low, high)| self.to.is_none_or(|to| low < to) && high >= self.from)
    }
}

/// A change of the map: what a flush or a step of compaction made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Level-0 and catalogue layers that follow what there is.
    Flush(Vec<LayerDesc>),
    /// A partition's beginning was merged; see [`Merged`].
    Merge(Box<Merged>),
    /// Catalogue layers that follow each other became one.
    Catalogue {
        /// Those.
        replaced: Vec<LayerId>,
        /// The one.
        with: LayerDesc,
    },
    /// A step of making a branch independent of its parent; see [`Base`].
    Base(Base),
}

/// What a branch reads from its parent until now, of a range of pages, and in the end of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where the range begins; what is before it was done by earlier edits.
    pub from: PageKey,
    /// A layer of history with images of the range's pages at the branch point, if there are such.
    pub pages: Option<LayerDesc>,
    /// A catalogue layer with everything as of the branch point.
    pub catalogue: Option<LayerDesc>,
}

/// New layers for the beginning of a partition, or for all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The pages; the partition that was merged begins where they begin.
    pub pages: PageRange,
    /// The partition as it was when the merge began; otherwise the new layers lack something.
    pub of: Partition,
    /// What is now in the new layers.
    pub through: Lsn,
    /// New current layer.
    pub current: Option<LayerDesc>,
    /// New layer of history.
    pub history: Option<LayerDesc>,
    /// Until when the window needs the layer of history.
    pub superseded: Option<Superseded>,
    /// Single LSNs for which something may be in the layer of history.
    pub pinned: Vec<Lsn>,
    /// What was kept, when all old history was merged: then the new layer is all there is.
    pub reclaimed: Option<Reclaimed>,
}

/// An edit that does not fit the map. A merge may be planned again; else it is a bug or a damaged manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The partition was changed since the merge began.
    #[error("the partition that begins at page {0} is not as it was when the merge began")]
    Stale(PageKey),
    /// A layer does not follow the newest one, or is of the wrong kind.
    #[error("layer {0} does not fit where it was to go")]
    Misplaced(LayerId),
    /// A layer is named that the map does not have.
    #[error("layer {0} is named and not known")]
    Unknown(LayerId),
    /// A layer would be listed twice.
    #[error("layer {0} is there already")]
    Twice(LayerId),
    /// The map's partitions do not cover all pages in order.
    #[error("partitions are out of order")]
    Partitions,
}

impl Default for LayerMap {
    fn default() -> LayerMap {
        let all = Partition {
            from: PageKey::LOWEST,
            through: Lsn(0),
            current: None,
            history: Vec::new(),
            reclaimed: Lsn(0),
            pinned: Vec::new(),
        };
        LayerMap {
            layers: BTreeMap::new(),
            level0: Vec::new(),
            partitions: vec![all],
            catalogue: Vec::new(),
            copied: None,
            superseded: BTreeMap::new(),
        }
    }
}

impl LayerMap {
    /// All layers, by id.
    pub fn layers(&self) -> impl Iterator<Item = &LayerDesc> {
        self.layers.values()
    }

    /// A layer, if it is in the map.
    pub fn get(&self, id: LayerId) -> Option<&LayerDesc> {
        self.layers.get(&id)
    }

    /// Until when the window needs a layer of history, if that was noted.
    pub fn superseded(&self, id: LayerId) -> Option<&Superseded> {
        self.superseded.get(&id)
    }

    /// Partitions with their pages, ascending.
    pub fn partitions(&self) -> impl Iterator<Item = (PageRange, &Partition)> {
        self.partitions.iter().enumerate().map(|(at, partition)| {
            let range = PageRange {
                from: partition.from,
                to: self.partitions.get(at + 1).map(|next| next.from),
            };
            (range, partition)
        })
    }

    /// Layers of sections, oldest first.
    pub fn catalogue(&self) -> &[LayerId] {
        &self.catalogue
    }

    /// Level-0 layers that a partition has not taken over and that may have its pages, oldest first.
    pub fn level0_of(
        &self,
        range: PageRange,
        partition: &Partition,
    ) -> impl DoubleEndedIterator<Item = &LayerDesc> {
        let through = partition.through;
        self.level0_layers()
            .filter(move |desc| desc.last > through && range.meets(desc))
    }

    /// Current layers and those of level 0 in which all that these pages have is from before `lsn`, and that may be merged
    /// past it.
    pub fn passed_by(&self, lsn: Lsn, pages: &PageRange) -> impl Iterator<Item = &LayerDesc> {
        let partitions = self.partitions();
        let current = partitions.filter(move |(_, partition)| partition.through < lsn);
        let current = current.filter_map(|(_, partition)| self.get(partition.current?));
        let level0 = self.level0_layers().filter(move |desc| desc.last <= lsn);
        current.chain(level0).filter(move |desc| pages.meets(desc))
    }

    /// Level-0 layers, oldest first.
    pub fn level0_layers(&self) -> impl DoubleEndedIterator<Item = &LayerDesc> {
        self.level0.iter().filter_map(|id| self.layers.get(id))
    }

    /// The layers that a read of the page in LSNs up to `upto` asks, newest first: level 0, the current layer, history.
    pub fn read_order(&self, key: &PageKey, upto: Lsn) -> impl Iterator<Item = &LayerDesc> {
        let after = self
            .partitions
            .partition_point(|partition| partition.from <= *key);
        let partition = after.checked_sub(1).and_then(|at| self.partitions.get(at));
        let key = *key;
        let page = PageRange { from: key, to: None };
        let level0 = partition.into_iter().flat_map(move |partition| {
            self.level0_of(page, partition)
                .rev()
                .filter(move |desc| desc.pages_span.is_some_and(|(low, _)| low <= key))
                .filter(move |desc| desc.first < upto || desc.first == desc.last && desc.last <= upto)
        });
        let merged = partition.into_iter().flat_map(|partition| {
            partition
                .current
                .iter()
                .chain(partition.history.iter().rev())
                .filter_map(|id| self.layers.get(id))
        });
        level0.chain(merged.filter(move |desc| desc.first <= upto))
    }

    /// The map of a shard that was split off: the same layers, of which those of generations up to this one have pages of
    /// others too. Merges leave those out, and [`crate::plan()`] rewrites what is made of such layers.
    pub fn of_split(mut self, copied: Generation) -> LayerMap {
        self.copied = Some(copied);
        self
    }

    /// Whether it began as that of a shard that was split off.
    pub fn is_of_split(&self) -> bool {
        self.copied.is_some()
    }

    /// Layers of pages that were copied when the shard was split, and may have pages of others.
    pub fn copies(&self) -> impl Iterator<Item = &LayerDesc> {
        self.layers()
            .filter(|desc| desc.kind != LayerKind::Catalogue && self.is_copy(desc.id))
    }

    fn is_copy(&self, id: LayerId) -> bool {
        self.copied.is_some_and(|copied| id.generation <= copied)
    }

    /// Whether such layers are among a partition's.
    pub(crate) fn has_copies(&self, range: PageRange, partition: &Partition) -> bool {
        let merged = partition.history.iter().chain(&partition.current).copied();
        let level0 = self.level0_of(range, partition).map(|desc| desc.id);
        merged.chain(level0).any(|id| self.is_copy(id))
    }

    /// The map after an edit, and the layers that it no longer names: they may be deleted once the new map is durable.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn apply(&self, edit: &Edit) -> Result<(LayerMap, Vec<LayerId>), MapError> {
        let mut next = self.clone();
        match edit {
            Edit::Flush(layers) => layers.iter().try_for_each(|desc| next.flush(desc))?,
            Edit::Merge(merged) => next.merge(merged)?,
            Edit::Catalogue { replaced, with } => next.merge_catalogue(replaced, with)?,
            Edit::Base(base) => next.put_below(base)?,
        }
        next.check()?;
        let gone = next.drop_unused();
        Ok((next, gone))
    }

    fn insert(&mut self, desc: &LayerDesc, kind: LayerKind) -> Result<LayerId, MapError> {
        if desc.kind != kind {
            return Err(MapError::Misplaced(desc.id));
        }
        match self.layers.insert(desc.id, *desc) {
            None => Ok(desc.id),
            Some(_) => Err(MapError::Twice(desc.id)),
        }
    }

    fn flush(&mut self, desc: &LayerDesc) -> Result<(), MapError> {
        if desc.kind == LayerKind::Catalogue {
            let id = self.insert(desc, LayerKind::Catalogue)?;
            self.catalogue.push(id);
            return Ok(());
        }
        let newest = self.level0_layers().next_back().map(|newest| newest.last);
        let through = self.partitions.iter().map(|partition| partition.through).max();
        let newest = newest.max(through).unwrap_or_default();
        let import = desc.first == desc.last;
        if desc.first < newest
            || desc.first > desc.last
            || (import && through.is_some_and(|lsn| lsn >= desc.last))
        {
            return Err(MapError::Misplaced(desc.id));
        }
        let id = self.insert(desc, LayerKind::Level0)?;
        self.level0.push(id);
        Ok(())
    }

    fn merge(&mut self, merged: &Merged) -> Result<(), MapError> {
        let stale = MapError::Stale(merged.pages.from);
        let at = self
            .partitions
            .iter()
            .position(|partition| *partition == merged.of);
        let (Some(at), true) = (at, merged.of.from == merged.pages.from) else {
            return Err(stale);
        };
        let end = self.partitions.get(at + 1).map(|next| next.from);
        let rest = match (merged.pages.to, end) {
            (to, end) if to == end => None,
            (Some(to), end) if to > merged.pages.from && end.is_none_or(|end| to < end) => Some(to),
            _ => return Err(stale),
        };
        if merged.through < merged.of.through {
            return Err(stale);
        }
        let mut history = match &merged.reclaimed {
            Some(_) => Vec::new(),
            None => merged.of.history.clone(),
        };
        if let Some(desc) = &merged.history {
            history.push(self.insert(desc, LayerKind::History)?);
            let superseded = merged.superseded.clone();
            self.superseded
                .extend(superseded.map(|superseded| (desc.id, superseded)));
        }
        let current = merged.current.as_ref();
        let current = current
            .map(|desc| self.insert(desc, LayerKind::Current))
            .transpose()?;
        let kept = merged.reclaimed.clone().unwrap_or_else(|| {
            let pinned: BTreeSet<Lsn> = merged.of.pinned.iter().chain(&merged.pinned).copied().collect();
            Reclaimed {
                horizon: merged.of.reclaimed,
                pinned: pinned.into_iter().collect(),
            }
        });
        self.partitions[at] = Partition {
            from: merged.pages.from,
            through: merged.through,
            current,
            history,
            reclaimed: kept.horizon,
            pinned: kept.pinned,
        };
        if let Some(from) = rest {
            let rest = Partition {
                from,
                ..merged.of.clone()
            };
            self.partitions.insert(at + 1, rest);
        }
        Ok(())
    }

    fn merge_catalogue(&mut self, replaced: &[LayerId], with: &LayerDesc) -> Result<(), MapError> {
        let at = self.catalogue.iter().position(|id| Some(id) == replaced.first());
        let Some(at) = at.filter(|at| self.catalogue[*at..].starts_with(replaced)) else {
            return Err(MapError::Misplaced(with.id));
        };
        let id = self.insert(with, LayerKind::Catalogue)?;
        self.catalogue.splice(at..at + replaced.len(), [id]);
        Ok(())
    }

    /// Puts layers below all that there is. A partition begins where the range does, so that one merge rewrites one of them.
    fn put_below(&mut self, base: &Base) -> Result<(), MapError> {
        if let Some(desc) = &base.pages {
            let misplaced = Err(MapError::Misplaced(desc.id));
            let Some((low, high)) = desc.pages_span else {
                return misplaced;
            };
            let range = PageRange { from: low, to: None };
            let meets = |layer: &&LayerDesc| {
                range.meets(layer) && layer.pages_span.is_some_and(|(first, _)| first <= high)
            };
            let is_base = |layer: &LayerDesc| layer.kind == LayerKind::History && layer.first == layer.last;
            let in_the_way =
                |layer: &LayerDesc| layer.first < desc.last || layer.first == desc.last && is_base(layer);
            if low < base.from
                || desc.first != desc.last
                || self.layers.values().filter(meets).any(in_the_way)
            {
                return misplaced;
            }
            self.begin_partition(base.from);
            let id = self.insert(desc, LayerKind::History)?;
            let ranges: Vec<PageRange> = self.partitions().map(|(range, _)| range).collect();
            for (partition, range) in self.partitions.iter_mut().zip(ranges) {
                if range.meets(desc) {
                    partition.history.insert(0, id);
                }
            }
        }
        if let Some(desc) = &base.catalogue {
            let id = self.insert(desc, LayerKind::Catalogue)?;
            self.catalogue.insert(0, id);
        }
        Ok(())
    }

    /// Cuts the partition that has this page in its middle in two, which share the layers that both meet.
    fn begin_partition(&mut self, from: PageKey) {
        let at = self.partitions.partition_point(|partition| partition.from < from);
        let begins = self.partitions.get(at).is_some_and(|next| next.from == from);
        let of = at.checked_sub(1).and_then(|before| self.partitions.get(before));
        let (Some(of), false) = (of.cloned(), begins) else {
            return;
        };
        self.partitions.insert(at, Partition { from, ..of });
        let ranges: Vec<PageRange> = self.partitions().map(|(range, _)| range).collect();
        let layers = &self.layers;
        for (partition, range) in self
            .partitions
            .iter_mut()
            .zip(ranges)
            .skip(at.saturating_sub(1))
            .take(2)
        {
            partition
                .history
                .retain(|id| layers.get(id).is_none_or(|desc| range.meets(desc)));
        }
    }

    /// Checks what holds of every map; a map that was read is used only after it.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn check(&self) -> Result<(), MapError> {
        let ordered = self.partitions.windows(2).all(|pair| pair[0].from < pair[1].from);
        let first = self.partitions.first().map(|partition| partition.from);
        if !ordered || first != Some(PageKey::LOWEST) {
            return Err(MapError::Partitions);
        }
        let is = |id: &LayerId, kind| match self.layers.get(id) {
            Some(desc) if desc.id == *id && desc.kind == kind => Ok(()),
            Some(_) => Err(MapError::Misplaced(*id)),
            None => Err(MapError::Unknown(*id)),
        };
        for partition in &self.partitions {
            let mut current = partition.current.iter();
            current.try_for_each(|id| is(id, LayerKind::Current))?;
            let mut history = partition.history.iter();
            history.try_for_each(|id| is(id, LayerKind::History))?;
        }
        self.level0.iter().try_for_each(|id| is(id, LayerKind::Level0))?;
        self.catalogue
            .iter()
            .try_for_each(|id| is(id, LayerKind::Catalogue))?;
        let mut last = Lsn(0);
        for desc in self.level0_layers() {
            if desc.first < last {
                return Err(MapError::Misplaced(desc.id));
            }
            last = desc.last;
        }
        Ok(())
    }

    /// Forgets what no partition needs.
    fn drop_unused(&mut self) -> Vec<LayerId> {
        let needed: BTreeSet<LayerId> = self
            .partitions()
            .flat_map(|(range, partition)| self.level0_of(range, partition))
            .map(|desc| desc.id)
            .collect();
        self.level0.retain(|id| needed.contains(id));
        let partitions = self.partitions.iter();
        let merged = partitions.flat_map(|partition| partition.current.iter().chain(&partition.history));
        let named: BTreeSet<LayerId> = merged
            .chain(&self.level0)
            .chain(&self.catalogue)
            .copied()
            .collect();
        let unused: Vec<LayerId> = self
            .layers
            .keys()
            .filter(|id| !named.contains(id))
            .copied()
            .collect();
        self.layers.retain(|id, _| named.contains(id));
        self.superseded.retain(|id, _| named.contains(id));
        unused
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
