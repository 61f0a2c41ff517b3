//! One decoded WAL record.
//!
//! The layout of a record is in Postgres's `access/xlogrecord.h`: a 24-byte header, then headers of block
//! references and of the main data, then the data of the blocks in order, then the main data.

use bytes::Bytes;
use lakebed_types::{Lsn, PgVersion, RelTag};

/// First number of a resource manager that an extension may have (`RM_MIN_CUSTOM_ID` of `access/rmgr.h`); the last one
/// is 255.
pub const FIRST_CUSTOM_MANAGER: u8 = 128;

/// A record whose header, block references and lengths have been checked. The CRC is checked by whoever
/// assembled the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedRecord {
    /// Major version of Postgres that wrote it: the meaning of the data depends on it.
    pub version: PgVersion,
    /// Position of the first byte of the record's header.
    pub start: Lsn,
    /// Position after the record, aligned to 8 bytes: the LSN that Postgres stamps on the pages it changes.
    pub end: Lsn,
    /// `xl_prev`: start of the record before.
    pub prev: Lsn,
    /// `xl_xid`; 0 when the record belongs to no transaction.
    pub xid: u32,
    /// `xl_rmid`: resource manager.
    pub rmid: u8,
    /// `xl_info`: the resource manager's bits (0xF0) and Postgres's own (0x0F).
    pub info: u8,
    /// Replication origin, when the record carries one.
    pub origin: Option<u16>,
    /// Top-level transaction id, when the record carries one.
    pub toplevel_xid: Option<u32>,
    /// Block references, in ascending order of id.
    pub blocks: Vec<BlockRef>,
    /// Main data; empty when there is none.
    pub main_data: Bytes,
}

impl DecodedRecord {
    /// A record of nothing, in whose place others are taken apart (`parse::parse_record_into`).
    pub fn empty(version: PgVersion) -> DecodedRecord {
        DecodedRecord {
            version,
            start: Lsn::INVALID,
            end: Lsn::INVALID,
            prev: Lsn::INVALID,
            xid: 0,
            rmid: 0,
            info: 0,
            origin: None,
            toplevel_xid: None,
            blocks: Vec::new(),
            main_data: Bytes::new(),
        }
    }

    /// The block reference with this id.
    pub fn block(&self, id: u8) -> Option<&BlockRef> {
        self.blocks.iter().find(|block| block.id == id)
    }
}

/// One page that a record refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// Id inside the record, 0 to 32.
    pub id: u8,
    /// Relation fork.
    pub rel: RelTag,
    /// Block number.
    pub block: u32,
    /// `BKPBLOCK_WILL_INIT`: redo builds the page from nothing.
    pub will_init: bool,
    /// Page image, if there is one.
    pub image: Option<BlockImage>,
    /// Data of this block; `None` when `BKPBLOCK_HAS_DATA` is not set.
    pub data: Option<Bytes>,
}

/// How a page image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCompression {
    /// Not at all.
    None,
    /// Postgres's own.
    Pglz,
    /// An LZ4 block.
    Lz4,
    /// A Zstandard frame.
    Zstd,
}

/// A page image as stored, with the hole between `pd_lower` and `pd_upper` left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockImage {
    /// Stored bytes: compressed, hole left out.
    pub bytes: Bytes,
    /// Compression of `bytes`.
    pub compression: ImageCompression,
    /// Where the hole begins; 0 without a hole.
    pub hole_offset: u16,
    /// Bytes of the hole; 0 without one.
    pub hole_length: u16,
    /// `BKPIMAGE_APPLY`: restore this image instead of running redo. Without it the image is there for checking only.
    pub apply: bool,
}
