//! WAL of one timeline on disk, in segment files with Postgres's own names and content.
//!
//! Two positions: `flush <= write`. Bytes up to `write` were handed to the operating system, bytes up to `flush`
//! survive a crash. Segments are created at full length, so that appends change no file size, and get their blocks a
//! mebibyte ahead of what is written, so that few flushes have to make an allocation durable and a full disk is noticed
//! before a byte of an append is written. Not a whole segment at once: an idle timeline must not take 16 MiB. While flushes
//! are small, zeros are written a little ahead, because a file system keeps blocks that were never written apart, and a flush
//! that comes to one has to make that durable too: of 2.8 kB it takes a quarter less time on ext4 where zeros were. Behind the
//! end of the WAL come zeros, by which a reader of the files (`pg_waldump`, recovery after a crash) tells the end, and
//! among them a [mark](crate::flush_mark) that says how far the WAL was durable.
//!
//! A full disk is told apart from a failed one ([`WalStoreError::Full`]): what was flushed is whole and stays so. The
//! store is opened again from disk all the same, as after a crash, and takes appends when there is
//! [room](WalStore::make_room).
//!
//! What is deliberately absent: any opinion on terms, records or commit. The acceptor core decides, this executes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lakebed_types::Lsn;
use lakebed_wal::segment::file_name;

use crate::durable_file::{self, DurableFileError, sync_directory};
use crate::flush_mark;

/// Blocks are allocated in steps of this many bytes.
const ALLOCATION_BYTES: u64 = 1 << 20;
/// Zeros are written in steps of this many bytes,
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// as soon as there are fewer than this ahead,
const ZEROS_AHEAD: u64 = 16 << 10;
/// unless a flush was of more than this: then they would cost more than they save.
const SMALL_FLUSH: u64 = 16 << 10;
/// What a page of the kernel's memory has at least; segments begin at one.
const WRITTEN_AT_ONCE: u64 = 4096;
/// So many pieces are written with one call, far fewer than the kernel takes.
const MOST_SLICES: usize = 64;

/// Why the WAL store did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum WalStoreError {
    /// The operating system refused. The store is stopped; open it again to see what is durable.
    #[error("{path}: {source}; the timeline stops here and is read again from disk")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no room for what was to be written. Nothing that was flushed suffered. The store is stopped; open it
    /// again, and append when there is [room](WalStore::make_room).
    #[error("{path}: no room: {source}")]
    Full {
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// An earlier write or fsync failed; retrying it could report data as durable that is lost.
    #[error("the WAL in {path} is stopped after an earlier failed write or fsync: open it again")]
    Stopped {
        /// The timeline's directory.
        path: PathBuf,
    },
    /// Writes must be contiguous.
    #[error("a write at {begin} does not continue the WAL, which ends at {write}")]
    NotContiguous {
        /// Where the write begins.
        begin: Lsn,
        /// Where the WAL ends.
        write: Lsn,
    },
    /// A position outside what the store holds.
    #[error("{lsn} is outside the WAL held here, {start} to {write}")]
    OutOfRange {
        /// The position asked for.
        lsn: Lsn,
        /// First position held.
        start: Lsn,
        /// End of the WAL.
        write: Lsn,
    },
    /// A segment file is missing or has another size than a segment.
    #[error("{path} is damaged: {reason}; fetch this WAL again from another safekeeper")]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

impl WalStoreError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> WalStoreError {
        let path = path.to_owned();
        move |source| WalStoreError::Io { path, source }
    }
}

impl WalStoreError {
    /// Of a write or an allocation. Never of an fsync: what that one failed to write is lost, whatever the reason.
    fn writing(path: &Path) -> impl FnOnce(io::Error) -> WalStoreError {
        let path = path.to_owned();
        move |source| match durable_file::is_full(&source) {
            true => WalStoreError::Full { path, source },
            false => WalStoreError::Io { path, source },
        }
    }
}

impl From<DurableFileError> for WalStoreError {
    fn from(error: DurableFileError) -> Self {
        match error {
            DurableFileError::Full { path, source } => WalStoreError::Full { path, source },
            DurableFileError::Io { path, source } => WalStoreError::Io { path, source },
            DurableFileError::Damaged { path, reason } => WalStoreError::Damaged { path, reason },
            DurableFileError::TooLarge { path, bytes } => WalStoreError::Damaged {
                path,
                reason: format!("{bytes} bytes are too many"),
            },
        }
    }
}

/// Path of a segment; its Postgres timeline is always 1 here.
pub(crate) fn segment_path(directory: &Path, segment_bytes: u64, number: u64) -> PathBuf {
    directory.join(file_name(1, number, segment_bytes))
}

/// The WAL of one timeline; see the module header.
#[derive(Debug)]
pub struct WalStore {
    directory: PathBuf,
    segment_bytes: u64,
    start: Lsn,
    flush: Lsn,
    write: Lsn,
    /// Segments written since the last flush, by number.
    dirty: BTreeMap<u64, File>,
    /// Blocks up to here were allocated, as far as this process knows.
    allocated: Lsn,
    /// Zeros were written up to here.
    zeroed: Lsn,
    /// Bytes of the last flush.
    flushed: u64,
    /// The newest mark: behind which end of the WAL it lies, and what it says is durable.
    marked: Option<(Lsn, Lsn)>,
    /// No segment whose name sorts before is left, as far as this process knows.
    removed_below: Option<PathBuf>,
    stopped: bool,
}

impl WalStore {
    /// Makes the WAL that begins at `start`, in a directory that has none. `headers` are placed below `start` in the first
    /// segment: they make it readable for Postgres's own tools although its WAL begins in the middle. The segment is durable
    /// when this returns; its name is not, nor is there a segment when the first append is to make it.
    pub fn create(
        directory: &Path,
        segment_bytes: u64,
        start: Lsn,
        headers: &[(Lsn, Vec<u8>)],
    ) -> Result<WalStore, WalStoreError> {
        fs::create_dir_all(directory).map_err(WalStoreError::io(directory))?;
        let store = WalStore::just_created(directory, segment_bytes, start);
        let first = start.segment_number(segment_bytes);
        let out_of_range = |at: &Lsn, header: &[u8]| {
            let end = at.checked_add(header.len() as u64).unwrap_or(Lsn::MAX);
            end > start || at.segment_number(segment_bytes) != first
        };
        if let Some((lsn, _)) = headers.iter().find(|(at, header)| out_of_range(at, header)) {
            return Err(WalStoreError::OutOfRange {
                lsn: *lsn,
                start,
                write: start,
            });
        }
        if start.segment_offset(segment_bytes) == 0 {
            return Ok(store);
        }
        let path = store.segment_path(first);
        // Under its own name: the directory is no timeline's yet. Never over WAL that is there.
        let file = File::create_new(&path).map_err(WalStoreError::writing(&path))?;
        let written = file.set_len(segment_bytes).and_then(|()| {
            for (at, header) in headers {
                file.write_all_at(header, at.segment_offset(segment_bytes))?;
            }
            write_mark(&file, segment_bytes, start, start)
        });
        written.map_err(WalStoreError::writing(&path))?;
        file.sync_all().map_err(WalStoreError::io(&path))?;
        Ok(store)
    }

    /// What [`WalStore::create`] made, where it is now.
    ///
    /// # Panics
    /// When `segment_bytes` is not a power of two.
    pub(crate) fn just_created(directory: &Path, segment_bytes: u64, start: Lsn) -> WalStore {
        assert!(
            segment_bytes.is_power_of_two(),
            "segments of {segment_bytes} bytes"
        );
        WalStore {
            directory: directory.to_owned(),
            segment_bytes,
            start,
            flush: start,
            write: start,
            dirty: BTreeMap::new(),
            allocated: start,
            zeroed: start,
            flushed: 0,
            marked: (start.segment_offset(segment_bytes) != 0).then_some((start, start)),
            removed_below: None,
            stopped: false,
        }
    }

    /// Opens the WAL that begins at `start` and is known to be valid up to `end`, creating what is missing of the
    /// first segment; it is durable up to there. Whatever lies beyond `end` (a torn tail) is zeroed, durably, before this
    /// returns.
    ///
    /// # Panics
    /// When `segment_bytes` is not a power of two or `end` lies before `start`: the caller has checked its control
    /// file.
    pub fn open(
        directory: &Path,
        segment_bytes: u64,
        start: Lsn,
        end: Lsn,
    ) -> Result<WalStore, WalStoreError> {
        assert!(
            segment_bytes.is_power_of_two(),
            "segments of {segment_bytes} bytes"
        );
        assert!(start <= end, "WAL that starts at {start} cannot end at {end}");
        fs::create_dir_all(directory).map_err(WalStoreError::io(directory))?;
        let mut store = WalStore {
            directory: directory.to_owned(),
            segment_bytes,
            start,
            flush: end,
            write: end,
            dirty: BTreeMap::new(),
            allocated: end,
            zeroed: end,
            flushed: 0,
            marked: None,
            removed_below: None,
            stopped: false,
        };
        for number in start.segment_number(segment_bytes)..end.segment_number(segment_bytes) {
            store.open_existing(number)?;
        }
        store.discard_beyond(end)?;
        Ok(store)
    }

    /// First position held.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// End of what survives a crash.
    pub fn flush_lsn(&self) -> Lsn {
        self.flush
    }

    /// End of what was written.
    pub fn write_lsn(&self) -> Lsn {
        self.write
    }

    /// Appends bytes that begin exactly at [`WalStore::write_lsn`]. Not durable before [`WalStore::flush`].
    pub fn append(&mut self, begin: Lsn, bytes: &[u8]) -> Result<(), WalStoreError> {
        self.append_all(begin, &[bytes])
    }

    /// As [`WalStore::append`], of pieces that follow each other.
    pub fn append_all(&mut self, begin: Lsn, pieces: &[&[u8]]) -> Result<(), WalStoreError> {
        self.check_running()?;
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if begin != self.write {
            return Err(WalStoreError::NotContiguous {
                begin,
                write: self.write,
            });
        }
        let Some(end) = begin.checked_add(length) else {
            return Err(WalStoreError::OutOfRange {
                lsn: begin,
                start: self.start,
                write: self.write,
            });
        };
        self.stopped = true; // until it is known that everything went well
        self.allocate(begin, length)?;
        if !self.write_with_mark(begin, end, pieces)? {
            // First the mark, since these bytes cover the one before.
            self.mark(end, self.flush)?;
            let mut at = begin;
            for piece in pieces {
                self.write_split(at, piece)?;
                at = Lsn(at.0 + piece.len() as u64);
            }
        }
        self.write = end;
        self.stopped = false;
        Ok(())
    }

    /// Removes the segments that lie below `lsn` as a whole, oldest first, so that a crash in between leaves no gap;
    /// what it left is removed the next time.
    pub fn remove_below(&mut self, lsn: Lsn) -> Result<(), WalStoreError> {
        self.check_running()?;
        if lsn > self.write {
            return Err(WalStoreError::OutOfRange {
                lsn,
                start: self.start,
                write: self.write,
            });
        }
        self.start = self.start.max(lsn);
        let keep = self.segment_path(lsn.segment_number(self.segment_bytes));
        if self.removed_below.as_ref() >= Some(&keep) {
            return Ok(());
        }
        self.stopped = true;
        let mut old = self.segments(|path| *path < keep)?;
        old.sort();
        for path in &old {
            fs::remove_file(path).map_err(WalStoreError::io(path))?;
        }
        sync_directory(&self.directory)?;
        self.dirty
            .retain(|number, _| segment_path(&self.directory, self.segment_bytes, *number) >= keep);
        self.removed_below = Some(keep);
        self.stopped = false;
        Ok(())
    }

    /// Segment files that a caller is interested in, in no order.
    fn segments(&self, wanted: impl Fn(&PathBuf) -> bool) -> Result<Vec<PathBuf>, WalStoreError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(WalStoreError::io(&self.directory))? {
            let path = entry.map_err(WalStoreError::io(&self.directory))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let is_segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
            if is_segment && wanted(&path) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Makes everything written durable and returns the new flush position. One call serves all appends before it.
    pub fn flush(&mut self) -> Result<Lsn, WalStoreError> {
        self.check_running()?;
        self.stopped = true;
        self.sync_dirty()?;
        self.stopped = false;
        self.flushed = self.write.0 - self.flush.0;
        self.flush = self.write;
        Ok(self.flush)
    }

    /// What is to follow a flush, and nobody waits for: marks how far it came, and writes zeros ahead.
    pub fn after_flush(&mut self) -> Result<(), WalStoreError> {
        self.check_running()?;
        self.stopped = true;
        // Before an append comes the mark that was found, or none.
        if self.marked.is_some_and(|(end, _)| end == self.write) {
            self.mark(self.write, self.flush)?;
        }
        self.zero_ahead()?;
        self.stopped = false;
        Ok(())
    }

    /// See the module header. Only where blocks are allocated.
    fn zero_ahead(&mut self) -> Result<(), WalStoreError> {
        let segment_bytes = self.segment_bytes;
        let marked = self.write.0.saturating_add(flush_mark::TAIL_BYTES as u64);
        // The page that the mark ends in has been written.
        let from = self.zeroed.0.max(marked.next_multiple_of(WRITTEN_AT_ONCE));
        let segment_end =
            (self.write.0 - self.write.segment_offset(segment_bytes)).saturating_add(segment_bytes);
        let to = from.saturating_add(ZEROS.len() as u64);
        let to = to.min(self.allocated.0).min(segment_end);
        if self.flushed == 0 || self.flushed > SMALL_FLUSH || from >= self.write.0 + ZEROS_AHEAD || from >= to
        {
            return Ok(());
        }
        let number = self.write.segment_number(segment_bytes);
        let zeros = ZEROS.get(..(to - from) as usize).unwrap_or(&ZEROS);
        let offset = Lsn(from).segment_offset(segment_bytes);
        let written = self.writable(number)?.write_all_at(zeros, offset);
        written.map_err(|error| self.not_written(number, error))?;
        self.zeroed = Lsn(from + zeros.len() as u64);
        Ok(())
    }

    /// Drops everything from `lsn` on, durably. The caller guarantees that nothing committed lies beyond it.
    pub fn truncate(&mut self, lsn: Lsn) -> Result<(), WalStoreError> {
        self.check_running()?;
        if lsn < self.start || lsn > self.write {
            return Err(WalStoreError::OutOfRange {
                lsn,
                start: self.start,
                write: self.write,
            });
        }
        self.stopped = true;
        self.sync_dirty()?;
        self.discard_beyond(lsn)?;
        self.stopped = false;
        self.write = lsn;
        self.flush = lsn;
        Ok(())
    }

    fn check_running(&self) -> Result<(), WalStoreError> {
        if self.stopped {
            Err(WalStoreError::Stopped {
                path: self.directory.clone(),
            })
        } else {
            Ok(())
        }
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        segment_path(&self.directory, self.segment_bytes, number)
    }

    fn open_existing(&self, number: u64) -> Result<File, WalStoreError> {
        self.open_at_least(number, self.segment_bytes)
    }

    /// Opens a segment that may end early, as a crash in the middle of [`WalStore::discard_beyond`] leaves it.
    fn open_at_least(&self, number: u64, least: u64) -> Result<File, WalStoreError> {
        let path = self.segment_path(number);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(WalStoreError::Damaged {
                    path,
                    reason: "the segment is missing".to_owned(),
                });
            }
            Err(error) => return Err(WalStoreError::io(&path)(error)),
        };
        let length = file.metadata().map_err(WalStoreError::io(&path))?.len();
        if !(least..=self.segment_bytes).contains(&length) {
            let reason = format!(
                "it has {length} bytes, expected {least} to {}",
                self.segment_bytes
            );
            return Err(WalStoreError::Damaged { path, reason });
        }
        Ok(file)
    }

    /// Opens a segment, creating it full of zeros and durably named when it is not there or was left half created.
    fn open_or_create(&self, number: u64) -> Result<File, WalStoreError> {
        let path = self.segment_path(number);
        if path.exists() {
            return self.open_existing(number);
        }
        let beside = path.with_extension("new");
        let file = File::create(&beside).map_err(WalStoreError::writing(&beside))?;
        file.set_len(self.segment_bytes)
            .map_err(WalStoreError::writing(&beside))?;
        file.sync_all().map_err(WalStoreError::io(&beside))?;
        fs::rename(&beside, &path).map_err(WalStoreError::writing(&path))?;
        sync_directory(&self.directory)?;
        self.open_existing(number)
    }

    /// The segment to write to.
    fn writable(&mut self, number: u64) -> Result<&File, WalStoreError> {
        if !self.dirty.contains_key(&number) {
            let file = self.open_or_create(number)?;
            self.dirty.insert(number, file);
        }
        self.dirty.get(&number).ok_or_else(|| WalStoreError::Stopped {
            path: self.directory.clone(),
        })
    }

    /// Says behind `end`, which is the end of the WAL or about to be, that it is durable up to `durable`. Not durable
    /// itself before the next flush.
    fn mark(&mut self, end: Lsn, durable: Lsn) -> Result<(), WalStoreError> {
        let segment_bytes = self.segment_bytes;
        if self.marked >= Some((end, durable)) || end.segment_offset(segment_bytes) == 0 {
            return Ok(());
        }
        let number = end.segment_number(segment_bytes);
        let written = write_mark(self.writable(number)?, segment_bytes, end, durable);
        written.map_err(|error| self.not_written(number, error))?;
        self.marked = Some((end, durable));
        Ok(())
    }

    /// Writes the pieces and the mark behind them with one call, if they lie in one page of memory: the kernel then does
    /// all of it or, for a process that is killed, none. Whether it did.
    fn write_with_mark(&mut self, begin: Lsn, end: Lsn, pieces: &[&[u8]]) -> Result<bool, WalStoreError> {
        let (segment_bytes, durable) = (self.segment_bytes, self.flush);
        let offset = begin.segment_offset(segment_bytes);
        let length = end.0 - begin.0 + flush_mark::TAIL_BYTES as u64;
        let in_a_page = offset % WRITTEN_AT_ONCE + length <= WRITTEN_AT_ONCE;
        if begin == end || !in_a_page || pieces.len() > MOST_SLICES {
            return Ok(false);
        }
        let tail = flush_mark::encode(end, durable);
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        slices.push(IoSlice::new(&tail));
        let number = begin.segment_number(segment_bytes);
        match rustix::io::pwritev(self.writable(number)?, &slices, offset) {
            Ok(written) if written as u64 == length => {}
            // Piece by piece, then, which is known to go on where this ended.
            Ok(_) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(self.not_written(number, error.into())),
        }
        self.marked = Some((end, durable));
        Ok(true)
    }

    /// What a failed write to a segment means.
    fn not_written(&self, number: u64, error: io::Error) -> WalStoreError {
        WalStoreError::writing(&self.segment_path(number))(error)
    }

    /// Allocates blocks from `begin` on so that `length` bytes and a mark have room, and some more.
    fn allocate(&mut self, begin: Lsn, length: u64) -> Result<(), WalStoreError> {
        let segment_bytes = self.segment_bytes;
        let end = begin.0.saturating_add(length);
        let marked = end.saturating_add(flush_mark::TAIL_BYTES as u64);
        let end = marked.min(end.next_multiple_of(segment_bytes)).max(end);
        if end <= self.allocated.0 {
            return Ok(());
        }
        let goal = end.next_multiple_of(ALLOCATION_BYTES.min(segment_bytes));
        let mut at = begin.max(self.allocated);
        while at.0 < goal {
            let number = at.segment_number(segment_bytes);
            let offset = at.segment_offset(segment_bytes);
            let now = (goal - at.0).min(segment_bytes - offset);
            let path = self.segment_path(number);
            let flags = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(self.writable(number)?, flags, offset, now) {
                // Not every file system can: its blocks then come with each write.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(WalStoreError::writing(&path)(error.into())),
            }
            at = Lsn(at.0 + now);
        }
        self.allocated = Lsn(goal);
        Ok(())
    }

    /// Whether there is room again for appends and for a control file; allocates it for the first.
    ///
    /// # Errors
    /// [`WalStoreError::Full`] while there is none: ask again later. All others as of an append.
    pub fn make_room(&mut self) -> Result<(), WalStoreError> {
        self.check_running()?;
        let beside = self.directory.join("room.new");
        let file = File::create(&beside).map_err(WalStoreError::writing(&beside))?;
        let written = file.write_all_at(&[1; 1 << 16], 0);
        fs::remove_file(&beside).map_err(WalStoreError::io(&beside))?;
        written.map_err(WalStoreError::writing(&beside))?;
        self.allocate(self.write, ALLOCATION_BYTES)
    }

    fn write_split(&mut self, begin: Lsn, mut bytes: &[u8]) -> Result<(), WalStoreError> {
        let mut at = begin;
        while !bytes.is_empty() {
            let offset = at.segment_offset(self.segment_bytes);
            let room = usize::try_from(self.segment_bytes - offset).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let number = at.segment_number(self.segment_bytes);
            let written = self.writable(number)?.write_all_at(now, offset);
            written.map_err(|error| self.not_written(number, error))?;
            at = Lsn(at.0 + now.len() as u64);
            bytes = later;
        }
        Ok(())
    }

    fn sync_dirty(&mut self) -> Result<(), WalStoreError> {
        for (number, file) in &self.dirty {
            file.sync_data()
                .map_err(WalStoreError::io(&self.segment_path(*number)))?;
        }
        // The segment that is being written stays open; it is asked for again at once.
        let current = self.write.segment_number(self.segment_bytes);
        self.dirty.retain(|number, _| *number == current);
        Ok(())
    }

    /// Zeroes the rest of the segment that holds `lsn` and removes all later ones, newest first, so that a crash in
    /// between leaves no gap.
    fn discard_beyond(&mut self, lsn: Lsn) -> Result<(), WalStoreError> {
        self.dirty.clear();
        self.marked = None;
        let keep = lsn.segment_number(self.segment_bytes);
        let mut later = self.segments(|path| *path > self.segment_path(keep))?;
        later.sort();
        for path in later.iter().rev() {
            fs::remove_file(path).map_err(WalStoreError::io(path))?;
        }
        (self.allocated, self.zeroed) = (lsn, lsn);
        let path = self.segment_path(keep);
        let offset = lsn.segment_offset(self.segment_bytes);
        if offset == 0 && !path.exists() {
            // The next append makes it. Here there may be no room, and nothing to lose.
            return Ok(sync_directory(&self.directory)?);
        }
        let file = if path.exists() {
            self.open_at_least(keep, offset)?
        } else {
            self.open_or_create(keep)?
        };
        // Cutting and extending a file leaves zeros without writing them.
        let zeroed = file.set_len(offset).and_then(|()| {
            file.set_len(self.segment_bytes)?;
            match write_mark(&file, self.segment_bytes, lsn, lsn) {
                // What is readable has no need of room. The next append brings a mark.
                Err(error) if durable_file::is_full(&error) => {}
                written => {
                    written?;
                    self.marked = Some((lsn, lsn));
                }
            }
            file.sync_all()
        });
        zeroed.map_err(WalStoreError::io(&path))?;
        sync_directory(&self.directory)?;
        Ok(())
    }
}

/// Puts a mark behind the end of the WAL, or only the zeros that cover an earlier one where the segment ends too soon.
fn write_mark(file: &File, segment_bytes: u64, end: Lsn, durable: Lsn) -> io::Result<()> {
    let offset = end.segment_offset(segment_bytes);
    let room = usize::try_from(segment_bytes - offset).unwrap_or(usize::MAX);
    let tail = flush_mark::encode(end, durable);
    match tail.get(..room) {
        Some(_) => file.write_all_at(&vec![0; room], offset),
        None => file.write_all_at(&tail, offset),
    }
}

#[cfg(test)]
mod tests;
