//! Removing and replacing items of index pages. Without a hole between items, unlike in heap pages: what lies below an item
//! that goes, moves up.
//!
//! The physical order of items that results is part of what redo must get right, so each operation does what the
//! function of Postgres that it names does, or two of these in one.

use super::{
    HEADER_BYTES, ITEM_ID_BYTES, ItemId, ItemState, OFFSET_BITS, check, compact, get_u32, item_count,
    item_id, item_id_at, lower, max_align, put_u32, set_item_id, set_lower, set_upper, special, upper,
};
use crate::{Fault, PageBytes};

/// A line pointer of an index page whose storage is aligned and lies between upper and special.
#[inline]
pub(crate) fn index_item(page: &PageBytes, number: u16) -> Result<ItemId, Fault> {
    let id = item_id(page, number)?;
    let start = usize::from(id.offset);
    let inside = start >= upper(page) && start + usize::from(id.length) <= special(page);
    if inside && start % 8 == 0 && id.length != 0 {
        Ok(id)
    } else {
        Err("an index line pointer is damaged")
    }
}

/// As [`index_item`] for every line pointer of the page; without branches, so that several are done at once.
fn check_index_items(page: &PageBytes) -> Result<(), Fault> {
    let (upper, special) = (upper(page) as u32, special(page) as u32);
    let pointers = HEADER_BYTES..HEADER_BYTES + usize::from(item_count(page)) * ITEM_ID_BYTES;
    let mut bad = false;
    for pointer in page[pointers].as_chunks::<ITEM_ID_BYTES>().0 {
        let bits = u32::from_le_bytes(*pointer);
        let (offset, length) = (bits & OFFSET_BITS, bits >> 17);
        bad |= (offset < upper) | (offset + length > special) | (offset % 8 != 0) | (length == 0);
    }
    if bad {
        return Err("an index line pointer is damaged");
    }
    Ok(())
}

/// `PageIndexTupleDelete`: removes one item and its line pointer.
pub(crate) fn index_delete(page: &mut PageBytes, number: u16) -> Result<(), Fault> {
    check(page)?;
    let id = index_item(page, number)?;
    let at = item_id_at(number);
    let end = lower(page);
    page.copy_within(at + ITEM_ID_BYTES..end, at);
    set_lower(page, lower(page) - ITEM_ID_BYTES);
    shift_items(
        page,
        usize::from(id.offset),
        max_align(usize::from(id.length)) as isize,
    )
}

/// [`index_delete`] and then [`add_item`] at the same place, which leaves the line pointers of the others where they are.
pub(crate) fn index_replace(page: &mut PageBytes, number: u16, bytes: &[u8]) -> Result<(), Fault> {
    check(page)?;
    let id = index_item(page, number)?;
    let length = max_align(usize::from(id.length));
    shift_items(page, usize::from(id.offset), length as isize)?;
    push_item(page, number, bytes)
}

/// [`index_multi_delete`] and then [`add_item`] of `bytes` in each place, in ascending order, which leaves the line
/// pointers of the others where they are. At least three `numbers`, ascending.
pub(crate) fn index_multi_replace<'a>(
    page: &mut PageBytes,
    numbers: &[u16],
    bytes: impl Fn(u16) -> &'a [u8],
) -> Result<(), Fault> {
    check(page)?;
    check_index_items(page)?;
    let mut before = 0;
    for &number in numbers {
        if number <= before {
            return Err("it deletes an item twice");
        }
        set_item_id(page, number, ItemId::UNUSED)?;
        before = number;
    }
    compact(page, false)?;
    numbers
        .iter()
        .try_for_each(|&number| push_item(page, number, bytes(number)))
}

/// Puts an item below all others, for an existing line pointer that leads nowhere any more.
fn push_item(page: &mut PageBytes, number: u16, bytes: &[u8]) -> Result<(), Fault> {
    let start = upper(page)
        .checked_sub(max_align(bytes.len()))
        .filter(|&start| start >= lower(page))
        .ok_or("the page has no room for the new item")?;
    let target = page.get_mut(start..start + bytes.len());
    target
        .ok_or("the page has no room for the new item")?
        .copy_from_slice(bytes);
    set_upper(page, start);
    let id = ItemId {
        offset: start as u16,
        state: ItemState::Normal,
        length: bytes.len() as u16,
    };
    set_item_id(page, number, id)
}

/// Moves everything from `pd_upper` up to `end` by `by` bytes, and the line pointers that lead there.
pub(crate) fn shift_items(page: &mut PageBytes, end: usize, by: isize) -> Result<(), Fault> {
    let from = upper(page);
    let to = from
        .checked_add_signed(by)
        .filter(|&to| to >= lower(page))
        .ok_or("the page has no room")?;
    if to + (end - from) > special(page) {
        return Err("the items are larger than the page");
    }
    page.copy_within(from..end, to);
    set_upper(page, to);
    // Without branches, so that several line pointers are done at once: most records of indexes come here.
    let pointers = HEADER_BYTES..HEADER_BYTES + usize::from(item_count(page)) * ITEM_ID_BYTES;
    let (end, by) = (end as i32, by as u32);
    let mut changed = 0;
    for pointer in page[pointers].as_chunks_mut::<ITEM_ID_BYTES>().0 {
        let old = u32::from_le_bytes(*pointer);
        let moves = (old >> 17 != 0) & ((old & OFFSET_BITS) as i32 <= end);
        let new = old.wrapping_add(if moves { by } else { 0 });
        changed |= old ^ new;
        *pointer = new.to_le_bytes();
    }
    // An offset that left its bits changed the others.
    if changed & !OFFSET_BITS != 0 {
        return Err("an index line pointer is damaged");
    }
    Ok(())
}

/// `PageIndexMultiDelete`: removes several items; numbers in ascending order.
pub(crate) fn index_multi_delete(
    page: &mut PageBytes,
    mut numbers: impl DoubleEndedIterator<Item = u16> + ExactSizeIterator,
) -> Result<(), Fault> {
    // Postgres does few deletions one by one from the end, which leaves another physical order than packing.
    if numbers.len() <= 2 {
        return numbers.rev().try_for_each(|number| index_delete(page, number));
    }
    check(page)?;
    check_index_items(page)?;
    let mut next = numbers.next();
    let mut kept = 0;
    for number in 1..=item_count(page) {
        if next == Some(number) {
            next = numbers.next();
        } else {
            // Never beyond the line pointer that was just read.
            kept += 1;
            put_u32(page, item_id_at(kept), get_u32(page, item_id_at(number)));
        }
    }
    if next.is_some() {
        return Err("it deletes items that the page does not have");
    }
    set_lower(page, HEADER_BYTES + usize::from(kept) * ITEM_ID_BYTES);
    compact(page, false)
}

/// `PageIndexTupleOverwrite`: replaces an item by one of another size, in its place.
pub(crate) fn index_overwrite(page: &mut PageBytes, number: u16, bytes: &[u8]) -> Result<(), Fault> {
    check(page)?;
    let id = index_item(page, number)?;
    let difference = max_align(usize::from(id.length)) as isize - max_align(bytes.len()) as isize;
    if difference != 0 {
        shift_items(page, usize::from(id.offset), difference)?;
    }
    let offset = usize::from(id.offset)
        .checked_add_signed(difference)
        .ok_or("an index line pointer is damaged")?;
    let target = page
        .get_mut(offset..offset + bytes.len())
        .ok_or("an index line pointer is damaged")?;
    target.copy_from_slice(bytes);
    set_item_id(
        page,
        number,
        ItemId {
            offset: offset as u16,
            length: bytes.len() as u16,
            ..id
        },
    )
}
