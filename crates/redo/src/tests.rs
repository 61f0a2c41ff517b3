use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};

use crate::{page, redo_block, redo_vm_clear, redo_vm_truncate, rmgr};

const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: ForkNumber::Main,
};

fn heap_insert(number: u16, will_init: bool) -> DecodedRecord {
    let mut main = number.to_le_bytes().to_vec();
    main.push(0);
    let mut data = vec![1, 0, 0, 8, 24];
    data.extend_from_slice(b"\0hello");
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x100),
        end: Lsn(0x1_0000_0140),
        prev: Lsn(0),
        xid: 700,
        rmid: rmgr::HEAP,
        info: if will_init { 0x80 } else { 0 },
        origin: None,
        toplevel_xid: None,
        blocks: vec![BlockRef {
            id: 0,
            rel: REL,
            block: 3,
            will_init,
            image: None,
            data: Some(data.into()),
        }],
        main_data: main.into(),
    }
}

#[test]
fn insert_builds_the_tuple_that_postgres_would() {
    let record = heap_insert(1, true);
    let mut bytes = [0xAA; 8192];
    redo_block(&record, &record.blocks[0], &mut bytes).unwrap();
    assert_eq!(page::lsn(&bytes), record.end);
    let tuple = page::item(&bytes, 1).unwrap();
    assert_eq!(&tuple[0..4], &700u32.to_le_bytes());
    assert_eq!(&tuple[12..18], &[0, 0, 3, 0, 1, 0]);
    assert_eq!(&tuple[23..], b"\0hello");
}

#[test]
fn a_page_that_is_ahead_is_left_alone() {
    let record = heap_insert(1, true);
    let mut bytes = [0; 8192];
    redo_block(&record, &record.blocks[0], &mut bytes).unwrap();
    let mut again = heap_insert(2, false);
    again.end = record.end;
    let before = bytes;
    redo_block(&again, &again.blocks[0], &mut bytes).unwrap();
    assert!(before == bytes);
}

#[test]
fn faults_are_errors_that_name_the_place() {
    let record = heap_insert(9, true);
    let error = redo_block(&record, &record.blocks[0], &mut [0; 8192]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot replay the record that ends at 1/140 (resource manager 10, info 0x80) on 1663/5/16384 block 3: \
         the new item's number is beyond the next free one"
    );
}

#[test]
fn every_truncation_and_bit_flip_of_a_record_is_survived() {
    for rmid in [0, 9, 10, 11, 14, 15, 16, 200] {
        for info in (0..=255u8).step_by(16) {
            for length in 0..24 {
                let mut record = heap_insert(1, false);
                record.rmid = rmid;
                record.info = info;
                record.main_data = Bytes::from(vec![length as u8; length]);
                record.blocks[0].data = Some(Bytes::from(vec![0xFF; length]));
                for id in 0..5 {
                    record.blocks[0].id = id;
                    let mut bytes = [0u8; 8192];
                    let special = match rmid {
                        11 | 14 => 16,
                        16 => 8,
                        _ => 0,
                    };
                    page::init(&mut bytes, special);
                    let _ = redo_block(&record, &record.blocks[0], &mut bytes);
                    let mut garbage = [0x5A; 8192];
                    garbage[..8].fill(0);
                    let _ = redo_block(&record, &record.blocks[0], &mut garbage);
                }
            }
        }
    }
}

#[test]
fn images_get_their_hole_back() {
    let mut record = heap_insert(1, false);
    let image = BlockImage {
        bytes: Bytes::from(vec![7; 8192 - 100]),
        compression: ImageCompression::None,
        hole_offset: 40,
        hole_length: 100,
        apply: true,
    };
    record.blocks[0].image = Some(image);
    let mut bytes = [9; 8192];
    redo_block(&record, &record.blocks[0], &mut bytes).unwrap();
    assert_eq!(page::lsn(&bytes), record.end);
    assert!(bytes[40..140].iter().all(|&byte| byte == 0) && bytes[140..].iter().all(|&byte| byte == 7));
}

#[test]
fn map_bits_are_cleared_where_they_are() {
    let mut map = [0u8; 8192];
    page::init(&mut map, 0);
    map[24..].fill(0xFF);
    redo_vm_clear(&mut map, 32672 + 5, 2);
    assert_eq!(map[25], 0b1111_0111);
    redo_vm_truncate(&mut map, 32672 + 9);
    assert_eq!((map[25], map[26], map[27], map[8191]), (0b1111_0111, 0b11, 0, 0));
}

/// `btree_xlog_vacuum` forgets which VACUUM the page belongs to since Postgres 18; the mask hides it from comparisons.
#[test]
fn vacuum_of_a_btree_leaf_ends_its_cycle_since_18() {
    for (version, expected) in [(PgVersion::V15, 7), (PgVersion::V17, 7), (PgVersion::V18, 0)] {
        let mut record = heap_insert(1, false);
        record.version = version;
        record.rmid = rmgr::BTREE;
        record.info = 0xC0;
        record.main_data = Bytes::from_static(&[0; 4]);
        record.blocks[0].data = Some(Bytes::new());
        let mut bytes = [0; 8192];
        page::init(&mut bytes, 16);
        bytes[8190] = 7;
        redo_block(&record, &record.blocks[0], &mut bytes).unwrap();
        assert_eq!(bytes[8190], expected, "{version}");
    }
}
