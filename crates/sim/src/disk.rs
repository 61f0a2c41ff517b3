//! A virtual disk of one acceptor: a control file that is replaced atomically, and WAL.
//!
//! Two queues, each in order: one for WAL, one for the control file, which waits only for the cuts before it. A crash
//! loses what was not flushed, except for a part that happened to reach the disk: recovery keeps the whole records of
//! that part and cuts the torn one. An operation under way at the crash took effect or did not. After a failed flush
//! the pages are clean and gone: a later flush succeeds and does not bring them back.

use crate::rng::Rng;
use bytes::Bytes;
use lakebed_quorum::acceptor::Durable;
use lakebed_types::Lsn;
use std::collections::VecDeque;

/// First position of the simulated timeline.
pub(crate) const BASE: Lsn = Lsn(64);
/// Every record has this length, in bytes.
pub(crate) const RECORD: usize = 8;

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
}

impl Disk {
    pub(crate) fn new(control: Durable) -> Disk {
        Disk {
            control,
            wal: Vec::new(),
            durable: 0,
            lost_from: None,
            queue: VecDeque::new(),
            control_queue: VecDeque::new(),
            busy: [false; 2],
            cuts: (0, 0),
            failing: false,
            slow_until: 0,
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
        self.durable = self.wal.len();
        Some(position(self.durable))
    }

    /// Cuts, with its fsync.
    pub(crate) fn truncate(&mut self, end: Lsn) {
        self.wal.truncate(offset(end));
        self.durable = self.wal.len();
        self.lost_from = self.lost_from.filter(|lost| *lost < self.wal.len());
        self.cuts.1 += 1;
    }

    /// Loses what a crash loses, then recovers: the WAL ends at a whole record and is flushed.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        if self.busy[WAL] && rng.chance(500) {
            match self.queue.pop_front() {
                Some(Operation::Truncate(end)) => self.truncate(end),
                Some(Operation::Flush) if !self.failing => self.durable = self.wal.len(),
                _ => {}
            }
        }
        if self.busy[CONTROL] && rng.chance(500) {
            self.control_done();
        }
        let solid = self.solid().len();
        let reached = if self.lost_from.is_some() {
            solid
        } else {
            self.wal.len()
        };
        let torn = solid + rng.index(reached - solid + 1);
        self.wal.truncate(torn - torn % RECORD);
        self.durable = self.wal.len();
        self.lost_from = None;
        self.queue.clear();
        self.control_queue.clear();
        (self.busy, self.failing, self.cuts) = ([false; 2], false, (0, 0));
    }
}
