//! The visibility map (`access/heap/visibilitymap.c`): two bits for each heap page, all-visible and all-frozen.
//!
//! Heap records of Postgres 15 clear bits without naming the map's page; who routes records finds it with
//! heap block / 32672.

use lakebed_types::PAGE_SIZE;

use crate::page::{self, HEADER_BYTES};
use crate::{Fault, PageBytes};

/// Heap pages that one map page covers: 8168 bytes of 4 pages.
pub(crate) const HEAP_BLOCKS_PER_PAGE: u32 = ((PAGE_SIZE - HEADER_BYTES) * 4) as u32;
/// Both bits.
pub(crate) const VALID_BITS: u8 = 3;

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

/// Sets bits of `heap_block` (`visibilitymap_set`): the LSN is stamped only when something changes.
pub(crate) fn set(
    page: &mut PageBytes,
    heap_block: u32,
    flags: u8,
    lsn: lakebed_types::Lsn,
) -> Result<(), Fault> {
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
