//! What commits and flushes did since it was asked last.
//!
//! Times are microseconds of the wall clock, which is also that of the commits' records. One that jumps makes a window
//! in which commits seem late, hence at worst a delay that is not made.

use std::collections::VecDeque;

use lakebed_types::Lsn;

/// Flushes on their way that are timed; further ones are not.
const TIMED: usize = 64;
/// Releases that are remembered: a commit is late if it came after more than these.
const RELEASES: usize = 16;
/// Commits of a window whose offsets are kept; further ones are counted only.
const OFFSETS: usize = 8192;

/// What happened in a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Flushes with commits in them.
    pub flushes: u32,
    /// From the moment that their WAL was seen to their release, in all.
    pub flush_us: u64,
    /// Commits in them.
    pub commits: u32,
    /// Commits that were logged while the flush before theirs was on its way: they waited for two.
    pub queued: u32,
    /// For each commit the time from the last release before it was logged.
    pub offsets_us: Vec<u32>,
}

impl Window {
    /// Zero without any.
    pub fn mean_flush_us(&self) -> u32 {
        let mean = self.flush_us.checked_div(u64::from(self.flushes));
        mean.map_or(0, |us| u32::try_from(us).unwrap_or(u32::MAX))
    }
}

/// See the module header.
#[derive(Debug, Default)]
pub struct Meter {
    window: Window,
    on_the_way: VecDeque<(Lsn, i64)>,
    /// Ascending, newest last.
    releases: VecDeque<i64>,
}

impl Meter {
    /// WAL up to `end` was seen, with commits that were logged at these times.
    pub fn written(&mut self, end: Lsn, commits: &[i64], now: i64) {
        if commits.is_empty() {
            return;
        }
        for logged in commits {
            self.window.commits = self.window.commits.saturating_add(1);
            let later = self
                .releases
                .iter()
                .rev()
                .take_while(|release| *release > logged)
                .count();
            if later > 0 {
                self.window.queued = self.window.queued.saturating_add(1);
            }
            let before = self.releases.iter().rev().nth(later);
            let offset = before.map_or(u32::MAX, |before| {
                u32::try_from(logged.saturating_sub(*before)).unwrap_or(u32::MAX)
            });
            if self.window.offsets_us.len() < OFFSETS {
                self.window.offsets_us.push(offset);
            }
        }
        if self.on_the_way.len() < TIMED {
            self.on_the_way.push_back((end, now));
        }
    }

    /// Everything up to `end` was released.
    pub fn released(&mut self, end: Lsn, now: i64) {
        let mut any = false;
        while let Some((_, since)) = self.on_the_way.front().copied().filter(|(lsn, _)| *lsn <= end) {
            self.on_the_way.pop_front();
            self.window.flushes = self.window.flushes.saturating_add(1);
            let took = u64::try_from(now.saturating_sub(since)).unwrap_or(0);
            self.window.flush_us = self.window.flush_us.saturating_add(took);
            any = true;
        }
        if !any {
            return;
        }
        if self.releases.back().is_some_and(|last| *last > now) {
            // The clock was put back: nothing of before can be compared with.
            self.releases.clear();
        }
        if self.releases.len() == RELEASES {
            self.releases.pop_front();
        }
        self.releases.push_back(now);
    }

    /// Commits since it was asked last.
    pub fn commits(&self) -> u32 {
        self.window.commits
    }

    /// What happened since it was asked last.
    pub fn take(&mut self) -> Window {
        std::mem::take(&mut self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_measured_from_the_release_before_them() {
        let mut meter = Meter::default();
        meter.written(Lsn(10), &[90, 95], 100);
        // WAL without commits is no flush of somebody who waits.
        meter.written(Lsn(15), &[], 101);
        meter.released(Lsn(9), 150);
        meter.released(Lsn(15), 200);
        // One was logged while the flush before was on its way, before any release; two after it.
        meter.written(Lsn(20), &[150, 230, 260], 300);
        meter.released(Lsn(20), 400);
        // Logged after the first release, and written after the second.
        meter.written(Lsn(30), &[390, 450], 460);
        assert_eq!(meter.commits(), 7);
        let window = meter.take();
        assert_eq!(meter.commits(), 0);
        assert_eq!(
            window,
            Window {
                flushes: 2,
                flush_us: 200,
                commits: 7,
                queued: 2,
                offsets_us: vec![u32::MAX, u32::MAX, u32::MAX, 30, 60, 190, 50],
            }
        );
        assert_eq!(window.mean_flush_us(), 100);
        meter.released(Lsn(30), 500);
        assert_eq!((meter.take().flushes, meter.take()), (1, Window::default()));
        assert_eq!(meter.take().mean_flush_us(), 0);
    }

    #[test]
    fn a_clock_that_is_put_back_leaves_nothing_to_compare_with() {
        let mut meter = Meter::default();
        meter.written(Lsn(10), &[1000], 1000);
        meter.released(Lsn(10), 1100);
        meter.written(Lsn(20), &[50], 60);
        meter.released(Lsn(20), 70);
        meter.written(Lsn(30), &[75], 80);
        let window = meter.take();
        assert_eq!(window.offsets_us, [u32::MAX, u32::MAX, 5]);
        assert_eq!(window.flush_us, 110);
    }

    #[test]
    fn memory_is_bounded() {
        let mut meter = Meter::default();
        for i in 0..20_000 {
            meter.written(Lsn(i), &[i as i64], i as i64);
            if i % 3 == 0 {
                meter.released(Lsn(i), i as i64);
            }
        }
        assert_eq!(meter.take().offsets_us.len(), OFFSETS);
        for i in 0..1_000 {
            meter.written(Lsn(20_000 + i), &[0], 0);
        }
        assert!(meter.on_the_way.len() <= TIMED && meter.releases.len() <= RELEASES);
    }
}
