//! Header and footer of a layer file.
//!
//! | footer | content |
//! |---|---|
//! | 0..16 | first and last LSN: the layer has every value of its pages in (first, last] that there is to have |
//! | 16..52 | lowest and highest page, 18 bytes each; zeros without pages |
//! | 52..76 | pages, values, bytes of data blocks before compression |
//! | 76..100 | top, then filter: offset u64, length u32 each |
//! | 100..112 | sections: offset of the first u64, number u32; they end where the footer begins |
//! | 112..132 | the layer's id (generation, number u64 each), kind u8, zeros |
//! | 132..136 | CRC32C of bytes 0..132 |
//! | 136..144 | magic |

use bytes::{Buf, BufMut};
use lakebed_types::{Lsn, PageKey};

use super::block::BlockPlace;
use crate::{LayerDesc, LayerId, LayerKind};

pub(super) const HEADER_BYTES: usize = 32;
pub(super) const FOOTER_BYTES: usize = 144;
const MAGIC: [u8; 8] = *b"LKBDLAYR";
const VERSION: u16 = 2;

/// The header's bytes.
pub(super) fn encode_header(id: LayerId, kind: LayerKind) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put_u16_le(VERSION);
    out.put_slice(&[kind as u8, 0]);
    out.put_slice(&id.encode());
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out
}

/// Checks the header of the layer that should be there. The error says what is wrong.
pub(super) fn check_header(id: LayerId, bytes: &[u8]) -> Result<(), &'static str> {
    let Some((bytes, crc)) = bytes.split_last_chunk::<4>() else {
        return Err("it is cut");
    };
    if bytes.len() != HEADER_BYTES - 4 || bytes[..8] != MAGIC {
        return Err("it does not begin with a layer's magic");
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version < VERSION {
        return Err("it is of a format from before version 2, which this program does not read");
    }
    if version > VERSION {
        return Err("it is of a newer format: use a newer lakebed");
    }
    if crc32c::crc32c(bytes) != u32::from_le_bytes(*crc) {
        return Err("its checksum is wrong");
    }
    if bytes[12..28] != id.encode() {
        return Err("it is another layer");
    }
    Ok(())
}

/// Where the parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub desc: LayerDesc,
    pub raw_bytes: u64,
    pub top: BlockPlace,
    pub filter: BlockPlace,
    pub sections_offset: u64,
    pub sections: u32,
}

impl Footer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let desc = &self.desc;
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.put_u64_le(desc.first.0);
        out.put_u64_le(desc.last.0);
        match &desc.pages_span {
            Some((low, high)) => [low, high]
                .into_iter()
                .for_each(|key| out.put_slice(&key.encode())),
            None => out.put_bytes(0, 2 * PageKey::ENCODED_BYTES),
        }
        for number in [desc.pages, desc.values, self.raw_bytes] {
            out.put_u64_le(number);
        }
        for place in [self.top, self.filter] {
            out.put_u64_le(place.offset);
            out.put_u32_le(place.length);
        }
        out.put_u64_le(self.sections_offset);
        out.put_u32_le(self.sections);
        out.put_slice(&desc.id.encode());
        out.put_slice(&[desc.kind as u8, 0, 0, 0]);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.put_slice(&MAGIC);
        out
    }

    /// Reads the last [`FOOTER_BYTES`] of a file of `file_bytes`. The error says what is wrong.
    pub(super) fn decode(id: LayerId, bytes: &[u8], file_bytes: u64) -> Result<Footer, &'static str> {
        let bytes: &[u8; FOOTER_BYTES] = bytes.try_into().map_err(|_| "it is cut")?;
        if bytes[136..] != MAGIC {
            return Err("it does not end with a layer's magic");
        }
        let mut crc = &bytes[132..136];
        if crc32c::crc32c(&bytes[..132]) != crc.get_u32_le() {
            return Err("its checksum is wrong");
        }
        if bytes[112..128] != id.encode() {
            return Err("it is of another layer");
        }
        if bytes[129..132] != [0; 3] {
            return Err("it is of a newer format");
        }
        let kind = LayerKind::from_number(bytes[128]).ok_or("its kind of layer is unknown")?;
        let mut input = &bytes[..112];
        let (first, last) = (Lsn(input.get_u64_le()), Lsn(input.get_u64_le()));
        let pages_span = take_span(&mut input)?;
        let (pages, values, raw_bytes) = (input.get_u64_le(), input.get_u64_le(), input.get_u64_le());
        let [top, filter] = [0; 2].map(|_| BlockPlace {
            offset: input.get_u64_le(),
            length: input.get_u32_le(),
        });
        let (sections_offset, sections) = (input.get_u64_le(), input.get_u32_le());
        let end = file_bytes.checked_sub(FOOTER_BYTES as u64);
        let fits = top.end() == filter.offset
            && filter.end() == sections_offset
            && end.is_some_and(|end| sections_offset <= end && (sections > 0 || sections_offset == end))
            && pages_span.is_some() == (pages > 0)
            && first <= last;
        if !fits {
            return Err("its parts do not fit together");
        }
        let desc = LayerDesc {
            id,
            kind,
            first,
            last,
            pages_span,
            pages,
            values,
            bytes: file_bytes,
        };
        Ok(Footer {
            desc,
            raw_bytes,
            top,
            filter,
            sections_offset,
            sections,
        })
    }
}

fn take_span(input: &mut &[u8]) -> Result<Option<(PageKey, PageKey)>, &'static str> {
    let mut key = || {
        let (key, rest) = input.split_at(PageKey::ENCODED_BYTES);
        *input = rest;
        key
    };
    let (low, high) = (key(), key());
    if low.iter().chain(high).all(|byte| *byte == 0) {
        return Ok(None);
    }
    match (PageKey::decode(low), PageKey::decode(high)) {
        (Some(low), Some(high)) if low <= high => Ok(Some((low, high))),
        _ => Err("its span of pages does not decode"),
    }
}
