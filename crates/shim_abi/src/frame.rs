//! Frames and their fields: the bytes that [`crate::message`] is made of.
//!
//! Encoding writes to a buffer on the stack and decoding borrows from the bytes received, so the shim needs no
//! allocation. Every read is bounded and every value that has no meaning is an error.

use crate::message::Blocks;
use crate::path::MAX_PATH_BYTES;
use crate::region::SlotRef;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 16;
/// Longest body: two paths.
pub const MAX_BODY_BYTES: usize = 2 * (2 + MAX_PATH_BYTES);
/// A buffer of this size holds any frame.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + MAX_BODY_BYTES;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A body longer than any.
    TooLong,
    /// An unknown kind.
    Kind,
    /// The body is too short, too long, or holds a value that has no meaning.
    Body,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body that follow.
    pub body_bytes: usize,
    /// What it is.
    pub kind: u16,
    /// Number of the question.
    pub number: u64,
}

impl Header {
    /// Decodes.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, DecodeError> {
        let mut fields = Fields(bytes);
        let (body, kind, zero, number) = (fields.u32()?, fields.u16()?, fields.u16()?, fields.u64()?);
        if body as usize > MAX_BODY_BYTES {
            return Err(DecodeError::TooLong);
        }
        if zero != 0 {
            return Err(DecodeError::Body);
        }
        Ok(Header {
            body_bytes: body as usize,
            kind,
            number,
        })
    }
}

/// A frame under construction, on the stack.
#[derive(Debug)]
pub struct Frame {
    bytes: [u8; MAX_FRAME_BYTES],
    len: usize,
}

impl Frame {
    /// What to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn new(kind: u16, number: u64) -> Frame {
        let mut bytes = [0; MAX_FRAME_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        let len = HEADER_BYTES;
        Frame { bytes, len }
    }

    pub(crate) fn put(&mut self, field: &[u8]) -> &mut Frame {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
        let body = (self.len - HEADER_BYTES) as u32;
        self.bytes[..4].copy_from_slice(&body.to_le_bytes());
        self
    }

    /// Cut to what fits; a path that long has been refused before.
    pub(crate) fn put_text(&mut self, text: &[u8]) -> &mut Frame {
        let text = &text[..text.len().min(MAX_PATH_BYTES)];
        self.put(&(text.len() as u16).to_le_bytes()).put(text)
    }

    pub(crate) fn put_slot(&mut self, of: SlotRef) -> &mut Frame {
        self.put(&of.slot.to_le_bytes()).put(&of.generation.to_le_bytes())
    }

    pub(crate) fn put_blocks(&mut self, blocks: Blocks) -> &mut Frame {
        self.put_slot(blocks.of);
        self.put(&blocks.first.to_le_bytes())
            .put(&blocks.count.to_le_bytes())
    }
}

pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Fields<'a> {
        Fields(body)
    }

    /// The message, if no byte is left.
    pub(crate) fn end<T>(self, message: T) -> Result<T, DecodeError> {
        if self.0.is_empty() {
            Ok(message)
        } else {
            Err(DecodeError::Body)
        }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (field, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Body)?;
        self.0 = rest;
        Ok(field)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Body)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(DecodeError::Body),
        }
    }

    pub(crate) fn text(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = usize::from(self.u16()?);
        if len > MAX_PATH_BYTES {
            return Err(DecodeError::Body);
        }
        self.bytes(len)
    }

    /// A path stays below the data directory: it is not empty, not absolute, without `..` and without zero bytes.
    pub(crate) fn path(&mut self) -> Result<&'a [u8], DecodeError> {
        let path = self.text()?;
        let leaves = path.split(|&b| b == b'/').any(|part| part == b"..");
        if path.is_empty() || path[0] == b'/' || leaves || path.contains(&0) {
            return Err(DecodeError::Body);
        }
        Ok(path)
    }

    pub(crate) fn slot(&mut self) -> Result<SlotRef, DecodeError> {
        let (slot, generation) = (self.u32()?, self.u32()?);
        Ok(SlotRef { slot, generation })
    }

    pub(crate) fn blocks(&mut self) -> Result<Blocks, DecodeError> {
        let (of, first, count) = (self.slot()?, self.u32()?, self.u32()?);
        let end = first.checked_add(count).ok_or(DecodeError::Body)?;
        if count == 0 || end > crate::SEGMENT_BLOCKS {
            return Err(DecodeError::Body);
        }
        Ok(Blocks { of, first, count })
    }
}
