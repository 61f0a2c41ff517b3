//! What the workload against Postgres cannot show: records of an index build, which Postgres 15 no longer writes, and
//! refusals.

use super::spgist_page::{self, Kind, PLACEHOLDERS, REDIRECTS, Remains};
use super::{Downlink, Place, State, tuple};
use crate::PageBytes;
use crate::page::{self, get_u16};
use crate::page_record::BlockView;
use crate::reader::{Numbers, Reader};

use lakebed_types::{ForkNumber, RelTag};

const TARGET: Place = Place {
    block: 0x1_0002,
    number: 9,
};

fn reference(will_init: bool) -> BlockView<'static> {
    BlockView {
        id: 0,
        rel: RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Main,
        },
        block: 3,
        will_init,
        image: None,
        data: None,
    }
}

fn leaf_page(items: u16) -> PageBytes {
    let mut bytes = [0; 8192];
    let kind = Kind::Leaf { nulls: false };
    spgist_page::begin(&reference(true), &mut bytes, true, kind).unwrap();
    for number in 1..=items {
        let mut leaf = [number as u8; 24];
        leaf[..4].copy_from_slice(&(24u32 << 2).to_le_bytes());
        spgist_page::add_or_replace(&mut bytes, &leaf, number).unwrap();
    }
    bytes
}

fn states(bytes: &PageBytes) -> Vec<u8> {
    (1..=page::item_count(bytes))
        .map(|number| tuple::state(page::item(bytes, number).unwrap()).unwrap())
        .collect()
}

#[test]
fn only_the_first_listed_item_redirects() {
    let state = State {
        xid: 0x0102_0304,
        building: false,
    };
    let mut bytes = leaf_page(5);
    spgist_page::delete(
        &mut bytes,
        Numbers::of(&[4, 0, 1, 0, 3, 0]).unwrap(),
        Remains::Redirect(TARGET),
        state,
    )
    .unwrap();
    assert_eq!(states(&bytes), [3, 0, 3, 1, 0]);
    assert_eq!(get_u16(&bytes, REDIRECTS), 1);
    assert_eq!(get_u16(&bytes, PLACEHOLDERS), 2);
    let redirect = page::item(&bytes, 4).unwrap();
    assert_eq!(redirect, [0x41, 0, 0, 0, 0, 0, 1, 0, 2, 0, 9, 0, 4, 3, 2, 1]);
    let placeholder = page::item(&bytes, 1).unwrap();
    assert_eq!(
        placeholder,
        [0x43, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0]
    );
    spgist_page::delete(
        &mut bytes,
        Numbers::of(&[2, 0, 5, 0]).unwrap(),
        Remains::Placeholders,
        state,
    )
    .unwrap();
    assert_eq!(states(&bytes), [3, 3, 3, 1, 3]);
    assert_eq!(get_u16(&bytes, PLACEHOLDERS), 4);
}

#[test]
fn a_live_tuple_is_not_replaced() {
    let mut bytes = leaf_page(2);
    let leaf = page::item(&bytes, 2).unwrap().to_vec();
    assert_eq!(
        spgist_page::add_or_replace(&mut bytes, &leaf, 1),
        Err("the tuple to be replaced is not a placeholder")
    );
    assert!(spgist_page::add_or_replace(&mut bytes, &leaf, 4).is_err());
    assert!(spgist_page::add_or_replace(&mut bytes, &leaf, 0).is_err());
}

#[test]
fn data_and_block_reference_must_agree_on_a_new_page() {
    let kind = Kind::Inner { nulls: true };
    for anew in [false, true] {
        let mut bytes = leaf_page(1);
        assert!(spgist_page::begin(&reference(!anew), &mut bytes, anew, kind).is_err());
        assert!(spgist_page::existing(&reference(true), &bytes).is_err());
    }
}

#[test]
fn node_links_stay_in_their_tuple() {
    // Two nodes of 8 bytes after a prefix of 8.
    let mut inner = [0; 32];
    inner[0] = 2 << 3;
    inner[2] = 8;
    inner[4] = 32;
    (inner[22], inner[30]) = (8, 8);
    let mut bytes = leaf_page(0);
    spgist_page::add_or_replace(&mut bytes, &inner, 1).unwrap();
    let link = |bytes: &mut PageBytes, node| Downlink { number: 1, node }.update(bytes, TARGET);
    link(&mut bytes, 1).unwrap();
    inner[24..30].copy_from_slice(&[1, 0, 2, 0, 9, 0]);
    assert_eq!(page::item(&bytes, 1).unwrap(), inner);
    assert!(link(&mut bytes, 2).is_err());
    // A third node that is not there, then a node without a size.
    page::item_mut(&mut bytes, 1).unwrap()[0] = 3 << 3;
    assert!(link(&mut bytes, 2).is_err());
    page::item_mut(&mut bytes, 1).unwrap()[22] = 0;
    assert!(link(&mut bytes, 1).is_err());
    page::item_mut(&mut bytes, 1).unwrap()[3] = 0xFF;
    assert!(link(&mut bytes, 0).is_err());
}

#[test]
fn tuples_in_a_record_are_cut_at_its_end() {
    let mut leaf = vec![0; 24];
    leaf[0] = 24 << 2;
    assert_eq!(tuple::take_leaf(&mut Reader::new(&leaf)).unwrap().len(), 24);
    assert!(tuple::take_leaf(&mut Reader::new(&leaf[..23])).is_err());
    assert!(tuple::take_leaf(&mut Reader::new(&[0; 24])).is_err());
    let inner = [0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(tuple::take_inner(&mut Reader::new(&inner)).unwrap().len(), 12);
    assert!(tuple::take_inner(&mut Reader::new(&inner[..11])).is_err());
    assert!(tuple::take_inner(&mut Reader::new(&[0; 12])).is_err());
}
