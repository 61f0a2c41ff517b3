//! Redo of B-tree indexes (`access/nbtree/nbtxlog.c`).
//!
//! Each record type gives its block references fixed roles; redo of one page looks at its reference's id and at the
//! block numbers of the others. The special area (`BTPageOpaqueData`, 16 bytes) is: previous block, next block,
//! level, flags (16 bits), vacuum cycle id (16 bits).

use lakebed_types::{PAGE_SIZE, PgVersion};

use crate::btree_tuple::{self, IndexTuple, first, swap_posting, tid_mut, top_parent_link};
use crate::page::{self, HEADER_BYTES, Place, get_u16, get_u32, put_u16, put_u32};
use crate::page_record::{BlockView, PageRecord};
use crate::reader::Reader;
use crate::{Fault, PageBytes};

/// Bits of `btpo_flags`.
mod flag {
    pub const LEAF: u16 = 1;
    pub const ROOT: u16 = 1 << 1;
    pub const DELETED: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const HALF_DEAD: u16 = 1 << 4;
    pub const HAS_GARBAGE: u16 = 1 << 6;
    pub const INCOMPLETE_SPLIT: u16 = 1 << 7;
    pub const HAS_FULLXID: u16 = 1 << 8;
}

/// Offset of the special area in the page.
const OPAQUE: usize = PAGE_SIZE - 16;
const PREVIOUS: usize = OPAQUE;
const NEXT: usize = OPAQUE + 4;
const LEVEL: usize = OPAQUE + 8;
const FLAGS: usize = OPAQUE + 12;
const CYCLE: usize = OPAQUE + 14;
/// `P_HIKEY`: the high key's item number on a page that is not rightmost.
const HIGH_KEY: u16 = 1;

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let info = record.info & 0xF0;
    match (info, record.own.id) {
        (0x00..=0x20 | 0x50, 0) => insert(record, page, info == 0x50)?,
        (0x10 | 0x20, 1) => clear_incomplete_split(page)?,
        (0x20, 2) => restore_meta(&record.own, page)?,
        (0x30 | 0x40, 0) => split_left(record, page, info == 0x30)?,
        (0x30 | 0x40, 1) => split_right(record, page)?,
        (0x30 | 0x40, 2) => set_link(page, PREVIOUS, record.needed_block(1)?)?,
        (0x30 | 0x40, 3) => clear_incomplete_split(page)?,
        (0x60, 0) => deduplicate(record, page)?,
        (0x70, 0) => delete_items(record.main.get(4..).unwrap_or_default(), &record.own, page)?,
        (0x80 | 0x90, _) => unlink(record, page)?,
        (0xA0, 0) => new_root(record, page)?,
        (0xA0, 1) => clear_incomplete_split(page)?,
        (0xA0, 2) => restore_meta(&record.own, page)?,
        (0xB0, _) => mark_half_dead(record, page)?,
        (0xC0, 0) => {
            delete_items(record.main, &record.own, page)?;
            if record.version >= PgVersion::V18 {
                put_u16(page, CYCLE, 0);
            }
        }
        (0xE0, 0) => restore_meta(&record.own, page)?,
        _ => return Err("a record of this type does not name this page"),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

/// Checks that the page has content and a B-tree's special area.
fn check(page: &PageBytes) -> Result<(), Fault> {
    page::check(page)?;
    if page::special(page) == OPAQUE {
        Ok(())
    } else {
        Err("the page is not a B-tree page")
    }
}

/// `_bt_pageinit`, with the special area filled.
fn init(page: &mut PageBytes, previous: u32, next: u32, level: u32, flags: u16) {
    page::init(page, 16);
    put_u32(page, PREVIOUS, previous);
    put_u32(page, NEXT, next);
    put_u32(page, LEVEL, level);
    put_u16(page, FLAGS, flags);
}

fn set_link(page: &mut PageBytes, at: usize, block: u32) -> Result<(), Fault> {
    check(page)?;
    put_u32(page, at, block);
    Ok(())
}

fn clear_incomplete_split(page: &mut PageBytes) -> Result<(), Fault> {
    check(page)?;
    put_u16(page, FLAGS, get_u16(page, FLAGS) & !flag::INCOMPLETE_SPLIT);
    Ok(())
}

fn clear_garbage(page: &mut PageBytes) {
    put_u16(page, FLAGS, get_u16(page, FLAGS) & !flag::HAS_GARBAGE);
}

/// `_bt_restore_meta`: block data is `xl_btree_metadata`.
fn restore_meta(block: &BlockView<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut data = Reader::new(block.needed_data()?);
    let (version, root, level) = (data.u32()?, data.u32()?, data.u32()?);
    let (fast_root, fast_level, deleted_pages) = (data.u32()?, data.u32()?, data.u32()?);
    let all_equal_image = data.u8()?;
    init(page, 0, 0, 0, flag::META);
    let fields = [
        0x05_3162,
        version,
        root,
        level,
        fast_root,
        fast_level,
        deleted_pages,
    ];
    for (index, value) in fields.into_iter().enumerate() {
        put_u32(page, HEADER_BYTES + index * 4, value);
    }
    page[HEADER_BYTES + 32..HEADER_BYTES + 40].copy_from_slice(&(-1.0f64).to_le_bytes());
    page[HEADER_BYTES + 40] = u8::from(all_equal_image != 0);
    page::set_lower(page, HEADER_BYTES + 48);
    Ok(())
}

/// `_bt_restore_page`: the data holds the items in the order of their addresses, which is the reverse of their numbers.
/// The page is empty, so they go to its end as they are.
fn restore_items(page: &mut PageBytes, data: &[u8]) -> Result<(), Fault> {
    let mut count = 0;
    let mut rest = data;
    while !rest.is_empty() {
        rest = &rest[first(rest)?.len()..];
        count += 1;
    }
    page::fill_with_items(page, data, count, |rest| Ok(first(rest)?.len()))
}

/// Block data: the tuple; with `posting`, a position in the posting list of the item before, then the tuple.
fn insert(record: &PageRecord<'_>, page: &mut PageBytes, posting: bool) -> Result<(), Fault> {
    let number = Reader::new(record.main).u16()?;
    check(page)?;
    let mut data = Reader::new(record.own.needed_data()?);
    if !posting {
        return page::add_item(page, data.rest(), number, Place::Insert);
    }
    let position = data.u16()?;
    let before = number
        .checked_sub(1)
        .ok_or("it splits a posting list before the first item")?;
    let new = IndexTuple::read(data.rest())?.bytes();
    let [new_tid, ..] = new.as_chunks().0 else {
        return Err("an index tuple is damaged");
    };
    let last = swap_posting(page::item_mut(page, before)?, *new_tid, position)?;
    let place = page::reserve_item(page, new.len(), number, Place::Insert)?;
    place.copy_from_slice(new);
    *tid_mut(place)? = last;
    Ok(())
}

struct Split {
    level: u32,
    first_right: u16,
    new_item: u16,
    posting_position: u16,
}

impl Split {
    fn read(record: &PageRecord<'_>) -> Result<Split, Fault> {
        let mut main = Reader::new(record.main);
        Ok(Split {
            level: main.u32()?,
            first_right: main.u16()?,
            new_item: main.u16()?,
            posting_position: main.u16()?,
        })
    }
}

/// The new right page: built from the record alone.
fn split_right(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let split = Split::read(record)?;
    let next = record.block(2).unwrap_or(0);
    let flags = if split.level == 0 { flag::LEAF } else { 0 };
    init(page, record.needed_block(0)?, next, split.level, flags);
    restore_items(page, record.own.needed_data()?)
}

/// The left page: a new high key, the items that stay, and the new item if it belongs here. Items are added in order
/// to an empty page, so that their physical order is that of the primary.
fn split_left(record: &PageRecord<'_>, page: &mut PageBytes, new_on_left: bool) -> Result<(), Fault> {
    let split = Split::read(record)?;
    check(page)?;
    let mut old = *page;
    let mut data = record.own.needed_data()?;
    let mut new_item = None;
    if new_on_left || split.posting_position != 0 {
        let bytes = first(data)?;
        data = &data[bytes.len()..];
        let mut tid = *bytes.first_chunk().ok_or("an index tuple is damaged")?;
        if split.posting_position != 0 {
            let number = split
                .new_item
                .checked_sub(1)
                .ok_or("it splits a posting list before the first item")?;
            tid = swap_posting(page::item_mut(&mut old, number)?, tid, split.posting_position)?;
        }
        new_item = Some((bytes, tid)).filter(|_| new_on_left);
    }
    let high_key = first(data)?;
    if high_key.len() != data.len() {
        return Err("bytes are left after its high key");
    }
    let rightmost = get_u32(&old, NEXT) == 0;
    page::init(page, 16);
    page[OPAQUE..].copy_from_slice(&old[OPAQUE..]);
    page::add_item(page, high_key, HIGH_KEY, Place::Insert)?;
    let mut at = HIGH_KEY;
    let first_data = if rightmost { HIGH_KEY } else { HIGH_KEY + 1 };
    let mut add_new = |page: &mut PageBytes, at: &mut u16| {
        let Some((bytes, tid)) = new_item.take() else {
            return Ok(());
        };
        *at += 1;
        let place = page::reserve_item(page, bytes.len(), *at, Place::Insert)?;
        place.copy_from_slice(bytes);
        *tid_mut(place)? = tid;
        Ok::<(), Fault>(())
    };
    for number in first_data..split.first_right {
        if number == split.new_item {
            add_new(page, &mut at)?;
        }
        at += 1;
        page::add_item(page, page::item(&old, number)?, at, Place::Insert)?;
    }
    if split.new_item == split.first_right.max(first_data) {
        add_new(page, &mut at)?;
    }
    let leaf = if split.level == 0 { flag::LEAF } else { 0 };
    put_u16(page, FLAGS, flag::INCOMPLETE_SPLIT | leaf);
    put_u32(page, NEXT, record.needed_block(1)?);
    put_u16(page, CYCLE, 0);
    Ok(())
}

/// Merges runs of duplicates into posting lists. Block data: (first item number, number of items) of each run.
fn deduplicate(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let count = Reader::new(record.main).u16()?;
    check(page)?;
    let mut data = Reader::new(record.own.needed_data()?);
    let runs = data.take(usize::from(count) * 4)?.as_chunks::<4>().0;
    let mut runs = runs
        .iter()
        .map(|&[a, b, c, d]| (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
        .peekable();
    let old = *page;
    let items = page::item_count(&old);
    page::init(page, 16);
    page[OPAQUE..].copy_from_slice(&old[OPAQUE..]);
    let mut number = 1;
    let mut at = 1;
    if get_u32(&old, NEXT) != 0 {
        page::add_item(page, page::item(&old, HIGH_KEY)?, HIGH_KEY, Place::Insert)?;
        (number, at) = (2, 2);
    }
    while number <= items {
        let base = IndexTuple::read(page::item(&old, number)?)?;
        let length = runs.next_if(|run| run.0 == number).map_or(1, |run| run.1);
        if length <= 1 {
            page::add_item(page, base.bytes(), at, Place::Insert)?;
            number += 1;
        } else {
            let end = number
                .checked_add(length)
                .filter(|&end| end <= items + 1)
                .ok_or("a run of duplicates ends outside the page")?;
            let tids_of = |member| IndexTuple::read(page::item(&old, member)?)?.tids();
            let mut count = 0;
            for member in number..end {
                count += tids_of(member)?.len();
            }
            let place = page::reserve_item(page, base.size_with(count)?, at, Place::Insert)?;
            let members = (number..end).flat_map(|member| tids_of(member).unwrap_or_default());
            base.write_with(count, members, place)?;
            number = end;
        }
        at += 1;
    }
    if runs.peek().is_some() {
        return Err("a run of duplicates begins outside the page");
    }
    clear_garbage(page);
    Ok(())
}

/// `btree_xlog_delete` and `btree_xlog_vacuum`. `counts` starts with the numbers of deleted and updated items. Block
/// data: deleted item numbers, updated item numbers, then per updated item how many and which TIDs go.
fn delete_items(counts: &[u8], block: &BlockView<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut counts = Reader::new(counts);
    let (deleted, updated) = (counts.u16()?, counts.u16()?);
    check(page)?;
    let mut data = Reader::new(block.any_data());
    let deleted = data.numbers(deleted)?;
    let updated = data.numbers(updated)?;
    for number in updated.iter() {
        let count = data.u16()?;
        let gone = data.numbers(count)?;
        let mut new = [0; PAGE_SIZE];
        let old = IndexTuple::read(page::item(page, number)?)?;
        let all = old.tids()?;
        let kept = all.len().checked_sub(gone.len());
        let kept = kept.ok_or("it removes entries that a posting list does not have")?;
        let size = old.size_with(kept)?;
        let new = new
            .get_mut(..page::max_align(size))
            .ok_or("an index tuple is damaged")?;
        let mut next_gone = gone.iter().peekable();
        let kept_tids = (0u16..)
            .zip(all)
            .filter(|(index, _)| next_gone.next_if_eq(index).is_none())
            .map(|(_, tid)| tid);
        old.write_with(kept, kept_tids, &mut new[..size])?;
        page::index_overwrite(page, number, new)?;
    }
    if !deleted.is_empty() {
        page::index_multi_delete(page, deleted.iter())?;
    }
    clear_garbage(page);
    Ok(())
}

/// An empty page on its way out; its high key points to the top parent of the subtree that goes.
fn half_dead(page: &mut PageBytes, left: u32, right: u32, top_parent: u32) -> Result<(), Fault> {
    init(page, left, right, 0, flag::HALF_DEAD | flag::LEAF);
    page::add_item(page, &top_parent_link(top_parent)?, HIGH_KEY, Place::Insert)
}

/// Block 0 is the leaf, block 1 the parent, whose downlink to the leaf goes: the next item's link takes its place.
fn mark_half_dead(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (parent_item, _padding, _leaf) = (main.u16()?, main.u16()?, main.u32()?);
    let (left, right, top_parent) = (main.u32()?, main.u32()?, main.u32()?);
    match record.own.id {
        0 => half_dead(page, left, right, top_parent),
        1 => {
            check(page)?;
            let next = parent_item
                .checked_add(1)
                .ok_or("its parent item does not exist")?;
            let sibling = IndexTuple::read(page::item(page, next)?)?.link();
            let parent = page::item_mut(page, parent_item)?;
            IndexTuple::read(parent)?;
            btree_tuple::set_link(parent, sibling)?;
            page::index_delete(page, next)
        }
        _ => Err("a record of this type does not name this page"),
    }
}

/// Block 0 is the page that goes, 1 and 2 its siblings, 3 the leaf below it, 4 the metapage.
fn unlink(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (left, right, level, _padding, safe_xid) =
        (main.u32()?, main.u32()?, main.u32()?, main.u32()?, main.u64()?);
    let (leaf_left, leaf_right, leaf_top_parent) = (main.u32()?, main.u32()?, main.u32()?);
    match record.own.id {
        0 => {
            let leaf = if level == 0 { flag::LEAF } else { 0 };
            init(page, left, right, level, flag::DELETED | flag::HAS_FULLXID | leaf);
            page[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&safe_xid.to_le_bytes());
            page::set_lower(page, HEADER_BYTES + 8);
            Ok(())
        }
        1 => set_link(page, NEXT, right),
        2 => set_link(page, PREVIOUS, left),
        3 => half_dead(page, leaf_left, leaf_right, leaf_top_parent),
        4 => restore_meta(&record.own, page),
        _ => Err("a record of this type does not name this page"),
    }
}

fn new_root(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_root, level) = (main.u32()?, main.u32()?);
    let leaf = if level == 0 { flag::LEAF } else { 0 };
    init(page, 0, 0, level, flag::ROOT | leaf);
    if level > 0 {
        restore_items(page, record.own.needed_data()?)?;
    }
    Ok(())
}
