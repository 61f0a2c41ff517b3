//! Redo of GIN indexes (`access/gin/ginxlog.c`).
//!
//! An index has a metapage (block 0), the entry tree of keys (root: block 1), a posting tree of TIDs for each key that
//! has many ([`data`]), and a list of pending entries ([`pending`]). The special area (`GinPageOpaqueData`, 8 bytes)
//! is: right neighbour, number of items (posting tree, not leaf) or of heap tuples (list), flags (16 bits).
//!
//! Record types and the roles of their block references:
//!
//! | type | 0 | 1 | 2 | 3 |
//! |---|---|---|---|---|
//! | 0x10 create posting tree | its root | | | |
//! | 0x20 insert | page | child whose split this completes | | |
//! | 0x30 split | left (image) | right (image) | root (image) | child, as above |
//! | 0x40 vacuum page | page (image) | | | |
//! | 0x50 delete page | deleted page | parent | left neighbour | |
//! | 0x60 update metapage | metapage | tail of the pending list | | |
//! | 0x70 insert list page | page | | | |
//! | 0x80 delete list pages | metapage | first deleted page | next, and so on | |
//! | 0x90 vacuum data leaf | page | | | |

use lakebed_types::PAGE_SIZE;

use crate::page::{self, Place, get_u16, put_u16, put_u32};
use crate::page_record::{BlockView, PageRecord};
use crate::reader::Reader;
use crate::{Fault, PageBytes};

mod data;
mod pending;
mod posting_list;
#[cfg(test)]
mod tests;

/// Bits of the flags in the special area.
pub(crate) mod flag {
    pub const DATA: u16 = 1;
    pub const LEAF: u16 = 1 << 1;
    pub const DELETED: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const LIST: u16 = 1 << 4;
    pub const LIST_FULL_ROW: u16 = 1 << 5;
    pub const INCOMPLETE_SPLIT: u16 = 1 << 6;
    pub const COMPRESSED: u16 = 1 << 7;
}

/// Offset of the special area in the page.
const OPAQUE: usize = PAGE_SIZE - 8;
const RIGHT: usize = OPAQUE;
const COUNT: usize = OPAQUE + 4;
pub(crate) const FLAGS: usize = OPAQUE + 6;

/// `InvalidBlockNumber`.
const NO_BLOCK: u32 = u32::MAX;
/// `GIN_INSERT_ISDATA`: the record is about a posting tree, not the entry tree.
const IS_DATA: u16 = 1;
/// `GIN_INSERT_ISLEAF`: the page is a leaf.
const IS_LEAF: u16 = 2;

const NOT_THIS_PAGE: Fault = "a record of this type does not name this page";
const BAD_ITEM: Fault = "an index tuple is damaged";

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let main = Reader::new(record.main);
    match (record.info & 0xF0, record.own.id) {
        (0x10, 0) => data::create_tree(main, page)?,
        (0x20, 0) => insert(main, &record.own, page)?,
        (0x20, 1) => complete_split(main, page)?,
        (0x30, 0..=2) => return Err("a split record without an image of this page"),
        (0x30, 3) => {
            let mut main = main;
            main.take(24)?; // relation, right neighbour, children
            complete_split(main, page)?;
        }
        (0x40, 0) => return Err("a vacuum record without an image of its page"),
        (0x50, _) => data::delete_page(main, &record.own, page)?,
        (0x60, _) => pending::update_meta(main, &record.own, page)?,
        (0x70, 0) => pending::insert_page(main, &record.own, page)?,
        (0x80, _) => pending::delete_pages(main, &record.own, page)?,
        (0x90, 0) => {
            check_data(page, true)?;
            data::recompress(page, record.own.needed_data()?)?;
        }
        _ => return Err(NOT_THIS_PAGE),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

/// `GinInitPage`.
fn init(page: &mut PageBytes, flags: u16) {
    page::init(page, 8);
    put_u32(page, RIGHT, NO_BLOCK);
    put_u16(page, FLAGS, flags);
}

fn flags(page: &PageBytes) -> u16 {
    get_u16(page, FLAGS)
}

/// Checks that the page has content and GIN's special area.
fn check(page: &PageBytes) -> Result<(), Fault> {
    page::check(page)?;
    if page::special(page) == OPAQUE {
        Ok(())
    } else {
        Err("the page is not a GIN page")
    }
}

/// Checks for a page of a posting tree, leaf or not.
fn check_data(page: &PageBytes, leaf: bool) -> Result<(), Fault> {
    check(page)?;
    let expected = flag::DATA | if leaf { flag::LEAF } else { 0 };
    if flags(page) & (flag::DATA | flag::LEAF) == expected {
        Ok(())
    } else {
        Err("the page is not of the kind of GIN page that it changes")
    }
}

/// Clears the mark of a split whose link in the parent the record adds. `main` begins with the record's flags.
fn complete_split(mut main: Reader<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    if main.u16()? & IS_LEAF != 0 {
        return Err(NOT_THIS_PAGE);
    }
    check(page)?;
    put_u16(page, FLAGS, flags(page) & !flag::INCOMPLETE_SPLIT);
    Ok(())
}

/// Main data: flags; if not leaf, the blocks of the left and the right child. Block data depends on the kind of page.
fn insert(mut main: Reader<'_>, block: &BlockView<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let kind = main.u16()?;
    let leaf = kind & IS_LEAF != 0;
    let mut right_child = NO_BLOCK;
    if !leaf {
        main.take(4)?;
        right_child = block_number(&mut main)?;
    }
    let data = block.needed_data()?;
    if kind & IS_DATA == 0 {
        return insert_entry(page, data, leaf, right_child);
    }
    check_data(page, leaf)?;
    if leaf {
        data::recompress(page, data)
    } else {
        data::insert_link(page, data, right_child)
    }
}

/// Puts a tuple into the entry tree. Block data: item number, whether the tuple replaces the one there, the tuple.
/// On an inner page the item that is there gets the right child, and the new one before it has the left child.
fn insert_entry(page: &mut PageBytes, data: &[u8], leaf: bool, right_child: u32) -> Result<(), Fault> {
    check(page)?;
    if flags(page) & flag::DATA != 0 || (flags(page) & flag::LEAF != 0) != leaf {
        return Err("the page is not of the kind of GIN page that it changes");
    }
    let mut data = Reader::new(data);
    let (number, replaces, _padding) = (data.u16()?, data.u8()?, data.u8()?);
    let tuple = take_tuple(&mut data)?;
    if right_child != NO_BLOCK {
        let tid = page::item_mut(page, number)?
            .first_chunk_mut::<6>()
            .ok_or(BAD_ITEM)?;
        let [high, low] = block_id(right_child);
        *tid = [high[0], high[1], low[0], low[1], 0, 0];
    }
    if replaces != 0 {
        page::index_delete(page, number)?;
    }
    page::add_item(page, tuple, number, Place::Insert)
}

/// Takes the index tuple at the reader's position, of the size that it states.
fn take_tuple<'a>(data: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    const HEADER: usize = 8;
    let info = data.rest().get(6..HEADER).ok_or(BAD_ITEM)?;
    let size = usize::from(u16::from_le_bytes([info[0], info[1]]) & 0x1FFF);
    if size < HEADER {
        return Err(BAD_ITEM);
    }
    data.take(size)
}

/// `BlockIdData`: the high half first.
fn block_id(block: u32) -> [[u8; 2]; 2] {
    [((block >> 16) as u16).to_le_bytes(), (block as u16).to_le_bytes()]
}

fn block_number(data: &mut Reader<'_>) -> Result<u32, Fault> {
    let (high, low) = (data.u16()?, data.u16()?);
    Ok(u32::from(high) << 16 | u32::from(low))
}
