//! The visibility map (`access/heap/visibilitymap.c`): two bits for each heap page, all-visible and all-frozen.
//!
//! Heap records that clear bits name the map's page from 17.11 and 18.6 on: then it is one of the record's pages
//! ([`clear_named`]). Records of other releases do not; who routes them finds the page with heap block / 32672 and
//! replays [`redo_vm_clear`].

use lakebed_types::{Lsn, PAGE_SIZE};

use crate::page::{self, HEADER_BYTES};
use crate::page_record::PageRecord;
use crate::{Fault, PageBytes, rmgr};

/// Heap pages that one map page covers: 8168 bytes of 4 pages.
pub(crate) const HEAP_BLOCKS_PER_PAGE: u32 = ((PAGE_SIZE - HEADER_BYTES) * 4) as u32;
/// Both bits.
pub(crate) const VALID_BITS: u8 = 3;
const ALL_FROZEN: u8 = 2;

fn place(heap_block: u32) -> (usize, u32) {
    let inside = heap_block % HEAP_BLOCKS_PER_PAGE;
    (HEADER_BYTES + (inside / 4) as usize, inside % 4 * 2)
}

/// Clears bits of `heap_block` in its map page; 1 all-visible, 2 all-frozen, 3 both. A page that was never written is
/// initialised first, as `vm_readbuf` does. The page's LSN stays: Postgres does not bump it either.
pub fn redo_vm_clear(page: &mut PageBytes, heap_block: u32, flags: u8) {
    if page::is_new(page) {
        page::init(page, 0);
    }
    let (byte, shift) = place(heap_block);
    page[byte] &= !((flags & VALID_BITS) << shift);
}

/// Clears the bits of `heap_blocks` and all heap pages after it, in the map page that covers that block: what
/// truncating a heap does to the last kept page of its map (`visibilitymap_prepare_truncate`).
pub fn redo_vm_truncate(page: &mut PageBytes, heap_blocks: u32) {
    if page::is_new(page) {
        page::init(page, 0);
    }
    let (byte, shift) = place(heap_blocks);
    page[byte] &= (1u8 << shift) - 1;
    page[byte + 1..].fill(0);
}

/// Redo of a map page that a heap record names (`heap_xlog_vm_clear` and the beginning of `heap_xlog_update`): clears the
/// bits of the heap pages that its flags are about, and stamps the LSN only if a bit was set.
pub(crate) fn clear_named(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    const OLD: u8 = 1;
    const NEW: u8 = 2;
    let flags_at =
        |at: usize| -> Result<u8, Fault> { record.main.get(at).copied().ok_or("its data ends too early") };
    // Which heap block, and which of its bits.
    let single = |flags: u8, bits: u8| -> Result<_, Fault> {
        let heap_block = record.needed_block(0)?;
        Ok([(flags & 1 != 0).then_some((heap_block, bits)), None])
    };
    let cleared = match (record.rmid, record.info & crate::heap::OPERATION, record.own.id) {
        (rmgr::HEAP, 0x00, 1) => single(flags_at(2)?, VALID_BITS)?,
        (rmgr::HEAP, 0x10, 1) => single(flags_at(7)?, VALID_BITS)?,
        (rmgr::HEAP, 0x60, 1) | (rmgr::HEAP2, 0x60, 1) => single(flags_at(7)?, ALL_FROZEN)?,
        (rmgr::HEAP2, 0x50, 1) => single(flags_at(0)?, VALID_BITS)?,
        (rmgr::HEAP, 0x20 | 0x40, id @ (2 | 3)) => {
            let flags = flags_at(7)?;
            let new_block = record.needed_block(0)?;
            let old_block = record.block(1).unwrap_or(new_block);
            // Reference 2 is the new version's map page. It stands for the old version's too if that is the same.
            let is_old = id == 3 || old_block / HEAP_BLOCKS_PER_PAGE == record.own.block;
            let old = (flags & OLD != 0 && is_old).then_some((old_block, VALID_BITS));
            let new = (flags & NEW != 0 && id == 2).then_some((new_block, VALID_BITS));
            [old, new]
        }
        _ => return Err("a heap record of this type names no map page here"),
    };
    for (heap_block, bits) in cleared.into_iter().flatten() {
        if heap_block / HEAP_BLOCKS_PER_PAGE != record.own.block {
            return Err("its map page does not cover its heap page");
        }
        let (byte, shift) = place(heap_block);
        if page[byte] & bits << shift != 0 {
            page[byte] &= !(bits << shift);
            page::set_lsn(page, record.end);
        }
    }
    Ok(())
}

/// Sets bits of `heap_block` (`visibilitymap_set`): the LSN is stamped only when something changes.
pub(crate) fn set(page: &mut PageBytes, heap_block: u32, flags: u8, lsn: Lsn) -> Result<(), Fault> {
    if page::is_new(page) {
        page::init(page, 0);
    }
    if flags & VALID_BITS == 0 {
        return Err("it sets no visibility bit");
    }
    let (byte, shift) = place(heap_block);
    // Compared with all flag bits of the record, as Postgres does; only the two bits are stored.
    if flags != page[byte] >> shift & VALID_BITS {
        page[byte] |= (flags & VALID_BITS) << shift;
        page::set_lsn(page, lsn);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
