//! Redo of the second heap resource manager (`heap2_redo` in `access/heap/heapam.c`, since 18 `heapam_xlog.c`): prune,
//! vacuum, freeze, visibility map, multi-insert, lock of an updated version.
//!
//! The types 0x10 to 0x30 changed: in 15 and 16 they prune, remove dead line pointers, and freeze; since 17 all three do
//! any of it, as flags tell, and the type only says who asked. Freezing is told per tuple in 15, and since 16 per plan
//! with the tuples that it is for.

use lakebed_types::{ForkNumber, PgVersion};

use crate::heap::{OPERATION, TupleHeader, tuple, tuple_of};
use crate::page::{self, ItemId, ItemState};
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes, vm};

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let version = record.version;
    match record.info & OPERATION {
        0x10..=0x30 if version >= PgVersion::V17 => prune_and_freeze(record, page)?,
        0x10 => prune(record, page)?,
        0x20 => vacuum(record, page)?,
        0x30 if version == PgVersion::V15 => freeze_tuples(record, page)?,
        0x30 => freeze_by_plans(record, page)?,
        // The map's and the heap page's LSN have rules of their own.
        0x40 => return visible(record, page),
        0x50 | 0x60 if record.own.rel.fork == ForkNumber::Vm => return vm::clear_named(record, page),
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
    redirect(page, &mut data, redirected)?;
    set_items(page, &mut data, dead, ItemId::DEAD)?;
    while !data.is_empty() {
        set_items(page, &mut data, 1, ItemId::UNUSED)?;
    }
    page::repair_fragmentation(page)
}

/// Line pointers, in pairs, from the first to the second.
fn redirect(page: &mut PageBytes, data: &mut Reader<'_>, count: u16) -> Result<(), Fault> {
    for _ in 0..count {
        let (from, to) = (data.u16()?, data.u16()?);
        page::item_id(page, to)?;
        let item = ItemId {
            offset: to,
            state: ItemState::Redirect,
            length: 0,
        };
        page::set_item_id(page, from, item)?;
    }
    Ok(())
}

fn set_items(page: &mut PageBytes, data: &mut Reader<'_>, count: u16, item: ItemId) -> Result<(), Fault> {
    for _ in 0..count {
        page::set_item_id(page, data.u16()?, item)?;
    }
    Ok(())
}

/// The second pass of VACUUM: dead line pointers become unused. The tuples went at pruning, so nothing moves.
fn vacuum(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let unused = Reader::new(record.main).u16()?;
    let mut data = Reader::new(record.own.needed_data()?);
    set_items(page, &mut data, unused, ItemId::UNUSED)?;
    page::check(page)?;
    page::truncate_line_pointers(page)
}

/// `xl_heap_prune` of Postgres 17 and later: the parts of the block data that the flags announce, in this order: freeze
/// plans, redirects, dead and unused line pointers, each with their number in front; then the tuples of the plans
/// (`heap_xlog_deserialize_prune_and_freeze`). Line pointers change before tuples are frozen.
fn prune_and_freeze(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    const CLEANUP_LOCK: u8 = 1 << 2;
    const FREEZE_PLANS: u8 = 1 << 4;
    const REDIRECTIONS: u8 = 1 << 5;
    const DEAD_ITEMS: u8 = 1 << 6;
    const NOW_UNUSED_ITEMS: u8 = 1 << 7;
    let mut main = Reader::new(record.main);
    let (_reason, flags) = (main.u8()?, main.u8()?);
    let mut data = Reader::new(record.own.needed_data()?);
    let plans = if flags & FREEZE_PLANS != 0 {
        let (count, _padding) = (data.u16()?, data.u16()?);
        data.take(usize::from(count) * FREEZE_BYTES)?
    } else {
        &[]
    };
    let count_of = |part: u8, data: &mut Reader<'_>| if flags & part != 0 { data.u16() } else { Ok(0) };
    let redirected = count_of(REDIRECTIONS, &mut data)?;
    redirect(page, &mut data, redirected)?;
    let dead = count_of(DEAD_ITEMS, &mut data)?;
    set_items(page, &mut data, dead, ItemId::DEAD)?;
    let unused = count_of(NOW_UNUSED_ITEMS, &mut data)?;
    set_items(page, &mut data, unused, ItemId::UNUSED)?;
    if redirected > 0 || dead > 0 || unused > 0 {
        // Who took no lock against readers moved no tuple.
        if flags & CLEANUP_LOCK != 0 {
            page::repair_fragmentation(page)?;
        } else {
            page::check(page)?;
            page::truncate_line_pointers(page)?;
        }
    }
    execute_plans(page, plans, &mut data)?;
    if !data.is_empty() {
        return Err("bytes are left after its last item");
    }
    Ok(())
}

/// Bytes of `xl_heap_freeze_tuple` (15) and of a freeze plan (since 16).
const FREEZE_BYTES: usize = 12;

/// What freezing does to a tuple.
#[derive(Clone, Copy)]
struct Freeze {
    xmax: u32,
    infomask2: u16,
    infomask: u16,
    flags: u8,
}

impl Freeze {
    /// `heap_execute_freeze_tuple`.
    fn execute(self, page: &mut PageBytes, number: u16) -> Result<(), Fault> {
        const FREEZE_XVAC: u8 = 0x02;
        const INVALID_XVAC: u8 = 0x04;
        let mut frozen = tuple_of(page, number)?;
        frozen.put_u32(tuple::XMAX, self.xmax);
        if self.flags & FREEZE_XVAC != 0 {
            frozen.put_u32(tuple::FIELD3, 2);
        }
        if self.flags & INVALID_XVAC != 0 {
            frozen.put_u32(tuple::FIELD3, 0);
        }
        frozen.put_u16(tuple::INFOMASK, self.infomask);
        frozen.put_u16(tuple::INFOMASK2, self.infomask2);
        Ok(())
    }
}

/// Postgres 15. Block data: entries of xmax, item number, masks, flags, a byte of padding.
fn freeze_tuples(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_cutoff_xid, count) = (main.u32()?, main.u16()?);
    let mut data = Reader::new(record.own.needed_data()?);
    for _ in 0..count {
        let mut entry = Reader::new(data.take(FREEZE_BYTES)?);
        let (xmax, number) = (entry.u32()?, entry.u16()?);
        let freeze = Freeze {
            xmax,
            infomask2: entry.u16()?,
            infomask: entry.u16()?,
            flags: entry.u8()?,
        };
        freeze.execute(page, number)?;
    }
    Ok(())
}

/// Postgres 16. Block data: plans, then the item numbers of each.
fn freeze_by_plans(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_conflict_xid, count) = (main.u32()?, main.u16()?);
    let mut data = Reader::new(record.own.needed_data()?);
    let plans = data.take(usize::from(count) * FREEZE_BYTES)?;
    execute_plans(page, plans, &mut data)
}

/// A plan is xmax, masks, flags, a byte of padding, and how many of the item numbers are its own.
fn execute_plans(page: &mut PageBytes, plans: &[u8], numbers: &mut Reader<'_>) -> Result<(), Fault> {
    for plan in plans.chunks_exact(FREEZE_BYTES) {
        let mut plan = Reader::new(plan);
        let freeze = Freeze {
            xmax: plan.u32()?,
            infomask2: plan.u16()?,
            infomask: plan.u16()?,
            flags: plan.u8()?,
        };
        plan.u8()?;
        for _ in 0..plan.u16()? {
            freeze.execute(page, numbers.u16()?)?;
        }
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
            // Since 16 another flag says, for standbys, that the relation is a catalogue.
            let flags = match record.version {
                PgVersion::V15 => flags,
                _ => flags & vm::VALID_BITS,
            };
            vm::set(page, heap_block, flags, record.end)
        }
        1 => {
            page::check(page)?;
            page::set_flags(page, page::ALL_VISIBLE);
            // Recovery does so under wal_log_hints too; that is the recovering server's setting, not the cluster's.
            if record.data_checksums {
                page::set_lsn(page, record.end);
            }
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

#[cfg(test)]
mod tests;
