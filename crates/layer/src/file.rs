//! The layer file.
//!
//! ```text
//! header, 64 bytes   magic "LKBDLAYR", version u16, codec u16, key id u32, nonce 12 bytes, zeros
//! chains             per page: values oldest first, each lsn u64, kind u8, length u32, bytes
//! index              per page, in key order: key 18 bytes, offset u64, length u32, CRC32C of the chain u32
//! catalogue          opaque bytes
//! footer, 80 bytes   index offset, pages, catalogue offset, catalogue bytes, first LSN, last LSN (u64 each),
//!                    CRC32C of index, of catalogue, of the footer so far (u32 each), zeros, magic
//! ```
//!
//! Numbers are little-endian. A layer of `(first, last]` holds every value of its shard in that range; `first == last`
//! marks imported images at that LSN. Images are LZ4 blocks unless that makes them larger. Key id and nonce are zero:
//! room for encryption. Every part has a checksum, checked before use.

use bytes::{Buf, BufMut, Bytes};
use lakebed_types::{Lsn, PageKey};

use crate::{Value, ValueKind};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 80;
/// Bytes of an index entry.
pub const INDEX_ENTRY_BYTES: usize = PageKey::ENCODED_BYTES + 16;

const MAGIC: [u8; 8] = *b"LKBDLAYR";
const VERSION: u16 = 1;
/// Kind of an image that is stored as an LZ4 block; only in files.
const IMAGE_LZ4: u8 = 128;
const PAGE: usize = lakebed_types::PAGE_SIZE;

/// Bytes that are not what they should be. The layer must be fetched again from object storage, and if that one is
/// damaged too, an operator must act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer file is damaged: {0}")]
pub struct LayerError(pub &'static str);

/// Writes a layer file from chains given in key order.
pub struct LayerBuilder {
    bytes: Vec<u8>,
    index: Vec<u8>,
    last_key: Option<PageKey>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    /// An empty layer.
    pub fn new() -> LayerBuilder {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.resize(HEADER_BYTES, 0);
        LayerBuilder {
            bytes,
            index: Vec::new(),
            last_key: None,
        }
    }

    /// Adds a page's values, oldest first.
    ///
    /// # Panics
    /// When keys do not come in ascending order: a bug of the caller.
    pub fn add(&mut self, key: &PageKey, values: &[(Lsn, Value)]) {
        assert!(
            self.last_key.is_none_or(|last| last < *key),
            "layer keys out of order"
        );
        self.last_key = Some(*key);
        let offset = self.bytes.len();
        for (lsn, value) in values {
            let packed = match value.kind {
                ValueKind::Image if value.body.len() == PAGE => Some(lz4_flex::block::compress(&value.body)),
                _ => None,
            };
            let (kind, body) = match packed.as_deref().filter(|packed| packed.len() < PAGE) {
                Some(packed) => (IMAGE_LZ4, packed),
                None => (value.kind as u8, &value.body[..]),
            };
            self.bytes.put_u64_le(lsn.0);
            self.bytes.put_u8(kind);
            self.bytes.put_u32_le(body.len() as u32);
            self.bytes.extend_from_slice(body);
        }
        self.index.extend_from_slice(&key.encode());
        self.index.put_u64_le(offset as u64);
        self.index.put_u32_le((self.bytes.len() - offset) as u32);
        self.index.put_u32_le(crc32c::crc32c(&self.bytes[offset..]));
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.index.len()
    }

    /// The whole file.
    pub fn finish(mut self, first: Lsn, last: Lsn, catalogue: &[u8]) -> Vec<u8> {
        let index_offset = self.bytes.len();
        self.bytes.extend_from_slice(&self.index);
        let catalogue_offset = self.bytes.len();
        self.bytes.extend_from_slice(catalogue);
        let footer = self.bytes.len();
        let pages = self.index.len() / INDEX_ENTRY_BYTES;
        for field in [index_offset, pages, catalogue_offset, catalogue.len()] {
            self.bytes.put_u64_le(field as u64);
        }
        self.bytes.put_u64_le(first.0);
        self.bytes.put_u64_le(last.0);
        self.bytes.put_u32_le(crc32c::crc32c(&self.index));
        self.bytes.put_u32_le(crc32c::crc32c(catalogue));
        let crc = crc32c::crc32c(&self.bytes[footer..]);
        self.bytes.put_u32_le(crc);
        self.bytes.resize(footer + FOOTER_BYTES - MAGIC.len(), 0);
        self.bytes.extend_from_slice(&MAGIC);
        self.bytes
    }
}

/// The footer: where the other parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the index is, in bytes from the file's start.
    pub index_offset: u64,
    /// Pages in the index.
    pub pages: u64,
    /// Where the catalogue is.
    pub catalogue_offset: u64,
    /// Its bytes.
    pub catalogue_bytes: u64,
    /// Values are above this LSN.
    pub first: Lsn,
    /// Values are at or below this LSN.
    pub last: Lsn,
    index_crc: u32,
    catalogue_crc: u32,
}

impl Footer {
    /// Reads the last [`FOOTER_BYTES`] of a file of `file_bytes`.
    ///
    /// # Errors
    /// Wrong magic, checksum or places outside the file.
    pub fn decode(bytes: &[u8], file_bytes: u64) -> Result<Footer, LayerError> {
        let bytes: &[u8; FOOTER_BYTES] = bytes
            .try_into()
            .map_err(|_| LayerError("it is shorter than its footer"))?;
        if bytes[FOOTER_BYTES - MAGIC.len()..] != MAGIC {
            return Err(LayerError("it does not end in a layer's magic"));
        }
        let mut input = &bytes[..];
        let mut u64s = [0u64; 6];
        u64s.iter_mut().for_each(|field| *field = input.get_u64_le());
        let (index_crc, catalogue_crc, crc) = (input.get_u32_le(), input.get_u32_le(), input.get_u32_le());
        if crc32c::crc32c(&bytes[..56]) != crc {
            return Err(LayerError("the footer's checksum is wrong"));
        }
        let [
            index_offset,
            pages,
            catalogue_offset,
            catalogue_bytes,
            first,
            last,
        ] = u64s;
        let index_end = pages
            .checked_mul(INDEX_ENTRY_BYTES as u64)
            .and_then(|length| index_offset.checked_add(length));
        let catalogue_end = catalogue_offset.checked_add(catalogue_bytes);
        if index_end != Some(catalogue_offset) || catalogue_end != file_bytes.checked_sub(FOOTER_BYTES as u64)
        {
            return Err(LayerError("its parts do not fit together"));
        }
        let (first, last) = (Lsn(first), Lsn(last));
        Ok(Footer {
            index_offset,
            pages,
            catalogue_offset,
            catalogue_bytes,
            first,
            last,
            index_crc,
            catalogue_crc,
        })
    }

    /// Bytes of the index.
    pub fn index_bytes(&self) -> u64 {
        self.pages * INDEX_ENTRY_BYTES as u64
    }

    /// Checks and takes over the index.
    ///
    /// # Errors
    /// Wrong length, checksum, order of keys or places.
    pub fn index(&self, bytes: Bytes) -> Result<Index, LayerError> {
        if bytes.len() as u64 != self.index_bytes() || crc32c::crc32c(&bytes) != self.index_crc {
            return Err(LayerError("the index's checksum is wrong"));
        }
        Ok(Index { bytes })
    }

    /// Checks the catalogue.
    ///
    /// # Errors
    /// Wrong length or checksum.
    pub fn catalogue(&self, bytes: Bytes) -> Result<Bytes, LayerError> {
        if bytes.len() as u64 != self.catalogue_bytes || crc32c::crc32c(&bytes) != self.catalogue_crc {
            return Err(LayerError("the catalogue's checksum is wrong"));
        }
        Ok(bytes)
    }
}

/// Checks a file's first bytes.
///
/// # Errors
/// Not a layer, or of a newer format.
pub fn check_header(bytes: &[u8]) -> Result<(), LayerError> {
    match bytes.split_at_checked(10) {
        Some((start, _)) if start[..8] == MAGIC => {
            let newer = u16::from_le_bytes([start[8], start[9]]) != VERSION;
            if newer {
                Err(LayerError("it is of a format that this version does not know"))
            } else {
                Ok(())
            }
        }
        _ => Err(LayerError("it does not begin with a layer's magic")),
    }
}

/// Where a page's chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainPlace {
    /// Bytes from the file's start.
    pub offset: u64,
    /// Bytes of the chain.
    pub length: u32,
    crc: u32,
}

impl ChainPlace {
    /// Takes the chain's bytes apart, oldest value first.
    ///
    /// # Errors
    /// A wrong checksum, or values that do not decode.
    pub fn decode(&self, mut bytes: Bytes) -> Result<Vec<(Lsn, Value)>, LayerError> {
        if bytes.len() != self.length as usize || crc32c::crc32c(&bytes) != self.crc {
            return Err(LayerError("a chain's checksum is wrong"));
        }
        let mut values = Vec::new();
        while bytes.has_remaining() {
            if bytes.remaining() < 13 {
                return Err(LayerError("a value is cut"));
            }
            let (lsn, kind, length) = (
                Lsn(bytes.get_u64_le()),
                bytes.get_u8(),
                bytes.get_u32_le() as usize,
            );
            if length > bytes.remaining() {
                return Err(LayerError("a value is cut"));
            }
            let body = bytes.split_to(length);
            let value = if kind == IMAGE_LZ4 {
                let mut page = vec![0; PAGE];
                let got = lz4_flex::block::decompress_into(&body, &mut page);
                if got.ok() != Some(PAGE) {
                    return Err(LayerError("an image does not decompress"));
                }
                Value {
                    kind: ValueKind::Image,
                    body: page.into(),
                }
            } else {
                Value {
                    kind: ValueKind::from_number(kind).ok_or(LayerError("a value is of unknown kind"))?,
                    body,
                }
            };
            values.push((lsn, value));
        }
        Ok(values)
    }
}

/// A layer's index, kept in memory as it is in the file.
#[derive(Clone, Debug)]
pub struct Index {
    bytes: Bytes,
}

impl Index {
    /// Number of pages.
    pub fn len(&self) -> usize {
        self.bytes.len() / INDEX_ENTRY_BYTES
    }

    /// Whether the layer has no pages.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn entry(&self, index: usize) -> &[u8] {
        &self.bytes[index * INDEX_ENTRY_BYTES..(index + 1) * INDEX_ENTRY_BYTES]
    }

    /// Where the page's chain is, if the layer has one.
    pub fn find(&self, key: &PageKey) -> Option<ChainPlace> {
        let wanted = key.encode();
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            let entry = self.entry(middle);
            match entry[..PageKey::ENCODED_BYTES].cmp(&wanted) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    let mut rest = &entry[PageKey::ENCODED_BYTES..];
                    return Some(ChainPlace {
                        offset: rest.get_u64_le(),
                        length: rest.get_u32_le(),
                        crc: rest.get_u32_le(),
                    });
                }
            }
        }
        None
    }

    /// The keys, ascending, in their stored form.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| &self.entry(index)[..PageKey::ENCODED_BYTES])
    }
}
