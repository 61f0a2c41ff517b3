use bytes::Bytes;
use lakebed_types::{Lsn, RelTag};
use lakebed_wal::record::{BlockRef, DecodedRecord};

use super::*;
use crate::{Managers, redo_block, rmgr};

fn record(version: PgVersion, info: u8, main: &[u8], data: &[u8]) -> DecodedRecord {
    let block = BlockRef {
        id: 0,
        rel: RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Main,
        },
        block: 3,
        will_init: false,
        image: None,
        data: Some(Bytes::copy_from_slice(data)),
    };
    DecodedRecord {
        version,
        start: Lsn(0x100),
        end: Lsn(0x140),
        prev: Lsn(0),
        xid: 0,
        rmid: rmgr::HEAP2,
        info,
        origin: None,
        toplevel_xid: None,
        blocks: vec![block],
        main_data: Bytes::copy_from_slice(main),
    }
}

/// A page of five tuples of 32 bytes.
fn five_tuples() -> PageBytes {
    let mut page = [0; 8192];
    page::init(&mut page, 0);
    for number in 1..=5 {
        page::add_item(&mut page, &[number as u8; 32], number, page::Place::HeapSlot).unwrap();
    }
    page
}

fn replay(page: &PageBytes, records: &[DecodedRecord]) -> PageBytes {
    let mut page = *page;
    for record in records {
        // All at one position, as far as the page's LSN is concerned.
        page::set_lsn(&mut page, Lsn(0));
        redo_block(record, &record.blocks[0], &mut page).unwrap();
    }
    page
}

fn bytes(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// xmax 9, the masks, the flags and padding, with a 16-bit word before the masks and one at the end if they are there.
fn freeze(before: &[u16], after: &[u16]) -> Vec<u8> {
    let masks = bytes(&[0x0007, 0x0B00, 0x0004]);
    [9u32.to_le_bytes().to_vec(), bytes(before), masks, bytes(after)].concat()
}

#[test]
fn every_version_freezes_prunes_and_vacuums_alike() {
    let page = five_tuples();
    let horizon = 700u32.to_le_bytes();
    let main = |counts: &[u16], rest: &[u8]| [&horizon[..], &bytes(counts), rest].concat();

    // Tuples 2 and 4 are frozen.
    let frozen_15 = record(
        PgVersion::V15,
        0x30,
        &main(&[2], &[]),
        &[freeze(&[2], &[]), freeze(&[4], &[])].concat(),
    );
    let plan = freeze(&[], &[2]);
    let frozen_16 = record(
        PgVersion::V16,
        0x30,
        &main(&[1], &[0]),
        &[plan.clone(), bytes(&[2, 4])].concat(),
    );
    let plans = [bytes(&[1, 0]), plan.clone()].concat();
    let frozen_17 = |version| {
        let main = [&[1, 0x18], &horizon[..]].concat();
        record(version, 0x20, &main, &[plans.clone(), bytes(&[2, 4])].concat())
    };
    let expected = replay(&page, &[frozen_15]);
    assert_eq!(page::item(&expected, 4).unwrap()[4..12], [9, 0, 0, 0, 0, 0, 0, 0]);
    assert_ne!(expected, page);
    assert_eq!(replay(&page, std::slice::from_ref(&frozen_16)), expected);
    for version in [PgVersion::V17, PgVersion::V18] {
        assert_eq!(replay(&page, &[frozen_17(version)]), expected);
    }

    // 1 leads to 2, 5 is dead, 3 unused.
    let pruned_16 = record(PgVersion::V16, 0x10, &main(&[1, 1], &[0]), &bytes(&[1, 2, 5, 3]));
    let items = bytes(&[1, 1, 2, 1, 5, 1, 3]);
    let pruned_17 = record(PgVersion::V17, 0x10, &[0, 0xE4], &items);
    let expected = replay(&page, std::slice::from_ref(&pruned_16));
    assert_eq!(replay(&page, std::slice::from_ref(&pruned_17)), expected);
    // The dead one's line pointer goes; no tuple moves.
    let vacuumed_16 = record(PgVersion::V16, 0x20, &bytes(&[1]), &bytes(&[5]));
    let vacuumed_18 = record(PgVersion::V18, 0x30, &[2, 0x80], &bytes(&[1, 5]));
    let without_dead = replay(&expected, &[vacuumed_16]);
    assert_eq!(page::item_count(&without_dead), 4);
    assert_eq!(replay(&expected, &[vacuumed_18]), without_dead);

    // All at once, as 17 can: line pointers first, then the tuples of the plans.
    let all = record(
        PgVersion::V17,
        0x20,
        &[1, 0xF4],
        &[plans, items, bytes(&[2, 4])].concat(),
    );
    assert_eq!(replay(&page, &[all]), replay(&page, &[pruned_17, frozen_16]));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let rows: [(&[u8], Vec<u8>); 5] = [
        (&[1], bytes(&[1, 5])),
        (&[1, 0x80], bytes(&[2, 5])),
        (&[1, 0x80], bytes(&[1, 5, 0])),
        (&[1, 0x10], [bytes(&[2, 0]), freeze(&[], &[1])].concat()),
        (
            &[1, 0x10],
            [bytes(&[1, 0]), freeze(&[], &[1]), bytes(&[6])].concat(),
        ),
    ];
    for (row, (main, data)) in rows.into_iter().enumerate() {
        let record = record(PgVersion::V17, 0x10, main, &data);
        let mut page = five_tuples();
        assert!(
            redo_block(&record, &record.blocks[0], &mut page).is_err(),
            "row {row}"
        );
    }
}

/// The flag that a relation is a catalogue is not a bit of the map.
#[test]
fn a_visible_record_of_a_catalogue_sets_the_two_bits() {
    let mut record = record(PgVersion::V16, 0x40, &[0, 0, 0, 0, 7], &[]);
    record.blocks[0].rel.fork = ForkNumber::Vm;
    record.blocks[0].block = 0;
    let mut heap = record.blocks[0].clone();
    heap.id = 1;
    heap.block = 2;
    record.blocks.push(heap);
    let page = &mut [0; 8192];
    redo_block(&record, &record.blocks[0], page).unwrap();
    assert_eq!((page[24], page::lsn(page)), (0x30, record.end));
    page::set_lsn(page, Lsn(0));
    redo_block(&record, &record.blocks[0], page).unwrap();
    assert_eq!(page::lsn(page), Lsn(0), "nothing changed");
}

/// The record does not tell whether the heap page gets its LSN: the cluster does.
#[test]
fn a_visible_record_stamps_the_heap_page_where_pages_have_checksums() {
    let mut record = record(PgVersion::V15, 0x40, &[0, 0, 0, 0, 1], &[]);
    record.blocks[0].id = 1;
    for data_checksums in [false, true] {
        let mut page = [0; 8192];
        page::init(&mut page, 0);
        page::set_lsn(&mut page, Lsn(8));
        let of_page = PageRecord::new(&record, &record.blocks[0]).with_data_checksums(data_checksums);
        of_page.redo(&mut page, Managers::none()).unwrap();
        let expected = if data_checksums { record.end } else { Lsn(8) };
        assert_eq!(page::lsn(&page), expected);
    }
}
