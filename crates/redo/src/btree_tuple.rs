//! Index tuples of B-trees (`access/itup.h`, `access/nbtree.h`) and posting lists, where they lie in a page or record.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2, 2..4 | block of the TID, high half first; posting list: its offset in the tuple |
//! | 4..6 | item number of the TID; posting list: 0x2000 and the number of TIDs |
//! | 6..8 | size (13 bits), 0x2000 "alternative TID", 0x4000 variable width, 0x8000 nulls |

use crate::Fault;
use crate::page::max_align;

const HEADER: usize = 8;
const SIZE_MASK: u16 = 0x1FFF;
const ALT_TID: u16 = 0x2000;
const IS_POSTING: u16 = 0x2000;
const COUNT_MASK: u16 = 0x0FFF;
/// Bytes of an `ItemPointerData`.
const TID: usize = 6;
/// A TID: block (high half first), item number.
pub(crate) type Tid = [u8; TID];

const BROKEN: Fault = "an index tuple is damaged";
const BROKEN_POSTING: Fault = "a posting list is damaged";

/// Takes the tuple at the start of `bytes`, without what follows it; its aligned size is the tuple's length on a page.
#[inline]
pub(crate) fn first(bytes: &[u8]) -> Result<&[u8], Fault> {
    let size = IndexTuple::read(bytes)?.bytes().len();
    bytes.get(..max_align(size)).ok_or(BROKEN)
}

/// An index tuple without padding.
#[derive(Clone, Copy)]
pub(crate) struct IndexTuple<'a>(&'a [u8]);

impl<'a> IndexTuple<'a> {
    /// The tuple at the start of `bytes`.
    #[inline]
    pub(crate) fn read(bytes: &'a [u8]) -> Result<IndexTuple<'a>, Fault> {
        let info = bytes.get(6..8).ok_or(BROKEN)?;
        let size = usize::from(u16::from_le_bytes([info[0], info[1]]) & SIZE_MASK);
        if size < HEADER {
            return Err(BROKEN);
        }
        Ok(IndexTuple(bytes.get(..size).ok_or(BROKEN)?))
    }

    #[inline]
    pub(crate) fn bytes(self) -> &'a [u8] {
        self.0
    }

    #[inline]
    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    #[inline]
    fn info(self) -> u16 {
        self.u16(6)
    }

    /// Block number in the TID field: downlink, or offset of the posting list.
    #[inline]
    pub(crate) fn link(self) -> u32 {
        u32::from(self.u16(0)) << 16 | u32::from(self.u16(2))
    }

    #[inline]
    fn is_posting(self) -> bool {
        self.info() & ALT_TID != 0 && self.u16(4) & IS_POSTING != 0
    }

    /// The heap TIDs: one, or a posting list's.
    #[inline]
    pub(crate) fn tids(self) -> Result<&'a [Tid], Fault> {
        if !self.is_posting() {
            return Ok(self.0[..TID].as_chunks().0);
        }
        let start = self.link() as usize;
        let count = usize::from(self.u16(4) & COUNT_MASK);
        let list = start
            .checked_add(count * TID)
            .and_then(|end| self.0.get(start..end))
            .ok_or(BROKEN_POSTING)?;
        Ok(list.as_chunks().0)
    }

    /// Bytes of the key part: header and attributes.
    fn key_bytes(self) -> Result<&'a [u8], Fault> {
        if !self.is_posting() {
            return Ok(self.0);
        }
        self.0
            .get(..self.link() as usize)
            .filter(|key| key.len() >= HEADER)
            .ok_or(BROKEN_POSTING)
    }

    /// Size of the same key with `count` TIDs: a posting list, or a plain tuple for one TID.
    pub(crate) fn size_with(self, count: usize) -> Result<usize, Fault> {
        let key = self.key_bytes()?.len();
        match count {
            0 => Err("it leaves a posting list without entries"),
            1 => Ok(key),
            _ => {
                let size = max_align(key + count * TID);
                if size > usize::from(SIZE_MASK) || count > usize::from(COUNT_MASK) {
                    return Err("it makes a posting list that is too long");
                }
                Ok(size)
            }
        }
    }

    /// Writes the same key with these TIDs (`_bt_form_posting`, `_bt_update_posting`) into `place`, which has the size
    /// that [`IndexTuple::size_with`] told for as many.
    pub(crate) fn write_with<'t>(
        self,
        count: usize,
        mut tids: impl Iterator<Item = &'t Tid>,
        place: &mut [u8],
    ) -> Result<(), Fault> {
        let key = self.key_bytes()?;
        let (head, list) = place.split_at_mut_checked(key.len()).ok_or(BROKEN)?;
        head.copy_from_slice(key);
        let flags = self.info() & !SIZE_MASK;
        let mut put = |at: usize, value: u16| head[at..at + 2].copy_from_slice(&value.to_le_bytes());
        if count == 1 {
            put(6, flags & !ALT_TID | key.len() as u16);
            let tid = tids.next().ok_or(BROKEN_POSTING)?;
            head[..TID].copy_from_slice(tid);
            return no_more(tids);
        }
        put(6, flags | ALT_TID | (key.len() + list.len()) as u16);
        put(0, 0);
        put(2, key.len() as u16);
        put(4, count as u16 | IS_POSTING);
        let (slots, padding) = list.split_at_mut_checked(count * TID).ok_or(BROKEN_POSTING)?;
        for slot in slots.as_chunks_mut::<TID>().0 {
            *slot = *tids.next().ok_or(BROKEN_POSTING)?;
        }
        padding.fill(0);
        no_more(tids)
    }
}

fn no_more<'t>(mut tids: impl Iterator<Item = &'t Tid>) -> Result<(), Fault> {
    match tids.next() {
        None => Ok(()),
        Some(_) => Err("it removes entries that a posting list does not have"),
    }
}

/// Lets a tuple lead to another block.
pub(crate) fn set_link(tuple: &mut [u8], block: u32) -> Result<(), Fault> {
    let link = tuple.first_chunk_mut::<4>().ok_or(BROKEN)?;
    let [[a, b], [c, d]] = [((block >> 16) as u16).to_le_bytes(), (block as u16).to_le_bytes()];
    *link = [a, b, c, d];
    Ok(())
}

/// The dummy high key of a half-dead page: no attributes, the top parent as its link.
pub(crate) fn top_parent_link(block: u32) -> Result<[u8; HEADER], Fault> {
    let mut tuple = [0; HEADER];
    tuple[6..].copy_from_slice(&(HEADER as u16 | ALT_TID).to_le_bytes());
    set_link(&mut tuple, block)?;
    Ok(tuple)
}

/// A posting list split (`_bt_swap_posting`): the new item's TID goes into the posting list at `position`; answers the
/// list's last TID, which becomes the new item's. The list keeps its size.
pub(crate) fn swap_posting(posting: &mut [u8], new: Tid, position: u16) -> Result<Tid, Fault> {
    let tuple = IndexTuple::read(posting)?;
    let (start, count) = (tuple.link() as usize, tuple.tids()?.len());
    let position = usize::from(position);
    if !tuple.is_posting() || position == 0 || position >= count {
        return Err("it splits a posting list outside its entries");
    }
    let list = posting
        .get_mut(start..start + count * TID)
        .ok_or(BROKEN_POSTING)?;
    let list = list.as_chunks_mut::<TID>().0;
    let last = *list.last().ok_or(BROKEN_POSTING)?;
    list.copy_within(position..count - 1, position + 1);
    *list.get_mut(position).ok_or(BROKEN_POSTING)? = new;
    Ok(last)
}

/// The TID of a tuple that is not a posting list.
pub(crate) fn tid_mut(tuple: &mut [u8]) -> Result<&mut Tid, Fault> {
    tuple.first_chunk_mut().ok_or(BROKEN)
}
