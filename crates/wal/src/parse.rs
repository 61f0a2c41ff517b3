//! From the bytes of one record to a [`DecodedRecord`].
//!
//! The bytes are those of the record alone, page headers taken out, CRC already checked. Every length inside is
//! checked against what is there, and a field that Postgres never writes is refused: a record that is not understood
//! to the last byte must not be replayed.

use bytes::{Buf, Bytes};
use lakebed_types::{ForkNumber, Lsn, PgVersion, RelTag};
use smallvec::SmallVec;

use crate::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};

/// Bytes of `XLogRecord`, the fixed header.
pub const RECORD_HEADER_BYTES: usize = 24;
/// Highest block id of a record (`XLR_MAX_BLOCK_ID`).
pub const MAX_BLOCK_ID: u8 = 32;
const PAGE_BYTES: u16 = 8192;

const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOPLEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0f;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;
const IMAGE_APPLY: u8 = 0x02;
const IMAGE_PGLZ: u8 = 0x04;
const IMAGE_LZ4: u8 = 0x08;
const IMAGE_ZSTD: u8 = 0x10;

/// A record whose inner structure is not one that Postgres writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record at {lsn} (resource manager {rmid}, info {info:#04x}): {rule}")]
pub struct RecordError {
    /// Start of the record.
    pub lsn: Lsn,
    /// Its resource manager.
    pub rmid: u8,
    /// Its info bits.
    pub info: u8,
    /// The rule that it violates.
    pub rule: &'static str,
}

struct ImageHeader {
    length: u16,
    hole_offset: u16,
    hole_length: u16,
    bits: u8,
}

struct BlockHeader {
    id: u8,
    flags: u8,
    data_length: u16,
    image: Option<ImageHeader>,
    rel: RelTag,
    block: u32,
}

/// Decodes a record of this version that starts at `start` and whose aligned end is `end`.
pub fn parse_record(
    version: PgVersion,
    start: Lsn,
    end: Lsn,
    bytes: Bytes,
) -> Result<DecodedRecord, RecordError> {
    let (mut rmid, mut info) = (0, 0);
    let total = bytes.len();
    let result = parse(version, start, end, bytes, total, &mut rmid, &mut info);
    result.map_err(|rule| RecordError {
        lsn: start,
        rmid,
        info,
        rule,
    })
}

fn parse(
    version: PgVersion,
    start: Lsn,
    end: Lsn,
    bytes: Bytes,
    total: usize,
    rmid: &mut u8,
    info: &mut u8,
) -> Result<DecodedRecord, &'static str> {
    let mut rest = bytes;
    if rest.len() < RECORD_HEADER_BYTES {
        return Err("it is shorter than a record header");
    }
    let told = rest.get_u32_le();
    let xid = rest.get_u32_le();
    let prev = Lsn(rest.get_u64_le());
    *info = rest.get_u8();
    *rmid = rest.get_u8();
    rest.advance(6); // padding, CRC
    if usize::try_from(told) != Ok(total) {
        return Err("its length differs from xl_tot_len");
    }

    // Few records name more pages; none allocates for them.
    let mut headers: SmallVec<[BlockHeader; 4]> = SmallVec::new();
    let (mut origin, mut toplevel_xid) = (None, None);
    let mut data_total = 0usize;
    let mut main_length = 0usize;
    while rest.len() > data_total {
        let id = take_u8(&mut rest)?;
        match id {
            ID_DATA_SHORT => main_length = usize::from(take_u8(&mut rest)?),
            ID_DATA_LONG => {
                main_length =
                    usize::try_from(take_u32(&mut rest)?).map_err(|_| "its main data is too long")?;
            }
            ID_ORIGIN => origin = Some(take_u16(&mut rest)?),
            ID_TOPLEVEL_XID => toplevel_xid = Some(take_u32(&mut rest)?),
            0..=MAX_BLOCK_ID => {
                let header = block_header(id, headers.last(), &mut rest)?;
                data_total += usize::from(header.data_length);
                data_total += header.image.as_ref().map_or(0, |image| usize::from(image.length));
                headers.push(header);
            }
            _ => return Err("a block id is out of range"),
        }
        if id == ID_DATA_SHORT || id == ID_DATA_LONG {
            data_total = data_total
                .checked_add(main_length)
                .ok_or("its main data is too long")?;
            break; // the main data's header is the last one
        }
    }
    if rest.len() != data_total {
        return Err("the lengths of its parts do not add up to its own");
    }

    let mut blocks = Vec::with_capacity(headers.len());
    for header in headers {
        let image = header
            .image
            .map(|image| block_image(&image, &mut rest))
            .transpose()?;
        let has_data = header.flags & HAS_DATA != 0;
        let data = has_data.then(|| rest.split_to(usize::from(header.data_length)));
        blocks.push(BlockRef {
            id: header.id,
            rel: header.rel,
            block: header.block,
            will_init: header.flags & WILL_INIT != 0,
            image,
            data,
        });
    }
    Ok(DecodedRecord {
        version,
        start,
        end,
        prev,
        xid,
        rmid: *rmid,
        info: *info,
        origin,
        toplevel_xid,
        blocks,
        main_data: rest,
    })
}

fn block_header(id: u8, before: Option<&BlockHeader>, rest: &mut Bytes) -> Result<BlockHeader, &'static str> {
    if before.is_some_and(|before| before.id >= id) {
        return Err("its block ids do not ascend");
    }
    let flags = take_u8(rest)?;
    let data_length = take_u16(rest)?;
    if (flags & HAS_DATA != 0) != (data_length > 0) {
        return Err("a block's data flag and data length disagree");
    }
    let fork = ForkNumber::from_number(flags & FORK_MASK).ok_or("a block's fork does not exist")?;
    let image = if flags & HAS_IMAGE != 0 {
        Some(image_header(rest)?)
    } else {
        None
    };
    let rel = if flags & SAME_REL != 0 {
        before
            .ok_or("its first block refers to the relation of a block before")?
            .rel
            .with_fork(fork)
    } else {
        let (spcnode, dbnode, relnode) = (take_u32(rest)?, take_u32(rest)?, take_u32(rest)?);
        RelTag {
            spcnode,
            dbnode,
            relnode,
            fork,
        }
    };
    let block = take_u32(rest)?;
    Ok(BlockHeader {
        id,
        flags,
        data_length,
        image,
        rel,
        block,
    })
}

/// The rules are those of `DecodeXLogRecord` in `access/transam/xlogreader.c`.
fn image_header(rest: &mut Bytes) -> Result<ImageHeader, &'static str> {
    let length = take_u16(rest)?;
    let hole_offset = take_u16(rest)?;
    let bits = take_u8(rest)?;
    let has_hole = bits & IMAGE_HAS_HOLE != 0;
    let compressed = bits & (IMAGE_PGLZ | IMAGE_LZ4 | IMAGE_ZSTD);
    if compressed.count_ones() > 1 {
        return Err("a page image names several compressions");
    }
    let hole_length = match (has_hole, compressed != 0) {
        (true, true) => take_u16(rest)?,
        (true, false) => PAGE_BYTES
            .checked_sub(length)
            .ok_or("a page image is larger than a page")?,
        (false, _) => 0,
    };
    let end = hole_offset
        .checked_add(hole_length)
        .ok_or("a page image's hole ends outside the page")?;
    if has_hole && (hole_offset == 0 || hole_length == 0 || end > PAGE_BYTES) {
        return Err("a page image's hole is empty or outside the page");
    }
    if !has_hole && hole_offset != 0 {
        return Err("a page image without a hole has a hole offset");
    }
    if length == 0 || length > PAGE_BYTES || (compressed != 0 && length == PAGE_BYTES) {
        return Err("a page image's length is out of range");
    }
    if !has_hole && compressed == 0 && length != PAGE_BYTES {
        return Err("a page image without hole and compression is not a page long");
    }
    Ok(ImageHeader {
        length,
        hole_offset,
        hole_length,
        bits,
    })
}

fn block_image(header: &ImageHeader, rest: &mut Bytes) -> Result<BlockImage, &'static str> {
    let length = usize::from(header.length);
    if rest.len() < length {
        return Err("a page image ends outside the record");
    }
    let compression = match header.bits & (IMAGE_PGLZ | IMAGE_LZ4 | IMAGE_ZSTD) {
        0 => ImageCompression::None,
        IMAGE_PGLZ => ImageCompression::Pglz,
        IMAGE_LZ4 => ImageCompression::Lz4,
        _ => ImageCompression::Zstd,
    };
    Ok(BlockImage {
        bytes: rest.split_to(length),
        compression,
        hole_offset: header.hole_offset,
        hole_length: header.hole_length,
        apply: header.bits & IMAGE_APPLY != 0,
    })
}

const SHORT: &str = "one of its headers ends outside the record";

fn take_u8(rest: &mut Bytes) -> Result<u8, &'static str> {
    rest.try_get_u8().map_err(|_| SHORT)
}

fn take_u16(rest: &mut Bytes) -> Result<u16, &'static str> {
    rest.try_get_u16_le().map_err(|_| SHORT)
}

fn take_u32(rest: &mut Bytes) -> Result<u32, &'static str> {
    rest.try_get_u32_le().map_err(|_| SHORT)
}
