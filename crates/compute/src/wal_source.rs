//! From writes of Postgres to whole records.
//!
//! A thread takes the shim's ring entry by entry, reads the bytes from the segment files and finds where records end.
//! Postgres writes whole pages, so the last page may hold anything behind the last finished record: zeros, or records
//! that are still being copied into the buffer. Those are not looked at twice the same way: after each write the bytes
//! behind the last complete record are read anew.
//!
//! **What must be whole.** Before `XLogWrite` writes pages it waits for all insertions below its target, so every page
//! but the last of a write is final (`xlog.c`). A record that does not check there will never check: nothing behind it
//! could be shipped while flushes behind it were released. Hence it stops the compute at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_shim_abi::path::WalSegment;
use lakebed_shim_abi::region::Region;
use lakebed_types::Lsn;
use lakebed_wal::boot::first_record_position;
use lakebed_wal::page::{WAL_PAGE_BYTES, WalFormat};
use lakebed_wal::stream::{RawRecord, StreamError, WalDecoder};
use lakebed_wal::{commit_time, full_page_writes};
use tokio::sync::watch;

use crate::acks::Acks;
use crate::full_page_writes::Told;
use crate::local_wal::{Chunk, LocalWal};
use crate::quorum::Written;
use crate::shared_memory::{sleep, wake};
use crate::spans::Spans;

/// How often a wait looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);
/// Ring entries taken at a time.
const MAX_ENTRIES: usize = 256;

/// Why the source stopped.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A segment file cannot be read.
    #[error("reading WAL at {lsn} from {path}: {source}")]
    Read {
        /// Position.
        lsn: Lsn,
        /// The segment.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What Postgres wrote does not follow what it wrote before.
    #[error("Postgres wrote WAL at {0}, which does not follow {1}")]
    Hole(Lsn, Lsn),
    /// Another WAL timeline than the one that computes run on.
    #[error("Postgres wrote WAL of timeline {0}; computes run on timeline 1 only")]
    Timeline(u32),
    /// A finished page holds something that is no WAL.
    #[error("Postgres wrote WAL that cannot be decoded: {0}")]
    Decode(#[from] StreamError),
    /// Zeros in a finished page.
    #[error("Postgres wrote zeros where a record begins, at {0}")]
    Zeros(Lsn),
    /// The boot checkpoint is not where it should be.
    #[error("the boot checkpoint at {0} cannot be decoded")]
    NoBootRecord(Lsn),
}

/// What the thread works with.
#[derive(Debug)]
pub struct WalSource {
    /// Memory shared with the shim.
    pub region: Region,
    /// Directory of the segments.
    pub pg_wal: PathBuf,
    /// Form of the WAL.
    pub format: WalFormat,
    /// Where this term starts.
    pub start: Lsn,
    /// Start of the record that ends there.
    pub previous: Lsn,
    /// Where records go.
    pub local: Arc<LocalWal>,
    /// Which flushes wait for them.
    pub acks: Arc<Acks>,
    /// Who sends them to the quorum.
    pub written: Written,
    /// What all of this takes.
    pub spans: Arc<Spans>,
    /// Whether Postgres writes page images, as it told last.
    pub page_images: watch::Sender<Option<Told>>,
    /// Ends the thread.
    pub stop: Arc<AtomicBool>,
}

struct Reader {
    decoder: WalDecoder,
    open: Option<(u64, File, PathBuf)>,
    /// End of what Postgres has written.
    written: Lsn,
    /// When the commits that were read last were logged.
    commits: Vec<i64>,
}

impl WalSource {
    /// Ships the boot checkpoint, then what Postgres writes, until told to stop.
    ///
    /// # Errors
    /// See [`SourceError`]; the compute must stop then.
    pub fn run(self) -> Result<(), SourceError> {
        let mut reader = Reader {
            decoder: WalDecoder::new(self.format, self.start, self.previous),
            open: None,
            written: self.start,
            commits: Vec::new(),
        };
        self.boot_record(&mut reader)?;
        let mut next = 1;
        while !self.stop.load(Ordering::Acquire) {
            if !self.local.wait_for_room(LOOK) {
                continue;
            }
            let mut taken = 0;
            let mut end = reader.written;
            while taken < MAX_ENTRIES
                && let Some(write) = self.region.wal_entry(next)
            {
                let begin = self.position(write.segment, write.offset)?;
                if begin > end {
                    return Err(SourceError::Hole(begin, end));
                }
                end = end.max(Lsn(begin.0 + u64::from(write.len)));
                next += 1;
                taken += 1;
            }
            if taken == 0 {
                if let Some(wait) = self.region.wal_wait_for_entry(next) {
                    sleep(&wait, LOOK);
                }
                continue;
            }
            let taken = Instant::now();
            reader.written = end;
            let chunk = self.read_records(&mut reader)?;
            // The bytes are in memory now: the places in the ring may be used again.
            wake(self.region.wal_consumed(next - 1));
            let complete = reader.decoder.position();
            if let Some(chunk) = chunk {
                self.local.push(chunk);
                self.spans.read_since(taken, complete, &reader.commits);
                self.acks.written(next - 1, complete);
                self.written.advance(complete);
            } else {
                self.acks.written(next - 1, complete);
            }
        }
        Ok(())
    }

    /// The checkpoint that the basebackup wrote, the first record of this term.
    fn boot_record(&self, reader: &mut Reader) -> Result<(), SourceError> {
        let page = self.start.0 - self.start.0 % WAL_PAGE_BYTES;
        // The record is shorter than a page, so it ends in this page or the next.
        let until = Lsn(page + 2 * WAL_PAGE_BYTES);
        let mut bytes = Vec::new();
        self.read(reader, self.start, until, &mut bytes)?;
        reader.decoder.feed(&bytes);
        let record = reader
            .decoder
            .next_raw()?
            .ok_or(SourceError::NoBootRecord(self.start))?;
        self.mode(&record)?;
        reader.decoder.rewind();
        bytes.truncate((record.end.0 - self.start.0) as usize);
        reader.written = Lsn(record.end.0.next_multiple_of(WAL_PAGE_BYTES));
        self.local.push(Chunk {
            begin: self.start,
            bytes: bytes.into(),
            ends: vec![record.end],
        });
        self.written.advance(record.end);
        Ok(())
    }

    fn mode(&self, record: &RawRecord) -> Result<(), SourceError> {
        if let Some(on) = full_page_writes::told(record)? {
            self.page_images.send_if_modified(|told| {
                // Each checkpoint tells it again.
                let changed = told.is_none_or(|told| told.on != on);
                if changed {
                    *told = Some(Told { on, at: record.end });
                }
                changed
            });
        }
        Ok(())
    }

    fn position(&self, segment: WalSegment, offset: u32) -> Result<Lsn, SourceError> {
        if segment.timeline != self.format.timeline {
            return Err(SourceError::Timeline(segment.timeline));
        }
        let bytes = u64::from(self.format.segment_bytes);
        let per_log = 0x1_0000_0000 / bytes;
        let number = u64::from(segment.log) * per_log + u64::from(segment.segment);
        Ok(Lsn(number * bytes + u64::from(offset)))
    }

    /// The records that are complete now and were not before.
    fn read_records(&self, reader: &mut Reader) -> Result<Option<Chunk>, SourceError> {
        let begin = reader.decoder.position();
        let mut bytes = Vec::new();
        self.read(reader, begin, reader.written, &mut bytes)?;
        let decoder = &mut reader.decoder;
        decoder.rewind();
        let last_page = reader.written.0.saturating_sub(WAL_PAGE_BYTES);
        let last_page = last_page - last_page % WAL_PAGE_BYTES;
        let final_bytes = (last_page.saturating_sub(begin.0) as usize).min(bytes.len());
        let mut ends = Vec::new();
        reader.commits.clear();
        decoder.feed(&bytes[..final_bytes]);
        while let Some(record) = decoder.next_raw()? {
            self.mode(&record)?;
            reader.commits.extend(commit_time::told(&record)?);
            ends.push(record.end);
        }
        let at = first_record_position(decoder.position(), self.format.segment_bytes);
        let header =
            at.0.checked_sub(begin.0)
                .map(|at| at as usize)
                .unwrap_or(usize::MAX);
        if bytes[..final_bytes].get(header..header.saturating_add(4)) == Some(&[0; 4]) {
            return Err(SourceError::Zeros(at));
        }
        decoder.feed(&bytes[final_bytes..]);
        while let Ok(Some(record)) = decoder.next_raw() {
            self.mode(&record)?;
            reader.commits.extend(commit_time::told(&record)?);
            ends.push(record.end);
        }
        let complete = (decoder.position().0 - begin.0) as usize;
        // A segment switch may end beyond what is written: then it was not returned.
        bytes.truncate(complete);
        Ok((!ends.is_empty()).then(|| Chunk {
            begin,
            bytes: Bytes::from(bytes),
            ends,
        }))
    }

    /// Appends the bytes of `[from, to)` to `out`.
    fn read(&self, reader: &mut Reader, from: Lsn, to: Lsn, out: &mut Vec<u8>) -> Result<(), SourceError> {
        let segment_bytes = u64::from(self.format.segment_bytes);
        let mut at = from.0;
        while at < to.0 {
            let number = at / segment_bytes;
            let until = to.0.min((number + 1) * segment_bytes);
            if reader.open.as_ref().is_none_or(|(open, ..)| *open != number) {
                let path = self.pg_wal.join(self.format.segment_file_name(number));
                match File::open(&path) {
                    Ok(file) => reader.open = Some((number, file, path)),
                    // The boot record's page may be the last of its segment.
                    Err(_) if reader.written == self.start => return Ok(()),
                    Err(source) => {
                        let lsn = Lsn(at);
                        return Err(SourceError::Read { lsn, path, source });
                    }
                }
            }
            if let Some((_, file, path)) = &reader.open {
                let have = out.len();
                out.resize(have + (until - at) as usize, 0);
                let read = file.read_exact_at(&mut out[have..], at % segment_bytes);
                read.map_err(|source| SourceError::Read {
                    lsn: Lsn(at),
                    path: path.clone(),
                    source,
                })?;
            }
            at = until;
        }
        Ok(())
    }
}
