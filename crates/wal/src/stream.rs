//! Records out of a stream of WAL bytes.
//!
//! Feed contiguous WAL from a record boundary on, in pieces of any size, and take out records. Page headers are
//! checked and left out, records are put together across pages and segments, their CRC and their link to the record
//! before (`xl_prev`) are checked.
//!
//! Zeros where a record or a page header should begin mean that no more was written yet; `None` means "feed more".
//! An error means that the bytes are not WAL of this cluster in this place; nothing after them is looked at. A
//! writer that still fills its last page may hand out a half-written record, which also ends in an error: it calls
//! [`WalDecoder::rewind`] and feeds the bytes from [`WalDecoder::position`] on again once there are more.

use bytes::{Bytes, BytesMut};
use lakebed_types::{Lsn, PgVersion};

use crate::page::{
    FLAG_CONTINUATION, FLAG_OVERWRITE, PageHeaderError, WAL_PAGE_BYTES, WalFormat, header_bytes,
};
use crate::parse::{RECORD_HEADER_BYTES, RecordError, parse_record, parse_record_into};
use crate::record::DecodedRecord;

/// The longest record that is accepted, in bytes: Postgres cannot write a longer one (`MaxAllocSize`).
pub const MAX_RECORD_BYTES: u32 = 0x3fff_ffff;

/// Most bytes that a record's length alone makes the decoder reserve; nothing has checked the length yet.
const RESERVED_AT_ONCE: usize = 64 << 10;

/// A record begins with its length, which is never zero.
const RECORD_LENGTH_BYTES: usize = 4;

const RMGR_XLOG: u8 = 0;
const XLOG_SWITCH: u8 = 0x40;

/// Why a stream of bytes is not the WAL that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A page header is not valid here.
    #[error("WAL page at {page}: {source}")]
    Page {
        /// LSN of the page.
        page: Lsn,
        /// What was wrong.
        source: PageHeaderError,
    },
    /// A page does not continue the record that the page before began, or continues one that nobody began.
    #[error("WAL page at {page} continues a record with {found} bytes left, expected {expected}")]
    Continuation {
        /// LSN of the page.
        page: Lsn,
        /// Bytes left as the page tells.
        found: u32,
        /// Bytes left as the record's length tells.
        expected: u32,
    },
    /// A position that was given as a record's start and is none: they are multiples of 8.
    #[error("no record begins at {lsn}: records begin at multiples of 8")]
    Unaligned {
        /// The position.
        lsn: Lsn,
    },
    /// `xl_tot_len` is shorter than a header or longer than any record.
    #[error("record at {lsn}: a length of {length} bytes is impossible")]
    Length {
        /// Start of the record.
        lsn: Lsn,
        /// What it tells.
        length: u32,
    },
    /// The CRC does not match: torn, half-written or damaged.
    #[error("record at {lsn}: its CRC is {found:08x}, the record tells {told:08x}")]
    Crc {
        /// Start of the record.
        lsn: Lsn,
        /// CRC of the bytes.
        found: u32,
        /// `xl_crc`.
        told: u32,
    },
    /// `xl_prev` does not name the record before: this is not its successor.
    #[error("record at {lsn} follows a record at {told}, but the record before starts at {expected}")]
    Previous {
        /// Start of the record.
        lsn: Lsn,
        /// `xl_prev`.
        told: Lsn,
        /// Start of the record before.
        expected: Lsn,
    },
    /// The record is intact and its inner structure is not valid.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// One record, put together and checked, not yet taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Major version of Postgres that wrote it.
    pub version: PgVersion,
    /// Position of its first byte.
    pub start: Lsn,
    /// Position after it, aligned; after a segment switch the end of the segment.
    pub end: Lsn,
    /// Header to last byte, page headers left out.
    pub bytes: Bytes,
}

impl RawRecord {
    /// Takes the record apart.
    pub fn decode(&self) -> Result<DecodedRecord, RecordError> {
        parse_record(self.version, self.start, self.end, self.bytes.clone())
    }

    /// Takes the record apart in the place of another: see [`parse_record_into`].
    pub fn decode_into(self, record: &mut DecodedRecord) -> Result<(), RecordError> {
        parse_record_into(record, self.version, self.start, self.end, self.bytes)
    }
}

/// See the module header.
#[derive(Debug)]
pub struct WalDecoder {
    format: WalFormat,
    /// End of the last complete record.
    position: Lsn,
    /// Start of the last complete record; invalid before the first.
    last_start: Lsn,
    /// What was fed last, up to `filled`. The rest is room that was used before, so that no feeding zeroes it again.
    input: Vec<u8>,
    filled: usize,
    /// Bytes of it that records were made of; the byte there is the one at `cursor`.
    consumed: usize,
    cursor: Lsn,
    /// Bytes of the record that is being put together; empty between records.
    record: BytesMut,
    /// Least size of a block of memory that records are cut from; 0 for one allocation for each.
    block: usize,
    record_start: Lsn,
    /// A complete record whose segment has to be skipped to its end first.
    before_switch: Option<(RawRecord, Lsn)>,
    failed: Option<StreamError>,
}

impl WalDecoder {
    /// A decoder whose first byte is at `start`, a record boundary. `previous` is the start of the record that ends
    /// there, or [`Lsn::INVALID`] when that is not known: then the first record's link is not checked.
    pub fn new(format: WalFormat, start: Lsn, previous: Lsn) -> WalDecoder {
        WalDecoder {
            format,
            position: start,
            last_start: previous,
            input: Vec::new(),
            filled: 0,
            consumed: 0,
            cursor: start,
            record: BytesMut::new(),
            block: 0,
            record_start: Lsn::INVALID,
            before_switch: None,
            failed: None,
        }
    }

    /// Cuts records from blocks of so many bytes of memory, each of which is used again as soon as all of its records are
    /// gone. For a reader that takes records apart one after the other and keeps none: a record that is kept keeps its
    /// block, and an idle decoder has one.
    pub fn with_blocks(mut self, bytes: usize) -> WalDecoder {
        self.block = bytes;
        self
    }

    /// End of the last complete record: what a position that leaves a node may be.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Start of the last complete record, the `xl_prev` of the next one; invalid when none is known.
    pub fn last_record_start(&self) -> Lsn {
        self.last_start
    }

    /// Where the next byte that is fed belongs.
    pub fn fed_to(&self) -> Lsn {
        Lsn(self.cursor.0 + (self.filled - self.consumed) as u64)
    }

    /// Adds bytes that begin at [`WalDecoder::fed_to`].
    pub fn feed(&mut self, bytes: &[u8]) {
        self.make_room();
        self.input.truncate(self.filled);
        self.input.extend_from_slice(bytes);
        self.filled = self.input.len();
    }

    /// Has `read` put up to `most` bytes that begin at [`WalDecoder::fed_to`] in their place, which saves a copy. It tells
    /// how many they are.
    ///
    /// # Errors
    /// That of `read`; nothing was added then.
    pub fn feed_from<E>(
        &mut self,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.make_room();
        let end = self.filled + most;
        if self.input.len() < end {
            self.input.resize(end, 0);
        }
        let count = read(&mut self.input[self.filled..end])?.min(most);
        self.filled += count;
        Ok(count)
    }

    /// Bytes from a position on, as far as they were part of what was fed last, whether they were consumed or not.
    pub fn fed_from(&self, position: Lsn) -> Option<&[u8]> {
        let first = self.cursor.0.checked_sub(self.consumed as u64)?;
        let at = usize::try_from(position.0.checked_sub(first)?).ok()?;
        self.input.get(at..self.filled)
    }

    /// Moves what was not consumed to the front.
    fn make_room(&mut self) {
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
    }

    /// Forgets everything after the last complete record; feed again from [`WalDecoder::position`] on.
    pub fn rewind(&mut self) {
        self.filled = 0;
        self.consumed = 0;
        self.cursor = self.position;
        self.record.clear();
        self.before_switch = None;
        self.failed = None;
    }

    /// Whether zeros stand where the next record or page header should begin. What is fed after them changes nothing: a
    /// reader of files need not read on, and one of a stream [rewinds](WalDecoder::rewind).
    pub fn is_at_zeros(&self) -> bool {
        if self.failed.is_some() || self.before_switch.is_some() {
            return false;
        }
        let length = if self.cursor.0.is_multiple_of(WAL_PAGE_BYTES) && !self.is_complete() {
            header_bytes(self.cursor, self.format.segment_bytes)
        } else if self.record.is_empty() {
            RECORD_LENGTH_BYTES
        } else {
            return false;
        };
        let beginning = self.available().get(..length);
        beginning.is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0))
    }

    /// The next complete record taken apart, or `None` when more bytes are needed.
    pub fn next_record(&mut self) -> Result<Option<DecodedRecord>, StreamError> {
        match self.next_raw()? {
            Some(raw) => Ok(Some(raw.decode()?)),
            None => Ok(None),
        }
    }

    /// The next complete record, or `None` when more bytes are needed. After an error every call repeats an error
    /// until [`WalDecoder::rewind`].
    pub fn next_raw(&mut self) -> Result<Option<RawRecord>, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn advance(&mut self) -> Result<Option<RawRecord>, StreamError> {
        loop {
            if let Some((record, end)) = self.before_switch.take() {
                let wanted = usize::try_from(end.0 - self.cursor.0).unwrap_or(usize::MAX);
                self.consume(wanted.min(self.available().len()));
                if self.cursor < end {
                    self.before_switch = Some((record, end));
                    return Ok(None);
                }
                return Ok(Some(self.complete(record)));
            }
            // A record that fills its page ends there: who waits for it must not wait for the next page's header.
            if self.cursor.0.is_multiple_of(WAL_PAGE_BYTES) && !self.is_complete() {
                if !self.page_header()? {
                    return Ok(None);
                }
                continue;
            }
            let page_left = WAL_PAGE_BYTES - self.cursor.0 % WAL_PAGE_BYTES;
            let here = self
                .available()
                .len()
                .min(usize::try_from(page_left).unwrap_or(usize::MAX));
            if self.record.is_empty() {
                // Records are aligned to 8 bytes, so a length never crosses a page.
                let Some(&[a, b, c, d]) = self.available().get(..RECORD_LENGTH_BYTES) else {
                    return Ok(None);
                };
                if here < RECORD_LENGTH_BYTES {
                    let lsn = self.cursor;
                    return Err(StreamError::Unaligned { lsn });
                }
                let length = u32::from_le_bytes([a, b, c, d]);
                if length == 0 {
                    return Ok(None);
                }
                self.record_start = self.cursor;
                if length < RECORD_HEADER_BYTES as u32 || length > MAX_RECORD_BYTES {
                    return Err(StreamError::Length {
                        lsn: self.record_start,
                        length,
                    });
                }
                // At once, where the length is believable: growing by pieces copies.
                let wanted = (length as usize).min(RESERVED_AT_ONCE);
                if !self.record.try_reclaim(wanted) {
                    self.record = BytesMut::with_capacity(wanted.max(self.block));
                }
                self.take(here.min(length as usize));
                continue;
            }
            let left = self.total_length() as usize - self.record.len();
            if left > 0 {
                if here == 0 {
                    return Ok(None);
                }
                self.take(left.min(here));
                continue;
            }
            let padding = (8 - self.cursor.0 % 8) % 8;
            if (self.available().len() as u64) < padding {
                return Ok(None);
            }
            self.consume(padding as usize);
            if let Some(record) = self.finish()? {
                return Ok(Some(record));
            }
        }
    }

    /// Checks the record that is complete. `None` when the rest of its segment has to be skipped first.
    fn finish(&mut self) -> Result<Option<RawRecord>, StreamError> {
        let lsn = self.record_start;
        let told = le_u32(&self.record, 20);
        let (header, body) = self.record.split_at(RECORD_HEADER_BYTES);
        let found = crc32c::crc32c_append(crc32c::crc32c(body), &header[..20]);
        if found != told {
            return Err(StreamError::Crc { lsn, found, told });
        }
        let previous = Lsn(u64::from(le_u32(&self.record, 12)) << 32 | u64::from(le_u32(&self.record, 8)));
        if self.last_start.is_valid() && previous != self.last_start {
            let expected = self.last_start;
            return Err(StreamError::Previous {
                lsn,
                told: previous,
                expected,
            });
        }
        let is_switch = self.record[17] == RMGR_XLOG && self.record[16] & 0xf0 == XLOG_SWITCH;
        let bytes = if self.block == 0 {
            std::mem::take(&mut self.record).freeze()
        } else {
            self.record.split().freeze()
        };
        let mut record = RawRecord {
            version: self.format.version,
            start: lsn,
            end: self.cursor,
            bytes,
        };
        if is_switch {
            let segment = u64::from(self.format.segment_bytes);
            record.end = Lsn(self.cursor.0.next_multiple_of(segment));
            let end = record.end;
            self.before_switch = Some((record, end));
            return Ok(None);
        }
        Ok(Some(self.complete(record)))
    }

    fn complete(&mut self, record: RawRecord) -> RawRecord {
        self.position = record.end;
        self.last_start = record.start;
        record
    }

    /// Consumes the page header at the cursor; false when it is not there yet.
    fn page_header(&mut self) -> Result<bool, StreamError> {
        let page = self.cursor;
        let length = header_bytes(page, self.format.segment_bytes);
        let Some(bytes) = self.available().get(..length) else {
            return Ok(false);
        };
        let header = match self.format.check_header(page, bytes) {
            Ok(header) => header,
            Err(PageHeaderError::Empty) => return Ok(false),
            Err(source) => return Err(StreamError::Page { page, source }),
        };
        let expected = if self.record.is_empty() {
            0
        } else {
            self.total_length() - u32::try_from(self.record.len()).unwrap_or(u32::MAX)
        };
        let found = if header.flags & FLAG_CONTINUATION != 0 {
            header.remaining
        } else {
            0
        };
        if !self.record.is_empty() && header.flags & FLAG_OVERWRITE != 0 {
            // The writer crashed inside this record and wrote on without it; what follows says so in a record.
            self.record.clear();
        } else if found != expected {
            return Err(StreamError::Continuation {
                page,
                found,
                expected,
            });
        }
        self.consume(length);
        Ok(true)
    }

    /// Whether all bytes of the record under way are there.
    fn is_complete(&self) -> bool {
        self.record.len() >= 4 && self.record.len() == self.total_length() as usize
    }

    fn total_length(&self) -> u32 {
        le_u32(&self.record, 0)
    }

    fn available(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn take(&mut self, count: usize) {
        let from = self.consumed;
        self.record.extend_from_slice(&self.input[from..from + count]);
        self.consume(count);
    }

    fn consume(&mut self, count: usize) {
        self.consumed += count;
        self.cursor = Lsn(self.cursor.0 + count as u64);
    }
}

/// Four bytes of our own buffer, which holds at least a record header here.
fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
