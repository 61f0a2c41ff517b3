//! Many seeds on several threads.

use crate::{Options, Report, Violation, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Campaign {
    /// Seeds that ran.
    pub seeds: u64,
    /// All seeds' counts.
    pub report: Report,
    /// Events of the shortest run without a violation.
    pub fewest_events: Option<u64>,
    /// Seeds in which an invariant did not hold, in rising order.
    pub failures: Vec<(u64, Violation)>,
}

/// Runs seeds from `first` on, as long as `more` says so of the number of seeds begun; `failed` is called at each
/// failure, as it comes.
pub fn campaign(
    first: u64,
    threads: usize,
    options: &Options,
    more: impl Fn(u64) -> bool + Sync,
    failed: impl Fn(u64, &Violation) + Sync,
) -> Campaign {
    let next = AtomicU64::new(0);
    let all = Mutex::new(Campaign::default());
    let work = || {
        let mut mine = Campaign::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if !more(index) {
                break;
            }
            let seed = first + index;
            let outcome = run(seed, options);
            let events = outcome.report.events;
            mine.seeds += 1;
            mine.report.add(&outcome.report);
            if let Some(violation) = outcome.violation {
                failed(seed, &violation);
                mine.failures.push((seed, violation));
            } else {
                mine.fewest_events = Some(mine.fewest_events.map_or(events, |n| n.min(events)));
            }
        }
        let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.seeds += mine.seeds;
        all.report.add(&mine.report);
        all.fewest_events = all.fewest_events.into_iter().chain(mine.fewest_events).min();
        all.failures.append(&mut mine.failures);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut all = all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    all.failures.sort_by_key(|failure| failure.0);
    all
}
