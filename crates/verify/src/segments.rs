//! WAL from the segment files of a directory: `pg_wal` of a stopped cluster, or an archive.
//!
//! Where does WAL end? Postgres takes any record that it cannot read for the end. Here only what a server leaves behind
//! is one: zeros; a page that still has an older position in its header, since its segment was recycled; a next
//! segment that does not exist, or that is itself recycled. Everything else is damage, and a gap in front of a later
//! segment is an error that names the missing one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use lakebed_types::Lsn;
use lakebed_wal::boot::first_record_position;
use lakebed_wal::page::{LONG_HEADER_BYTES, PageHeaderError, WAL_PAGE_BYTES, WalFormat};
use lakebed_wal::parse::RECORD_HEADER_BYTES;
use lakebed_wal::segment::file_name;
use lakebed_wal::stream::{RawRecord, StreamError, WalDecoder};

use crate::error::{VerifyError, io_error};

/// Bytes that are read at a time: small enough to stay in the processor's cache until they are decoded.
const READ_BYTES: usize = 256 << 10;
/// Bytes of memory that records are cut from at a time.
const RECORD_BYTES: usize = 64 << 10;
/// Suffix of a segment that was archived before it was full.
const PARTIAL: &str = ".partial";

/// Where the WAL ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalEnd {
    /// End of the last complete record.
    pub lsn: Lsn,
    /// How the end was told.
    pub reason: String,
}

/// Records of a directory's WAL, in order.
#[derive(Debug)]
pub struct Segments {
    directory: PathBuf,
    format: WalFormat,
    decoder: WalDecoder,
    open: Option<File>,
    /// Number of the segment that is read next or now.
    segment: u64,
    /// A record's start boundary, and a position by which it must have ended.
    pending: Option<(Lsn, Lsn)>,
    /// Bytes read from files.
    read: u64,
}

impl Segments {
    /// Reads from `start`, a record boundary.
    ///
    /// # Errors
    /// The segment that holds `start` is missing or is not this cluster's.
    pub fn open(directory: &Path, format: WalFormat, start: Lsn) -> Result<Segments, VerifyError> {
        let size = u64::from(format.segment_bytes);
        let mut segments = Segments {
            directory: directory.to_owned(),
            format,
            decoder: WalDecoder::new(format, start, Lsn::INVALID).with_blocks(RECORD_BYTES),
            open: None,
            segment: start.segment_number(size),
            pending: None,
            read: 0,
        };
        let Some((path, mut file)) = segments.file(segments.segment)? else {
            return Err(segments.missing(segments.segment));
        };
        // A start inside a segment is behind the only header that names the cluster.
        let mut header = [0; LONG_HEADER_BYTES];
        file.read_exact(&mut header).map_err(io_error(&path))?;
        let page = Lsn(segments.segment * size);
        if let Err(source) = format.check_header(page, &header) {
            return Err(StreamError::Page { page, source }.into());
        }
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(start.segment_offset(size)))
            .map_err(io_error(&path))?;
        segments.open = Some(file);
        Ok(segments)
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Bytes of the segments from the first one on that are there, for a progress display.
    pub fn bytes_ahead(&self) -> u64 {
        let size = u64::from(self.format.segment_bytes);
        let last = self.numbers().ok().and_then(|numbers| numbers.last().copied());
        let ahead = last.map_or(0, |last| (last + 1).saturating_sub(self.segment)) * size;
        ahead.saturating_sub(self.decoder.position().segment_offset(size))
    }

    /// The next record, or where the WAL ends.
    ///
    /// # Errors
    /// Damage, a missing segment, or a file that cannot be read.
    pub fn next_record(&mut self) -> Result<Result<RawRecord, WalEnd>, VerifyError> {
        loop {
            match self.decoder.next_raw() {
                Ok(Some(record)) => return Ok(Ok(record)),
                Ok(None) => {}
                Err(error) => return self.end_or_damage(error),
            }
            if let Some(end) = self.fill()? {
                return Ok(Err(end));
            }
        }
    }

    /// Feeds the decoder; where WAL ends if there is nothing more.
    fn fill(&mut self) -> Result<Option<WalEnd>, VerifyError> {
        if self.stopped() {
            return self.after_last("zeros follow").map(Some);
        }
        if self.open.is_none() {
            match self.file(self.segment)? {
                Some((_, file)) => self.open = Some(file),
                None => return self.after_last("no later segment is there").map(Some),
            }
        }
        let Some(file) = &mut self.open else {
            return Ok(None);
        };
        let at = self.decoder.fed_to();
        // Reads end on page borders, so that no header of a record is in two of them.
        let wanted = READ_BYTES - (at.0 % READ_BYTES as u64) as usize;
        let filled = self
            .decoder
            .feed_from(wanted, |buffer| read_full(file, buffer))
            .map_err(io_error(&self.directory))?;
        if filled < wanted || self.at_segment_end(at, filled) {
            self.open = None;
            self.segment += 1;
        }
        self.read += filled as u64;
        Ok(None)
    }

    fn at_segment_end(&self, at: Lsn, filled: usize) -> bool {
        let end = Lsn(at.0 + filled as u64);
        end.segment_offset(u64::from(self.format.segment_bytes)) == 0
    }

    /// Whether the decoder, which gave no record, would give none however much more it is fed: the next record's length
    /// is zero, or more than all of the record was fed, so that a page of zeros must be inside it.
    fn stopped(&mut self) -> bool {
        let position = self.decoder.position();
        let record = first_record_position(position, self.format.segment_bytes);
        if self.pending.is_none_or(|(of, _)| of != position) {
            let Some([a, b, c, d, rest @ ..]) = self.decoder.fed_from(record) else {
                return false;
            };
            let length = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
            if length == 0 {
                return true;
            }
            // `xl_info` and `xl_rmid` of a segment switch: its record goes on to the segment's end. Where they are on the
            // next page the record is taken for one, which only means to look later.
            let in_page = record.0 % WAL_PAGE_BYTES + RECORD_HEADER_BYTES as u64 <= WAL_PAGE_BYTES;
            let kind = rest.get(12..14).filter(|_| in_page);
            let switch = kind.is_none_or(|kind| kind[0] & 0xF0 == 0x40 && kind[1] == 0);
            let pages = length / (WAL_PAGE_BYTES - LONG_HEADER_BYTES as u64) + 2;
            let mut end = record.0.saturating_add(length + pages * LONG_HEADER_BYTES as u64);
            if switch {
                end = end.next_multiple_of(u64::from(self.format.segment_bytes));
            }
            self.pending = Some((position, Lsn(end + WAL_PAGE_BYTES)));
        }
        self.pending
            .is_some_and(|(_, enough)| self.decoder.fed_to() > enough)
    }

    /// No next segment: the end, unless there are later ones.
    fn after_last(&self, reason: &str) -> Result<WalEnd, VerifyError> {
        let lsn = self.decoder.position();
        if let Some(later) = self.later_segment()? {
            if self.file(self.segment)?.is_none() {
                return Err(self.missing(self.segment));
            }
            return Err(VerifyError::Position(format!(
                "the WAL stops at {lsn} ({reason}), but the segment {} is there and holds later WAL",
                self.name(later)
            )));
        }
        Ok(WalEnd {
            lsn,
            reason: reason.to_owned(),
        })
    }

    fn end_or_damage(&self, error: StreamError) -> Result<Result<RawRecord, WalEnd>, VerifyError> {
        let recycled = match &error {
            StreamError::Page {
                page,
                source:
                    PageHeaderError::Field {
                        field,
                        found,
                        expected,
                    },
            } => {
                // Checked in this order: what has the right magic and timeline is a page of this cluster or of nobody.
                let old_address = *field == "xlp_pageaddr" && found < expected;
                let old_timeline = *field == "xlp_tli" && found < expected;
                (old_address || old_timeline).then_some(*page)
            }
            _ => None,
        };
        match recycled {
            Some(page) if self.later_segment()?.is_none() => Ok(Err(WalEnd {
                lsn: self.decoder.position(),
                reason: format!("the page at {page} is left from older WAL"),
            })),
            _ => Err(error.into()),
        }
    }

    /// Whether a segment behind the current one begins with a valid header for its place.
    fn later_segment(&self) -> Result<Option<u64>, VerifyError> {
        let size = u64::from(self.format.segment_bytes);
        let current = self.decoder.position().segment_number(size);
        for number in self.numbers()?.into_iter().filter(|number| *number > current) {
            let Some((path, mut file)) = self.file(number)? else {
                continue;
            };
            let mut header = [0; LONG_HEADER_BYTES];
            file.read_exact(&mut header).map_err(io_error(&path))?;
            if self.format.check_header(Lsn(number * size), &header).is_ok() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Numbers of the segments of this timeline that are there.
    fn numbers(&self) -> Result<BTreeSet<u64>, VerifyError> {
        let mut numbers = BTreeSet::new();
        for entry in fs::read_dir(&self.directory).map_err(io_error(&self.directory))? {
            let entry = entry.map_err(io_error(&self.directory))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let name = name.strip_suffix(PARTIAL).unwrap_or(&name);
            if name.len() == 24
                && let (Ok(timeline), Ok(high), Ok(low)) = (
                    u32::from_str_radix(&name[..8], 16),
                    u64::from_str_radix(&name[8..16], 16),
                    u64::from_str_radix(&name[16..], 16),
                )
                && timeline == self.format.timeline
            {
                numbers.insert(high * self.per_id() + low);
            }
        }
        Ok(numbers)
    }

    /// Segments of 4 GiB of WAL, which share the middle part of their names.
    fn per_id(&self) -> u64 {
        0x1_0000_0000 / u64::from(self.format.segment_bytes)
    }

    fn name(&self, segment: u64) -> String {
        file_name(
            self.format.timeline,
            segment,
            u64::from(self.format.segment_bytes),
        )
    }

    fn missing(&self, segment: u64) -> VerifyError {
        let first = Lsn(segment * u64::from(self.format.segment_bytes));
        VerifyError::MissingSegment {
            name: self.name(segment),
            directory: self.directory.clone(),
            lsn: first.max(self.decoder.position()),
        }
    }

    /// A segment's file, whole or `.partial`.
    fn file(&self, segment: u64) -> Result<Option<(PathBuf, File)>, VerifyError> {
        let name = self.name(segment);
        for name in [name.clone(), name + PARTIAL] {
            let path = self.directory.join(name);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error(&path)(error)),
            };
            let found = file.metadata().map_err(io_error(&path))?.len();
            let expected = u64::from(self.format.segment_bytes);
            if found != expected {
                return Err(VerifyError::SegmentSize {
                    path,
                    found,
                    expected,
                });
            }
            return Ok(Some((path, file)));
        }
        Ok(None)
    }
}

/// Reads until the buffer is full or the file ends; how many bytes.
fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
