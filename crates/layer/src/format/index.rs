//! Index entries: which block has the piece of a page that begins at an LSN. The top is an index of index blocks.

use std::hint::select_unpredictable;

use bytes::{BufMut, Bytes};
use lakebed_types::{Lsn, PageKey};

use super::block::BlockPlace;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = ORDER_BYTES + 13;
/// Key and LSN: what entries are ordered by, compared as bytes.
const ORDER_BYTES: usize = PageKey::ENCODED_BYTES + 8;

/// One piece of a page, or in the top the first one of an index block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: PageKey,
    /// LSN of the piece's first value.
    pub lsn: Lsn,
    pub place: BlockPlace,
    /// Whether the piece's first value stands alone: no earlier piece matters to a read of this one.
    pub stands_alone: bool,
}

impl Entry {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_slice(&self.key.encode());
        out.put_u64(self.lsn.0);
        out.put_u64_le(self.place.offset);
        out.put_u32_le(self.place.length);
        out.put_u8(u8::from(self.stands_alone));
    }
}

/// Those bytes as numbers, which compare as the bytes do, and faster.
pub(super) type Order = (u128, u64, u16);

/// What an entry of the page with this stored key is ordered by.
pub(super) fn order(key: &[u8; PageKey::ENCODED_BYTES], lsn: Lsn) -> Order {
    let mut out = [0; ORDER_BYTES];
    out[..PageKey::ENCODED_BYTES].copy_from_slice(key);
    out[PageKey::ENCODED_BYTES..].copy_from_slice(&lsn.0.to_be_bytes());
    as_numbers(&out)
}

fn as_numbers(order: &[u8; ORDER_BYTES]) -> Order {
    let [high @ .., a, b, c, d, e, f, g, h, i, j] = *order;
    (
        u128::from_be_bytes(high),
        u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        u16::from_be_bytes([i, j]),
    )
}

/// The entries of an index block or of the top, kept as they are in the file.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    bytes: Bytes,
}

impl Entries {
    /// Takes over entries that passed their checksum. The error says what is wrong.
    pub(super) fn new(bytes: Bytes) -> Result<Entries, &'static str> {
        let entries = Entries { bytes };
        if !entries.bytes.len().is_multiple_of(ENTRY_BYTES) {
            return Err("an entry is cut");
        }
        if (0..entries.len()).any(|at| entries.get(at).is_none()) {
            return Err("an entry does not decode");
        }
        let ordered = (1..entries.len()).all(|at| entries.order(at - 1) <= entries.order(at));
        if ordered {
            Ok(entries)
        } else {
            Err("entries are out of order")
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() / ENTRY_BYTES
    }

    /// Bytes in memory.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    fn order(&self, at: usize) -> Option<Order> {
        let order = self.bytes.get(at * ENTRY_BYTES..)?.first_chunk()?;
        Some(as_numbers(order))
    }

    pub(super) fn get(&self, at: usize) -> Option<Entry> {
        let bytes = self.bytes.get(at.checked_mul(ENTRY_BYTES)?..)?;
        let (key, rest) = bytes.split_at_checked(PageKey::ENCODED_BYTES)?;
        let (lsn, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        Some(Entry {
            key: PageKey::decode(key)?,
            lsn: Lsn(u64::from_be_bytes(*lsn)),
            place: BlockPlace {
                offset: u64::from_le_bytes(*offset),
                length: u32::from_le_bytes(*length),
            },
            stands_alone: *rest.first()? == 1,
        })
    }

    /// Number of entries at or below what is wanted: the one before is the piece to read, or the block to look in.
    pub(super) fn upto(&self, wanted: Order) -> usize {
        let is_upto = |at: usize| self.order(at).is_some_and(|order| order <= wanted);
        let (mut low, mut left) = (0, self.len());
        // How it goes is as good as random, so it is computed: a branch would be foreseen wrongly every other time.
        while left > 1 {
            let half = left / 2;
            low = select_unpredictable(is_upto(low + half), low + half, low);
            left -= half;
        }
        low + usize::from(left == 1 && is_upto(low))
    }

    /// Number of entries below the page's first.
    pub(super) fn before(&self, key: &PageKey) -> usize {
        // No value has LSN 0, so nothing of the page is counted.
        self.upto(order(&key.encode(), Lsn(0)))
    }
}
