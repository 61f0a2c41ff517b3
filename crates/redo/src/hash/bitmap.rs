//! Bitmap pages of a hash index: one bit per overflow page, set while the page is in use. The bits follow the page
//! header.

use super::{NONE, OPAQUE, check, flag, init};
use crate::page::{self, HEADER_BYTES};
use crate::{Fault, PageBytes};

/// `_hash_initbitmapbuffer`: a map of `bytes` bytes in which every page is in use.
pub(super) fn init_page(bytes: u16, page: &mut PageBytes) -> Result<(), Fault> {
    let end = HEADER_BYTES + usize::from(bytes);
    if end > OPAQUE {
        return Err("its bitmap is larger than a page");
    }
    init(page, NONE, NONE, flag::BITMAP);
    page[HEADER_BYTES..end].fill(0xFF);
    page::set_lower(page, end);
    Ok(())
}

/// Marks an overflow page as used or free.
pub(super) fn set_bit(page: &mut PageBytes, number: u32, used: bool) -> Result<(), Fault> {
    check(page)?;
    // Words of 32 bits, little-endian, are bytes of 8 bits.
    let byte = page[HEADER_BYTES..OPAQUE]
        .get_mut((number / 8) as usize)
        .ok_or("its bit is outside the bitmap page")?;
    let bit = 1 << (number % 8);
    if used {
        *byte |= bit
    } else {
        *byte &= !bit
    }
    Ok(())
}
