//! Index tuples of B-trees (`access/itup.h`, `access/nbtree.h`) and posting lists, as owned bytes.
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

const BROKEN: Fault = "an index tuple is damaged";
const BROKEN_POSTING: Fault = "a posting list is damaged";

/// Takes the tuple at the start of `bytes`, without what follows it; its aligned size is the tuple's length on a page.
pub(crate) fn first(bytes: &[u8]) -> Result<&[u8], Fault> {
    let info = bytes.get(6..8).ok_or(BROKEN)?;
    let size = usize::from(u16::from_le_bytes([info[0], info[1]]) & SIZE_MASK);
    if size < HEADER {
        return Err(BROKEN);
    }
    bytes.get(..max_align(size)).ok_or(BROKEN)
}

/// An index tuple without padding.
#[derive(Clone)]
pub(crate) struct IndexTuple(Vec<u8>);

impl IndexTuple {
    /// Copies the tuple at the start of `bytes`.
    pub(crate) fn copy(bytes: &[u8]) -> Result<IndexTuple, Fault> {
        let info = bytes.get(6..8).ok_or(BROKEN)?;
        let size = usize::from(u16::from_le_bytes([info[0], info[1]]) & SIZE_MASK);
        if size < HEADER {
            return Err(BROKEN);
        }
        Ok(IndexTuple(bytes.get(..size).ok_or(BROKEN)?.to_vec()))
    }

    /// The dummy high key of a half-dead page: no attributes, the top parent as its link.
    pub(crate) fn top_parent_link(block: u32) -> IndexTuple {
        let mut tuple = IndexTuple(vec![0; HEADER]);
        tuple.set_info(HEADER as u16 | ALT_TID);
        tuple.set_link(block);
        tuple
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn info(&self) -> u16 {
        self.u16(6)
    }

    fn set_info(&mut self, info: u16) {
        self.put_u16(6, info);
    }

    /// Block number in the TID field: downlink, or offset of the posting list.
    pub(crate) fn link(&self) -> u32 {
        u32::from(self.u16(0)) << 16 | u32::from(self.u16(2))
    }

    pub(crate) fn set_link(&mut self, block: u32) {
        self.put_u16(0, (block >> 16) as u16);
        self.put_u16(2, block as u16);
    }

    fn is_posting(&self) -> bool {
        self.info() & ALT_TID != 0 && self.u16(4) & IS_POSTING != 0
    }

    /// The heap TIDs: one, or a posting list's.
    pub(crate) fn tids(&self) -> Result<Vec<[u8; TID]>, Fault> {
        if !self.is_posting() {
            return Ok(vec![self.0.first_chunk::<TID>().copied().ok_or(BROKEN)?]);
        }
        let start = self.link() as usize;
        let count = usize::from(self.u16(4) & COUNT_MASK);
        let list = start
            .checked_add(count * TID)
            .and_then(|end| self.0.get(start..end))
            .ok_or(BROKEN_POSTING)?;
        Ok(list.as_chunks::<TID>().0.to_vec())
    }

    /// Bytes of the key part: header and attributes.
    fn key_bytes(&self) -> Result<&[u8], Fault> {
        if !self.is_posting() {
            return Ok(&self.0);
        }
        self.0
            .get(..self.link() as usize)
            .filter(|key| key.len() >= HEADER)
            .ok_or(BROKEN_POSTING)
    }

    /// The same key with these TIDs (`_bt_form_posting`, `_bt_update_posting`): a posting list, or a plain tuple for
    /// one TID.
    pub(crate) fn with_tids(&self, tids: &[[u8; TID]]) -> Result<IndexTuple, Fault> {
        let key = self.key_bytes()?;
        let mut new = IndexTuple(key.to_vec());
        let flags = self.info() & !SIZE_MASK;
        match tids {
            [] => Err("it leaves a posting list without entries"),
            [only] => {
                new.0[..TID].copy_from_slice(only);
                new.set_info(flags & !ALT_TID | key.len() as u16);
                Ok(new)
            }
            _ => {
                let size = max_align(key.len() + tids.len() * TID);
                if size > usize::from(SIZE_MASK) || tids.len() > usize::from(COUNT_MASK) {
                    return Err("it makes a posting list that is too long");
                }
                let start = key.len();
                tids.iter().for_each(|tid| new.0.extend_from_slice(tid));
                new.0.resize(size, 0);
                new.set_info(flags | ALT_TID | size as u16);
                new.set_link(start as u32);
                new.put_u16(4, tids.len() as u16 | IS_POSTING);
                Ok(new)
            }
        }
    }

    /// A posting list split (`_bt_swap_posting`): the new item's TID goes into the posting list at `position`, the
    /// list's last TID becomes the new item's. The list keeps its size.
    pub(crate) fn swap_posting(&mut self, posting: &IndexTuple, position: u16) -> Result<IndexTuple, Fault> {
        let mut tids = posting.tids()?;
        let position = usize::from(position);
        if !posting.is_posting() || position == 0 || position >= tids.len() {
            return Err("it splits a posting list outside its entries");
        }
        let last = tids.pop().ok_or(BROKEN_POSTING)?;
        tids.insert(position, *self.0.first_chunk::<TID>().ok_or(BROKEN)?);
        self.0[..TID].copy_from_slice(&last);
        let mut swapped = posting.clone();
        let start = posting.link() as usize;
        for (index, tid) in tids.iter().enumerate() {
            swapped.0[start + index * TID..][..TID].copy_from_slice(tid);
        }
        Ok(swapped)
    }
}
