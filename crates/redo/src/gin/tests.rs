use bytes::Bytes;
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockRef, DecodedRecord};

use super::posting_list::{Encoder, Items, pack, take};
use super::{COUNT, FLAGS, OPAQUE, RIGHT, flag, init};
use crate::page::{self, get_u16, get_u32, put_u16};
use crate::reader::Reader;
use crate::{PageBytes, RedoError, mask, redo_block, rmgr};

const END: Lsn = Lsn(0x5000);

fn record(info: u8, id: u8, will_init: bool, main: &[u8], data: &[u8]) -> DecodedRecord {
    let rel = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Main,
    };
    DecodedRecord {
        version: PgVersion::V15,
        start: Lsn(0x4000),
        end: END,
        prev: Lsn(0),
        xid: 700,
        rmid: rmgr::GIN,
        info,
        origin: None,
        toplevel_xid: None,
        blocks: vec![BlockRef {
            id,
            rel,
            block: 3,
            will_init,
            image: None,
            data: Some(Bytes::copy_from_slice(data)),
        }],
        main_data: Bytes::copy_from_slice(main),
    }
}

fn replay(record: &DecodedRecord, page: &mut PageBytes) -> Result<(), RedoError> {
    redo_block(record, &record.blocks[0], page)
}

fn tid(block: u32, item: u16) -> [u8; 6] {
    let mut out = [0; 6];
    out[0..2].copy_from_slice(&((block >> 16) as u16).to_le_bytes());
    out[2..4].copy_from_slice(&(block as u16).to_le_bytes());
    out[4..6].copy_from_slice(&item.to_le_bytes());
    out
}

fn segment(tids: &[[u8; 6]]) -> Vec<u8> {
    let mut out = [0xEE; 8192];
    let mut encoder = Encoder::new(&mut out);
    tids.iter()
        .for_each(|tid| encoder.push(pack(tid).unwrap()).unwrap());
    let length = encoder.finish().unwrap();
    out[..length].to_vec()
}

fn tids(list: &[u8]) -> Vec<u64> {
    let mut items = Items::new(list).unwrap();
    std::iter::from_fn(|| items.next().unwrap()).collect()
}

/// A leaf with these segments.
fn leaf(segments: &[Vec<u8>]) -> Box<PageBytes> {
    let bytes = segments.concat();
    let main = [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat();
    let mut page = Box::new([0xAA; 8192]);
    replay(&record(0x10, 0, true, &main, &[]), &mut page).unwrap();
    page[..8].fill(0);
    page
}

fn segments(page: &PageBytes) -> Vec<Vec<u64>> {
    let mut rest = Reader::new(&page[32..page::lower(page)]);
    let mut out = Vec::new();
    while !rest.is_empty() {
        out.push(tids(take(&mut rest).unwrap()));
    }
    out
}

fn numbers(tids: &[[u8; 6]]) -> Vec<u64> {
    tids.iter().map(|tid| pack(tid).unwrap()).collect()
}

#[test]
fn posting_lists_are_encoded_as_postgres_does() {
    // Differences: 1, 0x7F (largest of one byte), 0x80 (two bytes), then the largest TID there is.
    let list = [
        tid(7, 1),
        tid(7, 2),
        tid(7, 0x81),
        tid(7, 0x101),
        tid(u32::MAX, 2047),
    ];
    let bytes = segment(&list);
    let expected = [
        0, 0, 7, 0, 1, 0, 11, 0, 0x01, 0x7F, 0x80, 0x01, 0xFE, 0x8D, 0xFF, 0xFF, 0xFF, 0xFF, 0x01, 0,
    ];
    assert_eq!(bytes, expected);
    assert_eq!(tids(&bytes), numbers(&list));
}

#[test]
fn differences_of_every_length_come_back() {
    for length in 1..=6u32 {
        let least = 1u64 << (7 * length);
        for (difference, bytes) in [(least - 1, length), (least, length + 1)] {
            let mut out = [0xEE; 16];
            let mut encoder = Encoder::new(&mut out);
            encoder.push(1).unwrap();
            encoder.push(1 + difference).unwrap();
            let end = encoder.finish().unwrap();
            assert_eq!(out[6..8], (bytes as u16).to_le_bytes(), "{difference:#x}");
            assert_eq!(tids(&out[..end]), [1, 1 + difference]);
        }
    }
}

#[test]
fn every_change_of_a_leaf_takes_its_place() {
    let old: Vec<Vec<u8>> = (0..5)
        .map(|n| segment(&[tid(n * 10, 1), tid(n * 10, 5), tid(n * 10 + 1, 9)]))
        .collect();
    let mut page = leaf(&old);
    let (inserted, replaced) = (segment(&[tid(15, 1)]), segment(&[tid(20, 1), tid(22, 2)]));
    let last = segment(&[tid(90, 3)]);
    let added = [tid(29, 1), tid(30, 3), tid(30, 5), tid(40, 0x7FF)];
    let mut data = 5u16.to_le_bytes().to_vec();
    data.extend([0, 1]);
    data.extend([2, 2]);
    data.extend(&inserted);
    data.extend([2, 3]);
    data.extend(&replaced);
    data.extend([3, 4, 4, 0]);
    data.extend(added.as_flattened());
    data.extend([5, 2]);
    data.extend(&last);
    let change = record(0x90, 0, false, &[], &data);
    replay(&change, &mut page).unwrap();
    assert_eq!(page::lsn(&page), END);
    let merged = [
        tid(29, 1),
        tid(30, 1),
        tid(30, 3),
        tid(30, 5),
        tid(31, 9),
        tid(40, 0x7FF),
    ];
    let expected = [
        tids(&old[1]),
        tids(&inserted),
        tids(&replaced),
        numbers(&merged),
        tids(&old[4]),
        tids(&last),
    ];
    assert_eq!(segments(&page), expected);
}

#[test]
fn a_leaf_of_an_old_release_is_compressed_first() {
    let mut page = Box::new([0; 8192]);
    init(&mut page, flag::DATA | flag::LEAF);
    let old = [tid(1, 1), tid(1, 2), tid(3, 4)];
    page[32..50].copy_from_slice(old.as_flattened());
    put_u16(&mut page, COUNT, 3);
    let mut data = vec![1, 0, 0, 4, 1, 0];
    data.extend(tid(2, 2));
    replay(&record(0x20, 0, false, &[3, 0], &data), &mut page).unwrap();
    let expected = [tid(1, 1), tid(1, 2), tid(2, 2), tid(3, 4)];
    assert_eq!(segments(&page), [numbers(&expected)]);
    assert_eq!((get_u16(&page, COUNT), get_u16(&page, FLAGS)), (0, 0x83));
}

/// An inner page of a posting tree with `count` links.
fn inner(count: u16) -> Box<PageBytes> {
    let mut page = Box::new([0; 8192]);
    init(&mut page, flag::DATA);
    for number in 0..count {
        let at = 32 + usize::from(number) * 10;
        page[at + 2..at + 4].copy_from_slice(&(100 + number).to_le_bytes());
    }
    put_u16(&mut page, COUNT, count);
    page::set_lower(&mut page, 32 + usize::from(count) * 10);
    page
}

fn children(page: &PageBytes) -> Vec<u16> {
    (0..usize::from(get_u16(page, COUNT)))
        .map(|number| get_u16(page, 32 + number * 10 + 2))
        .collect()
}

#[test]
fn links_come_and_go() {
    let mut page = inner(3);
    let main = [1, 0, 0, 0, 101, 0, 0, 0, 77, 0];
    let data = [&2u16.to_le_bytes()[..], &[0, 0, 101, 0], &tid(9, 9)].concat();
    replay(&record(0x20, 0, false, &main, &data), &mut page).unwrap();
    assert_eq!(children(&page), [100, 101, 77, 102]);
    assert_eq!(page[42 + 4..42 + 10], tid(9, 9));
    page[..8].fill(0);
    let main = [3, 0, 0, 0, 55, 0, 0, 0, 66, 0, 0, 0];
    replay(&record(0x50, 1, false, &main, &[]), &mut page).unwrap();
    assert_eq!(children(&page), [100, 101, 102]);
    assert_eq!(page::lower(&page), 62);
    page[..8].fill(0);
    replay(&record(0x50, 2, false, &main, &[]), &mut page).unwrap();
    assert_eq!(get_u32(&page, RIGHT), 55);
    page[..8].fill(0);
    replay(&record(0x50, 0, false, &main, &[]), &mut page).unwrap();
    assert_eq!((get_u32(&page, 20), get_u16(&page, FLAGS)), (66, 0x05));
    let (mut full, mut fits) = (inner(815), inner(814));
    let mut insert = record(0x20, 0, false, &[1, 0, 0, 0, 1, 0, 0, 0, 2, 0], &data);
    assert!(replay(&insert, &mut full).is_err());
    replay(&insert, &mut fits).unwrap();
    insert.blocks[0].data = Some(Bytes::from([&9u16.to_le_bytes()[..], &[0; 10]].concat()));
    assert!(replay(&insert, &mut inner(8)).is_err());
}

#[test]
fn a_right_child_goes_to_the_entry_that_was_there() {
    let mut page = Box::new([0; 8192]);
    init(&mut page, 0);
    let tuple = |child: u8| [0, 0, child, 0, 3, 0, 16, 0, 9, 9, 9, 9, 9, 9, 9, 9];
    let insert = |page: &mut PageBytes, main: &[u8], child| {
        let data = [&[1, 0, 0, 0][..], &tuple(child)].concat();
        page[..8].fill(0);
        replay(&record(0x20, 0, false, main, &data), page)
    };
    page::add_item(&mut page, &tuple(5), 1, page::Place::Insert).unwrap();
    insert(&mut page, &[0, 0, 0, 0, 5, 0, 0, 0, 8, 0], 5).unwrap();
    assert_eq!(page::item(&page, 1).unwrap(), tuple(5));
    assert_eq!(page::item(&page, 2).unwrap()[..8], [0, 0, 8, 0, 0, 0, 16, 0]);
    assert!(insert(&mut page, &[2, 0], 5).is_err(), "not a leaf");
}

#[test]
fn metapage_and_pending_list_are_built_from_the_record() {
    let meta: Vec<u8> = (1..=56).collect();
    let mut page = Box::new([0xAA; 8192]);
    let update = |count: i32| {
        let fields = [7, 8, count as u32].map(u32::to_le_bytes);
        [&[0; 16][..], &meta, fields.as_flattened(), &[0; 4]].concat()
    };
    replay(&record(0x60, 0, true, &update(1), &[]), &mut page).unwrap();
    assert_eq!(page[24..80], meta);
    assert_eq!((page::lower(&page), get_u16(&page, FLAGS)), (80, flag::META));
    let tuple = [1, 0, 2, 0, 3, 0, 16, 0, 9, 9, 9, 9, 9, 9, 9, 9];
    let list = [u32::MAX, 1].map(u32::to_le_bytes);
    replay(&record(0x70, 0, true, list.as_flattened(), &tuple), &mut page).unwrap();
    assert_eq!((get_u16(&page, FLAGS), get_u16(&page, COUNT)), (0x30, 1));
    page[..8].fill(0);
    replay(
        &record(0x60, 1, false, &update(2), &[tuple, tuple].concat()),
        &mut page,
    )
    .unwrap();
    assert_eq!((page::item_count(&page), get_u16(&page, COUNT)), (3, 2));
    assert_eq!(page::item(&page, 3).unwrap(), tuple);
    page[..8].fill(0);
    replay(&record(0x60, 1, false, &update(0), &[]), &mut page).unwrap();
    assert_eq!(get_u32(&page, RIGHT), 8);
    let delete = [&meta[..], &2u32.to_le_bytes(), &[0; 4]].concat();
    replay(&record(0x80, 2, true, &delete, &[]), &mut page).unwrap();
    assert_eq!(
        (get_u16(&page, FLAGS), get_u32(&page, RIGHT)),
        (flag::DELETED, u32::MAX)
    );
    assert!(replay(&record(0x80, 3, true, &delete, &[]), &mut [0; 8192]).is_err());
    let mut masked = page.clone();
    mask::by_layout(&mut masked, 3);
    page[24..].fill(1);
    page[OPAQUE..].copy_from_slice(&[0, 0, 0, 0, 0, 0, 4, 0]);
    mask::for_record(rmgr::GIN, &mut page, 3);
    assert!(masked == page);
}

/// `xorshift64*`.
fn random(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize
}

#[test]
fn hostile_records_and_pages_are_survived() {
    let lists = [
        segment(&[tid(1, 1), tid(1, 5), tid(9, 9)]),
        segment(&[tid(20, 1), tid(2000, 5)]),
    ];
    let mut entries = Box::new([0; 8192]);
    init(&mut entries, flag::LEAF);
    let tuple = [0, 0, 1, 0, 3, 0, 16, 0, 9, 9, 9, 9, 9, 9, 9, 9];
    for number in 1..4 {
        page::add_item(&mut entries, &tuple, number, page::Place::Insert).unwrap();
    }
    let mut old_leaf = Box::new([0; 8192]);
    init(&mut old_leaf, flag::DATA | flag::LEAF);
    old_leaf[32..44].copy_from_slice([tid(1, 1), tid(1, 2)].as_flattened());
    put_u16(&mut old_leaf, COUNT, 2);
    let pages = [leaf(&lists), inner(3), entries, old_leaf, Box::new([0; 8192])];
    let change = [&[2, 0, 0, 4, 2, 0][..], &tid(3, 1), &tid(8, 2), &[1, 1]].concat();
    let entry = [&[1, 0, 1, 0][..], &tuple].concat();
    let link = [&[2, 0][..], &[0, 0, 101, 0], &tid(9, 9)].concat();
    let create = [&(lists[0].len() as u32).to_le_bytes()[..], &lists[0]].concat();
    let update = [&[0; 72][..], &[0; 8], &1u32.to_le_bytes(), &[0; 4]].concat();
    let child = [0, 0, 0, 0, 5, 0, 0, 0, 8, 0];
    let data_child = [1, 0, 0, 0, 5, 0, 0, 0, 8, 0];
    let list = [&u32::MAX.to_le_bytes()[..], &1u32.to_le_bytes()].concat();
    let cases: [(u8, u8, &[u8], &[u8]); 16] = [
        (0x10, 0, &create, &[]),
        (0x20, 0, &[3, 0], &change),
        (0x20, 0, &[2, 0], &entry),
        (0x20, 0, &child, &entry),
        (0x20, 0, &data_child, &link),
        (0x20, 1, &data_child, &[]),
        (0x30, 3, &[0; 28], &[]),
        (0x40, 0, &[], &[]),
        (0x50, 0, &[2, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0], &[]),
        (0x50, 1, &[2, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0], &[]),
        (0x60, 0, &update, &[]),
        (0x60, 1, &update, &tuple),
        (0x70, 0, &list, &tuple),
        (0x80, 0, &[1; 64], &[]),
        (0x80, 1, &[1; 64], &[]),
        (0x90, 0, &[], &change),
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15;
    let mut replayed = [0u32; 16];
    for (index, (info, id, main, data)) in cases.into_iter().enumerate() {
        for length in 0..main.len().max(data.len()) {
            let main = &main[..length.min(main.len())];
            let data = &data[..length.min(data.len())];
            for page in &pages {
                let _ = replay(&record(info, id, false, main, data), &mut page.clone());
            }
        }
        for _ in 0..3000 {
            let (mut main, mut data) = (main.to_vec(), data.to_vec());
            let mut page = pages[random(&mut state) % pages.len()].clone();
            for _ in 0..random(&mut state) % 4 {
                let value = random(&mut state) as u8;
                // The header, the start of the content, the special area.
                let spot = [8..24, 24..100, OPAQUE..8192][random(&mut state) % 3].clone();
                match random(&mut state) % 3 {
                    0 if !main.is_empty() => {
                        let at = random(&mut state) % main.len();
                        main[at] = value;
                    }
                    1 if !data.is_empty() => {
                        let at = random(&mut state) % data.len();
                        data[at] = value;
                    }
                    _ => page[spot.start + random(&mut state) % spot.len()] = value,
                }
            }
            if replay(&record(info, id, false, &main, &data), &mut page).is_ok() {
                replayed[index] += 1;
            }
            mask::for_record(rmgr::GIN, &mut page, 1);
        }
    }
    // All but the types that need an image, and the entry on an inner page, which none of the pages is.
    for (index, count) in replayed.into_iter().enumerate() {
        assert!(
            count > 0 || [3, 7].contains(&index),
            "case {index} was never replayed"
        );
    }
}
