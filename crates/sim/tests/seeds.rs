//! The unbroken core under many seeds, and the determinism of a seed.

use lakebed_sim::{Options, Report, run};

const SEEDS: u64 = 1000;
const MIN_EVENTS: u64 = 500;

#[test]
fn every_invariant_holds_under_every_seed() {
    // For long runs by hand: SIM_SEEDS=1000000 SIM_FIRST=1000 cargo test -p lakebed-sim --test seeds -- --nocapture
    let number = |name: &str, default| {
        std::env::var(name)
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(default)
    };
    let (first, seeds) = (number("SIM_FIRST", 0), number("SIM_SEEDS", SEEDS));
    let mut total = Report::default();
    for seed in first..first + seeds {
        let outcome = run(seed, &Options::default());
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert!(
            outcome.report.events >= MIN_EVENTS,
            "seed {seed} had {} events",
            outcome.report.events
        );
        total.add(&outcome.report);
    }
    println!("seeds: {seeds}");
    for (name, count) in total.counters() {
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

/// Prints one seed's steps: `SIM_SEED=7 cargo test -p lakebed-sim --test seeds -- --ignored --nocapture`.
#[test]
#[ignore = "for reading a failure by hand"]
fn print_one_seed() {
    let seed = std::env::var("SIM_SEED")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let outcome = run(
        seed,
        &Options {
            keep_trace: true,
            ..Options::default()
        },
    );
    outcome.trace.iter().for_each(|line| println!("{line}"));
    println!("{:?}", outcome.violation);
}
