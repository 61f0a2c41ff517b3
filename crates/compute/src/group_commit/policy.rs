//! The delay that makes most commits a second, as far as the last seconds tell.
//!
//! Let `n` sessions commit as fast as they can, a flush take `f`, and who begins one wait `d` before. Of those whom a
//! flush releases let the part `p(d)` be back within `d`. They and those who missed the flush before make the next group:
//! `s = p s + (1 - p) s'`, where everybody is either in the group or has missed it, `n = s + (1 - p) s`. So a group is
//! `n / (2 - p)`, half of all without a delay and all of them when everybody is back in time, and the rate is that over
//! `f + d`. The delay with the greatest rate is taken; `n` does not matter for which one that is.

use super::meter::Window;

/// Delays that are tried, in microseconds. Postgres takes up to 100,000.
const DELAYS_US: [u32; 18] = [
    30, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1_200, 1_600, 2_400, 3_200, 4_800, 6_400, 9_600, 12_800,
];
/// Fewer commits in a window tell nothing: the delay stays, and hardly anybody is there to wait.
pub const MIN_COMMITS: u32 = 30;
/// What a delay must promise to be made at all: the model is a model.
const WORTH_IT: f64 = 1.08;
/// What another delay must promise to take the place of the present one.
const WORTH_CHANGING: f64 = 1.05;

/// The delay to set, in microseconds, where `present` is set; 0 is none.
pub fn delay_us(present: u32, window: &Window) -> u32 {
    if window.commits < MIN_COMMITS || window.flushes == 0 {
        return present;
    }
    if !several(window) {
        return 0;
    }
    let mut offsets = window.offsets_us.clone();
    offsets.sort_unstable();
    let flush = f64::from(window.mean_flush_us().max(1));
    let rate = |delay: u32| {
        let back = offsets.partition_point(|offset| *offset <= delay);
        let part = back as f64 / offsets.len().max(1) as f64;
        1.0 / ((2.0 - part) * (flush + f64::from(delay)))
    };
    let mut best = (0, rate(0));
    // Never more than a flush takes: what the model promises beyond is not worth what an error would cost.
    for delay in DELAYS_US.into_iter().filter(|delay| f64::from(*delay) <= flush) {
        let promised = rate(delay);
        if promised > best.1 {
            best = (delay, promised);
        }
    }
    let (delay, promised) = best;
    if promised < rate(0) * WORTH_IT {
        0
    } else if present != 0 && promised < rate(present) * WORTH_CHANGING {
        present
    } else {
        delay
    }
}

/// Whether sessions commit at the same time: they share flushes, or wait for that of another.
fn several(window: &Window) -> bool {
    let commits = f64::from(window.commits);
    commits >= 1.5 * f64::from(window.flushes) || f64::from(window.queued) >= 0.3 * commits
}

#[cfg(test)]
mod tests {
    use lakebed_types::Lsn;

    use super::super::meter::Meter;
    use super::*;

    fn window(flushes: u32, flush_us: u32, queued: u32, offsets: &[(u32, usize)]) -> Window {
        let offsets = offsets.iter().map(|(offset, times)| vec![*offset; *times]);
        let offsets_us = offsets.collect::<Vec<_>>().concat();
        Window {
            flushes,
            flush_us: u64::from(flushes * flush_us),
            commits: offsets_us.len() as u32,
            queued,
            offsets_us,
        }
    }

    #[test]
    fn a_delay_is_made_where_it_pays() {
        let rows = [
            ("nothing happens", 200, window(0, 0, 0, &[]), 200),
            ("too little happens", 200, window(8, 1000, 20, &[(100, 29)]), 200),
            ("one session", 200, window(1000, 1000, 0, &[(100, 1000)]), 0),
            ("two in turns", 0, window(1000, 1000, 1000, &[(100, 1000)]), 100),
            (
                "eight, back soon",
                0,
                window(250, 1000, 900, &[(90, 500), (280, 500)]),
                300,
            ),
            ("eight, back late", 0, window(250, 1000, 900, &[(900, 1000)]), 0),
            (
                "a short flush",
                0,
                window(250, 100, 900, &[(90, 500), (280, 500)]),
                0,
            ),
            (
                "the next is hardly better",
                400,
                window(125, 2000, 0, &[(280, 1000)]),
                400,
            ),
            (
                "the present is much too long",
                1600,
                window(125, 2000, 0, &[(90, 1000)]),
                100,
            ),
            (
                "they come when they like",
                0,
                window(600, 1000, 400, &[(u32::MAX, 500), (5_000, 500)]),
                0,
            ),
        ];
        for (what, present, window, expected) in rows {
            assert_eq!(delay_us(present, &window), expected, "{what}");
        }
    }

    /// Sessions that commit in a closed loop, against the lock and the flush; commits a second.
    fn run(sessions: usize, work_us: i64, flush_us: i64, delay_us: u32, meter: &mut Meter) -> i64 {
        // When each session logs its next commit; they do not work at the same speed.
        let mut next: Vec<i64> = (0..sessions as i64).map(|i| work_us + i * work_us / 8).collect();
        let (mut free, mut commits, mut lsn) = (0, 0, 0);
        while free < 2_000_000 {
            let begin = next.iter().copied().min().unwrap_or(0).max(free);
            let alone = next.iter().filter(|logged| **logged <= begin).count() == 1 && sessions == 1;
            let write = begin + if alone { 0 } else { i64::from(delay_us) };
            let group: Vec<usize> = (0..sessions).filter(|i| next[*i] <= write).collect();
            let logged: Vec<i64> = group.iter().map(|i| next[*i]).collect();
            lsn += 1;
            meter.written(Lsn(lsn), &logged, write);
            free = write + flush_us;
            meter.released(Lsn(lsn), free);
            for (turn, i) in group.iter().enumerate() {
                next[*i] = free + work_us + turn as i64 * work_us / 4;
            }
            commits += group.len() as i64;
        }
        commits * 1_000_000 / free
    }

    #[test]
    fn what_it_chooses_makes_more_commits_and_stays() {
        for (sessions, work, flush, gain) in [
            (8, 60, 1_000, 1.3),
            (2, 100, 1_000, 1.3),
            (16, 40, 600, 1.2),
            (64, 20, 3_000, 1.3),
            (1, 100, 1_000, 1.0),
            (4, 5_000, 1_000, 1.0),
        ] {
            let mut meter = Meter::default();
            let without = run(sessions, work, flush, 0, &mut meter);
            let first = delay_us(0, &meter.take());
            let with = run(sessions, work, flush, first, &mut meter);
            let what = format!("{sessions} sessions, {work} us work, {flush} us flush, delay {first}");
            assert!(
                with as f64 >= gain * without as f64,
                "{what}: {without} and {with}"
            );
            assert_eq!(first == 0, gain == 1.0, "{what}");
            let second = delay_us(first, &meter.take());
            let again = run(sessions, work, flush, second, &mut meter);
            assert!(
                again as f64 >= 0.95 * with as f64,
                "{what}: {with}, with {second} {again}"
            );
        }
    }
}
