//! What a pageserver keeps of one WAL record for one page: everything that [`crate::redo_block`] needs, and no more.
//!
//! Layout, little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 1 | format version, 1 |
//! | 1 | `rmid` |
//! | 1 | `xl_info` |
//! | 1 | number of block references |
//! | 1 | index of the reference that this page is |
//! | 4 | xid |
//! | 4 | length of the main data, then the data |
//! | each reference | id (1), flags (1), tablespace, database, relfilenode (4 each), fork (1), block (4) |
//! | flag 2 | length of block data (4), then the data |
//! | flag 4 | image: compression (1), hole offset, hole length (2 each), length (4), then the bytes |
//!
//! Flag 1 is `will_init`. Only the page's own reference carries data or an image, and an image only to apply; checking
//! images are dropped.

use bytes::{Buf, BufMut, Bytes};
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};

use crate::{PageBytes, RedoError, redo_block};

const VERSION: u8 = 1;
const WILL_INIT: u8 = 1;
const HAS_DATA: u8 = 2;
const HAS_IMAGE: u8 = 4;
const COMPRESSIONS: [ImageCompression; 4] = [
    ImageCompression::None,
    ImageCompression::Pglz,
    ImageCompression::Lz4,
    ImageCompression::Zstd,
];

/// Stored bytes that are not a stored record. They passed a checksum, so this is a bug or a newer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored record is damaged or of a newer format: {0}")]
pub struct StoredError(&'static str);

/// A record as kept for one of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    record: DecodedRecord,
    index: usize,
}

impl StoredRecord {
    /// What `record` means for the page of its `index`-th block reference; `None` if there is no such reference.
    pub fn new(record: &DecodedRecord, index: usize) -> Option<StoredRecord> {
        record.blocks.get(index)?;
        let mut record = record.clone();
        for (other, block) in record.blocks.iter_mut().enumerate() {
            if other != index {
                block.data = None;
                block.image = None;
            } else if block.image.as_ref().is_some_and(|image| !image.apply) {
                block.image = None;
            } else if block.image.is_some() {
                block.data = None;
            }
        }
        // An image stands for itself.
        if record.blocks[index].image.is_some() {
            record.main_data = Bytes::new();
            let own = record.blocks.swap_remove(index);
            record.blocks = vec![own];
            return Some(StoredRecord { record, index: 0 });
        }
        Some(StoredRecord { record, index })
    }

    /// Whether the page's earlier content does not matter: a chain may start here.
    pub fn starts_page(&self) -> bool {
        let own = &self.record.blocks[self.index];
        own.will_init || own.image.is_some()
    }

    /// Replays the record on its page; see [`redo_block`].
    ///
    /// # Errors
    /// See [`RedoError`].
    pub fn apply(&self, page: &mut PageBytes) -> Result<(), RedoError> {
        redo_block(&self.record, &self.record.blocks[self.index], page)
    }

    /// The stored form; see the module header.
    pub fn encode(&self) -> Vec<u8> {
        let record = &self.record;
        let mut out = Vec::with_capacity(64 + record.main_data.len());
        out.extend_from_slice(&[
            VERSION,
            record.rmid,
            record.info,
            record.blocks.len() as u8,
            self.index as u8,
        ]);
        out.put_u32_le(record.xid);
        out.put_u32_le(record.main_data.len() as u32);
        out.extend_from_slice(&record.main_data);
        for block in &record.blocks {
            out.put_u8(block.id);
            let mut flags = if block.will_init { WILL_INIT } else { 0 };
            flags |= if block.data.is_some() { HAS_DATA } else { 0 };
            flags |= if block.image.is_some() { HAS_IMAGE } else { 0 };
            out.put_u8(flags);
            out.put_u32_le(block.rel.spcnode);
            out.put_u32_le(block.rel.dbnode);
            out.put_u32_le(block.rel.relnode);
            out.put_u8(block.rel.fork as u8);
            out.put_u32_le(block.block);
            if let Some(data) = &block.data {
                out.put_u32_le(data.len() as u32);
                out.extend_from_slice(data);
            }
            if let Some(image) = &block.image {
                let compression = COMPRESSIONS.iter().position(|known| *known == image.compression);
                out.put_u8(compression.unwrap_or_default() as u8);
                out.put_u16_le(image.hole_offset);
                out.put_u16_le(image.hole_length);
                out.put_u32_le(image.bytes.len() as u32);
                out.extend_from_slice(&image.bytes);
            }
        }
        out
    }

    /// Reads the stored form of a record that Postgres `version` wrote and that ends at `end`.
    ///
    /// # Errors
    /// See [`StoredError`].
    pub fn decode(mut bytes: Bytes, version: PgVersion, end: Lsn) -> Result<StoredRecord, StoredError> {
        let input = &mut bytes;
        if u8_of(input)? != VERSION {
            return Err(StoredError("unknown version"));
        }
        let (rmid, info, count, index) = (
            u8_of(input)?,
            u8_of(input)?,
            u8_of(input)?,
            usize::from(u8_of(input)?),
        );
        let xid = u32_of(input)?;
        let main_data = bytes_of(input)?;
        let mut blocks = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            blocks.push(decode_block(input)?);
        }
        if !input.is_empty() {
            return Err(StoredError("bytes are left over"));
        }
        if index >= blocks.len() {
            return Err(StoredError("no such block reference"));
        }
        let record = DecodedRecord {
            version,
            start: end,
            end,
            prev: Lsn(0),
            xid,
            rmid,
            info,
            origin: None,
            toplevel_xid: None,
            blocks,
            main_data,
        };
        Ok(StoredRecord { record, index })
    }
}

fn decode_block(input: &mut Bytes) -> Result<BlockRef, StoredError> {
    let (id, flags) = (u8_of(input)?, u8_of(input)?);
    let (spcnode, dbnode, relnode) = (u32_of(input)?, u32_of(input)?, u32_of(input)?);
    let fork = ForkNumber::from_number(u8_of(input)?).ok_or(StoredError("unknown fork"))?;
    let block = u32_of(input)?;
    let data = if flags & HAS_DATA != 0 {
        Some(bytes_of(input)?)
    } else {
        None
    };
    let image = if flags & HAS_IMAGE != 0 {
        let compression = *COMPRESSIONS
            .get(usize::from(u8_of(input)?))
            .ok_or(StoredError("unknown compression"))?;
        let (hole_offset, hole_length) = (u16_of(input)?, u16_of(input)?);
        Some(BlockImage {
            bytes: bytes_of(input)?,
            compression,
            hole_offset,
            hole_length,
            apply: true,
        })
    } else {
        None
    };
    let rel = RelTag {
        spcnode,
        dbnode,
        relnode,
        fork,
    };
    Ok(BlockRef {
        id,
        rel,
        block,
        will_init: flags & WILL_INIT != 0,
        image,
        data,
    })
}

const SHORT: StoredError = StoredError("it ends too early");

fn u8_of(input: &mut Bytes) -> Result<u8, StoredError> {
    input.try_get_u8().map_err(|_| SHORT)
}

fn u16_of(input: &mut Bytes) -> Result<u16, StoredError> {
    input.try_get_u16_le().map_err(|_| SHORT)
}

fn u32_of(input: &mut Bytes) -> Result<u32, StoredError> {
    input.try_get_u32_le().map_err(|_| SHORT)
}

fn bytes_of(input: &mut Bytes) -> Result<Bytes, StoredError> {
    let length = u32_of(input)? as usize;
    if length > input.len() {
        Err(SHORT)
    } else {
        Ok(input.split_to(length))
    }
}
