use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};

use super::*;
use crate::{StoredPlace, page, rmgr};

const RMID: u8 = 142;
const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: ForkNumber::Main,
};
const END: Lsn = Lsn(0x140);

/// Writes everything that redo may read behind the page's header: one byte of main data, then xid, the block number of
/// reference 1, and the block's data.
struct Plugin;

impl ResourceManager for Plugin {
    fn name(&self) -> &str {
        "toy"
    }

    fn redo(&self, record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), &'static str> {
        let &[first] = record.main else {
            return Err("its main data is not one byte");
        };
        page::put_u32(page, 24, u32::from(first));
        page::put_u32(page, 28, record.xid);
        page::put_u32(page, 32, record.block(1).ok_or("no reference 1")?);
        let data = record.own.data.unwrap_or_default();
        page[36..36 + data.len()].copy_from_slice(data);
        page::set_lsn(page, record.end);
        Ok(())
    }

    fn mask(&self, page: &mut PageBytes, block: u32) {
        mask::lsn_and_checksum(page);
        page::put_u32(page, 100, block);
    }
}

fn managers() -> Managers {
    let mut managers = Managers::default();
    managers.register(RMID, Arc::new(Plugin)).unwrap();
    managers
}

fn record() -> DecodedRecord {
    let block = |id: u8, data: &'static [u8]| BlockRef {
        id,
        rel: REL,
        block: 7 + u32::from(id),
        will_init: false,
        image: None,
        data: Some(Bytes::from_static(data)),
    };
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x100),
        end: END,
        prev: Lsn(0),
        xid: 700,
        rmid: RMID,
        info: 0x10,
        origin: None,
        toplevel_xid: None,
        blocks: vec![block(0, b"data"), block(1, b"")],
        main_data: Bytes::from_static(&[9]),
    }
}

fn image() -> BlockImage {
    BlockImage {
        bytes: Bytes::from(vec![3; 8192]),
        compression: ImageCompression::None,
        hole_offset: 0,
        hole_length: 0,
        apply: true,
    }
}

/// Replays as decoded and as stored, which must be the same.
fn replay(record: &DecodedRecord, page: &PageBytes) -> Result<PageBytes, String> {
    let direct = PageRecord::new(record, &record.blocks[0]);
    let mut stored = Vec::new();
    direct.encode(&mut stored);
    let place = StoredPlace {
        version: record.version,
        end: record.end,
        rel: REL,
        block: record.blocks[0].block,
    };
    let results = [direct, PageRecord::decode(&stored, place).unwrap()].map(|record| {
        let mut page = *page;
        let result = record.redo(&mut page, &managers());
        result.map(|()| page).map_err(|error| error.to_string())
    });
    assert_eq!(results[0], results[1]);
    results[0].clone()
}

#[test]
fn a_plug_in_gets_the_whole_record_and_the_page_before_it() {
    let mut before = [0; 8192];
    page::init(&mut before, 16);
    before[4000] = 5;
    let mut expected = before;
    page::set_lsn(&mut expected, END);
    expected[24..40].copy_from_slice(&[9, 0, 0, 0, 0xBC, 2, 0, 0, 8, 0, 0, 0, b'd', b'a', b't', b'a']);
    assert_eq!(replay(&record(), &before), Ok(expected));
    // Its own mask is asked, and no plug-in's for another number.
    let mut image = expected;
    managers().mask(RMID, &mut expected, &mut image, 7);
    for page in [&expected, &image] {
        assert_eq!((&page[0..8], page[100]), (&[0; 8][..], 7));
    }
}

#[test]
fn what_all_managers_have_in_common_is_done_outside() {
    let mut newer = [0; 8192];
    page::init(&mut newer, 0);
    page::set_lsn(&mut newer, END);
    assert_eq!(replay(&record(), &newer), Ok(newer), "the page has the record");

    let mut from_image = record();
    from_image.blocks[0].image = Some(image());
    let mut expected = [3; 8192];
    page::set_lsn(&mut expected, END);
    assert_eq!(replay(&from_image, &newer), Ok(expected), "an image");

    let mut from_zeros = record();
    from_zeros.blocks[0].will_init = true;
    let replayed = replay(&from_zeros, &[1; 8192]).unwrap();
    assert_eq!((replayed[24], &replayed[40..]), (9, &[0; 8152][..]), "from zeros");
}

#[test]
fn errors_tell_the_place() {
    let mut bad = record();
    bad.main_data = Bytes::new();
    let expected = "cannot replay the record that ends at 0/140 (resource manager 142, info 0x10) on 1663/5/16384 \
                    block 7: its main data is not one byte";
    assert_eq!(replay(&bad, &[0; 8192]), Err(expected.to_owned()));
    let unknown = DecodedRecord {
        rmid: RMID + 1,
        ..record()
    };
    let error = replay(&unknown, &[0; 8192]).unwrap_err();
    assert!(
        error.contains("resource manager 143") && error.contains("no redo for pages"),
        "{error}"
    );
}

#[test]
fn numbers_are_given_once_and_never_those_of_postgres() {
    let mut managers = managers();
    for rmid in [0, rmgr::GENERIC, 22, FIRST_CUSTOM_MANAGER - 1] {
        let refused = managers.register(rmid, Arc::new(Plugin));
        assert_eq!(refused, Err(RegisterError::Reserved(rmid)));
    }
    let taken = managers.register(RMID, Arc::new(Plugin)).unwrap_err();
    assert_eq!(taken.to_string(), "resource manager 142 is taken by toy");
    managers.register(FIRST_CUSTOM_MANAGER, Arc::new(Plugin)).unwrap();
    managers.register(255, Arc::new(Plugin)).unwrap();
    let known: Vec<u8> = (22..=255).filter(|&rmid| managers.knows(rmid)).collect();
    assert_eq!(known, [FIRST_CUSTOM_MANAGER, RMID, 255]);
    assert!(managers.knows(rmgr::HEAP) && !Managers::none().knows(RMID));
}
