//! The WAL that this compute wrote and that some safekeeper may still need, in memory.
//!
//! Chunks begin and end at record boundaries. The bound is soft for one chunk: the writer waits *before* the next.
//! Committed WAL beyond the bound is dropped: a safekeeper that needs it gets it from another one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lakebed_types::Lsn;

/// Whole records.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Position of the first byte.
    pub begin: Lsn,
    /// The bytes.
    pub bytes: Bytes,
    /// Where its records end, rising; the last is the end of the chunk.
    pub ends: Vec<Lsn>,
}

impl Chunk {
    fn end(&self) -> Lsn {
        Lsn(self.begin.0 + self.bytes.len() as u64)
    }
}

#[derive(Debug, Default)]
struct Held {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    committed: Lsn,
    closed: bool,
}

/// See the module header.
#[derive(Debug)]
pub struct LocalWal {
    held: Mutex<Held>,
    room: Condvar,
    bound: usize,
}

impl LocalWal {
    /// Holds about this many bytes.
    pub fn new(bound: usize) -> LocalWal {
        LocalWal {
            held: Mutex::default(),
            room: Condvar::new(),
            bound,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a chunk, which begins where the one before ended.
    pub fn push(&self, chunk: Chunk) {
        let mut held = self.lock();
        held.bytes += chunk.bytes.len();
        held.chunks.push_back(chunk);
    }

    /// Waits until there is room, for at most `patience`. True when there is.
    pub fn wait_for_room(&self, patience: Duration) -> bool {
        let held = self.lock();
        let full = |held: &mut Held| held.bytes >= self.bound && !held.closed;
        let (_held, timeout) = self
            .room
            .wait_timeout_while(held, patience, full)
            .unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// Lets writers pass from now on: nothing will be committed any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.room.notify_all();
    }

    /// Bytes from `begin`, a record boundary, to the last record boundary at or below `end`, but at least one record.
    /// None when `begin` is not held.
    pub fn read(&self, begin: Lsn, end: Lsn) -> Option<Bytes> {
        let held = self.lock();
        let first = held.chunks.partition_point(|chunk| chunk.end() <= begin);
        let mut out = BytesMut::new();
        let mut at = begin;
        for chunk in held.chunks.range(first..) {
            if at < chunk.begin {
                return None;
            }
            let fits = chunk.ends.partition_point(|lsn| *lsn <= end);
            let until = match fits.checked_sub(1).map(|last| chunk.ends[last]) {
                Some(until) if until > at => until,
                // Not even one record fits below `end`.
                _ if out.is_empty() => *chunk.ends.iter().find(|lsn| **lsn > at)?,
                _ => break,
            };
            let (from, to) = (
                (at.0 - chunk.begin.0) as usize,
                (until.0 - chunk.begin.0) as usize,
            );
            let piece = chunk.bytes.slice(from..to);
            let whole = until == chunk.end();
            if out.is_empty() && (!whole || until >= end) {
                return Some(piece);
            }
            out.extend_from_slice(&piece);
            at = until;
            if !whole || until >= end {
                break;
            }
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    /// Drops what nobody needs: all below `needed`, and, beyond the bound, what is below `committed`. Returns where
    /// the rest begins.
    pub fn trim(&self, needed: Lsn, committed: Lsn) -> Option<Lsn> {
        let mut held = self.lock();
        held.committed = held.committed.max(committed);
        while let Some(chunk) = held.chunks.front() {
            let (end, bytes) = (chunk.end(), chunk.bytes.len());
            let over = held.bytes > self.bound / 2 && end <= held.committed;
            if end > needed && !over {
                break;
            }
            held.chunks.pop_front();
            held.bytes -= bytes;
        }
        self.room.notify_all();
        held.chunks.front().map(|chunk| chunk.begin)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(begin: u64, ends: &[u64]) -> Chunk {
        let last = ends.last().copied().unwrap_or(begin);
        Chunk {
            begin: Lsn(begin),
            bytes: (begin..last).map(|at| at as u8).collect::<Vec<_>>().into(),
            ends: ends.iter().map(|end| Lsn(*end)).collect(),
        }
    }

    #[test]
    fn reads_end_at_record_boundaries_and_hold_one_record_at_least() {
        let wal = LocalWal::new(1000);
        wal.push(chunk(8, &[16, 40]));
        wal.push(chunk(40, &[48]));
        wal.push(chunk(48, &[64, 72]));
        let table = [
            ((8, 72), Some(72)),
            ((8, 71), Some(64)),
            ((8, 30), Some(16)),
            ((16, 30), Some(40)), // longer than asked for: one record
            ((16, 48), Some(48)),
            ((40, 48), Some(48)),
            ((72, 80), None),
            ((0, 80), None),
        ];
        for ((begin, end), expected) in table {
            let found = wal.read(Lsn(begin), Lsn(end));
            let expected = expected.map(|until: u64| (begin..until).map(|at| at as u8).collect::<Vec<_>>());
            assert_eq!(found.map(|bytes| bytes.to_vec()), expected, "[{begin}, {end})");
        }
    }

    #[test]
    fn beyond_the_bound_committed_wal_goes_and_the_rest_makes_the_writer_wait() {
        let wal = LocalWal::new(40);
        wal.push(chunk(8, &[40]));
        wal.push(chunk(40, &[72]));
        assert!(!wal.wait_for_room(Duration::from_millis(1)));
        assert_eq!(wal.trim(Lsn(0), Lsn(40)), Some(Lsn(40)));
        assert_eq!(wal.read(Lsn(8), Lsn(40)), None);
        assert!(wal.wait_for_room(Duration::from_millis(1)));
        assert_eq!(wal.trim(Lsn(0), Lsn(40)), Some(Lsn(40)), "not committed: kept");
        assert_eq!(wal.trim(Lsn(72), Lsn(40)), None, "everybody has it");
    }
}
