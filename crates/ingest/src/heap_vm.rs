//! Visibility-map bits that heap records clear (`access/heap/heapam.c`, the `heap_xlog_…` functions).
//!
//! A flag in the record says that the heap page was all-visible, or all-frozen, and no longer is. Whether it also names
//! the map's page is a matter of the release that wrote it: from 17.11 and 18.6 on a record names it when a bit was in
//! fact cleared, others never do. A record that names a map page says all with it, and is left to page redo; one that
//! names none clears the bits of every heap page that its flags are about. `heap_redo` of the newest releases does the
//! same, as it must be able to replay what older ones wrote. Setting bits is a record of its own that names the page.
//!
//! `XLOG_HEAP2_REWRITE` is here as well: the one heap record that changes a file which is no relation.

use lakebed_types::ForkNumber;
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects, VmClear};
use crate::error::Rule;
use crate::reader::Reader;

/// Heap blocks that a page of the visibility map describes, two bits each.
pub(crate) const HEAP_BLOCKS_PER_VM_PAGE: u32 = 32_672;

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
const LOCK: u8 = 0x60;

const REWRITE: u8 = 0x00;
const MULTI_INSERT: u8 = 0x50;
const LOCK_UPDATED: u8 = 0x60;

/// The page was all-visible and is no longer: in insert, multi-insert, delete, and for the old page in update.
const ALL_VISIBLE_CLEARED: u8 = 1;
/// The same of the new page of an update.
const NEW_ALL_VISIBLE_CLEARED: u8 = 2;
/// The page was all-frozen and is no longer: in lock records.
const ALL_FROZEN_CLEARED: u8 = 1;

const BOTH_BITS: u8 = 3;
const FROZEN_BIT: u8 = 2;

const MAPPING_BYTES: usize = 36;

pub(crate) fn heap_effects(
    record: &DecodedRecord,
    record_type: u8,
    effects: &mut Effects,
) -> Result<(), Rule> {
    match record_type {
        INSERT => clear_if(
            record,
            0,
            flags_at(record, 2)? & ALL_VISIBLE_CLEARED,
            BOTH_BITS,
            effects,
        ),
        DELETE => clear_if(
            record,
            0,
            flags_at(record, 7)? & ALL_VISIBLE_CLEARED,
            BOTH_BITS,
            effects,
        ),
        UPDATE | HOT_UPDATE => {
            let flags = flags_at(record, 7)?;
            let old = if record.block(1).is_some() { 1 } else { 0 };
            clear_if(record, old, flags & ALL_VISIBLE_CLEARED, BOTH_BITS, effects)?;
            clear_if(record, 0, flags & NEW_ALL_VISIBLE_CLEARED, BOTH_BITS, effects)
        }
        LOCK => clear_if(
            record,
            0,
            flags_at(record, 7)? & ALL_FROZEN_CLEARED,
            FROZEN_BIT,
            effects,
        ),
        _ => Ok(()),
    }
}

pub(crate) fn heap2_effects(
    record: &DecodedRecord,
    record_type: u8,
    effects: &mut Effects,
) -> Result<(), Rule> {
    match record_type {
        MULTI_INSERT => clear_if(
            record,
            0,
            flags_at(record, 0)? & ALL_VISIBLE_CLEARED,
            BOTH_BITS,
            effects,
        ),
        LOCK_UPDATED => clear_if(
            record,
            0,
            flags_at(record, 7)? & ALL_FROZEN_CLEARED,
            FROZEN_BIT,
            effects,
        ),
        REWRITE => rewrite(record, effects),
        _ => Ok(()),
    }
}

fn flags_at(record: &DecodedRecord, at: usize) -> Result<u8, Rule> {
    record
        .main_data
        .get(at)
        .copied()
        .ok_or("its main data is too short")
}

/// Clears `bits` of the heap block that the record names with this id, if `condition` is not zero.
fn clear_if(
    record: &DecodedRecord,
    block_id: u8,
    condition: u8,
    bits: u8,
    effects: &mut Effects,
) -> Result<(), Rule> {
    let names_map = record.blocks.iter().any(|block| block.rel.fork == ForkNumber::Vm);
    if condition == 0 || names_map {
        return Ok(());
    }
    let heap = record.block(block_id).ok_or("it does not name its heap page")?;
    if heap.rel.fork != ForkNumber::Main {
        return Err("its heap page is not in the main fork");
    }
    let clear = VmClear {
        rel: heap.rel.with_fork(ForkNumber::Vm),
        block: heap.block / HEAP_BLOCKS_PER_VM_PAGE,
        heap_block: heap.block,
        flags: bits,
    };
    if !effects.vm_clears.contains(&clear) {
        effects.vm_clears.push(clear);
    }
    Ok(())
}

/// `heap_xlog_logical_rewrite`, `access/heap/rewriteheap.c`.
fn rewrite(record: &DecodedRecord, effects: &mut Effects) -> Result<(), Rule> {
    let mut data = Reader::new(&record.main_data);
    let (mapped_xid, mapped_db, mapped_rel) = (data.u32()?, data.u32()?, data.u32()?);
    data.skip(4)?; // padding of the C structure
    let offset = u64::try_from(data.i64()?).map_err(|_| "a file offset is negative")?;
    let count = usize::try_from(data.u32()?).map_err(|_| "a count is too large")?;
    data.skip(4)?; // padding
    let start = data.u64()?;
    data.check_room(count, MAPPING_BYTES)?;
    let bytes = data.take(count * MAPPING_BYTES)?;
    data.end()?;
    let file_name = format!(
        "map-{mapped_db:x}-{mapped_rel:x}-{:X}_{:X}-{mapped_xid:x}-{:x}",
        start >> 32,
        start & 0xffff_ffff,
        record.xid
    );
    effects.catalogue.push(CatalogueChange::LogicalRewriteMapping {
        file_name,
        offset,
        bytes,
    });
    Ok(())
}

#[cfg(test)]
#[path = "heap_vm_tests.rs"]
mod tests;
