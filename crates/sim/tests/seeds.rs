//! The unbroken core under as many seeds as a test may take time for, and the determinism of a seed.

use lakebed_sim::{Options, campaign, run};
use std::time::{Duration, Instant};

/// For so long seeds are begun; only how many there are depends on it.
const TIME: Duration = Duration::from_secs(180);
/// On a slow machine at least so many run, however long they take: enough for everything to happen.
const MIN_SEEDS: u64 = 5_000;

#[test]
fn every_invariant_holds_under_every_seed() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let more = |begun| begun < MIN_SEEDS || began.elapsed() < TIME;
    let result = campaign(0, threads, &Options::default(), more, |_, _| {});
    assert_eq!(result.failures, []);
    assert!(
        result.fewest_events >= Some(Options::MIN_EVENTS),
        "a seed had {:?} events",
        result.fewest_events
    );
    let seeds = result.seeds;
    println!("seeds: {seeds}");
    for (name, count) in result.report.counters() {
        println!("{name}: {count}");
        assert!(
            count > 0,
            "no {name} in {seeds} seeds: the simulation does not reach them"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let options = Options {
        keep_trace: true,
        hash_trace: true,
        ..Options::default()
    };
    let (one, again, other) = (run(7, &options), run(7, &options), run(8, &options));
    assert_eq!(one.trace, again.trace);
    assert_eq!(one.trace_hash, again.trace_hash);
    assert_eq!(one.report, again.report);
    assert_ne!(one.trace_hash, other.trace_hash);
    // Keeping the text changes nothing.
    let hash_only = Options {
        keep_trace: false,
        ..options
    };
    assert_eq!(one.trace_hash, run(7, &hash_only).trace_hash);
    assert_eq!(one.report, run(7, &Options::default()).report);
}
