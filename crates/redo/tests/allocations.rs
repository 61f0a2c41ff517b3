//! Replaying a chain into one buffer takes no memory from the allocator, for any type of record: the corpus of the fuzz
//! targets has each of them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use lakebed_pgtest::fuzz::{entries, u64_of};
use lakebed_redo::{Managers, PageRecord, StoredPlace};
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's, counting the calls of each thread.
struct Counting;

// SAFETY: every call is passed on unchanged; the counter needs no memory and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn redo_allocates_nothing() {
    let file = zstd::stream::decode_all(&include_bytes!("fuzz/corpus/pages.zst")[..]).unwrap();
    let samples = entries(&file, 16, 8192);
    assert!(samples.len() > 100, "{}", samples.len());
    let before = COUNT.get();
    drop(std::hint::black_box(vec![1u8]));
    assert!(COUNT.get() > before, "nothing is counted");
    let mut page = [0; 8192];
    for (head, stored, before) in samples {
        let place = StoredPlace {
            version: PgVersion::V15,
            end: Lsn(u64_of(head)),
            rel: RelTag {
                spcnode: 1663,
                dbnode: 5,
                relnode: 16384,
                fork: ForkNumber::Main,
            },
            block: u32::from_le_bytes(head[8..12].try_into().unwrap()),
        };
        let count = COUNT.get();
        page.copy_from_slice(before);
        let record = PageRecord::decode(stored, place).unwrap();
        record.redo(&mut page, Managers::none()).unwrap();
        let count = COUNT.get() - count;
        let kind = (record.rmid, record.info & 0xF0, record.own.id);
        assert_eq!(count, 0, "resource manager, operation, reference: {kind:x?}");
    }
}
