use bytes::Bytes;
use lakebed_types::{ForkNumber, PgVersion, RelTag};
use lakebed_wal::record::{BlockRef, DecodedRecord};

use super::*;
use crate::redo_block;

const HEAP: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: ForkNumber::Main,
};
const END: Lsn = Lsn(0x140);

/// A record with these references; the last is to a page of the map.
fn record(rmid: u8, info: u8, main: &[u8], heap: &[(u8, u32)], map: (u8, u32)) -> DecodedRecord {
    let reference = |(id, block): (u8, u32), fork| BlockRef {
        id,
        rel: HEAP.with_fork(fork),
        block,
        will_init: false,
        image: None,
        data: None,
    };
    let mut blocks: Vec<_> = heap
        .iter()
        .map(|&heap| reference(heap, ForkNumber::Main))
        .collect();
    blocks.push(reference(map, ForkNumber::Vm));
    DecodedRecord {
        version: PgVersion::V18,
        start: Lsn(0x100),
        end: END,
        prev: Lsn(0),
        xid: 700,
        rmid,
        info,
        origin: None,
        toplevel_xid: None,
        blocks,
        main_data: Bytes::copy_from_slice(main),
    }
}

fn full_map() -> PageBytes {
    let mut map = [0; PAGE_SIZE];
    page::init(&mut map, 0);
    map[HEADER_BYTES..].fill(0xFF);
    map
}

/// Heap blocks of which bits are gone, with the bits.
fn cleared(map: &PageBytes) -> Vec<(u32, u8)> {
    let bits = |heap_block| {
        let (byte, shift) = place(heap_block);
        !(map[byte] >> shift) & VALID_BITS
    };
    (0..HEAP_BLOCKS_PER_PAGE)
        .map(|heap_block| (heap_block, bits(heap_block)))
        .filter(|&(_, bits)| bits != 0)
        .collect()
}

#[test]
fn each_heap_record_clears_the_bits_that_its_flags_are_about() {
    const FAR: u32 = 3 * HEAP_BLOCKS_PER_PAGE + 6;
    let at = |at: usize, flags: u8| {
        let mut main = vec![0; 14];
        main[at] = flags;
        main
    };
    let one: &[_] = &[(0, FAR)];
    let same: &[_] = &[(0, FAR), (1, FAR + 1)];
    let apart: &[_] = &[(0, FAR), (1, 9)];
    let (six, seven): ((u32, u8), (u32, u8)) = ((6, 3), (7, 3));
    let table = [
        (rmgr::HEAP, 0x00, at(2, 1), one, (1, 3), vec![six]),
        (rmgr::HEAP, 0x00, at(2, 0xfe), one, (1, 3), vec![]),
        (rmgr::HEAP, 0x10, at(7, 1), one, (1, 3), vec![six]),
        (rmgr::HEAP, 0x60, at(7, 1), one, (1, 3), vec![(6, 2)]),
        (rmgr::HEAP2, 0x60, at(7, 1), one, (1, 3), vec![(6, 2)]),
        (rmgr::HEAP2, 0x50, at(0, 1), one, (1, 3), vec![six]),
        // Updates: new and old version, on one page of the map or on two, and the old page alone.
        (rmgr::HEAP, 0x20, at(7, 3), same, (2, 3), vec![six, seven]),
        (rmgr::HEAP, 0x20, at(7, 2), same, (2, 3), vec![six]),
        (rmgr::HEAP, 0x20, at(7, 1), same, (3, 3), vec![seven]),
        (rmgr::HEAP, 0x20, at(7, 3), apart, (2, 3), vec![six]),
        (rmgr::HEAP, 0x20, at(7, 3), apart, (3, 0), vec![(9, 3)]),
        (rmgr::HEAP, 0x40, at(7, 1), one, (3, 3), vec![six]),
        (rmgr::HEAP, 0x40, at(7, 3), one, (2, 3), vec![six]),
    ];
    for (row, (rmid, info, main, heap, map, expected)) in table.into_iter().enumerate() {
        let record = record(rmid, info, &main, heap, map);
        let mut page = full_map();
        redo_block(&record, record.blocks.last().unwrap(), &mut page).unwrap();
        assert_eq!(cleared(&page), expected, "row {row}");
        let lsn = if expected.is_empty() { Lsn(0) } else { END };
        assert_eq!(page::lsn(&page), lsn, "row {row}");
    }
}

#[test]
fn bits_that_are_clear_leave_the_page_as_it_is() {
    let record = record(rmgr::HEAP, 0x10, &[0, 0, 0, 0, 0, 0, 0, 1], &[(0, 6)], (1, 0));
    let map = record.blocks.last().unwrap();
    let mut empty = [0; PAGE_SIZE];
    page::init(&mut empty, 0);
    for before in [empty, [0; PAGE_SIZE]] {
        let mut page = before;
        redo_block(&record, map, &mut page).unwrap();
        assert!(page == before);
    }
}

#[test]
fn a_map_page_of_another_heap_page_or_role_is_refused() {
    let main = [0, 0, 0, 0, 0, 0, 0, 1];
    for (info, map) in [(0x10, (1, 4)), (0x10, (2, 0)), (0x20, (1, 0)), (0x70, (1, 0))] {
        let record = record(rmgr::HEAP, info, &main, &[(0, 6)], map);
        let page = &mut full_map();
        assert!(
            redo_block(&record, record.blocks.last().unwrap(), page).is_err(),
            "{info:#x} {map:?}"
        );
    }
}
