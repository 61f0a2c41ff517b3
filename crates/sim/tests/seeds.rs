//! The unbroken core under many seeds, and the determinism of a seed.

use lakebed_sim::{Options, campaign, run};

const SEEDS: u64 = 10_000;
const MIN_EVENTS: u64 = 500;

#[test]
fn every_invariant_holds_under_every_seed() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let result = campaign(0, SEEDS, threads, &Options::default(), |_, _| {});
    assert_eq!(result.failures, []);
    assert!(
        result.fewest_events >= Some(MIN_EVENTS),
        "a seed had {:?} events",
        result.fewest_events
    );
    println!("seeds: {SEEDS}");
    for (name, count) in result.report.counters() {
        println!("{name}: {count}");
        assert!(
            count > 0,
            "no {name} in {SEEDS} seeds: the simulation does not reach them"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let options = Options {
        keep_trace: true,
        ..Options::default()
    };
    let (one, again, other) = (run(7, &options), run(7, &options), run(8, &options));
    assert_eq!(one.trace, again.trace);
    assert_eq!(one.trace_hash, again.trace_hash);
    assert_eq!(one.report, again.report);
    assert_ne!(one.trace_hash, other.trace_hash);
    // Keeping the text changes nothing.
    assert_eq!(one.trace_hash, run(7, &Options::default()).trace_hash);
}
