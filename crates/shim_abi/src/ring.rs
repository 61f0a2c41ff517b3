//! WAL writes, from many processes to the sidecar, in order.
//!
//! Each successful `pwrite` to a WAL segment becomes one entry with the next *sequence* number. Waiting is on the
//! sequence, never on an LSN: Postgres writes whole pages, and three commits may be three writes of the same page.
//!
//! Positions: `acked <= consumed <= published <= reserved`.
//! * *reserved*: numbers given to writers;
//! * *published*: a number is published when its entry's stamp equals it;
//! * *consumed*: the sidecar has read the entry and the bytes it names, so its place may be used again;
//! * *acked*: a quorum has every record that ends in the writes up to here.
//!
//! The entry names a range, not bytes: the sidecar reads the segment file, which may hold a later version of the
//! range by then. A later version is complete up to where the earlier one was, so that does no harm, and old bytes
//! never overwrite new ones.
//!
//! **Waiting without lost wake-ups.** The one that raises a position does: store, then load `waiters`; if not zero,
//! raise `wake` and futex-wake it. The one that waits does: load `wake`, raise `waiters`, look at the position
//! again, futex-wait on the `wake` value it loaded. All sequentially consistent. The functions here return whether
//! to wake and what to wait on; the system calls belong to the callers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::path::WalSegment;
use crate::region::{Padded, Region};

/// A place in the ring.
#[repr(C)]
#[derive(Debug)]
pub struct WalEntry {
    stamp: AtomicU64,
    timeline: AtomicU32,
    log: AtomicU32,
    segment: AtomicU32,
    offset: AtomicU32,
    len: AtomicU32,
    reserved: AtomicU32,
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalWrite {
    /// Which segment.
    pub segment: WalSegment,
    /// Where in it (segments have at most 1 GiB).
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

/// A futex word to wait on while it has this value.
#[derive(Debug)]
pub struct Wait<'a> {
    /// The word.
    pub word: &'a AtomicU32,
    /// Its value before the condition was looked at.
    pub value: u32,
    waiters: &'a AtomicU32,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

fn wait_unless<'a>(
    word: &'a AtomicU32,
    waiters: &'a AtomicU32,
    reached: impl Fn() -> bool,
) -> Option<Wait<'a>> {
    if reached() {
        return None;
    }
    let value = word.load(Ordering::SeqCst);
    waiters.fetch_add(1, Ordering::SeqCst);
    let wait = Wait { word, value, waiters };
    // Raised between the first look and our announcement: dropping `wait` takes the announcement back.
    if reached() { None } else { Some(wait) }
}

/// The futex word to wake, all its waiters, if there are any.
fn must_wake<'a>(word: &'a AtomicU32, waiters: &AtomicU32) -> Option<&'a AtomicU32> {
    if waiters.load(Ordering::SeqCst) == 0 {
        return None;
    }
    word.fetch_add(1, Ordering::SeqCst);
    Some(word)
}

impl Padded {
    fn raise(&self, to: u64) -> Option<&AtomicU32> {
        let before = self.position.fetch_max(to, Ordering::SeqCst);
        if before >= to {
            return None;
        }
        must_wake(&self.wake, &self.waiters)
    }

    fn wait_for(&self, position: u64) -> Option<Wait<'_>> {
        wait_unless(&self.wake, &self.waiters, || {
            self.position.load(Ordering::SeqCst) >= position
        })
    }
}

/// The shim's side.
impl Region {
    /// Takes the next sequence number.
    pub fn wal_reserve(&self) -> u64 {
        self.control().wal.reserved.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// What to wait on until the ring has room for this number; none when it has. Look again after waiting.
    pub fn wal_wait_for_room(&self, sequence: u64) -> Option<Wait<'_>> {
        let entries = u64::from(self.layout().ring_entries);
        self.control()
            .wal
            .consumed
            .wait_for(sequence.saturating_sub(entries))
    }

    /// Publishes a write under its number, once there is room. Returns the futex word to wake, if any.
    pub fn wal_publish(&self, sequence: u64, write: WalWrite) -> Option<&AtomicU32> {
        let entry = self.ring_entry(sequence);
        entry.timeline.store(write.segment.timeline, Ordering::Relaxed);
        entry.log.store(write.segment.log, Ordering::Relaxed);
        entry.segment.store(write.segment.segment, Ordering::Relaxed);
        entry.offset.store(write.offset, Ordering::Relaxed);
        entry.len.store(write.len, Ordering::Relaxed);
        entry.stamp.store(sequence, Ordering::SeqCst);
        let wal = &self.control().wal;
        must_wake(&wal.published_wake, &wal.published_waiters)
    }

    /// The number that `fdatasync` must see acked: everything written before it was called.
    pub fn wal_reserved(&self) -> u64 {
        self.control().wal.reserved.load(Ordering::SeqCst)
    }

    /// What to wait on until this number is acked; none when it is. Look again after waiting.
    pub fn wal_wait_for_ack(&self, sequence: u64) -> Option<Wait<'_>> {
        self.control().wal.acked.wait_for(sequence)
    }
}

/// The sidecar's side.
impl Region {
    /// The write with this number, once it is published. Numbers start at 1 and have no gaps.
    pub fn wal_entry(&self, sequence: u64) -> Option<WalWrite> {
        let entry = self.ring_entry(sequence);
        if entry.stamp.load(Ordering::SeqCst) != sequence {
            return None;
        }
        Some(WalWrite {
            segment: WalSegment {
                timeline: entry.timeline.load(Ordering::Relaxed),
                log: entry.log.load(Ordering::Relaxed),
                segment: entry.segment.load(Ordering::Relaxed),
            },
            offset: entry.offset.load(Ordering::Relaxed),
            len: entry.len.load(Ordering::Relaxed),
        })
    }

    /// What to wait on until this number is published; none when it is. Look again after waiting.
    pub fn wal_wait_for_entry(&self, sequence: u64) -> Option<Wait<'_>> {
        let wal = &self.control().wal;
        let entry = self.ring_entry(sequence);
        wait_unless(&wal.published_wake, &wal.published_waiters, || {
            entry.stamp.load(Ordering::SeqCst) == sequence
        })
    }

    /// Everything up to this number has been read. Returns the futex word to wake, if any.
    pub fn wal_consumed(&self, sequence: u64) -> Option<&AtomicU32> {
        self.control().wal.consumed.raise(sequence)
    }

    /// A quorum has everything up to this number. Returns the futex word to wake, if any.
    pub fn wal_acked(&self, sequence: u64) -> Option<&AtomicU32> {
        self.control().wal.acked.raise(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::tests::region;

    fn write(offset: u32) -> WalWrite {
        let segment = WalSegment {
            timeline: 1,
            log: 2,
            segment: 3,
        };
        WalWrite {
            segment,
            offset,
            len: 8192,
        }
    }

    #[test]
    fn a_write_is_seen_when_published_and_its_place_reused_when_consumed() {
        let region = region(1, 2);
        assert!(region.wal_wait_for_entry(1).is_some());
        assert_eq!(region.wal_reserve(), 1);
        assert_eq!(region.wal_entry(1), None, "reserved is not published");
        assert!(region.wal_publish(1, write(0)).is_none(), "nobody waits");
        assert_eq!(region.wal_entry(1), Some(write(0)));
        assert_eq!(region.wal_reserve(), 2);
        region.wal_publish(2, write(8192));
        assert_eq!(region.wal_reserve(), 3);
        assert!(region.wal_wait_for_room(3).is_some(), "two places, none consumed");
        region.wal_consumed(1);
        assert!(region.wal_wait_for_room(3).is_none());
        region.wal_publish(3, write(16384));
        assert_eq!(
            (region.wal_entry(1), region.wal_entry(3)),
            (None, Some(write(16384)))
        );
    }

    #[test]
    fn a_waiter_makes_the_other_side_wake_it() {
        let region = region(1, 2);
        let wait = region.wal_wait_for_ack(1).expect("nothing is acked");
        let woken = region.wal_acked(1).expect("somebody waits");
        assert_ne!(
            woken.load(Ordering::SeqCst),
            wait.value,
            "the futex call would return at once"
        );
        drop(wait);
        assert!(region.wal_wait_for_ack(1).is_none());
        assert!(region.wal_acked(2).is_none(), "nobody waits any more");
        assert!(region.wal_acked(1).is_none(), "never lowered");
        assert!(region.wal_wait_for_ack(2).is_none());
    }

    #[test]
    fn writers_in_parallel_leave_no_gap() {
        let region = region(1, 4);
        let each = 2000;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(move || {
                    for _ in 0..each {
                        let sequence = region.wal_reserve();
                        while region.wal_wait_for_room(sequence).is_some() {
                            std::thread::yield_now();
                        }
                        region.wal_publish(sequence, write(sequence as u32));
                    }
                });
            }
            for sequence in 1..=3 * each {
                while region.wal_wait_for_entry(sequence).is_some() {
                    std::thread::yield_now();
                }
                assert_eq!(region.wal_entry(sequence), Some(write(sequence as u32)));
                region.wal_consumed(sequence);
            }
        });
    }
}
