//! Redo of hash indexes (`access/hash/hash_xlog.c`).
//!
//! Each record type gives its block references fixed roles. The special area (16 bytes) is: previous block, next
//! block, bucket, flags (16 bits), page id (16 bits). On the first page of a bucket the "previous block" is the
//! highest bucket number as of the bucket's last split.
//!
//! Some records name a bucket's first page only so that a standby waits until nobody scans the bucket: such a page
//! stays as it is, LSN included.

use lakebed_types::{PAGE_SIZE, PgVersion};

use crate::btree_tuple::first;
use crate::page::{self, Place, get_u16, put_u16, put_u32};
use crate::page_record::{BlockView, PageRecord};
use crate::reader::{Numbers, Reader};
use crate::{Fault, PageBytes};

mod bitmap;
mod meta;
#[cfg(test)]
mod tests;

/// Bits of the special area's flags.
pub(crate) mod flag {
    /// Neither of the following four: a freed overflow page.
    pub const UNUSED: u16 = 0;
    pub const OVERFLOW: u16 = 1;
    pub const BUCKET: u16 = 1 << 1;
    pub const BITMAP: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const NEEDS_SPLIT_CLEANUP: u16 = 1 << 6;
    pub const HAS_DEAD_TUPLES: u16 = 1 << 7;
    /// The bits that tell the kind of page.
    pub const KIND: u16 = OVERFLOW | BUCKET | BITMAP | META;
}

/// Offset of the special area in the page.
const OPAQUE: usize = PAGE_SIZE - 16;
const PREVIOUS: usize = OPAQUE;
const NEXT: usize = OPAQUE + 4;
const BUCKET: usize = OPAQUE + 8;
pub(crate) const FLAGS: usize = OPAQUE + 12;
const ID: usize = OPAQUE + 14;
/// `HASHO_PAGE_ID`, the last two bytes of every page of a hash index.
pub(crate) const PAGE_ID: u16 = 0xFF80;
/// `InvalidBlockNumber` and `InvalidBucket`.
const NONE: u32 = u32::MAX;

/// Operations (`xl_info & 0xF0`).
mod op {
    pub const INIT_META_PAGE: u8 = 0x00;
    pub const INIT_BITMAP_PAGE: u8 = 0x10;
    pub const INSERT: u8 = 0x20;
    pub const ADD_OVERFLOW_PAGE: u8 = 0x30;
    pub const SPLIT_ALLOCATE_PAGE: u8 = 0x40;
    pub const SPLIT_PAGE: u8 = 0x50;
    pub const SPLIT_COMPLETE: u8 = 0x60;
    pub const MOVE_PAGE_CONTENTS: u8 = 0x70;
    pub const SQUEEZE_PAGE: u8 = 0x80;
    pub const DELETE: u8 = 0x90;
    pub const SPLIT_CLEANUP: u8 = 0xA0;
    pub const UPDATE_META_PAGE: u8 = 0xB0;
    pub const VACUUM_ONE_PAGE: u8 = 0xC0;
}

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    match (record.info & 0xF0, record.own.id) {
        (op::INIT_META_PAGE, 0) => meta::init_page(main, page)?,
        (op::INIT_BITMAP_PAGE, 0) => bitmap::init_page(main.u16()?, page)?,
        (op::INIT_BITMAP_PAGE, 1) => meta::add_first_bitmap(page)?,
        (op::INSERT, 0) => {
            check(page)?;
            page::add_item(page, record.own.needed_data()?, main.u16()?, Place::Insert)?;
        }
        (op::INSERT, 1) => meta::add_tuple(page)?,
        (op::ADD_OVERFLOW_PAGE, _) => add_overflow_page(record, page)?,
        (op::SPLIT_ALLOCATE_PAGE, _) => split_allocate_page(main, &record.own, page)?,
        (op::SPLIT_PAGE, 0) => return Err("a split page without an image"),
        (op::SPLIT_COMPLETE, 0) => set_flags(page, main.u16()?)?,
        (op::SPLIT_COMPLETE, 1) => {
            main.u16()?; // the old bucket's flags
            set_flags(page, main.u16()?)?;
        }
        (op::MOVE_PAGE_CONTENTS | op::SQUEEZE_PAGE | op::DELETE, 0) if !record.own.will_init => return Ok(()),
        (op::MOVE_PAGE_CONTENTS, 1) => add_tuples(main.u16()?, &record.own, page)?,
        (op::MOVE_PAGE_CONTENTS, 2) => delete_items(record.own.any_data(), page)?,
        (op::SQUEEZE_PAGE, 1) if record.version >= PgVersion::V17 && !squeeze_changes_target(main)? => {
            return Ok(());
        }
        (op::SQUEEZE_PAGE, _) => squeeze_page(main, &record.own, page)?,
        (op::DELETE, 1) => {
            let clear_dead = main.u8()? != 0;
            delete_items(record.own.any_data(), page)?;
            if clear_dead {
                clear_flag(page, flag::HAS_DEAD_TUPLES)?;
            }
        }
        (op::SPLIT_CLEANUP, 0) => clear_flag(page, flag::NEEDS_SPLIT_CLEANUP)?,
        (op::UPDATE_META_PAGE, 0) => meta::set_tuples(page, f64::from_bits(main.u64()?))?,
        (op::VACUUM_ONE_PAGE, _) => vacuum_one_page(main, record, page)?,
        _ => return Err("a record of this type does not name this page"),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

/// Checks that the page has content and a hash index's special area.
fn check(page: &PageBytes) -> Result<(), Fault> {
    page::check(page)?;
    if page::special(page) == OPAQUE && get_u16(page, ID) == PAGE_ID {
        Ok(())
    } else {
        Err("the page is not of a hash index")
    }
}

/// An empty page (`_hash_pageinit`, `_hash_initbuf`) without a next one.
fn init(page: &mut PageBytes, previous: u32, bucket: u32, flags: u16) {
    page::init(page, 16);
    put_u32(page, PREVIOUS, previous);
    put_u32(page, NEXT, NONE);
    put_u32(page, BUCKET, bucket);
    put_u16(page, FLAGS, flags);
    put_u16(page, ID, PAGE_ID);
}

fn set_link(page: &mut PageBytes, at: usize, block: u32) -> Result<(), Fault> {
    check(page)?;
    put_u32(page, at, block);
    Ok(())
}

fn set_flags(page: &mut PageBytes, flags: u16) -> Result<(), Fault> {
    check(page)?;
    put_u16(page, FLAGS, flags);
    Ok(())
}

fn clear_flag(page: &mut PageBytes, bit: u16) -> Result<(), Fault> {
    set_flags(page, get_u16(page, FLAGS) & !bit)
}

/// The number that is a block's whole data.
fn data_u32(block: &BlockView<'_>) -> Result<u32, Fault> {
    Reader::new(block.needed_data()?).u32()
}

/// Block data: item numbers, then as many tuples.
fn add_tuples(count: u16, block: &BlockView<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    check(page)?;
    if count == 0 {
        return Ok(());
    }
    let mut data = Reader::new(block.needed_data()?);
    let numbers = data.numbers(count)?;
    let mut rest = data.rest();
    for number in numbers.iter() {
        let tuple = first(rest)?;
        page::add_item(page, tuple, number, Place::Insert)?;
        rest = &rest[tuple.len()..];
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err("bytes are left after its tuples")
    }
}

fn delete_items(list: &[u8], page: &mut PageBytes) -> Result<(), Fault> {
    check(page)?;
    let numbers = Numbers::of(list)?;
    if numbers.is_empty() {
        return Ok(());
    }
    page::index_multi_delete(page, numbers.iter())
}

/// Block 0 is the new overflow page, 1 the page before it, 2 the bitmap page in which a free page was found, 3 a new
/// bitmap page, 4 the metapage. Main data: bytes of a bitmap, whether a free page was found.
fn add_overflow_page(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (bitmap_bytes, found) = (main.u16()?, main.u8()? != 0);
    match record.own.id {
        0 => {
            init(
                page,
                record.needed_block(1)?,
                data_u32(&record.own)?,
                flag::OVERFLOW,
            );
            Ok(())
        }
        1 => set_link(page, NEXT, record.needed_block(0)?),
        2 => bitmap::set_bit(page, data_u32(&record.own)?, true),
        3 => bitmap::init_page(bitmap_bytes, page),
        4 => {
            meta::set_first_free(page, data_u32(&record.own)?)?;
            if found {
                return Ok(());
            }
            meta::add_overflow_pages(page, record.block(3))
        }
        _ => Err("a record of this type does not name this page"),
    }
}

/// Block 0 is the old bucket's first page, 1 the new one's, 2 the metapage. Main data: the new bucket, the flags of the
/// old page, those of the new page, what changes in the metapage.
fn split_allocate_page(mut main: Reader, block: &BlockView<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let (bucket, old_flags, new_flags) = (main.u32()?, main.u16()?, main.u16()?);
    let changes = main.u8()?;
    match block.id {
        0 => {
            set_flags(page, old_flags)?;
            set_link(page, PREVIOUS, bucket)
        }
        1 => {
            init(page, bucket, bucket, new_flags);
            Ok(())
        }
        2 => meta::add_bucket(page, bucket, changes, block.any_data()),
        _ => Err("a record of this type does not name this page"),
    }
}

/// Block 1 gets the tuples of the overflow page, block 2, which is freed; 3 is the page before the freed one unless
/// that is block 1, 4 the page after it, 5 the bitmap page, 6 the metapage. Main data: the blocks before and after the
/// freed page, the number of tuples, whether block 1 is the bucket's first page, whether it is the one before the freed.
fn squeeze_page(mut main: Reader, block: &BlockView<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let (previous, next, count) = (main.u32()?, main.u32()?, main.u16()?);
    let (_is_first, is_previous) = (main.u8()?, main.u8()? != 0);
    match block.id {
        1 => {
            add_tuples(count, block, page)?;
            if is_previous {
                set_link(page, NEXT, next)?;
            }
            Ok(())
        }
        2 => {
            check(page)?;
            init(page, NONE, NONE, flag::UNUSED);
            Ok(())
        }
        3 if !is_previous => set_link(page, NEXT, next),
        4 => set_link(page, PREVIOUS, previous),
        5 => bitmap::set_bit(page, data_u32(block)?, false),
        6 => meta::set_first_free(page, data_u32(block)?),
        _ => Err("a record of this type does not name this page"),
    }
}

/// Whether the page that takes the tuples changes at all. Before Postgres 17 it gets a new LSN in any case; since then a
/// record may name it for the lock alone.
fn squeeze_changes_target(mut main: Reader) -> Result<bool, Fault> {
    main.u64()?; // neighbours of the page that goes
    let (count, _is_first, is_previous) = (main.u16()?, main.u8()?, main.u8()? != 0);
    Ok(count > 0 || is_previous)
}

/// Block 0 is the page that loses its dead items, 1 the metapage. Main data: the newest removed transaction, the number
/// of items (in 15 with 32 bits; since 16 with 16, then whether the table is a catalogue, and padding), their numbers.
fn vacuum_one_page(mut main: Reader, record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let _newest_removed = main.u32()?;
    let count = match record.version {
        PgVersion::V15 => i32::try_from(main.u32()?).map_err(|_| "it removes a negative number of items")?,
        PgVersion::V16 | PgVersion::V17 | PgVersion::V18 => {
            let (count, _catalogue) = (main.u16()?, main.u16()?);
            i32::from(count)
        }
    };
    match record.own.id {
        0 => {
            if !main.is_empty() {
                delete_items(main.take(count as usize * 2)?, page)?;
            }
            clear_flag(page, flag::HAS_DEAD_TUPLES)
        }
        1 => {
            let tuples = meta::tuples(page)? - f64::from(count);
            meta::set_tuples(page, tuples)
        }
        _ => Err("a record of this type does not name this page"),
    }
}
