//! Where the time of a commit goes, as sums over all commits since the start.
//!
//! A flush of Postgres waits in the shim for the whole of it, which the shim counts. Of that, here: from the moment that
//! its writes were taken from the ring to that at which they are records ([`Spans::read`]), until the quorum's driver
//! begins with them ([`Spans::handed_over`]), until they are in the sockets ([`Spans::sent`]), until a quorum has answered
//! ([`Spans::answered`]), and until the waiting processes were woken ([`Spans::released`]). What is missing of the
//! whole is two wake-ups: of the thread that reads the ring, and of the process that waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lakebed_types::Lsn;

use crate::group_commit::meter::{Meter, Window};

/// Appends on their way that are timed; further ones are not.
const TIMED: usize = 256;

/// A sum of times.
#[derive(Debug, Default)]
pub struct Span {
    ns: AtomicU64,
    count: AtomicU64,
}

impl Span {
    fn add(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.ns.fetch_add(ns, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Microseconds in all, and how many times were added.
    pub fn total_us(&self) -> (u64, u64) {
        (
            self.ns.load(Ordering::Relaxed) / 1000,
            self.count.load(Ordering::Relaxed),
        )
    }
}

/// See the module header.
#[derive(Debug, Default)]
pub struct Spans {
    /// Reading what was written, up to the end of its last record.
    pub read: Span,
    /// Waking the driver.
    pub handed_over: Span,
    /// Coding it, and writing it to the sockets of all safekeepers.
    pub sent: Span,
    /// The way to the safekeepers and back, with what they do.
    pub answered: Span,
    /// Waking who waits.
    pub released: Span,
    passed_on: Mutex<Option<Instant>>,
    on_the_way: Mutex<VecDeque<(Lsn, Instant)>>,
    meter: Mutex<Meter>,
}

/// Microseconds of the wall clock since 1970, which commits' records tell as well.
fn wall_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

impl Spans {
    /// Records up to `end` are known, among them commits that were logged at these times; they were in the ring at `since`.
    pub fn read_since(&self, since: Instant, end: Lsn, commits: &[i64]) {
        self.meter().written(end, commits, wall_micros());
        let now = Instant::now();
        self.read.add(now - since);
        let mut passed_on = self.passed_on.lock().unwrap_or_else(PoisonError::into_inner);
        passed_on.get_or_insert(now);
    }

    /// The driver begins with what was passed on.
    pub fn taken(&self) -> Instant {
        let now = Instant::now();
        let passed_on = self
            .passed_on
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(since) = passed_on {
            self.handed_over.add(now - since);
        }
        now
    }

    /// WAL up to `end` is in the sockets; the driver began with it at `since`.
    pub fn sent_since(&self, since: Instant, end: Lsn) {
        let now = Instant::now();
        self.sent.add(now - since);
        let mut on_the_way = self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner);
        if on_the_way.len() < TIMED {
            on_the_way.push_back((end, now));
        }
    }

    /// A quorum has everything below `commit`.
    pub fn committed(&self, commit: Lsn) -> Instant {
        let now = Instant::now();
        let mut on_the_way = self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, since)) = on_the_way.front().copied().filter(|(end, _)| *end <= commit) {
            self.answered.add(now - since);
            on_the_way.pop_front();
        }
        now
    }

    /// Who waited for what is below `commit`, and was committed at `since`, was woken.
    pub fn released_since(&self, since: Instant, commit: Lsn) {
        self.released.add(since.elapsed());
        self.meter().released(commit, wall_micros());
    }

    /// Commits since [`Spans::take_window`] was called last.
    pub fn commits_in_window(&self) -> u32 {
        self.meter().commits()
    }

    /// What commits did since it was asked last.
    pub fn take_window(&self) -> Window {
        self.meter().take()
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_append_is_timed_once_and_only_when_all_of_it_is_there() {
        let spans = Spans::default();
        let begin = Instant::now();
        spans.read_since(begin, Lsn(100), &[]);
        spans.read_since(begin, Lsn(200), &[1]);
        spans.sent_since(spans.taken(), Lsn(100));
        spans.sent_since(spans.taken(), Lsn(200));
        let counts =
            || [&spans.read, &spans.handed_over, &spans.sent, &spans.answered].map(|span| span.total_us().1);
        spans.released_since(spans.committed(Lsn(150)), Lsn(150));
        // Two reads that the driver takes together are one handing over.
        assert_eq!(counts(), [2, 1, 2, 1]);
        spans.committed(Lsn(199));
        assert_eq!(counts()[3], 1);
        spans.committed(Lsn(200));
        assert_eq!(counts()[3], 2);
        assert_eq!(spans.released.total_us().1, 1);
        spans.released_since(begin, Lsn(200));
        let window = spans.take_window();
        assert_eq!((window.flushes, window.commits), (1, 1));
    }
}
