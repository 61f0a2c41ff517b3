//! Which file has which slot of the shared arena.
//!
//! A slot is given once and never to a second file: a process that still holds a removed file may store into its
//! words at any later time. When all slots are given, further files are fetched whole and need none.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use lakebed_shim_abi::region::{Region, SlotRef};
use lakebed_shim_abi::word::{State, Word};
use lakebed_types::{PageKey, RelTag, SlruKind};

/// Generation of a slot that has its file.
const GIVEN: u32 = 1;
/// Generation of a slot whose file was removed.
const REMOVED: u32 = 2;

/// Which pages a file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Blocks of a relation fork.
    Relation {
        /// The relation fork.
        rel: RelTag,
        /// First block of the segment.
        first: u32,
    },
    /// Pages of an SLRU.
    Slru {
        /// Which one.
        kind: SlruKind,
        /// First page of the segment.
        first: u64,
    },
}

impl Pages {
    /// The page in this place of the file.
    pub fn key(&self, block: u32) -> PageKey {
        match *self {
            Pages::Relation { rel, first } => PageKey::Rel {
                rel,
                block: first + block,
            },
            Pages::Slru { kind, first } => PageKey::Slru {
                kind,
                page: first + u64::from(block),
            },
        }
    }
}

/// A file with states.
#[derive(Debug)]
pub struct SlotFile {
    /// Its pages.
    pub pages: Pages,
    /// Blocks that the tier has; later ones are local.
    pub blocks: u32,
    /// The local file.
    pub file: File,
}

/// All slots.
#[derive(Debug)]
pub struct Slots {
    region: Region,
    files: Mutex<Vec<Arc<SlotFile>>>,
}

impl Slots {
    /// None given.
    pub fn new(region: Region) -> Slots {
        Slots {
            region,
            files: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<SlotFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slots that are given.
    pub fn given(&self) -> usize {
        self.lock().len()
    }

    /// Gives the next slot to a file, all its blocks absent; none when there is no more.
    pub fn give(&self, file: SlotFile) -> Option<SlotRef> {
        let mut files = self.lock();
        let slot = u32::try_from(files.len()).ok()?;
        let header = self.region.slot(slot)?;
        for block in 0..file.blocks {
            self.region
                .word(slot, block)
                .store(Word::ABSENT.bits(), Ordering::Relaxed);
        }
        header.generation.store(GIVEN, Ordering::Release);
        files.push(Arc::new(file));
        Some(SlotRef {
            slot,
            generation: GIVEN,
        })
    }

    /// The file of a slot, unless it was removed.
    pub fn get(&self, of: SlotRef) -> Option<Arc<SlotFile>> {
        if !self.region.is_current(of) {
            return None;
        }
        self.lock().get(of.slot as usize).cloned()
    }

    /// The file was removed: who still holds it treats it as local.
    pub fn remove(&self, of: SlotRef) {
        if let Some(header) = self.region.slot(of.slot) {
            header.generation.store(REMOVED, Ordering::Release);
        }
    }

    /// Takes an absent block for filling. False if somebody else has it or it is there.
    pub fn claim(&self, of: SlotRef, block: u32) -> bool {
        let place = self.region.word(of.slot, block);
        let word = Word::from_bits(place.load(Ordering::Acquire));
        let busy = word.next(State::Busy, std::process::id());
        word.state() == State::Absent
            && place
                .compare_exchange(word.bits(), busy.bits(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// Ends a claim. A fill is no write: the epoch of an absent block is that of its last write, which the claim has
    /// overwritten; eviction will have to keep it.
    pub fn release(&self, of: SlotRef, block: u32, filled: bool) {
        let place = self.region.word(of.slot, block);
        let word = Word::from_bits(place.load(Ordering::Acquire));
        let state = if filled { State::Present } else { State::Absent };
        place.store(word.next(state, 0).bits(), Ordering::Release);
    }
}
