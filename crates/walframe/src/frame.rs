//! One frame: some WAL that can be read without anything around it.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `WFRM` |
//! | 4..6 | format version, 1 |
//! | 6 | codec of the stored bytes: 0 plain, 1 zstd, 2 reserved for the record codec |
//! | 7 | flags: 1 the frame begins inside a record |
//! | 8..12 | key id; 0: not encrypted |
//! | 12..24 | nonce; zeros when not encrypted |
//! | 24..32, 32..40 | begin and end LSN |
//! | 40..44 | bytes of WAL, which is end minus begin |
//! | 44..48 | stored bytes |
//! | 48..52 | CRC32C of the WAL |
//! | 52..56 | CRC32C of the stored bytes |
//! | 56..60 | zeros |
//! | 60..64 | CRC32C of bytes 0..60 |
//!
//! Key id and nonce are room for encryption. Codecs other than plain never make the stored bytes longer than the WAL.

use lakebed_types::Lsn;

use crate::bytes_at::Fields;
use crate::{FrameError, MAX_FRAME_BYTES, VERSION};

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"WFRM";
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
const FLAG_INSIDE_RECORD: u8 = 1;

/// zstd's own default: about four times faster than what would save another twentieth.
const ZSTD_LEVEL: i32 = 3;

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// First byte.
    pub begin: Lsn,
    /// Behind the last byte.
    pub end: Lsn,
    /// It begins inside a record, which is longer than a frame may be.
    pub inside_record: bool,
    /// Bytes behind the header.
    pub stored_bytes: usize,
    codec: u8,
    wal_crc: u32,
    stored_crc: u32,
}

/// A frame, decoded and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What its header says.
    pub header: FrameHeader,
    /// The WAL.
    pub wal: Vec<u8>,
}

/// Encodes WAL that begins at `begin`, compressed when that makes it smaller.
///
/// # Panics
/// When there is no WAL, or more than [`MAX_FRAME_BYTES`]: a bug of the caller.
pub fn encode(begin: Lsn, wal: &[u8], inside_record: bool) -> Vec<u8> {
    assert!(
        (1..=MAX_FRAME_BYTES).contains(&wal.len()),
        "a frame of {} bytes of WAL",
        wal.len()
    );
    // The only way to fail is a buffer that is too small; then it is not worth it.
    let compressed = zstd::bulk::compress(wal, ZSTD_LEVEL).ok();
    let (codec, stored) = match &compressed {
        Some(smaller) if smaller.len() < wal.len() => (ZSTD, smaller.as_slice()),
        _ => (PLAIN, wal),
    };
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + stored.len());
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.push(codec);
    out.push(if inside_record { FLAG_INSIDE_RECORD } else { 0 });
    out.extend([0; 16]);
    out.extend(begin.0.to_le_bytes());
    out.extend((begin.0 + wal.len() as u64).to_le_bytes());
    out.extend((wal.len() as u32).to_le_bytes());
    out.extend((stored.len() as u32).to_le_bytes());
    out.extend(crc32c::crc32c(wal).to_le_bytes());
    out.extend(crc32c::crc32c(stored).to_le_bytes());
    out.extend([0; 4]);
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(stored);
    out
}

/// Reads the header at the start of `bytes`.
///
/// # Errors
/// See [`FrameError`].
pub fn header(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
    let fields = Fields::<FRAME_HEADER_BYTES>::of(bytes)?;
    if !fields.0.starts_with(&MAGIC) {
        return Err(FrameError::Damaged("no frame begins here"));
    }
    fields.checked(60, "checksum of a frame's header")?;
    match fields.u16(4) {
        VERSION => {}
        0 => return Err(FrameError::Damaged("version 0 of a frame")),
        found => return Err(FrameError::Newer { found }),
    }
    let [codec, flags] = fields.u16(6).to_le_bytes();
    if flags & !FLAG_INSIDE_RECORD != 0 {
        return Err(FrameError::Damaged("unknown flags of a frame"));
    }
    if fields.u32(8) != 0 {
        return Err(FrameError::Encrypted(fields.u32(8)));
    }
    if codec > ZSTD {
        return Err(FrameError::Codec(codec));
    }
    fields.zeros(12, 24)?;
    fields.zeros(56, 60)?;
    let (begin, end) = (Lsn(fields.u64(24)), Lsn(fields.u64(32)));
    let (wal_bytes, stored_bytes) = (fields.u32(40), fields.u32(44));
    let sizes_fit = end.checked_sub(begin) == Some(u64::from(wal_bytes))
        && (1..=MAX_FRAME_BYTES as u64).contains(&u64::from(wal_bytes))
        && (stored_bytes < wal_bytes || (codec == PLAIN && stored_bytes == wal_bytes));
    if !sizes_fit {
        return Err(FrameError::Damaged("lengths of a frame"));
    }
    Ok(FrameHeader {
        begin,
        end,
        inside_record: flags & FLAG_INSIDE_RECORD != 0,
        stored_bytes: stored_bytes as usize,
        codec,
        wal_crc: fields.u32(48),
        stored_crc: fields.u32(52),
    })
}

/// Decodes the frame at the start of `bytes`; returns also what follows it.
///
/// # Errors
/// See [`FrameError`].
pub fn decode(bytes: &[u8]) -> Result<(Frame, &[u8]), FrameError> {
    let header = header(bytes)?;
    let stored = bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default();
    let (stored, rest) = stored
        .split_at_checked(header.stored_bytes)
        .ok_or(FrameError::Damaged("a frame is cut short"))?;
    if crc32c::crc32c(stored) != header.stored_crc {
        return Err(FrameError::Damaged("checksum of a frame"));
    }
    let length = (header.end.0 - header.begin.0) as usize;
    let wal = match header.codec {
        PLAIN => stored.to_vec(),
        // `length` was checked to be within bounds, and no more is ever written.
        _ => zstd::bulk::decompress(stored, length)
            .map_err(|_| FrameError::Damaged("a frame cannot be decompressed"))?,
    };
    if wal.len() != length || crc32c::crc32c(&wal) != header.wal_crc {
        return Err(FrameError::Damaged("checksum of a frame's WAL"));
    }
    Ok((Frame { header, wal }, rest))
}
