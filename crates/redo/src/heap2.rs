//! Redo of the second heap resource manager (`heap2_redo` in `access/heap/heapam.c`): prune, vacuum, freeze,
//! visibility map, multi-insert, lock of an updated version.

use crate::heap::{OPERATION, TupleHeader, tuple, tuple_of};
use crate::page::{self, ItemId, ItemState};
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes, vm};

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    match record.info & OPERATION {
        0x10 => prune(record, page)?,
        0x20 => vacuum(record, page)?,
        0x30 => freeze(record, page)?,
        // The map's and the heap page's LSN have rules of their own.
        0x40 => return visible(record, page),
        0x50 => multi_insert(record, page)?,
        0x60 => lock_updated(record, page)?,
        _ => return Err("a record of this type names no page"),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

/// Block data: pairs (from, to) of redirects, then dead, then unused item numbers (`heap_page_prune_execute`).
fn prune(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_conflict_xid, redirected, dead) = (main.u32()?, main.u16()?, main.u16()?);
    let mut data = Reader::new(record.own.needed_data()?);
    for _ in 0..redirected {
        let (from, to) = (data.u16()?, data.u16()?);
        page::item_id(page, to)?;
        page::set_item_id(
            page,
            from,
            ItemId {
                offset: to,
                state: ItemState::Redirect,
                length: 0,
            },
        )?;
    }
    for _ in 0..dead {
        page::set_item_id(page, data.u16()?, ItemId::DEAD)?;
    }
    while !data.is_empty() {
        page::set_item_id(page, data.u16()?, ItemId::UNUSED)?;
    }
    page::repair_fragmentation(page)
}

/// The second pass of VACUUM: dead line pointers become unused. The tuples went at pruning, so nothing moves.
fn vacuum(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let unused = Reader::new(record.main).u16()?;
    let mut data = Reader::new(record.own.needed_data()?);
    for _ in 0..unused {
        page::set_item_id(page, data.u16()?, ItemId::UNUSED)?;
    }
    page::check(page)?;
    page::truncate_line_pointers(page)
}

/// Block data: `xl_heap_freeze_tuple` entries of 12 bytes (`heap_execute_freeze_tuple`).
fn freeze(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_cutoff_xid, count) = (main.u32()?, main.u16()?);
    let mut data = Reader::new(record.own.needed_data()?);
    for _ in 0..count {
        let mut entry = Reader::new(data.take(12)?);
        let (xmax, number) = (entry.u32()?, entry.u16()?);
        let (infomask2, infomask, flags) = (entry.u16()?, entry.u16()?, entry.u8()?);
        let mut frozen = tuple_of(page, number)?;
        frozen.put_u32(tuple::XMAX, xmax);
        if flags & 0x02 != 0 {
            frozen.put_u32(tuple::FIELD3, 2);
        }
        if flags & 0x04 != 0 {
            frozen.put_u32(tuple::FIELD3, 0);
        }
        frozen.put_u16(tuple::INFOMASK, infomask);
        frozen.put_u16(tuple::INFOMASK2, infomask2);
    }
    Ok(())
}

/// Block 0 is the map's page, block 1 the heap page.
fn visible(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_cutoff_xid, flags) = (main.u32()?, main.u8()?);
    match record.own.id {
        0 => {
            let heap_block = record.needed_block(1)?;
            if heap_block / vm::HEAP_BLOCKS_PER_PAGE != record.own.block {
                return Err("its map page does not cover its heap page");
            }
            vm::set(page, heap_block, flags, record.end)
        }
        1 => {
            page::check(page)?;
            // No new LSN: clusters of the tier have neither data checksums nor wal_log_hints.
            page::set_flags(page, page::ALL_VISIBLE);
            Ok(())
        }
        _ => Err("it names a third page"),
    }
}

/// Block data: per tuple, aligned to 2 bytes, `xl_multi_insert_tuple` (length, masks, hoff) and the tuple's rest.
fn multi_insert(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (flags, _padding, count) = (main.u8()?, main.u8()?, main.u16()?);
    if record.own.will_init {
        page::init(page, 0);
    }
    let whole = record.own.needed_data()?;
    let mut data = Reader::new(whole);
    for index in 0..count {
        let number = if record.own.will_init {
            index + 1
        } else {
            main.u16()?
        };
        if (whole.len() - data.rest().len()) & 1 == 1 {
            data.u8()?;
        }
        let length = usize::from(data.u16()?);
        let header = TupleHeader::read(&mut data)?;
        let body = data.take(length)?;
        header.add(page, number, record.xid, record.own.block, body)?;
    }
    if !data.is_empty() {
        return Err("bytes are left after its last tuple");
    }
    if flags & 0x01 != 0 {
        page::clear_flags(page, page::ALL_VISIBLE);
    }
    if flags & 0x20 != 0 {
        page::set_flags(page, page::ALL_VISIBLE);
    }
    Ok(())
}

fn lock_updated(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (xmax, number, infobits) = (main.u32()?, main.u16()?, main.u8()?);
    let mut locked = tuple_of(page, number)?;
    locked.set_infobits(infobits);
    locked.put_u32(tuple::XMAX, xmax);
    Ok(())
}
