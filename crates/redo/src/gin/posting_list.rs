//! Posting lists (`access/gin/ginpostinglist.c`): TIDs in ascending order, each as the difference to the one before.
//!
//! | bytes | field |
//! |---|---|
//! | 0..6 | first TID: block (high half first), item number |
//! | 6..8 | number of bytes that follow, without padding to an even number |
//! | 8.. | differences, 7 bits in each byte from the lowest on, the high bit set in all but the last |
//!
//! For differences a TID is the number `block << 11 | item number`.

use crate::Fault;
use crate::reader::Reader;

/// Bytes of a TID.
pub(super) const TID: usize = 6;
const HEADER: usize = 8;
const ITEM_BITS: u32 = 11;
/// Bits of a TID as a number.
const BITS: u32 = 32 + ITEM_BITS;

const BROKEN: Fault = "a posting list is damaged";
const NO_ROOM: Fault = "the page has no room for its posting lists";

/// Takes the posting list at the reader's position, with its padding.
pub(super) fn take<'a>(bytes: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    let size = Reader::new(bytes.rest().get(TID..HEADER).ok_or(BROKEN)?).u16()?;
    bytes.take(HEADER + usize::from(size).next_multiple_of(2))
}

/// A TID as a number.
pub(super) fn pack(tid: &[u8; TID]) -> Result<u64, Fault> {
    let [high_a, high_b, low_a, low_b, item_a, item_b] = *tid;
    let high = u64::from(u16::from_le_bytes([high_a, high_b]));
    let low = u64::from(u16::from_le_bytes([low_a, low_b]));
    let item = u64::from(u16::from_le_bytes([item_a, item_b]));
    if item >> ITEM_BITS != 0 {
        return Err(BROKEN);
    }
    Ok((high << 16 | low) << ITEM_BITS | item)
}

fn unpack(tid: u64) -> [u8; TID] {
    let [item_a, item_b] = ((tid & ((1 << ITEM_BITS) - 1)) as u16).to_le_bytes();
    let [low_a, low_b, high_a, high_b] = ((tid >> ITEM_BITS) as u32).to_le_bytes();
    [high_a, high_b, low_a, low_b, item_a, item_b]
}

/// The TIDs of a posting list, as numbers.
pub(super) struct Items<'a> {
    /// What comes next, when it is not behind a difference.
    first: Option<u64>,
    last: u64,
    differences: &'a [u8],
}

impl<'a> Items<'a> {
    pub(super) fn new(list: &'a [u8]) -> Result<Items<'a>, Fault> {
        let mut list = Reader::new(list);
        let first = pack(list.take(TID)?.first_chunk().ok_or(BROKEN)?)?;
        let size = list.u16()?;
        Ok(Items {
            first: Some(first),
            last: first,
            differences: list.take(usize::from(size))?,
        })
    }

    /// The next one, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<u64>, Fault> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.differences.is_empty() {
            return Ok(None);
        }
        let mut difference = 0;
        for shift in (0..BITS).step_by(7) {
            let (&byte, rest) = self.differences.split_first().ok_or(BROKEN)?;
            self.differences = rest;
            difference |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                self.last += difference;
                return if self.last >> BITS == 0 {
                    Ok(Some(self.last))
                } else {
                    Err(BROKEN)
                };
            }
        }
        Err(BROKEN)
    }
}

/// Writes a posting list to the start of some bytes.
pub(super) struct Encoder<'a> {
    out: &'a mut [u8],
    end: usize,
    last: Option<u64>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Encoder<'a> {
        Encoder {
            out,
            end: HEADER,
            last: None,
        }
    }

    pub(super) fn push(&mut self, tid: u64) -> Result<(), Fault> {
        if let Some(last) = self.last {
            let mut difference = tid
                .checked_sub(last)
                .filter(|&difference| difference != 0)
                .ok_or("the entries of a posting list are not in order")?;
            while difference > 0x7F {
                self.byte(difference as u8 | 0x80)?;
                difference >>= 7;
            }
            self.byte(difference as u8)?;
        } else {
            self.out
                .first_chunk_mut::<HEADER>()
                .ok_or(NO_ROOM)?
                .first_chunk_mut::<TID>()
                .ok_or(NO_ROOM)?
                .copy_from_slice(&unpack(tid));
        }
        self.last = Some(tid);
        Ok(())
    }

    fn byte(&mut self, byte: u8) -> Result<(), Fault> {
        *self.out.get_mut(self.end).ok_or(NO_ROOM)? = byte;
        self.end += 1;
        Ok(())
    }

    /// Completes the list and gives its length with padding.
    pub(super) fn finish(mut self) -> Result<usize, Fault> {
        let size = u16::try_from(self.end - HEADER).map_err(|_| NO_ROOM)?;
        if size % 2 != 0 {
            self.byte(0)?;
        }
        self.out
            .get_mut(TID..HEADER)
            .ok_or(NO_ROOM)?
            .copy_from_slice(&size.to_le_bytes());
        Ok(self.end)
    }
}
