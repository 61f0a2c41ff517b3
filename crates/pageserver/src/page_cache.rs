//! Pages as they were built last, so that a read replays only what came since.
//!
//! A page at an LSN never changes, so an entry `(page, LSN)` is right for ever: a read at or past that LSN starts from
//! it instead of from the page's last image. Entries are made by reads. The memory is bounded; what was not used since
//! the hand passed last makes room (the clock algorithm).

use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lakebed_types::{Lsn, PAGE_SIZE, PageKey, TimelineId};
use rustc_hash::{FxBuildHasher, FxHashMap};

/// Parts with a lock each.
const PARTS: usize = 16;

type Name = (TimelineId, PageKey);

/// See the module header.
#[derive(Debug)]
pub struct PageCache {
    /// None where nothing is kept.
    parts: Vec<Mutex<Part>>,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    at: Lsn,
    page: Bytes,
    used: bool,
}

#[derive(Debug)]
struct Part {
    places: FxHashMap<Name, usize>,
    entries: Vec<Entry>,
    hand: usize,
    capacity: usize,
}

impl PageCache {
    /// Holds about this many bytes of pages; 0 holds none.
    pub fn new(bytes: usize) -> PageCache {
        let capacity = bytes / PAGE_SIZE / PARTS;
        let part = || Part {
            places: FxHashMap::default(),
            entries: Vec::new(),
            hand: 0,
            capacity,
        };
        let parts = if capacity == 0 { 0 } else { PARTS };
        PageCache {
            parts: (0..parts).map(|_| Mutex::new(part())).collect(),
        }
    }

    fn part(&self, name: &Name) -> Option<MutexGuard<'_, Part>> {
        if self.parts.is_empty() {
            return None;
        }
        // The low bits choose a place in the part's own table.
        let part = self
            .parts
            .get((FxBuildHasher.hash_one(name) >> 32) as usize % PARTS)?;
        Some(part.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The page at the highest LSN that is known, if that is not past `upto`.
    pub fn get(&self, timeline: TimelineId, key: &PageKey, upto: Lsn) -> Option<(Lsn, Bytes)> {
        let name = (timeline, *key);
        let mut part = self.part(&name)?;
        let place = part.places.get(&name).copied()?;
        let entry = part.entries.get_mut(place).filter(|entry| entry.at <= upto)?;
        entry.used = true;
        Some((entry.at, entry.page.clone()))
    }

    /// Keeps a page as of an LSN, unless a later one is known.
    pub fn put(&self, timeline: TimelineId, key: &PageKey, at: Lsn, page: &Bytes) {
        let name = (timeline, *key);
        let Some(mut part) = self.part(&name) else { return };
        let known = part.places.get(&name).copied();
        if let Some(entry) = known.and_then(|place| part.entries.get_mut(place)) {
            if at > entry.at {
                (entry.at, entry.page) = (at, page.clone());
            }
            return;
        }
        part.insert(Entry {
            name,
            at,
            page: page.clone(),
            used: false,
        });
    }

    /// Drops all pages of a timeline.
    pub fn forget(&self, timeline: TimelineId) {
        for part in &self.parts {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.entries.retain(|entry| entry.name.0 != timeline);
            let places = part.entries.iter().enumerate();
            let places = places.map(|(place, entry)| (entry.name, place)).collect();
            (part.places, part.hand) = (places, 0);
        }
    }
}

impl Part {
    fn insert(&mut self, entry: Entry) {
        if self.entries.len() < self.capacity {
            self.places.insert(entry.name, self.entries.len());
            self.entries.push(entry);
            return;
        }
        // Ends: each entry that is passed is unused the next time.
        while let Some(old) = self.entries.get_mut(self.hand) {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.capacity;
            if std::mem::take(&mut old.used) {
                continue;
            }
            self.places.remove(&old.name);
            self.places.insert(entry.name, place);
            *old = entry;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(page: u32) -> PageKey {
        PageKey::Rel {
            rel: lakebed_types::RelTag {
                spcnode: 1663,
                dbnode: 5,
                relnode: 16384,
                fork: lakebed_types::ForkNumber::Main,
            },
            block: page,
        }
    }

    #[test]
    fn a_page_is_found_at_or_past_its_lsn_and_never_goes_back() {
        let (cache, timeline) = (PageCache::new(1 << 20), TimelineId([1; 16]));
        let page = |byte: u8| Bytes::from(vec![byte; PAGE_SIZE]);
        cache.put(timeline, &key(1), Lsn(80), &page(8));
        assert_eq!(cache.get(timeline, &key(1), Lsn(79)), None);
        assert_eq!(cache.get(timeline, &key(1), Lsn(80)), Some((Lsn(80), page(8))));
        cache.put(timeline, &key(1), Lsn(70), &page(7));
        assert_eq!(cache.get(timeline, &key(1), Lsn(90)), Some((Lsn(80), page(8))));
        cache.put(timeline, &key(1), Lsn(90), &page(9));
        assert_eq!(cache.get(timeline, &key(1), Lsn(90)), Some((Lsn(90), page(9))));
        assert_eq!(cache.get(TimelineId([2; 16]), &key(1), Lsn(90)), None);
        cache.forget(timeline);
        assert_eq!(cache.get(timeline, &key(1), Lsn(90)), None);
    }

    #[test]
    fn it_holds_no_more_than_it_may_and_what_is_used_stays() {
        let timeline = TimelineId([1; 16]);
        let capacity = 8;
        let cache = PageCache::new(capacity * PARTS * PAGE_SIZE);
        cache.put(timeline, &key(0), Lsn(8), &Bytes::new());
        for number in 1..1000 {
            assert!(cache.get(timeline, &key(0), Lsn(8)).is_some(), "{number}");
            cache.put(timeline, &key(number), Lsn(8), &Bytes::new());
        }
        for part in &cache.parts {
            let part = part.lock().unwrap();
            assert_eq!((part.entries.len(), part.places.len()), (capacity, capacity));
            for (name, place) in &part.places {
                assert_eq!(part.entries[*place].name, *name);
            }
        }
        let none = PageCache::new(0);
        none.put(timeline, &key(0), Lsn(8), &Bytes::new());
        assert_eq!(none.get(timeline, &key(0), Lsn(8)), None);
    }
}
