//! A virtual disk of one acceptor: a control file that is replaced atomically, and WAL.
//!
//! Two queues, each in order: one for WAL, one for the control file, which waits only for the cuts before it. A crash
//! loses what was not flushed, except for a part that happened to reach the disk, the last record perhaps torn, with
//! whatever the sectors held before behind it. An operation under way at the crash took effect or did not. After a
//! failed flush the pages are clean and gone: a later flush succeeds and does not bring them back.
//!
//! A record carries a checksum bound to its position. Recovery reads records from the durable commit position on until
//! one is not whole, and cuts there. A mark behind the WAL says how far it was durable: written with each flush, when it
//! can tell of the one before only, and again after it, which a crash may lose; a torn write may take both away.
//!
//! A byte may rot: the protocol's state is as it was, reading the record fails. It does so only below what recovery can
//! tell from a torn tail.

use crate::rng::{Rng, scatter};
use bytes::Bytes;
use lakebed_quorum::acceptor::Durable;
use lakebed_types::Lsn;
use std::collections::VecDeque;

/// First position of the simulated timeline.
pub(crate) const BASE: Lsn = Lsn(64);
/// Every record has this length, in bytes.
pub(crate) const RECORD: usize = 8;

/// The record at an offset: content that only one writer writes there, and its checksum.
pub(crate) fn record(writer: u64, at: usize) -> [u8; RECORD] {
    let content = (scatter(writer ^ scatter(at as u64)) >> 32) as u32;
    let [a, b, c, d] = content.to_le_bytes();
    let [e, f, g, h] = checksum(content, at).to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

fn checksum(content: u32, at: usize) -> u32 {
    (scatter(u64::from(content) ^ scatter(at as u64 + 1)) >> 32) as u32
}

/// Whether these bytes, from an offset at a record boundary on, are whole records.
pub(crate) fn are_whole(bytes: &[u8], at: usize) -> bool {
    let (records, rest) = bytes.as_chunks::<RECORD>();
    let whole = |(n, [a, b, c, d, sum @ ..]): (usize, &[u8; RECORD])| {
        let content = u32::from_le_bytes([*a, *b, *c, *d]);
        u32::from_le_bytes(*sum) == checksum(content, at + n * RECORD)
    };
    rest.is_empty() && records.iter().enumerate().all(whole)
}

/// Index of a queue in [`Disk::busy`].
pub(crate) const WAL: usize = 0;
pub(crate) const CONTROL: usize = 1;

/// Offset of a position in the simulated WAL.
pub(crate) fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.0.saturating_sub(BASE.0)).unwrap_or(usize::MAX)
}

/// Position of an offset.
pub(crate) fn position(offset: usize) -> Lsn {
    Lsn(BASE.0 + offset as u64)
}

/// A control write.
#[derive(Debug)]
struct Persist {
    seq: u64,
    state: Box<Durable>,
    /// Cuts that come first.
    cuts: u64,
}

/// One operation on WAL.
#[derive(Debug)]
pub(crate) enum Operation {
    Write(Lsn, Bytes),
    Flush,
    Truncate(Lsn),
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) control: Durable,
    /// Everything written, as a reader on the live machine sees it.
    pub(crate) wal: Vec<u8>,
    /// So much of it was flushed, as far as anybody was told.
    durable: usize,
    /// What the mark on disk says is durable, and what the newest one says.
    marks: [usize; 2],
    /// From here on nothing reaches the disk any more.
    lost_from: Option<usize>,
    pub(crate) queue: VecDeque<Operation>,
    control_queue: VecDeque<Persist>,
    /// The head of a queue is under way: WAL, control file.
    pub(crate) busy: [bool; 2],
    /// Cuts queued and done in this life.
    cuts: (u64, u64),
    /// The next flush fails.
    pub(crate) failing: bool,
    /// Until then operations take long.
    pub(crate) slow_until: u64,
    /// Until then there is no room.
    pub(crate) full_until: u64,
    /// The byte at this offset, which was flushed, does not read as it was written.
    pub(crate) rot: Option<usize>,
}

impl Disk {
    pub(crate) fn new(control: Durable) -> Disk {
        Disk {
            control,
            wal: Vec::new(),
            durable: 0,
            marks: [0; 2],
            lost_from: None,
            queue: VecDeque::new(),
            control_queue: VecDeque::new(),
            busy: [false; 2],
            cuts: (0, 0),
            failing: false,
            slow_until: 0,
            full_until: 0,
            rot: None,
        }
    }

    /// The WAL that a crash right now would leave for certain.
    pub(crate) fn solid(&self) -> &[u8] {
        let end = self.lost_from.map_or(self.durable, |lost| lost.min(self.durable));
        self.wal.get(..end).unwrap_or_default()
    }

    /// Queues an operation on WAL.
    pub(crate) fn enqueue(&mut self, operation: Operation) {
        if matches!(operation, Operation::Truncate(_)) {
            self.cuts.0 += 1;
        }
        self.queue.push_back(operation);
    }

    /// Queues a control write.
    pub(crate) fn persist(&mut self, seq: u64, state: Box<Durable>) {
        let cuts = self.cuts.0;
        self.control_queue.push_back(Persist { seq, state, cuts });
    }

    /// Whether a control write can begin.
    pub(crate) fn control_ready(&self) -> bool {
        let ready = |head: &Persist| head.cuts <= self.cuts.1;
        !self.busy[CONTROL] && self.control_queue.front().is_some_and(ready)
    }

    /// The control write under way takes effect; its number.
    pub(crate) fn control_done(&mut self) -> Option<u64> {
        self.busy[CONTROL] = false;
        let head = self.control_queue.pop_front()?;
        self.control = *head.state;
        Some(head.seq)
    }

    /// Appends; false when it leaves a gap.
    pub(crate) fn write(&mut self, begin: Lsn, bytes: &[u8]) -> bool {
        let fits = offset(begin) == self.wal.len();
        if fits {
            self.wal.extend_from_slice(bytes);
        }
        fits
    }

    /// Flushes; the new end, or nothing when it failed.
    pub(crate) fn flush(&mut self) -> Option<Lsn> {
        if std::mem::take(&mut self.failing) && self.durable < self.wal.len() {
            self.lost_from = Some(self.lost_from.map_or(self.durable, |lost| lost.min(self.durable)));
            return None;
        }
        self.flushed();
        Some(position(self.durable))
    }

    fn flushed(&mut self) {
        self.marks = [self.durable, self.wal.len()];
        self.durable = self.wal.len();
    }

    /// Up to here recovery would not take damage for a torn tail.
    pub(crate) fn known_durable(&self) -> usize {
        offset(self.control.commit).max(self.marks[0])
    }

    /// Cuts, with its fsync.
    pub(crate) fn truncate(&mut self, end: Lsn) {
        self.wal.truncate(offset(end));
        self.settle();
        self.lost_from = self.lost_from.filter(|lost| *lost < self.wal.len());
        self.cuts.1 += 1;
    }

    /// What is there is all on disk, and the mark says so.
    fn settle(&mut self) {
        self.durable = self.wal.len();
        self.marks = [self.durable; 2];
        self.rot = self.rot.filter(|at| *at < self.durable);
    }

    /// Drops what is damaged and all behind it, durably.
    pub(crate) fn cut_damage(&mut self) {
        if let Some(at) = self.rot {
            self.wal.truncate(at - at % RECORD);
            self.settle();
        }
    }

    /// WAL as a reader gets it.
    pub(crate) fn read(&self, begin: Lsn, end: Lsn) -> Option<Vec<u8>> {
        let mut bytes = self.wal.get(offset(begin)..offset(end))?.to_vec();
        let rotten = self.rot.and_then(|at| at.checked_sub(offset(begin)));
        if let Some(byte) = rotten.and_then(|at| bytes.get_mut(at)) {
            *byte ^= 1;
        }
        Some(bytes)
    }

    /// Finds the end of the WAL after a crash, cuts what lies behind it and flushes. True when a record was torn.
    pub(crate) fn recover(&mut self, trust_length: bool) -> bool {
        let known = offset(self.control.commit).min(self.wal.len());
        let tail = self.wal.get(known..).unwrap_or_default();
        let whole = tail
            .chunks(RECORD)
            .enumerate()
            .take_while(|(n, chunk)| are_whole(chunk, known + n * RECORD));
        let end = known + whole.count() * RECORD;
        let torn = end < self.wal.len();
        if !trust_length {
            self.wal.truncate(end);
        }
        self.settle();
        torn
    }

    /// Loses what a crash loses.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        if self.busy[WAL] && rng.chance(500) {
            match self.queue.pop_front() {
                Some(Operation::Truncate(end)) => self.truncate(end),
                Some(Operation::Flush) if !self.failing => self.flushed(),
                _ => {}
            }
        }
        if self.busy[CONTROL] && rng.chance(500) {
            self.control_done();
        }
        let solid = self.solid().len();
        // Only a write that was under way covers the mark before it.
        let covered = solid < self.wal.len() && rng.chance(300);
        if covered && self.rot.is_none_or(|at| at < offset(self.control.commit)) {
            self.marks = [0; 2];
        } else if rng.chance(500) {
            self.marks[0] = self.marks[1].min(solid);
        }
        let reached = if self.lost_from.is_some() {
            solid
        } else {
            self.wal.len()
        };
        self.wal.truncate(solid + rng.index(reached - solid + 1));
        while !self.wal.len().is_multiple_of(RECORD) {
            self.wal.push(rng.index(256) as u8);
        }
        self.durable = solid;
        self.lost_from = None;
        self.queue.clear();
        self.control_queue.clear();
        (self.busy, self.failing, self.cuts) = ([false; 2], false, (0, 0));
    }
}
