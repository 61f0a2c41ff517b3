//! What each descriptor means: a table indexed by it.
//!
//! An entry lives from `open` to `close`. Whoever closes a descriptor clears its entry *first*, so that a number that
//! the kernel gives to another file never carries the old meaning. A fork copies the table with the descriptors.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lakebed_shim_abi::path::WalSegment;
use lakebed_shim_abi::region::SlotRef;
use libc::c_int;

/// Descriptors above are refused to managed files and WAL (`max_files_per_process` is 1000 by default).
const MAX_FDS: usize = 65_536;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing to the shim.
    None,
    /// A segment of a relation or an SLRU.
    Managed(SlotRef),
    /// A WAL segment.
    Wal(WalSegment),
}

/// `head`: bits 0–1 the kind, 2–31 the slot, 32–63 generation or timeline. `tail`: log and segment number.
struct Entry {
    head: AtomicU64,
    tail: AtomicU64,
    /// Where a sequential reader will read next, and for how many blocks it has been sequential.
    next: AtomicU32,
    run: AtomicU32,
}

const KIND_MANAGED: u64 = 1;
const KIND_WAL: u64 = 2;

static TABLE: [Entry; MAX_FDS] = [const {
    Entry {
        head: AtomicU64::new(0),
        tail: AtomicU64::new(0),
        next: AtomicU32::new(0),
        run: AtomicU32::new(0),
    }
}; MAX_FDS];

fn entry(fd: c_int) -> Option<&'static Entry> {
    TABLE.get(usize::try_from(fd).ok()?)
}

/// What this descriptor is.
pub(crate) fn get(fd: c_int) -> Meaning {
    let Some(entry) = entry(fd) else {
        return Meaning::None;
    };
    let head = entry.head.load(Ordering::Relaxed);
    let high = (head >> 32) as u32;
    match head & 3 {
        KIND_MANAGED => Meaning::Managed(SlotRef {
            slot: (head as u32) >> 2,
            generation: high,
        }),
        KIND_WAL => {
            let tail = entry.tail.load(Ordering::Relaxed);
            Meaning::Wal(WalSegment {
                timeline: high,
                log: (tail >> 32) as u32,
                segment: tail as u32,
            })
        }
        _ => Meaning::None,
    }
}

/// Gives it a meaning. False when the table is too small for a descriptor that must have one.
pub(crate) fn set(fd: c_int, meaning: Meaning) -> bool {
    let Some(entry) = entry(fd) else {
        return meaning == Meaning::None;
    };
    let head = match meaning {
        Meaning::None => 0,
        Meaning::Managed(of) => KIND_MANAGED | u64::from(of.slot) << 2 | u64::from(of.generation) << 32,
        Meaning::Wal(segment) => {
            let tail = u64::from(segment.log) << 32 | u64::from(segment.segment);
            entry.tail.store(tail, Ordering::Relaxed);
            KIND_WAL | u64::from(segment.timeline) << 32
        }
    };
    entry.next.store(0, Ordering::Relaxed);
    entry.run.store(0, Ordering::Relaxed);
    entry.head.store(head, Ordering::Relaxed);
    true
}

/// Takes the meaning away, before a close.
pub(crate) fn clear(fd: c_int) {
    if let Some(entry) = entry(fd) {
        entry.head.store(0, Ordering::Relaxed);
    }
}

/// Notes a read of these blocks; returns for how many blocks this descriptor has been read in sequence.
pub(crate) fn note_read(fd: c_int, first: u32, end: u32) -> u32 {
    let Some(entry) = entry(fd) else {
        return 0;
    };
    let sequential = entry.next.swap(end, Ordering::Relaxed) == first;
    let run = if sequential {
        entry.run.load(Ordering::Relaxed).saturating_add(end - first)
    } else {
        0
    };
    entry.run.store(run, Ordering::Relaxed);
    run
}
