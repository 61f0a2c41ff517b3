//! The metapage and the list of pending entries: whole rows' tuples, in pages of their own until they are moved into
//! the entry tree.

use super::{COUNT, NO_BLOCK, NOT_THIS_PAGE, RIGHT};
use super::{check, flag, init, take_tuple};
use crate::page::{self, HEADER_BYTES, Place, get_u16, put_u16, put_u32};
use crate::page_record::BlockView;
use crate::reader::Reader;
use crate::{Fault, PageBytes};

/// Bytes of `GinMetaPageData`, of which redo needs to know no field.
const META: usize = 56;

fn restore_meta(page: &mut PageBytes, meta: &[u8]) {
    init(page, flag::META);
    page[HEADER_BYTES..HEADER_BYTES + META].copy_from_slice(meta);
    page::set_lower(page, HEADER_BYTES + META);
}

/// Adds the tuples in the block's data after the page's last.
fn append(page: &mut PageBytes, block: &BlockView<'_>, count: u32) -> Result<(), Fault> {
    let mut data = Reader::new(block.needed_data()?);
    for _ in 0..count {
        let tuple = take_tuple(&mut data)?;
        page::add_item(page, tuple, page::item_count(page) + 1, Place::Insert)?;
    }
    if data.is_empty() {
        Ok(())
    } else {
        Err("bytes are left after its tuples")
    }
}

/// Main data: relation (12 bytes), padding, metapage, block of the old tail (only whether there is one matters), the
/// tail's new right neighbour, number of tuples that go to the tail; without any, a new list was put after the tail.
pub(super) fn update_meta(
    mut main: Reader<'_>,
    block: &BlockView<'_>,
    page: &mut PageBytes,
) -> Result<(), Fault> {
    main.take(12 + 4)?;
    let meta = main.take(META)?;
    let (old_tail, right, count) = (main.u32()?, main.u32()?, main.u32()? as i32);
    match block.id {
        0 => restore_meta(page, meta),
        1 if count > 0 => {
            check(page)?;
            append(page, block, count.unsigned_abs())?;
            let rows = get_u16(page, COUNT);
            put_u16(page, COUNT, rows.wrapping_add(1));
        }
        1 if old_tail != NO_BLOCK => {
            check(page)?;
            put_u32(page, RIGHT, right);
        }
        _ => return Err(NOT_THIS_PAGE),
    }
    Ok(())
}

/// Main data: right neighbour, number of tuples. The last page of a list of several holds the end of the one row.
pub(super) fn insert_page(
    mut main: Reader<'_>,
    block: &BlockView<'_>,
    page: &mut PageBytes,
) -> Result<(), Fault> {
    let (right, count) = (main.u32()?, main.u32()?);
    if right == NO_BLOCK {
        init(page, flag::LIST | flag::LIST_FULL_ROW);
        put_u16(page, COUNT, 1);
    } else {
        init(page, flag::LIST);
        put_u32(page, RIGHT, right);
    }
    append(page, block, count)
}

/// Main data: metapage, number of deleted pages. Block 0 is the metapage, all others are deleted pages.
pub(super) fn delete_pages(
    mut main: Reader<'_>,
    block: &BlockView<'_>,
    page: &mut PageBytes,
) -> Result<(), Fault> {
    let meta = main.take(META)?;
    let count = main.u32()?;
    if block.id == 0 {
        restore_meta(page, meta);
    } else if u32::from(block.id) <= count {
        init(page, flag::DELETED);
    } else {
        return Err(NOT_THIS_PAGE);
    }
    Ok(())
}
