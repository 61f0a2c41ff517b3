//! What Postgres itself allows to differ between a page and its replayed copy (`access/common/bufmask.c` and the mask
//! function of each resource manager), blanked so that the rest can be compared byte for byte.
//!
//! Always: LSN, checksum, hint flags of the header, free space. Heap: hint bits and command ids. B-tree: dead flags of
//! leaf items and vacuum bookkeeping. Hash: dead flags of items, freed pages. GIN: deleted pages. GiST: dead flags of
//! leaf items, garbage flag, and the mark of a finished split. BRIN: the mark of a page that is emptied.

use std::ops::Range;

use lakebed_types::PAGE_SIZE;

use crate::PageBytes;
use crate::brin;
use crate::gin;
use crate::gist;
use crate::hash;
use crate::heap::tuple;
use crate::page::{self, ItemState, get_u16, get_u32, put_u16, put_u32};
use crate::rmgr;

/// Masks a page as `wal_consistency_checking` does for a record of this resource manager.
pub fn for_record(rmid: u8, page: &mut PageBytes, block: u32) {
    if page::is_new(page) {
        return;
    }
    match rmid {
        rmgr::HEAP | rmgr::HEAP2 => heap(page, block),
        rmgr::BTREE => btree(page),
        rmgr::HASH => hash(page),
        rmgr::BRIN => brin(page),
        rmgr::GENERIC => generic(page),
        rmgr::GIN => gin_page(page),
        rmgr::GIST => gist(page),
        _ => common(page),
    }
}

/// Masks a page and what it is to be compared with: what was equal or becomes so under [`for_record`] is equal after it.
pub fn both_for_record(rmid: u8, ours: &mut PageBytes, theirs: &mut PageBytes, block: u32) {
    let heap = matches!(rmid, rmgr::HEAP | rmgr::HEAP2);
    if heap && !page::is_new(ours) && !page::is_new(theirs) {
        heap_pair(ours, theirs, block);
    } else {
        for_record(rmid, ours, block);
        for_record(rmid, theirs, block);
    }
}

/// Masks a page whose kind must be told from its special area: for comparing files.
pub fn by_layout(page: &mut PageBytes, block: u32) {
    if page::is_new(page) {
        return;
    }
    match PAGE_SIZE.saturating_sub(page::special(page)) {
        0 => heap(page, block),
        // The last two bytes are a page kind from 0xFF80 on in the other access methods.
        16 if get_u16(page, PAGE_SIZE - 2) < 0xFF80 => btree(page),
        16 if get_u16(page, PAGE_SIZE - 2) == hash::PAGE_ID => hash(page),
        8 if (brin::kind::META..=brin::kind::REGULAR).contains(&get_u16(page, brin::KIND)) => brin(page),
        // SP-GiST and BRIN have a page kind from 0xF000 on where GIN has flags.
        8 if get_u16(page, PAGE_SIZE - 2) < 0xF000 => gin_page(page),
        16 if get_u16(page, PAGE_SIZE - 2) == gist::PAGE_KIND => gist(page),
        _ => common(page),
    }
}

/// Masks a visibility map page: only LSN and checksum may differ.
pub fn visibility_map(page: &mut PageBytes) {
    lsn_and_checksum(page);
}

/// Masks what differs between any two copies of a page.
pub fn lsn_and_checksum(page: &mut PageBytes) {
    page[0..10].fill(0);
}

fn common(page: &mut PageBytes) {
    lsn_and_checksum(page);
    hints(page);
    free_space(page);
}

fn hints(page: &mut PageBytes) {
    put_u32(page, 20, 0);
    page::clear_flags(page, page::HINTS);
}

fn free_space(page: &mut PageBytes) {
    let (lower, upper) = (page::lower(page), page::upper(page));
    if lower >= page::HEADER_BYTES && lower <= upper && upper <= PAGE_SIZE {
        page[lower..upper].fill(0);
    }
}

fn heap(page: &mut PageBytes, block: u32) {
    common(page);
    for number in 1..=page::item_count(page) {
        let Ok(id) = page::item_id(page, number) else {
            return;
        };
        heap_item(page, number, id, block);
    }
}

/// Masks what a line pointer points to, and the padding behind it.
fn heap_item(page: &mut PageBytes, number: u16, id: page::ItemId, block: u32) {
    let Some(place) = place_of(id) else {
        return;
    };
    let start = place.start;
    if id.state == ItemState::Normal && usize::from(id.length) >= tuple::HEADER {
        let infomask = get_u16(page, start + tuple::INFOMASK);
        put_u16(page, start + tuple::INFOMASK, infomask & !heap_hints(infomask));
        put_u32(page, start + tuple::FIELD3, 0);
        // A speculative insertion's token is not in WAL.
        if get_u16(page, start + tuple::CTID + 4) == SPECULATIVE {
            put_u16(page, start + tuple::CTID, (block >> 16) as u16);
            put_u16(page, start + tuple::CTID + 2, block as u16);
            put_u16(page, start + tuple::CTID + 4, number);
        }
    }
    page[start + usize::from(id.length)..place.end].fill(0);
}

/// Whether a heap page is surely equal to an image under [`for_record`], told without copying or changing either.
/// `before` and `after` are the image's bytes before and after its hole, which must be all of its free space. False says
/// that only the masks themselves can tell.
///
/// The pages have the same line pointers, whose items cover everything behind the free space without overlapping, and
/// items differ in nothing but what [`heap_item`] blanks.
pub fn heap_surely_equal(ours: &PageBytes, before: &[u8], after: &[u8]) -> bool {
    let (lower, upper) = (page::lower(ours), page::upper(ours));
    let stored_ends = PAGE_SIZE.checked_sub(after.len()) == Some(upper);
    if lower < page::HEADER_BYTES || lower > upper || lower != before.len() || !stored_ends {
        return false;
    }
    let flags = |page: &[u8]| u16::from_le_bytes([page[10], page[11]]) & !page::HINTS;
    if flags(ours) != flags(before) || ours[12..20] != before[12..20] || ours[24..lower] != before[24..] {
        return false;
    }
    let stored = &ours[upper..];
    if stored == after {
        return true;
    }
    let (pieces, rest) = stored.as_chunks::<PIECE>();
    // What is left over behind the last whole piece is looked at in any case.
    let mut differing = if rest.is_empty() {
        0
    } else {
        1_u128 << pieces.len()
    };
    for (number, (ours, theirs)) in pieces.iter().zip(after.as_chunks::<PIECE>().0).enumerate() {
        differing |= u128::from(differs(ours, theirs)) << number;
    }
    let mut covered = Coverage::default();
    for number in 1..=page::item_count(ours) {
        let at = page::HEADER_BYTES + 4 * usize::from(number - 1);
        let id = page::ItemId::from_bits(get_u32(ours, at));
        if id.length == 0 {
            continue;
        }
        let Some(place) = place_of(id).filter(|place| place.start >= upper && place.start.is_multiple_of(8))
        else {
            return false;
        };
        let (start, end) = (place.start - upper, place.end - upper);
        covered.add(place);
        let (first, last) = (start / PIECE, (end - 1) / PIECE);
        let touched = u128::MAX << first & u128::MAX >> (PIECES - 1 - last);
        if differing & touched != 0 && !heap_items_surely_equal(id, &stored[start..end], &after[start..end]) {
            return false;
        }
    }
    covered.bytes() == PAGE_SIZE - upper
}

/// As [`heap_item`] masks, for two items under the same line pointer with their padding.
fn heap_items_surely_equal(id: page::ItemId, ours: &[u8], theirs: &[u8]) -> bool {
    let length = usize::from(id.length);
    if id.state != ItemState::Normal || length < tuple::HEADER {
        return ours[..length] == theirs[..length];
    }
    let u16_at = |item: &[u8], at: usize| u16::from_le_bytes([item[at], item[at + 1]]);
    let infomask = |item: &[u8]| {
        let infomask = u16_at(item, tuple::INFOMASK);
        infomask & !heap_hints(infomask)
    };
    ours[..tuple::FIELD3] == theirs[..tuple::FIELD3]
        && ours[tuple::CTID..tuple::INFOMASK] == theirs[tuple::CTID..tuple::INFOMASK]
        && infomask(ours) == infomask(theirs)
        && ours[tuple::INFOMASK + 2..length] == theirs[tuple::INFOMASK + 2..length]
        && u16_at(ours, tuple::CTID + 4) != SPECULATIVE
}

/// Offset number in the place of a tuple's successor while its insertion is speculative.
const SPECULATIVE: u16 = 0xFFFE;

/// Hint bits of a tuple's infomask (xmin and xmax committed or invalid) and the combo flag: stricter than Postgres, which
/// also blanks the lock bits.
fn heap_hints(infomask: u16) -> u16 {
    let frozen = infomask & 0x0300 == 0x0300;
    (if frozen { 0x0C00 } else { 0x0F00 }) | tuple::COMBOCID
}

/// Which eight bytes of a page belong to an item.
#[derive(Default)]
struct Coverage([u64; PAGE_SIZE / 8 / 64]);

impl Coverage {
    /// Adds a place of whole eight bytes, which is not empty.
    fn add(&mut self, place: Range<usize>) {
        let (first, last) = (place.start / 8, place.end / 8 - 1);
        for word in first / 64..=last / 64 {
            let from = if word == first / 64 {
                u64::MAX << (first % 64)
            } else {
                u64::MAX
            };
            let to = if word == last / 64 {
                u64::MAX >> (63 - last % 64)
            } else {
                u64::MAX
            };
            self.0[word] |= from & to;
        }
    }

    /// How many bytes were added, those that were added twice counted once.
    fn bytes(&self) -> usize {
        self.0.iter().map(|bits| bits.count_ones() as usize * 8).sum()
    }
}

/// Where an item lies, padding included, if it has storage on the page.
fn place_of(id: page::ItemId) -> Option<Range<usize>> {
    let start = usize::from(id.offset);
    let end = start + page::max_align(usize::from(id.length));
    (id.length > 0 && end <= PAGE_SIZE).then_some(start..end)
}

/// Masks two heap pages. Under the same line pointers items that are equal are left as they are: masking would leave
/// them equal, and most of them are.
fn heap_pair(ours: &mut PageBytes, theirs: &mut PageBytes, block: u32) {
    common(ours);
    common(theirs);
    let lower = page::lower(ours).min(PAGE_SIZE);
    if ours[..lower] != theirs[..lower] {
        heap(ours, block);
        heap(theirs, block);
        return;
    }
    let differing = differing_pieces(ours, theirs);
    for number in 1..=page::item_count(ours) {
        // Not `page::item_id`, which checks more: this is the loop that a verification spends most time in.
        let at = page::HEADER_BYTES + 4 * usize::from(number - 1);
        let id = page::ItemId::from_bits(get_u32(ours, at));
        let Some(place) = place_of(id) else {
            continue;
        };
        // The place is not empty.
        if differing[place.start / PIECE..=(place.end - 1) / PIECE].contains(&true) {
            heap_item(ours, number, id, block);
            heap_item(theirs, number, id, block);
        }
    }
}

/// Bytes of a page that are compared at a time.
const PIECE: usize = 64;
const PIECES: usize = PAGE_SIZE / PIECE;

/// Which pieces the two pages differ in.
fn differing_pieces(ours: &PageBytes, theirs: &PageBytes) -> [bool; PIECES] {
    let mut differing = [false; PIECES];
    let (ours, theirs) = (ours.as_chunks::<PIECE>().0, theirs.as_chunks::<PIECE>().0);
    for (differing, (ours, theirs)) in differing.iter_mut().zip(ours.iter().zip(theirs)) {
        *differing = differs(ours, theirs);
    }
    differing
}

/// Without a branch or a call, which comparing the arrays would be.
#[inline]
fn differs(ours: &[u8; PIECE], theirs: &[u8; PIECE]) -> bool {
    let different = ours.iter().zip(theirs).map(|(ours, theirs)| ours ^ theirs);
    different.fold(0, |all, bits| all | bits) != 0
}

fn btree(page: &mut PageBytes) {
    common(page);
    let flags = get_u16(page, PAGE_SIZE - 4);
    // Leaf: dead marks on items are set without WAL.
    if flags & 1 != 0 {
        item_states(page);
    }
    put_u16(page, PAGE_SIZE - 4, flags & !(1 << 5 | 1 << 6));
    put_u16(page, PAGE_SIZE - 2, 0);
}

fn gin_page(page: &mut PageBytes) {
    let unmasked = *page;
    common(page);
    if page::special(page) == PAGE_SIZE - 8 && get_u16(page, gin::FLAGS) & gin::flag::DELETED != 0 {
        page[12..16].fill(0);
        page[page::HEADER_BYTES..].fill(0);
    } else if page::lower(page) == page::HEADER_BYTES {
        // Postgres before 9.4 did not keep the end of a posting tree page's content in the header.
        page[page::HEADER_BYTES..].copy_from_slice(&unmasked[page::HEADER_BYTES..]);
    }
}

/// `gist_mask`. NSN and the flag that asks to follow the right link are written after the record that finishes a split.
fn gist(page: &mut PageBytes) {
    common(page);
    let flags = get_u16(page, gist::FLAGS);
    if flags & gist::flag::LEAF != 0 {
        item_states(page);
    }
    page[gist::OPAQUE..gist::OPAQUE + 8].fill(0);
    put_u16(
        page,
        gist::FLAGS,
        flags & !(gist::flag::FOLLOW_RIGHT | gist::flag::HAS_GARBAGE),
    );
}

/// `mask_lp_flags`: the state of every line pointer in use.
fn item_states(page: &mut PageBytes) {
    for number in 1..=page::item_count(page) {
        let Ok(id) = page::item_id(page, number) else {
            return;
        };
        if id.state != ItemState::Unused {
            let unused = page::ItemId {
                state: ItemState::Unused,
                ..id
            };
            let _ = page::set_item_id(page, number, unused);
        }
    }
}

fn hash(page: &mut PageBytes) {
    common(page);
    let flags = get_u16(page, hash::FLAGS);
    match flags & hash::flag::KIND {
        // A freed page: nothing in it matters.
        hash::flag::UNUSED => {
            page[12..16].fill(0);
            page[page::HEADER_BYTES..].fill(0);
            return;
        }
        // Dead marks on items are set without WAL.
        hash::flag::BUCKET | hash::flag::OVERFLOW => {
            item_states(page);
        }
        _ => {}
    }
    put_u16(page, hash::FLAGS, flags & !hash::flag::HAS_DEAD_TUPLES);
}

fn brin(page: &mut PageBytes) {
    lsn_and_checksum(page);
    hints(page);
    // The range map is where other pages have free space; old versions of Postgres left the metapage's `pd_lower` at
    // its start.
    let masked = match get_u16(page, brin::KIND) {
        brin::kind::REGULAR => true,
        brin::kind::META => page::lower(page) > page::HEADER_BYTES,
        _ => false,
    };
    if masked {
        free_space(page);
    }
    put_u16(page, brin::FLAGS, get_u16(page, brin::FLAGS) & !brin::EVACUATE);
}

fn generic(page: &mut PageBytes) {
    lsn_and_checksum(page);
    free_space(page);
}

#[cfg(test)]
mod tests;
