//! What the workload against Postgres cannot show: images of left halves, and refusals.

use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};

use super::{FLAGS, OPAQUE, PAGE_DELETE, PAGE_SPLIT, PAGE_UPDATE, RIGHT_LINK, flag};
use crate::page::{get_u16, get_u32, put_u16};
use crate::{Managers, PageBytes, PageRecord, StoredPlace, page, redo_block, rmgr};

const END: Lsn = Lsn(0x7_0000_0140);

fn reference(id: u8, block: u32) -> BlockRef {
    BlockRef {
        id,
        rel: RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Main,
        },
        block,
        will_init: false,
        image: None,
        data: None,
    }
}

fn record(info: u8, main: &[u8], blocks: Vec<BlockRef>) -> DecodedRecord {
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x100),
        end: END,
        prev: Lsn(0),
        xid: 700,
        rmid: rmgr::GIST,
        info,
        origin: None,
        toplevel_xid: None,
        blocks,
        main_data: Bytes::copy_from_slice(main),
    }
}

fn empty_page(flags: u16) -> PageBytes {
    let mut bytes = [0; 8192];
    page::init(&mut bytes, 16);
    put_u16(&mut bytes, FLAGS, flags);
    bytes
}

fn nsn(bytes: &PageBytes) -> u64 {
    u64::from(get_u32(bytes, OPAQUE)) << 32 | u64::from(get_u32(bytes, OPAQUE + 4))
}

#[test]
fn a_left_half_is_marked_after_its_image_was_restored() {
    for (info, id, marked) in [
        (PAGE_UPDATE, 1, true),
        (PAGE_SPLIT, 0, true),
        (PAGE_UPDATE, 0, false),
    ] {
        let mut left = reference(id, 8);
        left.image = Some(BlockImage {
            bytes: Bytes::copy_from_slice(&empty_page(flag::LEAF | flag::FOLLOW_RIGHT)),
            compression: ImageCompression::None,
            hole_offset: 0,
            hole_length: 0,
            apply: true,
        });
        let record = record(info, &[0; 24], vec![left]);
        let mut direct = [0; 8192];
        redo_block(&record, &record.blocks[0], &mut direct).unwrap();
        let expected = if marked {
            (END.0, flag::LEAF)
        } else {
            (0, flag::LEAF | flag::FOLLOW_RIGHT)
        };
        assert_eq!((nsn(&direct), get_u16(&direct, FLAGS)), expected);
        assert_eq!(page::lsn(&direct), END);
        let mut stored = Vec::new();
        PageRecord::new(&record, &record.blocks[0]).encode(&mut stored);
        let place = StoredPlace {
            version: PgVersion::V15,
            end: END,
            rel: record.blocks[0].rel,
            block: record.blocks[0].block,
        };
        let mut through = [0; 8192];
        PageRecord::decode(&stored, place)
            .unwrap()
            .redo(&mut through, Managers::none())
            .unwrap();
        assert!(through == direct);
    }
}

/// Replays the parts of a split of `block` 1 into that page, 11 and 12; answers right links and flags.
fn split(first: u32) -> Vec<(u32, u16)> {
    let mut main = vec![0; 24];
    main[0] = 77;
    main[8] = 5;
    (main[16], main[18], main[20]) = (1, 3, 1);
    let blocks = [first, 11, 12].into_iter().zip(1..).map(|(block, id)| BlockRef {
        will_init: true,
        data: Some(Bytes::from_static(&[0; 4])),
        ..reference(id, block)
    });
    let record = record(PAGE_SPLIT, &main, blocks.collect());
    let parts = record.blocks.iter().map(|block| {
        let mut bytes = [0x55; 8192];
        redo_block(&record, block, &mut bytes).unwrap();
        assert_eq!(nsn(&bytes), 5);
        (get_u32(&bytes, RIGHT_LINK), get_u16(&bytes, FLAGS))
    });
    parts.collect()
}

#[test]
fn parts_of_a_split_are_linked() {
    let follow = flag::LEAF | flag::FOLLOW_RIGHT;
    assert_eq!(split(1), [(11, follow), (12, follow), (77, flag::LEAF)]);
    assert_eq!(
        split(0),
        [(u32::MAX, 0), (12, flag::LEAF), (77, flag::LEAF)],
        "the root's parts are complete at once"
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let replay = |info, main: &[u8], block: BlockRef, bytes: &mut PageBytes| {
        let record = record(info, main, vec![block]);
        redo_block(&record, &record.blocks[0], bytes).unwrap_err().fault
    };
    let mut used = empty_page(flag::LEAF);
    page::add_item(&mut used, &[0; 16], 1, page::Place::Insert).unwrap();
    assert_eq!(
        replay(PAGE_DELETE, &[0; 10], reference(0, 3), &mut used),
        "it deletes a page that is not empty"
    );
    let new = BlockRef {
        will_init: true,
        ..reference(0, 3)
    };
    assert_eq!(
        replay(PAGE_UPDATE, &[0; 4], new, &mut used.clone()),
        "it begins a page anew where its type does not, or the reverse"
    );
    assert_eq!(
        replay(
            PAGE_UPDATE,
            &[0, 0, 1, 0],
            BlockRef {
                data: Some(Bytes::new()),
                ..reference(0, 3)
            },
            &mut used
        ),
        "it does not carry as many tuples as it says"
    );
    assert_eq!(
        replay(PAGE_DELETE, &[0; 10], reference(1, 3), &mut [0; 8192]),
        "the page has no content before this record"
    );
    page::init(&mut used, 8);
    assert_eq!(
        replay(PAGE_DELETE, &[0; 10], reference(1, 3), &mut used),
        "the page is not a GiST page"
    );
}
