//! Layout of a Postgres page (`storage/bufpage.h`, `storage/itemid.h`) and the operations on it that redo uses.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `pd_lsn`: high half, then low half, each little-endian |
//! | 8..10 | `pd_checksum` |
//! | 10..12 | `pd_flags` |
//! | 12..14 | `pd_lower`: end of line pointers |
//! | 14..16 | `pd_upper`: start of tuples |
//! | 16..18 | `pd_special`: start of the access method's own data |
//! | 18..20 | page size and layout version |
//! | 20..24 | `pd_prune_xid` |
//! | 24.. | line pointers, 4 bytes each: offset 15 bits, flags 2, length 15 |
//!
//! Offsets of items are 1-based, as in Postgres. Pages come from storage that checks its own bytes, but a bug or a
//! forged record may still lead to nonsense, so every access is bounds-checked and answers with a fault.

mod index;

use std::ops::Range;

use lakebed_types::{Lsn, PAGE_SIZE};

use crate::Fault;

pub(crate) use index::{
    index_delete, index_item, index_multi_delete, index_multi_replace, index_overwrite, index_replace,
    shift_items,
};

/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// Bytes of the fixed page header (`SizeOfPageHeaderData`).
pub const HEADER_BYTES: usize = 24;
/// Bytes of a line pointer.
const ITEM_ID_BYTES: usize = 4;
/// The bits of a line pointer that are the offset.
const OFFSET_BITS: u32 = 0x7FFF;
/// No page has more line pointers.
pub(crate) const MAX_ITEMS: usize = (PAGE_SIZE - HEADER_BYTES) / ITEM_ID_BYTES;
/// `MaxHeapTuplesPerPage`.
const MAX_HEAP_TUPLES: u16 = 291;

/// `PD_HAS_FREE_LINES`: a hint that an unused line pointer exists.
pub const HAS_FREE_LINES: u16 = 1;
/// `PD_PAGE_FULL`: a hint.
pub const PAGE_FULL: u16 = 2;
/// `PD_ALL_VISIBLE`.
pub const ALL_VISIBLE: u16 = 4;
/// The flags that differ between a page and its replayed copy.
pub(crate) const HINTS: u16 = HAS_FREE_LINES | PAGE_FULL | ALL_VISIBLE;

/// State of a line pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// `LP_UNUSED`.
    Unused = 0,
    /// `LP_NORMAL`.
    Normal = 1,
    /// `LP_REDIRECT`: `offset` is another item's number.
    Redirect = 2,
    /// `LP_DEAD`.
    Dead = 3,
}

/// A line pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemId {
    /// Byte offset of the item in the page, or the target of a redirect.
    pub offset: u16,
    /// State.
    pub state: ItemState,
    /// Bytes of the item; 0 when it has no storage.
    pub length: u16,
}

impl ItemId {
    /// An unused line pointer.
    pub const UNUSED: ItemId = ItemId {
        offset: 0,
        state: ItemState::Unused,
        length: 0,
    };
    /// A dead line pointer without storage.
    pub const DEAD: ItemId = ItemId {
        offset: 0,
        state: ItemState::Dead,
        length: 0,
    };

    #[inline]
    pub(crate) fn from_bits(bits: u32) -> ItemId {
        let state = match bits >> 15 & 3 {
            0 => ItemState::Unused,
            1 => ItemState::Normal,
            2 => ItemState::Redirect,
            _ => ItemState::Dead,
        };
        ItemId {
            offset: (bits & OFFSET_BITS) as u16,
            state,
            length: (bits >> 17) as u16,
        }
    }

    #[inline]
    fn to_bits(self) -> u32 {
        u32::from(self.offset) | (self.state as u32) << 15 | u32::from(self.length) << 17
    }
}

/// Rounds up to Postgres's maximal alignment.
#[inline]
pub const fn max_align(length: usize) -> usize {
    (length + 7) & !7
}

#[inline]
pub(crate) fn get_u16(page: &PageBytes, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// Overwrites `N` bytes of the page; `at` lies on it, as with an index.
#[inline]
fn put<const N: usize>(page: &mut PageBytes, at: usize, bytes: [u8; N]) {
    // Not `copy_from_slice`, which is a call of memcpy even for two bytes.
    match page[at..].first_chunk_mut() {
        Some(place) => *place = bytes,
        None => panic!("{N} bytes at {at} are not on a page"),
    }
}

#[inline]
pub(crate) fn put_u16(page: &mut PageBytes, at: usize, value: u16) {
    put(page, at, value.to_le_bytes());
}

#[inline]
pub(crate) fn get_u32(page: &PageBytes, at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

#[inline]
pub(crate) fn put_u32(page: &mut PageBytes, at: usize, value: u32) {
    put(page, at, value.to_le_bytes());
}

/// The LSN that the page carries.
#[inline]
pub fn lsn(page: &PageBytes) -> Lsn {
    Lsn(u64::from(get_u32(page, 0)) << 32 | u64::from(get_u32(page, 4)))
}

/// Stamps the LSN.
#[inline]
pub fn set_lsn(page: &mut PageBytes, lsn: Lsn) {
    put_u32(page, 0, (lsn.0 >> 32) as u32);
    put_u32(page, 4, lsn.0 as u32);
}

/// `PageIsNew`: never initialised.
#[inline]
pub fn is_new(page: &PageBytes) -> bool {
    upper(page) == 0
}

/// `pd_flags`.
#[inline]
pub fn flags(page: &PageBytes) -> u16 {
    get_u16(page, 10)
}

/// Sets bits of `pd_flags`.
#[inline]
pub fn set_flags(page: &mut PageBytes, bits: u16) {
    put_u16(page, 10, flags(page) | bits);
}

/// Clears bits of `pd_flags`.
#[inline]
pub fn clear_flags(page: &mut PageBytes, bits: u16) {
    put_u16(page, 10, flags(page) & !bits);
}

/// `pd_lower`.
#[inline]
pub fn lower(page: &PageBytes) -> usize {
    usize::from(get_u16(page, 12))
}

/// `pd_upper`.
#[inline]
pub fn upper(page: &PageBytes) -> usize {
    usize::from(get_u16(page, 14))
}

/// `pd_special`.
#[inline]
pub fn special(page: &PageBytes) -> usize {
    usize::from(get_u16(page, 16))
}

#[inline]
pub(crate) fn set_lower(page: &mut PageBytes, value: usize) {
    put_u16(page, 12, value as u16);
}

/// Forgets the last line pointer; there must be one.
pub(crate) fn drop_last_line_pointer(page: &mut PageBytes) {
    set_lower(page, lower(page) - ITEM_ID_BYTES);
}

#[inline]
pub(crate) fn set_upper(page: &mut PageBytes, value: usize) {
    put_u16(page, 14, value as u16);
}

/// `PageInit`: an empty page with `special` bytes at its end.
pub fn init(page: &mut PageBytes, special: usize) {
    let special = PAGE_SIZE - max_align(special);
    page.fill(0);
    set_lower(page, HEADER_BYTES);
    set_upper(page, special);
    put_u16(page, 16, special as u16);
    put_u16(page, 18, PAGE_SIZE as u16 | 4);
}

/// `PageSetPrunable`: lowers the hint of the oldest transaction whose work might be pruned.
pub(crate) fn set_prunable(page: &mut PageBytes, xid: u32) {
    let old = get_u32(page, 20);
    if old == 0 || xid_precedes(xid, old) {
        put_u32(page, 20, xid);
    }
}

/// `TransactionIdPrecedes`: circular for normal ids, plain for the three special ones.
fn xid_precedes(a: u32, b: u32) -> bool {
    if a < 3 || b < 3 {
        a < b
    } else {
        (a.wrapping_sub(b) as i32) < 0
    }
}

/// Checks that the header's three pointers are in order and inside the page.
#[inline]
pub(crate) fn check(page: &PageBytes) -> Result<(), Fault> {
    let (lower, upper, special) = (lower(page), upper(page), special(page));
    if HEADER_BYTES <= lower && lower <= upper && upper <= special && special <= PAGE_SIZE {
        Ok(())
    } else if is_new(page) {
        Err("the page has no content before this record")
    } else {
        Err("the page's header is damaged")
    }
}

/// `PageGetMaxOffsetNumber`: the number of line pointers.
#[inline]
pub fn item_count(page: &PageBytes) -> u16 {
    (lower(page).min(PAGE_SIZE).saturating_sub(HEADER_BYTES) / ITEM_ID_BYTES) as u16
}

/// The line pointer with this 1-based number.
#[inline]
pub fn item_id(page: &PageBytes, number: u16) -> Result<ItemId, Fault> {
    if number == 0 || number > item_count(page) {
        return Err("it names a line pointer that the page does not have");
    }
    Ok(ItemId::from_bits(get_u32(page, item_id_at(number))))
}

#[inline]
fn item_id_at(number: u16) -> usize {
    HEADER_BYTES + (usize::from(number) - 1) * ITEM_ID_BYTES
}

#[inline]
pub(crate) fn set_item_id(page: &mut PageBytes, number: u16, item: ItemId) -> Result<(), Fault> {
    item_id(page, number)?;
    put_u32(page, item_id_at(number), item.to_bits());
    Ok(())
}

/// The bytes of an item that has storage.
#[inline]
pub fn item(page: &PageBytes, number: u16) -> Result<&[u8], Fault> {
    let id = stored_item(page, number)?;
    let start = usize::from(id.offset);
    page.get(start..start + usize::from(id.length))
        .ok_or("a line pointer leads outside the page")
}

/// The bytes of an item that has storage, to change.
#[inline]
pub(crate) fn item_mut(page: &mut PageBytes, number: u16) -> Result<&mut [u8], Fault> {
    let id = stored_item(page, number)?;
    let start = usize::from(id.offset);
    page.get_mut(start..start + usize::from(id.length))
        .ok_or("a line pointer leads outside the page")
}

/// A line pointer with storage that lies between the line pointers and the page's end.
#[inline]
fn stored_item(page: &PageBytes, number: u16) -> Result<ItemId, Fault> {
    let id = item_id(page, number)?;
    if id.length == 0 {
        return Err("it needs an item that has no storage");
    }
    let start = usize::from(id.offset);
    if start < lower(page) || start + usize::from(id.length) > PAGE_SIZE {
        return Err("a line pointer leads outside the page");
    }
    Ok(id)
}

/// How [`add_item`] treats an existing line pointer at its place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Heap: the line pointer must be unused, or the next new one.
    HeapSlot,
    /// BRIN: as in a heap page, without its limit of items.
    Slot,
    /// Index: later line pointers move up by one.
    Insert,
}

/// `PageAddItemExtended` at a given offset number.
#[inline]
pub(crate) fn add_item(page: &mut PageBytes, bytes: &[u8], number: u16, place: Place) -> Result<(), Fault> {
    reserve_item(page, bytes.len(), number, place)?.copy_from_slice(bytes);
    Ok(())
}

/// Like [`add_item`], for an item that the caller writes into its place. What was there before is still there.
pub(crate) fn reserve_item(
    page: &mut PageBytes,
    length: usize,
    number: u16,
    place: Place,
) -> Result<&mut [u8], Fault> {
    check(page)?;
    let limit = item_count(page) + 1;
    if number == 0 || number > limit {
        return Err("the new item's number is beyond the next free one");
    }
    let mut shuffle = false;
    if number < limit {
        match place {
            Place::HeapSlot | Place::Slot => {
                let old = item_id(page, number)?;
                if old.state != ItemState::Unused || old.length != 0 {
                    return Err("the new item's line pointer is in use");
                }
            }
            Place::Insert => shuffle = true,
        }
    }
    if place == Place::HeapSlot && number > MAX_HEAP_TUPLES {
        return Err("more items than a heap page can have");
    }
    let grows = number == limit || shuffle;
    let old_lower = lower(page);
    let new_lower = if grows {
        old_lower + ITEM_ID_BYTES
    } else {
        old_lower
    };
    // Longer than a page it may be by a forged length; then it has no room either.
    let new_upper = upper(page)
        .checked_sub(max_align(length.min(2 * PAGE_SIZE)))
        .ok_or("the page has no room for the new item")?;
    if new_lower > new_upper {
        return Err("the page has no room for the new item");
    }
    let at = item_id_at(number);
    if shuffle {
        page.copy_within(at..old_lower, at + ITEM_ID_BYTES);
    }
    let id = ItemId {
        offset: new_upper as u16,
        state: ItemState::Normal,
        length: length as u16,
    };
    put_u32(page, at, id.to_bits());
    set_lower(page, new_lower);
    set_upper(page, new_upper);
    Ok(&mut page[new_upper..new_upper + length])
}

/// Fills an empty page with `count` items that lie in `data` in the order of their addresses on the page, which is the
/// reverse of their numbers. `first` tells the length, a multiple of the alignment, of the item at the start of some
/// bytes.
pub(crate) fn fill_with_items(
    page: &mut PageBytes,
    data: &[u8],
    count: usize,
    first: impl Fn(&[u8]) -> Result<usize, Fault>,
) -> Result<(), Fault> {
    check(page)?;
    let new_lower = HEADER_BYTES + count * ITEM_ID_BYTES;
    let new_upper = special(page)
        .checked_sub(data.len())
        .filter(|&upper| new_lower <= upper)
        .ok_or("the page has no room for the new item")?;
    page[new_upper..new_upper + data.len()].copy_from_slice(data);
    let mut at = 0;
    for number in (1..=count).rev() {
        let length = first(&data[at..])?;
        let id = ItemId {
            offset: (new_upper + at) as u16,
            state: ItemState::Normal,
            length: length as u16,
        };
        put_u32(page, HEADER_BYTES + (number - 1) * ITEM_ID_BYTES, id.to_bits());
        at += length;
    }
    set_lower(page, new_lower);
    set_upper(page, new_upper);
    Ok(())
}

/// Packs the items that have storage against the special area, in the order of their numbers.
/// `descending`: each lies below those with smaller numbers.
fn compact(page: &mut PageBytes, descending: bool) -> Result<(), Fault> {
    let floor = lower(page);
    let mut top = special(page);
    // In descending order no item moves onto one that still has to move; otherwise they are taken from a copy.
    let old = if descending { None } else { Some(*page) };
    // Neighbours stay neighbours, mostly, and are moved together: bytes on the old page, and where they begin now.
    let mut run = (top..top, top);
    let moved = |items: &mut [u8], (from, to): (Range<usize>, usize)| {
        if from.start == to {
            return;
        }
        let to = to - floor;
        match &old {
            Some(old) => items[to..to + from.len()].copy_from_slice(&old[from]),
            None => items.copy_within(from.start - floor..from.end - floor, to),
        }
    };
    let (pointers, items) = page.split_at_mut(floor);
    for pointer in pointers[HEADER_BYTES..].as_chunks_mut::<ITEM_ID_BYTES>().0 {
        let bits = u32::from_le_bytes(*pointer);
        let length = max_align((bits >> 17) as usize);
        if length == 0 {
            continue;
        }
        let start = (bits & OFFSET_BITS) as usize;
        if start < floor || start + length > PAGE_SIZE {
            return Err("a line pointer leads outside the page");
        }
        top = top
            .checked_sub(length)
            .filter(|&top| top >= floor)
            .ok_or("the items are larger than the page")?;
        if start + length == run.0.start {
            run = (start..run.0.end, top);
        } else {
            moved(items, std::mem::replace(&mut run, (start..start + length, top)));
        }
        *pointer = (bits & !OFFSET_BITS | top as u32).to_le_bytes();
    }
    moved(items, run);
    set_upper(page, top);
    Ok(())
}

/// `PageRepairFragmentation`: closes the gaps of a heap page and drops unused line pointers at the end.
pub(crate) fn repair_fragmentation(page: &mut PageBytes) -> Result<(), Fault> {
    check(page)?;
    let count = item_count(page);
    let stored = upper(page)..special(page);
    let (mut last_used, mut unused, mut outside) = (0, 0, false);
    let (mut descending, mut last_start) = (true, special(page));
    let pointers = &mut page[HEADER_BYTES..][..usize::from(count) * ITEM_ID_BYTES];
    for (number, pointer) in (1..).zip(pointers.as_chunks_mut::<ITEM_ID_BYTES>().0) {
        let id = ItemId::from_bits(u32::from_le_bytes(*pointer));
        if id.state == ItemState::Unused {
            *pointer = ItemId::UNUSED.to_bits().to_le_bytes();
            unused += 1;
            continue;
        }
        last_used = number;
        if id.length != 0 {
            let start = usize::from(id.offset);
            outside |= !stored.contains(&start);
            descending &= start + max_align(usize::from(id.length)) <= last_start;
            last_start = start;
        }
    }
    if outside {
        return Err("a line pointer leads outside the page's items");
    }
    compact(page, descending)?;
    let dropped = count - last_used;
    set_lower(page, lower(page) - usize::from(dropped) * ITEM_ID_BYTES);
    set_free_lines_hint(page, unused > dropped);
    Ok(())
}

/// `PageTruncateLinePointerArray`: drops unused line pointers at the end, but keeps the first.
pub(crate) fn truncate_line_pointers(page: &mut PageBytes) -> Result<(), Fault> {
    let count = item_count(page);
    let mut keep = count;
    while keep > 1 && item_id(page, keep)?.state == ItemState::Unused {
        keep -= 1;
    }
    let mut free = false;
    for number in 1..=keep {
        free |= item_id(page, number)?.state == ItemState::Unused;
    }
    set_lower(page, lower(page) - usize::from(count - keep) * ITEM_ID_BYTES);
    set_free_lines_hint(page, free);
    Ok(())
}

fn set_free_lines_hint(page: &mut PageBytes, free: bool) {
    if free {
        set_flags(page, HAS_FREE_LINES)
    } else {
        clear_flags(page, HAS_FREE_LINES)
    }
}

#[cfg(test)]
mod tests;
