//! Redo of block range indexes (`access/brin/brin_xlog.c`).
//!
//! Block 0 is the metapage. After it come the pages of the range map: an array of TIDs, one per range of heap blocks,
//! each of a summary tuple on a regular page. The special area (8 bytes) ends with flags and kind of the page, 16 bits
//! each. The range map lies where other pages have their free space, between `pd_lower` and `pd_upper`.

use lakebed_types::PAGE_SIZE;

use crate::page::{self, HEADER_BYTES, ItemId, Place, get_u16, put_u16, put_u32};
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes};

#[cfg(test)]
mod tests;

const SPECIAL_BYTES: usize = 8;
pub(crate) const FLAGS: usize = PAGE_SIZE - 4;
pub(crate) const KIND: usize = PAGE_SIZE - 2;
/// `BRIN_EVACUATE_PAGE`: set without WAL.
pub(crate) const EVACUATE: u16 = 1;

/// Kinds of pages.
pub(crate) mod kind {
    pub const META: u16 = 0xF091;
    pub const REVMAP: u16 = 0xF092;
    pub const REGULAR: u16 = 0xF093;
}

/// Fields of the metapage: magic number, version, heap pages per range, last block of the range map.
const META_FIELDS: usize = 4;
const LAST_REVMAP: usize = HEADER_BYTES + 12;
/// Bytes of an `ItemPointerData`.
const TID: usize = 6;
/// `REVMAP_PAGE_MAXITEMS`.
const REVMAP_ITEMS: u32 = ((PAGE_SIZE - HEADER_BYTES - SPECIAL_BYTES) / TID) as u32;

/// Operations (`xl_info & 0x70`).
mod op {
    pub const CREATE_INDEX: u8 = 0x00;
    pub const INSERT: u8 = 0x10;
    pub const UPDATE: u8 = 0x20;
    pub const SAMEPAGE_UPDATE: u8 = 0x30;
    pub const REVMAP_EXTEND: u8 = 0x40;
    pub const DESUMMARIZE: u8 = 0x50;
    /// `XLOG_BRIN_INIT_PAGE`, beside the others: the summary tuple is the first on its page.
    pub const INIT_PAGE: u8 = 0x80;
}

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    match (record.info & 0x70, record.own.id) {
        (op::CREATE_INDEX, 0) => create(main, page)?,
        (op::INSERT, _) => insert(main, record, page)?,
        (op::UPDATE, id) => {
            let (old_number, _padding) = (main.u16()?, main.u16()?);
            if id == 2 {
                remove(page, old_number)?;
            } else {
                insert(main, record, page)?;
            }
        }
        (op::SAMEPAGE_UPDATE, 0) => {
            check(page, kind::REGULAR)?;
            page::index_overwrite(page, main.u16()?, record.own.needed_data()?)?;
        }
        (op::REVMAP_EXTEND, 0) => {
            check(page, kind::META)?;
            put_u32(page, LAST_REVMAP, main.u32()?);
            page::set_lower(page, HEADER_BYTES + META_FIELDS * 4);
        }
        (op::REVMAP_EXTEND, 1) => init(page, kind::REVMAP),
        (op::DESUMMARIZE, id) => {
            let (per_range, heap_block, number) = (main.u32()?, main.u32()?, main.u16()?);
            match id {
                0 => set_entry(page, per_range, heap_block, None)?,
                1 => remove(page, number)?,
                _ => return Err("a record of this type does not name this page"),
            }
        }
        _ => return Err("a record of this type does not name this page"),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

/// Checks that the page has content and is of this kind.
fn check(page: &PageBytes, kind: u16) -> Result<(), Fault> {
    page::check(page)?;
    if page::special(page) == PAGE_SIZE - SPECIAL_BYTES && get_u16(page, KIND) == kind {
        Ok(())
    } else {
        Err("the page is not of the kind that the record needs")
    }
}

/// `brin_page_init`.
fn init(page: &mut PageBytes, kind: u16) {
    page::init(page, SPECIAL_BYTES);
    put_u16(page, KIND, kind);
}

/// Main data: heap pages per range, version.
fn create(mut main: Reader, page: &mut PageBytes) -> Result<(), Fault> {
    let (per_range, version) = (main.u32()?, main.u16()?);
    init(page, kind::META);
    let fields: [u32; META_FIELDS] = [0xA810_9CFA, u32::from(version), per_range, 0];
    for (index, value) in fields.into_iter().enumerate() {
        put_u32(page, HEADER_BYTES + index * 4, value);
    }
    page::set_lower(page, HEADER_BYTES + META_FIELDS * 4);
    Ok(())
}

/// Block 0 gets the summary tuple, which is its data; block 1 is the page of the range map. Main data: heap block, heap
/// pages per range, item number.
fn insert(mut main: Reader, record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let (heap_block, per_range, number) = (main.u32()?, main.u32()?, main.u16()?);
    match record.own.id {
        0 => {
            if record.info & op::INIT_PAGE != 0 {
                init(page, kind::REGULAR);
            }
            check(page, kind::REGULAR)?;
            page::add_item(page, record.own.needed_data()?, number, Place::Slot)
        }
        1 => {
            let regular = record.needed_block(0)?;
            let tid = Some((regular, number)).filter(|_| number != 0);
            set_entry(page, per_range, heap_block, tid)
        }
        _ => Err("a record of this type does not name this page"),
    }
}

/// `brinSetHeapBlockItemptr`.
fn set_entry(
    page: &mut PageBytes,
    per_range: u32,
    heap_block: u32,
    tid: Option<(u32, u16)>,
) -> Result<(), Fault> {
    check(page, kind::REVMAP)?;
    let range = heap_block
        .checked_div(per_range)
        .ok_or("its ranges have no heap pages")?;
    let at = HEADER_BYTES + (range % REVMAP_ITEMS) as usize * TID;
    let (block, number) = tid.unwrap_or((u32::MAX, 0));
    put_u16(page, at, (block >> 16) as u16);
    put_u16(page, at + 2, block as u16);
    put_u16(page, at + 4, number);
    Ok(())
}

/// `PageIndexTupleDeleteNoCompact`: other items keep their numbers, so the line pointer stays unless it is the last.
fn remove(page: &mut PageBytes, number: u16) -> Result<(), Fault> {
    check(page, kind::REGULAR)?;
    let id = page::index_item(page, number)?;
    if number < page::item_count(page) {
        page::set_item_id(page, number, ItemId::UNUSED)?;
    } else {
        page::drop_last_line_pointer(page);
    }
    page::shift_items(
        page,
        usize::from(id.offset),
        page::max_align(usize::from(id.length)) as isize,
    )
}
