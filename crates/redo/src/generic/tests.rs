use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockRef, DecodedRecord};

use crate::{PageBytes, page, redo_block, rmgr};

fn record(data: Option<&[u8]>) -> DecodedRecord {
    let rel = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Main,
    };
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x100),
        end: Lsn(0x140),
        prev: Lsn(0),
        xid: 700,
        rmid: rmgr::GENERIC,
        info: 0,
        origin: None,
        toplevel_xid: None,
        blocks: vec![BlockRef {
            id: 3,
            rel,
            block: 7,
            will_init: false,
            image: None,
            data: data.map(Bytes::copy_from_slice),
        }],
        main_data: Bytes::new(),
    }
}

fn replay(data: Option<&[u8]>) -> Result<PageBytes, &'static str> {
    let record = record(data);
    let mut page = [0; 8192];
    page::init(&mut page, 8);
    page[1000] = 1;
    page[8190] = 2;
    match redo_block(&record, &record.blocks[0], &mut page) {
        Ok(()) => Ok(page),
        Err(error) => Err(error.fault),
    }
}

#[test]
fn fragments_overwrite_and_free_space_becomes_zeros() {
    // pd_lower becomes 28, so bytes 24..28 are kept; the page's last byte is written.
    let data = [12, 0, 2, 0, 28, 0, 24, 0, 4, 0, 5, 6, 7, 8, 0xFF, 0x1F, 1, 0, 9];
    let page = replay(Some(&data)).unwrap();
    assert_eq!(page::lsn(&page), Lsn(0x140));
    assert_eq!((&page[24..29], page[1000]), (&[5, 6, 7, 8, 0][..], 0));
    assert_eq!(&page[8190..], &[2, 9]);
    // A block that was registered and then not changed.
    assert_eq!(replay(None).unwrap()[1000], 0);
}

#[test]
fn fragments_that_do_not_fit_are_faults() {
    for data in [
        &[0xFF, 0x1F, 2, 0, 1, 1][..],      // ends one byte after the page
        &[0, 0, 2, 0, 1],                   // ends after the data
        &[0, 0, 2],                         // half a header
        &[12, 0, 2, 0, 0xFF, 0x1F],         // pd_lower after pd_upper
        &[14, 0, 2, 0, 0x01, 0x20],         // pd_upper after the page
        &[0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3], // nothing fits
    ] {
        assert!(replay(Some(data)).is_err(), "{data:?}");
    }
    let record = record(None);
    redo_block(&record, &record.blocks[0], &mut [0; 8192]).unwrap_err();
}
