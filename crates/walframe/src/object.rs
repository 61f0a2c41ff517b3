//! Reading an object: as a whole, or through its footer and index. The layout is in the crate's header.

use bytes::Bytes;
use lakebed_types::{Lsn, PgVersion};

use crate::bytes_at::Fields;
use crate::frame::{self, FRAME_HEADER_BYTES, Frame};
use crate::{FrameError, MAX_FRAME_BYTES, MAX_FRAMES, MAX_STATE_BYTES, VERSION};

/// Bytes of an object's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of an object's footer.
pub const FOOTER_BYTES: usize = 64;
/// Bytes of an entry of the index.
pub const INDEX_ENTRY_BYTES: usize = 24;

const MAGIC: [u8; 8] = *b"LKBDWALO";
const FOOTER_MAGIC: [u8; 8] = *b"LKBDWALF";

/// What the WAL of an object is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Postgres's major version.
    pub pg_version: PgVersion,
    /// Bytes of a WAL segment, a power of two.
    pub segment_bytes: u32,
    /// Postgres's system identifier.
    pub system_id: u64,
    /// First byte.
    pub begin: Lsn,
    /// Behind the last byte.
    pub end: Lsn,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.pg_version.major() as u16).to_le_bytes());
        out.extend(self.segment_bytes.to_le_bytes());
        out.extend(self.system_id.to_le_bytes());
        out.extend(self.begin.0.to_le_bytes());
        out.extend(self.end.0.to_le_bytes());
        out.resize(HEADER_BYTES - 4, 0);
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(bytes: &[u8]) -> Result<Header, FrameError> {
        let fields = Fields::<HEADER_BYTES>::of(bytes)?;
        if !fields.0.starts_with(&MAGIC) {
            return Err(FrameError::Damaged("it does not begin as one"));
        }
        fields.checked(60, "checksum of the header")?;
        match fields.u16(8) {
            VERSION => {}
            0 => return Err(FrameError::Damaged("version 0")),
            found => return Err(FrameError::Newer { found }),
        }
        fields.zeros(40, 60)?;
        let pg_version = PgVersion::try_from(u32::from(fields.u16(10)));
        let header = Header {
            pg_version: pg_version.map_err(|_| FrameError::Damaged("Postgres version"))?,
            segment_bytes: fields.u32(12),
            system_id: fields.u64(16),
            begin: Lsn(fields.u64(24)),
            end: Lsn(fields.u64(32)),
        };
        if header.begin > header.end || !header.segment_bytes.is_power_of_two() {
            return Err(FrameError::Damaged("fields of the header"));
        }
        Ok(header)
    }
}

pub(crate) fn index_entry(begin: Lsn, offset: u64, length: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(INDEX_ENTRY_BYTES);
    out.extend(begin.0.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend([0; 4]);
    out
}

pub(crate) fn footer(header: &Header, index_offset: u64, index: &[u8], state: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FOOTER_BYTES);
    out.extend(index_offset.to_le_bytes());
    out.extend(((index.len() / INDEX_ENTRY_BYTES) as u32).to_le_bytes());
    out.extend((state.len() as u32).to_le_bytes());
    out.extend(header.begin.0.to_le_bytes());
    out.extend(header.end.0.to_le_bytes());
    out.extend(crc32c::crc32c(index).to_le_bytes());
    out.extend(crc32c::crc32c(state).to_le_bytes());
    out.resize(52, 0);
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(FOOTER_MAGIC);
    out
}

/// The last [`FOOTER_BYTES`] of an object, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where index and state begin; they end where the footer begins.
    pub index_offset: u64,
    /// First byte of the object's WAL.
    pub begin: Lsn,
    /// Behind the last one.
    pub end: Lsn,
    frames: usize,
    state_bytes: usize,
    index_crc: u32,
    state_crc: u32,
}

impl Footer {
    /// Reads the footer of an object of `object_bytes` bytes.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(bytes: &[u8], object_bytes: u64) -> Result<Footer, FrameError> {
        let fields = Fields::<FOOTER_BYTES>::of(bytes)?;
        if !fields.0.ends_with(&FOOTER_MAGIC) {
            return Err(FrameError::Damaged("it does not end as one"));
        }
        fields.checked(52, "checksum of the footer")?;
        fields.zeros(40, 52)?;
        let footer = Footer {
            index_offset: fields.u64(0),
            frames: fields.u32(8) as usize,
            state_bytes: fields.u32(12) as usize,
            begin: Lsn(fields.u64(16)),
            end: Lsn(fields.u64(24)),
            index_crc: fields.u32(32),
            state_crc: fields.u32(36),
        };
        let bounded = footer.frames <= MAX_FRAMES && footer.state_bytes <= MAX_STATE_BYTES;
        let tail = (footer.frames * INDEX_ENTRY_BYTES + footer.state_bytes + FOOTER_BYTES) as u64;
        let fits = footer.index_offset >= HEADER_BYTES as u64
            && footer.index_offset.checked_add(tail) == Some(object_bytes);
        if !bounded || !fits || footer.begin > footer.end {
            return Err(FrameError::Damaged("fields of the footer"));
        }
        Ok(footer)
    }
}

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its first byte of WAL.
    pub begin: Lsn,
    /// Where it begins in the object.
    pub offset: u64,
    /// Its bytes, with its header.
    pub bytes: u32,
}

/// The index of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// In LSN order; the first begins with the object's WAL.
    pub entries: Vec<IndexEntry>,
    /// What the writer knew about the timeline.
    pub state: Vec<u8>,
}

impl Index {
    /// Reads what lies between [`Footer::index_offset`] and the footer.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(bytes: &[u8], footer: &Footer) -> Result<Index, FrameError> {
        let (index, state) = bytes
            .split_at_checked(footer.frames * INDEX_ENTRY_BYTES)
            .ok_or(FrameError::Damaged("the index is cut short"))?;
        if state.len() != footer.state_bytes || crc32c::crc32c(state) != footer.state_crc {
            return Err(FrameError::Damaged("checksum of the state"));
        }
        if crc32c::crc32c(index) != footer.index_crc {
            return Err(FrameError::Damaged("checksum of the index"));
        }
        let mut entries = Vec::with_capacity(footer.frames);
        let (mut offset, mut last) = (HEADER_BYTES as u64, None);
        for bytes in index.chunks_exact(INDEX_ENTRY_BYTES) {
            let fields = Fields::<INDEX_ENTRY_BYTES>::of(bytes)?;
            fields.zeros(20, 24)?;
            let entry = IndexEntry {
                begin: Lsn(fields.u64(0)),
                offset: fields.u64(8),
                bytes: fields.u32(16),
            };
            let sized = (FRAME_HEADER_BYTES + 1..=FRAME_HEADER_BYTES + MAX_FRAME_BYTES)
                .contains(&(entry.bytes as usize));
            let follows = match last {
                None => entry.begin == footer.begin,
                Some(last) => entry.begin > last,
            };
            if !sized || !follows || entry.offset != offset || entry.begin >= footer.end {
                return Err(FrameError::Damaged("an entry of the index"));
            }
            (offset, last) = (offset + u64::from(entry.bytes), Some(entry.begin));
            entries.push(entry);
        }
        let complete = offset == footer.index_offset && (last.is_some() || footer.begin == footer.end);
        if !complete {
            return Err(FrameError::Damaged("the index does not cover the object"));
        }
        Ok(Index {
            entries,
            state: state.to_vec(),
        })
    }

    /// The frames that hold some WAL of `[begin, end)`.
    pub fn frames(&self, begin: Lsn, end: Lsn) -> &[IndexEntry] {
        let to = self.entries.partition_point(|entry| entry.begin < end);
        let from = self.entries.partition_point(|entry| entry.begin <= begin);
        self.entries.get(from.saturating_sub(1)..to).unwrap_or_default()
    }
}

/// A whole object whose header, index and footer were checked.
#[derive(Clone, Debug)]
pub struct Object {
    /// What its WAL is of.
    pub header: Header,
    /// Its index and state.
    pub index: Index,
    bytes: Bytes,
}

impl Object {
    /// Checks an object; its frames are checked when they are read.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn open(bytes: Bytes) -> Result<Object, FrameError> {
        let header = Header::parse(&bytes)?;
        let at = bytes.len().saturating_sub(FOOTER_BYTES);
        let footer = Footer::parse(bytes.get(at..).unwrap_or_default(), bytes.len() as u64)?;
        if (footer.begin, footer.end) != (header.begin, header.end) {
            return Err(FrameError::Damaged("header and footer differ"));
        }
        let index = usize::try_from(footer.index_offset)
            .ok()
            .and_then(|from| bytes.get(from..at))
            .ok_or(FrameError::Damaged("offset of the index"))?;
        let index = Index::parse(index, &footer)?;
        Ok(Object { header, index, bytes })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Its frames, in order, without a gap. After an error there is nothing more.
    pub fn frames(&self) -> impl Iterator<Item = Result<Frame, FrameError>> {
        let mut at = self.header.begin;
        let mut failed = false;
        let last = self.index.entries.len();
        self.index
            .entries
            .iter()
            .enumerate()
            .map_while(move |(number, entry)| {
                if failed {
                    return None;
                }
                let read = self.frame(entry).and_then(|frame| {
                    let ends = number + 1 < last || frame.header.end == self.header.end;
                    if frame.header.begin != at || !ends {
                        return Err(FrameError::Damaged("a frame is not where the index says"));
                    }
                    at = frame.header.end;
                    Ok(frame)
                });
                failed = read.is_err();
                Some(read)
            })
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn frame(&self, entry: &IndexEntry) -> Result<Frame, FrameError> {
        let from = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let bytes = self
            .bytes
            .get(from..from.saturating_add(entry.bytes as usize))
            .ok_or(FrameError::Damaged("offset of a frame"))?;
        read_frame(entry, bytes)
    }
}

/// Decodes the bytes that an index entry names.
///
/// # Errors
/// See [`FrameError`].
pub fn read_frame(entry: &IndexEntry, bytes: &[u8]) -> Result<Frame, FrameError> {
    let (frame, rest) = frame::decode(bytes)?;
    if frame.header.begin != entry.begin || !rest.is_empty() {
        return Err(FrameError::Damaged("a frame is not where the index says"));
    }
    Ok(frame)
}
