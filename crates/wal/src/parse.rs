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
    compression: ImageCompression,
    apply: bool,
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
///
/// # Errors
/// The bytes are not a record as Postgres writes it.
pub fn parse_record(
    version: PgVersion,
    start: Lsn,
    end: Lsn,
    bytes: Bytes,
) -> Result<DecodedRecord, RecordError> {
    let mut record = DecodedRecord::empty(version);
    parse_record_into(&mut record, version, start, end, bytes)?;
    Ok(record)
}

/// As [`parse_record`], in the place of a record that is not needed any more and whose memory is used again. For whoever
/// takes millions of records apart, one after the other.
///
/// # Errors
/// As [`parse_record`]; `record` is of no use then.
pub fn parse_record_into(
    record: &mut DecodedRecord,
    version: PgVersion,
    start: Lsn,
    end: Lsn,
    bytes: Bytes,
) -> Result<(), RecordError> {
    (record.version, record.start, record.end) = (version, start, end);
    (record.rmid, record.info) = (0, 0);
    (record.origin, record.toplevel_xid) = (None, None);
    record.blocks.clear();
    parse(record, bytes).map_err(|rule| RecordError {
        lsn: start,
        rmid: record.rmid,
        info: record.info,
        rule,
    })
}

fn parse(record: &mut DecodedRecord, bytes: Bytes) -> Result<(), &'static str> {
    // Headers are read from the plain bytes; only what the record keeps shares the memory, which has a cost.
    let mut rest = Rest(&bytes);
    let header: [u8; RECORD_HEADER_BYTES] = rest.array().ok_or("it is shorter than a record header")?;
    let [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        p0,
        p1,
        p2,
        p3,
        p4,
        p5,
        p6,
        p7,
        info,
        rmid,
        ..,
    ] = header;
    record.xid = u32::from_le_bytes([e, f, g, h]);
    record.prev = Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]));
    (record.info, record.rmid) = (info, rmid);
    if usize::try_from(u32::from_le_bytes([a, b, c, d])) != Ok(bytes.len()) {
        return Err("its length differs from xl_tot_len");
    }

    // Few records name more pages; none allocates for them.
    let mut headers: SmallVec<[BlockHeader; 4]> = SmallVec::new();
    let mut data_total = 0usize;
    let mut main_length = 0usize;
    while rest.0.len() > data_total {
        let id = rest.u8()?;
        match id {
            ID_DATA_SHORT => main_length = usize::from(rest.u8()?),
            ID_DATA_LONG => {
                main_length = usize::try_from(rest.u32()?).map_err(|_| "its main data is too long")?;
            }
            ID_ORIGIN => record.origin = Some(rest.u16()?),
            ID_TOPLEVEL_XID => record.toplevel_xid = Some(rest.u32()?),
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
    if rest.0.len() != data_total {
        return Err("the lengths of its parts do not add up to its own");
    }

    // From here on every part is known to be there.
    let mut bytes = bytes;
    let mut at = bytes.len() - data_total;
    let mut part = |length: usize| {
        at += length;
        bytes.slice(at - length..at)
    };
    record.blocks.reserve(headers.len());
    for header in headers {
        let image = header.image.map(|image| BlockImage {
            bytes: part(usize::from(image.length)),
            compression: image.compression,
            hole_offset: image.hole_offset,
            hole_length: image.hole_length,
            apply: image.apply,
        });
        let has_data = header.data_length > 0;
        let data = has_data.then(|| part(usize::from(header.data_length)));
        record.blocks.push(BlockRef {
            id: header.id,
            rel: header.rel,
            block: header.block,
            will_init: header.flags & WILL_INIT != 0,
            image,
            data,
        });
    }
    // The last part, so it has the record's own share in the memory.
    bytes.advance(at);
    record.main_data = bytes;
    Ok(())
}

fn block_header(
    id: u8,
    before: Option<&BlockHeader>,
    rest: &mut Rest<'_>,
) -> Result<BlockHeader, &'static str> {
    if before.is_some_and(|before| before.id >= id) {
        return Err("its block ids do not ascend");
    }
    let flags = rest.u8()?;
    let data_length = rest.u16()?;
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
        let (spcnode, dbnode, relnode) = (rest.u32()?, rest.u32()?, rest.u32()?);
        RelTag {
            spcnode,
            dbnode,
            relnode,
            fork,
        }
    };
    let block = rest.u32()?;
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
fn image_header(rest: &mut Rest<'_>) -> Result<ImageHeader, &'static str> {
    let length = rest.u16()?;
    let hole_offset = rest.u16()?;
    let bits = rest.u8()?;
    let has_hole = bits & IMAGE_HAS_HOLE != 0;
    let compressed = bits & (IMAGE_PGLZ | IMAGE_LZ4 | IMAGE_ZSTD);
    if compressed.count_ones() > 1 {
        return Err("a page image names several compressions");
    }
    let hole_length = match (has_hole, compressed != 0) {
        (true, true) => rest.u16()?,
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
        compression: match compressed {
            0 => ImageCompression::None,
            IMAGE_PGLZ => ImageCompression::Pglz,
            IMAGE_LZ4 => ImageCompression::Lz4,
            _ => ImageCompression::Zstd,
        },
        apply: bits & IMAGE_APPLY != 0,
    })
}

const SHORT: &str = "one of its headers ends outside the record";

/// What was not read yet of a record's headers.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, &'static str> {
        self.array().map(u8::from_le_bytes).ok_or(SHORT)
    }

    #[inline]
    fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes).ok_or(SHORT)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes).ok_or(SHORT)
    }
}
