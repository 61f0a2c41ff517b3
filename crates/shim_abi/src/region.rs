//! The layout of the shared region.
//!
//! | offset | holds |
//! |---|---|
//! | 0 | [`Control`], one page |
//! | 4096 | the ring of WAL writes ([`crate::ring`]) |
//! | then, page-aligned | one [`SlotHeader`] for each slot |
//! | then, 1 MiB-aligned | the arena: slot *n* has [`SEGMENT_BLOCKS`] state words at 1 MiB × *n* |
//!
//! A *slot* is the state of one file of at most 1 GiB. The file is sparse (up to a TiB of it), so a slot costs what
//! its relation's blocks need, one 4 KiB page for each 4 MiB. The sidecar assigns slots; the generation says which
//! file a slot means: a process that still holds an unlinked file sees that the slot is no longer its file's and
//! then treats the file as purely local.
//!
//! A new region is all zeros: the sidecar creates it at [`Layout::total_bytes`], fills in what is not zero with
//! [`Region::initialise`] and only then starts Postgres.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ring::WalEntry;
use crate::{MAGIC, SEGMENT_BLOCKS, VERSION};

/// Bytes of a slot's words.
pub const SLOT_BYTES: usize = SEGMENT_BLOCKS as usize * 8;
const PAGE: usize = 4096;
/// Most slots: an arena of one TiB.
pub const MAX_SLOTS: u32 = 1 << 20;
/// Most entries of the WAL ring.
pub const MAX_RING_ENTRIES: u32 = 1 << 20;

/// Whether Postgres may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Life {
    /// The sidecar serves.
    Serving = 1,
    /// Another compute has this timeline now: nothing may be acknowledged any more.
    Fenced = 2,
    /// The sidecar ends.
    Stopped = 3,
}

/// First page of the region. Each group on its own cache lines.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Control {
    magic: AtomicU64,
    version: AtomicU32,
    slots: AtomicU32,
    ring_entries: AtomicU32,
    /// Process id of the sidecar.
    pub sidecar_pid: AtomicU32,
    life: AtomicU32,
    /// The eviction epoch now; a write leaves it in the words of its blocks.
    pub epoch: AtomicU32,
    pub(crate) wal: WalLines,
    /// Counters that the shim keeps for the sidecar to show.
    pub counters: Counters,
}

/// Positions of the WAL ring; see [`crate::ring`].
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct WalLines {
    pub(crate) reserved: AtomicU64,
    pub(crate) published_wake: AtomicU32,
    pub(crate) published_waiters: AtomicU32,
    pub(crate) consumed: Padded,
    pub(crate) acked: Padded,
}

/// A position that one side raises and the other waits for, on a line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Padded {
    pub(crate) position: AtomicU64,
    pub(crate) wake: AtomicU32,
    pub(crate) waiters: AtomicU32,
}

/// What the shim counts.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Counters {
    /// Blocks that a process waited for.
    pub blocks_filled: AtomicU64,
    /// Microseconds spent waiting for fills.
    pub fill_wait_us: AtomicU64,
    /// Files opened with a question to the sidecar.
    pub opens: AtomicU64,
    /// Reads done again because a block changed its state meanwhile.
    pub reads_repeated: AtomicU64,
    /// Calls of `fdatasync` that had to wait.
    pub flush_waits: AtomicU64,
    /// Microseconds spent waiting in them.
    pub flush_wait_us: AtomicU64,
    /// WAL writes that found the ring full.
    pub ring_full: AtomicU64,
}

/// What a slot means now.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SlotHeader {
    /// Never zero while the slot has a file; raised by the sidecar before the slot gets another.
    pub generation: AtomicU32,
    reserved: AtomicU32,
}

const _: () = {
    assert!(size_of::<Control>() <= PAGE);
    assert!(size_of::<WalEntry>() == 32);
    assert!(size_of::<SlotHeader>() == 8);
    assert!(SLOT_BYTES == 1 << 20);
};

/// A file's place in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotRef {
    /// Number of the slot.
    pub slot: u32,
    /// Which of its files.
    pub generation: u32,
}

/// Where the parts of a region are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Slots of the arena.
    pub slots: u32,
    /// Entries of the WAL ring, a power of two.
    pub ring_entries: u32,
}

/// Why a region is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// Not a region, or one that is not initialised.
    Magic,
    /// Of another build.
    Version,
    /// Numbers out of bounds, or a file too short for them.
    Size,
}

impl Layout {
    /// A layout within bounds.
    pub fn new(slots: u32, ring_entries: u32) -> Result<Layout, RegionError> {
        let ring_fits = ring_entries.is_power_of_two() && ring_entries <= MAX_RING_ENTRIES;
        if slots == 0 || slots > MAX_SLOTS || !ring_fits {
            return Err(RegionError::Size);
        }
        Ok(Layout { slots, ring_entries })
    }

    fn slot_table(&self) -> usize {
        (PAGE + self.ring_entries as usize * size_of::<WalEntry>()).next_multiple_of(PAGE)
    }

    fn arena(&self) -> usize {
        (self.slot_table() + self.slots as usize * size_of::<SlotHeader>()).next_multiple_of(SLOT_BYTES)
    }

    /// Size of the file.
    pub fn total_bytes(&self) -> usize {
        self.arena() + self.slots as usize * SLOT_BYTES
    }

    /// Offset and length of a slot's words in the file, for punching them out before a slot is given to another file.
    pub fn slot_range(&self, slot: u32) -> (u64, u64) {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        (
            (self.arena() + slot as usize * SLOT_BYTES) as u64,
            SLOT_BYTES as u64,
        )
    }
}

/// A mapped region. Copies refer to the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: *mut u8,
    layout: Layout,
}

// SAFETY: everything behind `base` is accessed through atomics, and the mapping outlives the region by the contract
// of `Region::attach`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Reads the layout from the first page, before the whole file is mapped.
    ///
    /// # Safety
    /// `page` points to at least 4096 mapped bytes of a region's file, aligned to a page.
    pub unsafe fn probe(page: *mut u8) -> Result<Layout, RegionError> {
        // SAFETY: `Control` fits the page (asserted above), is made of atomics alone and any bits are valid for them.
        let control = unsafe { &*page.cast::<Control>() };
        if control.magic.load(Ordering::Acquire) != MAGIC {
            return Err(RegionError::Magic);
        }
        if control.version.load(Ordering::Relaxed) != VERSION {
            return Err(RegionError::Version);
        }
        Layout::new(
            control.slots.load(Ordering::Relaxed),
            control.ring_entries.load(Ordering::Relaxed),
        )
    }

    /// A region over a mapping of `bytes` bytes.
    ///
    /// # Safety
    /// `base` is a shared, readable and writable mapping of `bytes` bytes, page-aligned, that lives as long as any
    /// copy of the region is used.
    pub unsafe fn attach(base: *mut u8, bytes: usize, layout: Layout) -> Result<Region, RegionError> {
        if bytes < layout.total_bytes() {
            return Err(RegionError::Size);
        }
        Ok(Region { base, layout })
    }

    /// Makes zeros a region. The sidecar does this once, before Postgres starts; `acked` and all positions are zero.
    pub fn initialise(&self, sidecar_pid: u32) {
        let control = self.control();
        control.version.store(VERSION, Ordering::Relaxed);
        control.slots.store(self.layout.slots, Ordering::Relaxed);
        control
            .ring_entries
            .store(self.layout.ring_entries, Ordering::Relaxed);
        control.sidecar_pid.store(sidecar_pid, Ordering::Relaxed);
        // Zero is "never written"; the first epoch is 1.
        control.epoch.store(1, Ordering::Relaxed);
        self.set_life(Life::Serving);
        control.magic.store(MAGIC, Ordering::Release);
    }

    /// Its layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its first page.
    pub fn control(&self) -> &Control {
        // SAFETY: the mapping is at least a page and lives as long as `self`, see `attach`.
        unsafe { &*self.base.cast::<Control>() }
    }

    /// Whether Postgres may go on; any value but a known one is `Stopped`.
    pub fn life(&self) -> Life {
        match self.control().life.load(Ordering::Acquire) {
            1 => Life::Serving,
            2 => Life::Fenced,
            _ => Life::Stopped,
        }
    }

    /// Tells every process. Waiters notice within their timeout.
    pub fn set_life(&self, life: Life) {
        self.control().life.store(life as u32, Ordering::Release);
    }

    /// The header of a slot; none beyond the last.
    pub fn slot(&self, slot: u32) -> Option<&SlotHeader> {
        if slot >= self.layout.slots {
            return None;
        }
        let offset = self.layout.slot_table() + slot as usize * size_of::<SlotHeader>();
        // SAFETY: within `total_bytes`, aligned to 8, atomics alone.
        Some(unsafe { &*self.base.add(offset).cast::<SlotHeader>() })
    }

    /// Whether the slot still means this file.
    pub fn is_current(&self, of: SlotRef) -> bool {
        self.slot(of.slot)
            .is_some_and(|header| header.generation.load(Ordering::Acquire) == of.generation)
    }

    /// The state word of a block.
    ///
    /// # Panics
    /// When slot or block is out of range: the caller has clipped to [`SEGMENT_BLOCKS`].
    pub fn word(&self, slot: u32, block: u32) -> &AtomicU64 {
        assert!(
            slot < self.layout.slots && block < SEGMENT_BLOCKS,
            "block {block} of slot {slot}"
        );
        let offset = self.layout.arena() + slot as usize * SLOT_BYTES + block as usize * 8;
        // SAFETY: within `total_bytes` by the assertion, aligned to 8, an atomic.
        unsafe { &*self.base.add(offset).cast::<AtomicU64>() }
    }

    pub(crate) fn ring_entry(&self, sequence: u64) -> &WalEntry {
        let index = (sequence - 1) & u64::from(self.layout.ring_entries - 1);
        // SAFETY: index < ring_entries, so this is between the first page and the slot table; atomics alone.
        unsafe { &*self.base.add(PAGE).cast::<WalEntry>().add(index as usize) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A region in ordinary memory, never freed.
    pub(crate) fn region(slots: u32, ring_entries: u32) -> Region {
        let layout = Layout::new(slots, ring_entries).expect("bounds");
        let bytes = layout.total_bytes();
        let memory = std::alloc::Layout::from_size_align(bytes, PAGE).expect("a size");
        // SAFETY: the size is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(memory) };
        // SAFETY: as large as asked for, aligned, never freed.
        unsafe {
            assert_eq!(Region::probe(base), Err(RegionError::Magic));
            let region = Region::attach(base, bytes, layout).expect("large enough");
            region.initialise(1);
            assert_eq!(Region::probe(base), Ok(layout));
            region
        }
    }

    #[test]
    fn parts_do_not_overlap() {
        let region = region(3, 8);
        let first = region.word(0, 0) as *const AtomicU64 as usize;
        let table = region.slot(2).expect("the last slot") as *const SlotHeader as usize;
        let ring = region.ring_entry(8) as *const WalEntry as usize;
        assert!(
            ring + size_of::<WalEntry>() <= region.slot(0).expect("a slot") as *const SlotHeader as usize
        );
        assert!(table + size_of::<SlotHeader>() <= first);
        assert_eq!(
            region.word(2, SEGMENT_BLOCKS - 1) as *const AtomicU64 as usize + 8,
            region.base as usize + region.layout().total_bytes()
        );
        assert!(region.slot(3).is_none());
    }

    #[test]
    fn a_slot_that_got_another_file_is_not_current() {
        let region = region(2, 8);
        let file = SlotRef {
            slot: 1,
            generation: 5,
        };
        region
            .slot(1)
            .expect("a slot")
            .generation
            .store(5, Ordering::Release);
        assert!(region.is_current(file));
        region
            .slot(1)
            .expect("a slot")
            .generation
            .store(6, Ordering::Release);
        assert!(!region.is_current(file));
        assert!(!region.is_current(SlotRef {
            slot: 9,
            generation: 5
        }));
    }

    #[test]
    fn bounds_are_checked() {
        assert_eq!(Layout::new(0, 8), Err(RegionError::Size));
        assert_eq!(Layout::new(MAX_SLOTS + 1, 8), Err(RegionError::Size));
        assert_eq!(Layout::new(1, 7), Err(RegionError::Size));
        assert!(Layout::new(MAX_SLOTS, MAX_RING_ENTRIES).is_ok());
    }
}
