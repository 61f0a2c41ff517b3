use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};

use super::StoredPlace;
use crate::{PageRecord, rmgr};

const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: ForkNumber::Main,
};
const END: Lsn = Lsn(0x1_0000_0140);

fn block(id: u8, number: u32, data: &'static [u8]) -> BlockRef {
    BlockRef {
        id,
        rel: REL,
        block: number,
        will_init: id == 0,
        image: None,
        data: Some(data).filter(|data| !data.is_empty()).map(Bytes::from_static),
    }
}

fn record(rmid: u8, info: u8, main: &'static [u8], blocks: Vec<BlockRef>) -> DecodedRecord {
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x1_0000_0100),
        end: END,
        prev: Lsn(0),
        xid: 0x0102_0304,
        rmid,
        info,
        origin: None,
        toplevel_xid: None,
        blocks,
        main_data: Bytes::from_static(main),
    }
}

fn stored(record: &DecodedRecord, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    PageRecord::new(record, &record.blocks[index]).encode(&mut bytes);
    bytes
}

fn place(block: u32) -> StoredPlace {
    StoredPlace {
        version: PgVersion::V15,
        end: END,
        rel: REL,
        block,
    }
}

/// A heap update to another page, as a server with `wal_level = logical` writes it: the old key follows the fixed
/// part.
fn update() -> DecodedRecord {
    let main = &[9, 9, 9, 9, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0xEE, 0xEE, 0xEE];
    record(
        rmgr::HEAP,
        0x20,
        main,
        vec![block(0, 7, b"new"), block(1, 6, b"")],
    )
}

#[test]
fn the_layout_is_this() {
    let main = [9, 9, 9, 9, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    let mut new_page = vec![2, 10, 0x20, 0xC0, 0x41, 4, 3, 2, 1, 1, 6, 0, 0, 0, 14];
    new_page.extend_from_slice(&main);
    new_page.extend_from_slice(b"new");
    assert_eq!(stored(&update(), 0), new_page);
    let mut old_page = vec![2, 10, 0x20, 0x81, 0x01, 4, 3, 2, 1, 0, 7, 0, 0, 0, 14];
    old_page.extend_from_slice(&main);
    assert_eq!(stored(&update(), 1), old_page);
}

#[test]
fn an_image_is_kept_without_the_rest() {
    let mut record = record(rmgr::GIST, 0x00, b"main", vec![block(1, 7, b"data")]);
    let image = BlockImage {
        bytes: Bytes::from_static(b"image"),
        compression: ImageCompression::Lz4,
        hole_offset: 0x0203,
        hole_length: 0x0405,
        apply: true,
    };
    record.blocks[0].image = Some(image);
    let expected = *b"\x02\x0E\x00\x01\x80\x00\x02\x03\x02\x05\x04image";
    assert_eq!(stored(&record, 0), expected);
    let back = PageRecord::decode(&expected, place(7)).unwrap();
    assert_eq!(
        back.own.image,
        PageRecord::new(&record, &record.blocks[0]).own.image
    );
    assert!(back.starts_page());
    // Images for checking are not.
    if let Some(image) = &mut record.blocks[0].image {
        image.apply = false;
    }
    assert_eq!(stored(&record, 0), *b"\x02\x0E\x00\x01\x40\x00data");
}

#[test]
fn long_main_data_and_records_of_unknown_kinds_are_kept_whole() {
    let main: &'static [u8] = &[5; 300];
    let record = record(
        200,
        0x10,
        main,
        vec![block(3, 1, b""), block(5, 2, b""), block(9, 3, b"d")],
    );
    let bytes = stored(&record, 1);
    assert_eq!(bytes[9..19], [3, 1, 0, 0, 0, 9, 3, 0, 0, 0]);
    assert_eq!(bytes[19..21], [0xAC, 0x02]);
    let back = PageRecord::decode(&bytes, place(2)).unwrap();
    assert_eq!((back.main, back.xid, back.own.data), (main, record.xid, None));
    assert_eq!(
        [3, 4, 5, 9].map(|id| back.block(id)),
        [Some(1), None, Some(2), Some(3)]
    );
}

#[test]
fn damaged_bytes_are_refused() {
    let bytes = stored(&update(), 1);
    assert!(PageRecord::decode(&bytes, place(6)).is_ok());
    for cut in 0..bytes.len() {
        assert!(PageRecord::decode(&bytes[..cut], place(6)).is_err(), "{cut}");
    }
    let changed = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        PageRecord::decode(&bytes, place(6)).err().map(|error| error.0)
    };
    assert_eq!(changed(0, 1), Some("unknown version"));
    assert_eq!(changed(4, 0xC1), Some("it has both an image and data"));
    assert_eq!(changed(14, 13), Some("bytes are left over"));
    let endless = [2, 10, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0];
    assert!(PageRecord::decode(&endless, place(6)).is_err());
}
