use super::{kind, remove, set_entry};
use crate::page::{self, ItemState, Place};
use crate::{mask, rmgr};

#[test]
fn a_page_holds_more_items_than_a_heap_page_and_keeps_their_numbers() {
    let mut page = [0; 8192];
    super::init(&mut page, kind::REGULAR);
    for number in 1..=680u16 {
        let item = [number.to_le_bytes(); 4].concat();
        page::add_item(&mut page, &item, number, Place::Slot).unwrap();
    }
    assert!(page::add_item(&mut page, &[0; 8], 681, Place::Slot).is_err());
    remove(&mut page, 5).unwrap();
    assert_eq!(page::item_id(&page, 5).unwrap().state, ItemState::Unused);
    assert_eq!(page::item(&page, 6).unwrap()[0], 6);
    assert_eq!(page::item(&page, 4).unwrap()[0], 4);
    assert!(remove(&mut page, 5).is_err());
    remove(&mut page, 680).unwrap();
    assert_eq!(page::item_count(&page), 679);
    page::add_item(&mut page, &[7; 8], 5, Place::Slot).unwrap();
    assert_eq!(page::item(&page, 5).unwrap(), &[7; 8]);
    assert!(page::add_item(&mut page, &[7; 8], 5, Place::Slot).is_err());
}

#[test]
fn map_entries_wrap_around_at_the_page_and_the_mask_keeps_them() {
    let mut page = [0; 8192];
    super::init(&mut page, kind::REVMAP);
    // 1360 entries a page: this is the last one of the second map page.
    set_entry(&mut page, 4, 2719 * 4 + 3, Some((0x0001_0002, 3))).unwrap();
    assert_eq!(&page[8178..8184], &[1, 0, 2, 0, 3, 0]);
    set_entry(&mut page, 4, 0, None).unwrap();
    assert_eq!(&page[24..30], &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
    assert!(set_entry(&mut page, 0, 0, None).is_err());
    let before = page;
    mask::for_record(rmgr::BRIN, &mut page, 1);
    assert!(page[24..] == before[24..]);
}
