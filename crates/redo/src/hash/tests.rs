use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockRef, DecodedRecord};

use super::{BUCKET, FLAGS, NEXT, NONE, PREVIOUS, flag, op};
use crate::page::{self, get_u16, get_u32};
use crate::{PageBytes, mask, redo_block, rmgr};

/// A record with these references (id, block, data).
fn record(info: u8, main: &[u8], blocks: &[(u8, u32, &[u8])]) -> DecodedRecord {
    let rel = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Main,
    };
    let blocks = blocks.iter().map(|&(id, block, data)| BlockRef {
        id,
        rel,
        block,
        will_init: false,
        image: None,
        data: Some(Bytes::copy_from_slice(data)),
    });
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x100),
        end: Lsn(0x140),
        prev: Lsn(0),
        xid: 700,
        rmid: rmgr::HASH,
        info,
        origin: None,
        toplevel_xid: None,
        blocks: blocks.collect(),
        main_data: Bytes::copy_from_slice(main),
    }
}

fn metapage() -> PageBytes {
    let mut main = 0f64.to_le_bytes().to_vec();
    main.extend_from_slice(&400u32.to_le_bytes());
    main.extend_from_slice(&307u16.to_le_bytes());
    let init = record(op::INIT_META_PAGE, &main, &[(0, 0, &[])]);
    let mut page = [0; 8192];
    redo_block(&init, &init.blocks[0], &mut page).unwrap();
    page::set_lsn(&mut page, Lsn(0));
    page
}

/// SQL reaches a second bitmap page only after 32768 overflow pages.
#[test]
fn an_overflow_page_may_bring_a_bitmap_page() {
    let bucket = 1u32.to_le_bytes();
    let first_free = 32768u32.to_le_bytes();
    let main = [0x00, 0x10, 0];
    let blocks: [(u8, u32, &[u8]); 4] = [(0, 71, &bucket), (1, 70, &[]), (3, 72, &[]), (4, 0, &first_free)];
    let record = record(op::ADD_OVERFLOW_PAGE, &main, &blocks);

    let mut overflow = [0; 8192];
    redo_block(&record, &record.blocks[0], &mut overflow).unwrap();
    let words = [PREVIOUS, NEXT, BUCKET].map(|at| get_u32(&overflow, at));
    assert_eq!(
        (words, get_u16(&overflow, FLAGS)),
        ([70, NONE, 1], flag::OVERFLOW)
    );

    let mut before = [0; 8192];
    super::init(&mut before, 1, 1, flag::BUCKET);
    redo_block(&record, &record.blocks[1], &mut before).unwrap();
    assert_eq!(get_u32(&before, NEXT), 71);

    let mut bitmap = [0; 8192];
    redo_block(&record, &record.blocks[2], &mut bitmap).unwrap();
    assert_eq!(
        (page::lower(&bitmap), bitmap[4119], bitmap[4120]),
        (4120, 0xFF, 0)
    );

    let mut meta = metapage();
    let spare = 24 + 52 + 4;
    assert_eq!(get_u32(&meta, spare), 1);
    redo_block(&record, &record.blocks[3], &mut meta).unwrap();
    assert_eq!(get_u32(&meta, 24 + 40), 32768);
    assert_eq!((get_u32(&meta, 24 + 44), get_u32(&meta, 24 + 444)), (1, 72));
    assert_eq!(get_u32(&meta, spare), 3);
}

#[test]
fn a_page_named_for_its_lock_stays_as_it_is() {
    for info in [op::DELETE, op::MOVE_PAGE_CONTENTS, op::SQUEEZE_PAGE] {
        let mut record = record(info, &[0; 12], &[(0, 3, &[])]);
        let mut page = [0; 8192];
        super::init(&mut page, 1, 1, flag::BUCKET);
        let before = page;
        redo_block(&record, &record.blocks[0], &mut page).unwrap();
        assert!(page == before);
        record.blocks[0].will_init = true;
        redo_block(&record, &record.blocks[0], &mut page).unwrap_err();
    }
}

/// SQL frees only the last page of a bucket, so block 4 does not occur.
#[test]
fn neighbours_of_a_freed_page_are_linked() {
    let mut main = [20u32.to_le_bytes(), 40u32.to_le_bytes()].concat();
    main.extend_from_slice(&[0, 0, 0, 0]);
    let squeeze = record(
        op::SQUEEZE_PAGE,
        &main,
        &[(1, 10, &[]), (3, 20, &[]), (4, 40, &[])],
    );
    let mut page = [0; 8192];
    super::init(&mut page, 30, 1, flag::OVERFLOW);
    let replay = |index: usize| {
        let mut page = page;
        redo_block(&squeeze, &squeeze.blocks[index], &mut page).unwrap();
        (get_u32(&page, PREVIOUS), get_u32(&page, NEXT))
    };
    assert_eq!([0, 1, 2].map(replay), [(30, NONE), (30, 40), (20, NONE)]);
}

#[test]
fn bits_and_split_points_outside_their_pages_are_faults() {
    let mut page = [0; 8192];
    super::bitmap::init_page(4096, &mut page).unwrap();
    super::bitmap::set_bit(&mut page, 8152 * 8 - 1, false).unwrap();
    assert!(super::bitmap::set_bit(&mut page, 8152 * 8, false).is_err());
    assert!(super::bitmap::init_page(8153, &mut page).is_err());
    let mut meta = metapage();
    let [low, high] = [98u32.to_le_bytes(), 1u32.to_le_bytes()];
    assert!(super::meta::add_bucket(&mut meta, 3, 2, &[low, high].concat()).is_err());
    let mut blocks = 0;
    while super::meta::add_overflow_pages(&mut meta, Some(blocks)).is_ok() {
        blocks += 1;
    }
    assert_eq!(blocks, 1024);
}

#[test]
fn masks_hide_a_freed_page_and_dead_marks_only() {
    let mut page = [0; 8192];
    super::init(&mut page, NONE, NONE, flag::UNUSED);
    let mut other = page;
    other[5000] = 1;
    mask::for_record(rmgr::HASH, &mut page, 0);
    mask::for_record(rmgr::HASH, &mut other, 0);
    assert!(page == other);

    super::init(&mut page, 1, 1, flag::BUCKET);
    page::add_item(&mut page, &[8, 0, 0, 0, 1, 0, 8, 0], 1, page::Place::Insert).unwrap();
    let mut dead = page;
    dead[FLAGS] |= flag::HAS_DEAD_TUPLES as u8;
    let id = page::item_id(&dead, 1).unwrap();
    let state = page::ItemState::Dead;
    page::set_item_id(&mut dead, 1, page::ItemId { state, ..id }).unwrap();
    let mut moved = page;
    moved[PREVIOUS] ^= 1;
    for page in [&mut page, &mut dead, &mut moved] {
        mask::for_record(rmgr::HASH, page, 0);
    }
    assert!(page == dead && page != moved);
}

/// Since Postgres 17 the page that takes the tuples may be named for the lock alone; before, it got a new LSN.
#[test]
fn a_squeeze_that_moves_nothing_leaves_the_target_alone() {
    let main =
        |count: u8, is_previous: u8| [&[5, 0, 0, 0, 9, 0, 0, 0][..], &[count, 0, 1, is_previous]].concat();
    for (version, is_previous, expected) in [
        (PgVersion::V16, 0, Lsn(0x140)),
        (PgVersion::V17, 0, Lsn(0)),
        (PgVersion::V18, 1, Lsn(0x140)),
    ] {
        let squeeze = DecodedRecord {
            version,
            ..record(op::SQUEEZE_PAGE, &main(0, is_previous), &[(1, 70, &[])])
        };
        let mut page = [0; 8192];
        super::init(&mut page, NONE, NONE, flag::BUCKET);
        redo_block(&squeeze, &squeeze.blocks[0], &mut page).unwrap();
        assert_eq!(page::lsn(&page), expected, "{version}");
        let next = if is_previous == 1 { 9 } else { NONE };
        assert_eq!(get_u32(&page, NEXT), next, "{version}");
    }
}
