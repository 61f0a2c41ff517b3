//! What a data block holds: pieces of pages' chains.

use bytes::{Buf, BufMut, Bytes};
use lakebed_types::{Lsn, PageKey};

use super::block::MAX_VALUE_BYTES;
use crate::{Value, ValueKind};

/// Bytes before a piece's values.
pub(super) const PIECE_HEADER_BYTES: usize = PageKey::ENCODED_BYTES + 8;
/// Bytes before a value's body.
pub(super) const VALUE_HEADER_BYTES: usize = 13;

const CUT: &str = "a piece is cut";

/// Some values of one page, next to each other in one block; oldest first, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub key: PageKey,
    /// Its values.
    pub values: Vec<(Lsn, Value)>,
}

/// Begins a piece; its numbers are filled in by [`close`].
pub(super) fn open(key: &PageKey, out: &mut Vec<u8>) {
    out.put_slice(&key.encode());
    out.put_bytes(0, 8);
}

pub(super) fn put(lsn: Lsn, (kind, body): (ValueKind, &[u8]), out: &mut Vec<u8>) {
    let mut header = [0; VALUE_HEADER_BYTES];
    header[..8].copy_from_slice(&lsn.0.to_le_bytes());
    header[8] = kind as u8;
    header[9..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    out.put_slice(&header);
    out.put_slice(body);
}

/// Ends the piece that begins at `start` and has so many values.
pub(super) fn close(start: usize, values: u32, out: &mut [u8]) {
    let bytes = (out.len() - start - PIECE_HEADER_BYTES) as u32;
    let numbers = &mut out[start + PageKey::ENCODED_BYTES..start + PIECE_HEADER_BYTES];
    numbers[..4].copy_from_slice(&values.to_le_bytes());
    numbers[4..].copy_from_slice(&bytes.to_le_bytes());
}

/// A block's pieces that are yet to be taken, in key order.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    block: Bytes,
}

impl Pieces {
    pub(super) fn new(block: Bytes) -> Pieces {
        Pieces { block }
    }

    /// The values of the page with this stored key. The error says what is wrong.
    pub(super) fn find(
        mut self,
        wanted: &[u8; PageKey::ENCODED_BYTES],
    ) -> Result<Vec<(Lsn, Value)>, &'static str> {
        // Other pages' pieces are passed over as plain bytes: a part of the block that is kept has a cost.
        let (mut rest, mut passed) = (&self.block[..], 0);
        while !rest.is_empty() {
            let lengths = rest.get(PageKey::ENCODED_BYTES + 4..PIECE_HEADER_BYTES);
            let length = lengths.and_then(|bytes| bytes.try_into().ok());
            let length = u32::from_le_bytes(length.ok_or(CUT)?) as usize;
            if rest.starts_with(wanted) {
                self.block = self.block.slice(passed..);
                let piece = self.take()?.ok_or(CUT)?;
                return piece.values();
            }
            rest = rest.get(PIECE_HEADER_BYTES + length..).ok_or(CUT)?;
            passed += PIECE_HEADER_BYTES + length;
        }
        Err("it does not have the page that the index says")
    }

    /// The next piece.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, &'static str> {
        self.take()?.map(RawPiece::decode).transpose()
    }

    fn take(&mut self) -> Result<Option<RawPiece>, &'static str> {
        if self.block.is_empty() {
            return Ok(None);
        }
        if self.block.len() < PIECE_HEADER_BYTES {
            return Err(CUT);
        }
        let key = self.block.split_to(PageKey::ENCODED_BYTES);
        let (count, bytes) = (self.block.get_u32_le(), self.block.get_u32_le() as usize);
        if bytes > self.block.len() || count == 0 {
            return Err(CUT);
        }
        Ok(Some(RawPiece {
            key,
            count,
            values: self.block.split_to(bytes),
        }))
    }
}

struct RawPiece {
    key: Bytes,
    count: u32,
    values: Bytes,
}

impl RawPiece {
    fn decode(self) -> Result<Piece, &'static str> {
        let key = PageKey::decode(&self.key).ok_or("a page's name does not decode")?;
        let values = self.values()?;
        Ok(Piece { key, values })
    }

    fn values(mut self) -> Result<Vec<(Lsn, Value)>, &'static str> {
        let possible = self.values.len() / VALUE_HEADER_BYTES;
        let mut values = Vec::with_capacity(possible.min(self.count as usize));
        let mut last = Lsn(0);
        while self.values.has_remaining() {
            let value = take_value(&mut self.values)?;
            if value.0 < last {
                return Err("values are out of order");
            }
            last = value.0;
            values.push(value);
        }
        if values.len() != self.count as usize {
            return Err("it has another number of values than it says");
        }
        Ok(values)
    }
}

fn take_value(bytes: &mut Bytes) -> Result<(Lsn, Value), &'static str> {
    if bytes.len() < VALUE_HEADER_BYTES {
        return Err("a value is cut");
    }
    let (lsn, kind, length) = (
        Lsn(bytes.get_u64_le()),
        bytes.get_u8(),
        bytes.get_u32_le() as usize,
    );
    if length > bytes.len() || length > MAX_VALUE_BYTES {
        return Err("a value is cut");
    }
    let kind = ValueKind::from_number(kind).ok_or("a value is of unknown kind")?;
    let body = bytes.split_to(length);
    Ok((lsn, Value { kind, body }))
}
