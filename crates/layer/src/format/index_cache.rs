//! Index blocks in memory, of all layers together, within a bound.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxBuildHasher, FxHashMap};

use super::index::Entries;
use crate::LayerId;

/// Parts with a lock each.
const PARTS: usize = 16;
/// What an entry takes besides its bytes.
const OVERHEAD_BYTES: usize = 96;

type Name = (LayerId, u64);

/// Shared by the readers of all layers of a process; ids of layers must differ among them, so one for each timeline of
/// a shard. What was not used since the hand passed last makes room (the clock algorithm).
#[derive(Debug)]
pub struct IndexCache {
    parts: Vec<Mutex<Part>>,
}

#[derive(Debug, Default)]
struct Part {
    places: FxHashMap<Name, usize>,
    slots: Vec<Slot>,
    hand: usize,
    bytes: usize,
    limit: usize,
}

#[derive(Debug)]
struct Slot {
    name: Name,
    entries: Entries,
    used: bool,
}

impl IndexCache {
    /// Holds at most so many bytes; 0 holds nothing.
    pub fn new(bytes: usize) -> IndexCache {
        let part = || Part {
            limit: bytes / PARTS,
            ..Part::default()
        };
        IndexCache {
            parts: (0..PARTS).map(|_| Mutex::new(part())).collect(),
        }
    }

    fn part(&self, name: &Name) -> Option<MutexGuard<'_, Part>> {
        let hash = FxBuildHasher.hash_one(name) >> 32;
        let part = self.parts.get(hash as usize % PARTS)?;
        Some(part.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The index block at this offset of a layer, if it is here.
    pub(super) fn get(&self, layer: LayerId, offset: u64) -> Option<Entries> {
        let mut part = self.part(&(layer, offset))?;
        let slot = part.places.get(&(layer, offset)).copied()?;
        let slot = part.slots.get_mut(slot)?;
        slot.used = true;
        Some(slot.entries.clone())
    }

    pub(super) fn put(&self, layer: LayerId, offset: u64, entries: Entries) {
        let name = (layer, offset);
        if let Some(mut part) = self.part(&name)
            && !part.places.contains_key(&name)
        {
            part.insert(Slot {
                name,
                entries,
                used: false,
            });
        }
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        let parts = self.parts.iter();
        parts
            .map(|part| part.lock().unwrap_or_else(PoisonError::into_inner).bytes)
            .sum()
    }
}

impl Slot {
    fn bytes(&self) -> usize {
        self.entries.size() + OVERHEAD_BYTES
    }
}

impl Part {
    fn insert(&mut self, slot: Slot) {
        if slot.bytes() > self.limit {
            return;
        }
        self.bytes += slot.bytes();
        self.places.insert(slot.name, self.slots.len());
        self.slots.push(slot);
        // Ends: a slot that is passed is unused the next time, and one alone fits.
        while self.bytes > self.limit && !self.slots.is_empty() {
            self.hand %= self.slots.len();
            if std::mem::take(&mut self.slots[self.hand].used) {
                self.hand += 1;
                continue;
            }
            self.evict(self.hand);
        }
    }

    fn evict(&mut self, at: usize) {
        let gone = self.slots.swap_remove(at);
        self.bytes -= gone.bytes();
        self.places.remove(&gone.name);
        let places: &mut HashMap<_, _, _> = &mut self.places;
        if let Some(moved) = self.slots.get(at) {
            places.insert(moved.name, at);
        }
    }
}
