//! Every broken rule is noticed by some invariant.

use lakebed_sim::{Mutation, Options, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A broken rule must be caught within so many seeds.
const SEEDS: u64 = 10_000;

#[test]
fn every_broken_rule_is_caught() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(mutation) = Mutation::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !is_caught(*mutation) {
                missed.lock().unwrap().push(*mutation);
            }
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not caught within {SEEDS} seeds: {missed:?}");
}

fn is_caught(mutation: Mutation) -> bool {
    let options = Options {
        mutation: Some(mutation),
        ..Options::default()
    };
    let caught = (0..SEEDS).find_map(|seed| run(seed, &options).violation.map(|v| (seed, v)));
    let Some((seed, v)) = caught else {
        return false;
    };
    println!("{mutation:?}: seed {seed}, {}: {}", v.invariant, v.detail);
    // It is the broken rule that was noticed: the same seed with all rules is well.
    assert_eq!(run(seed, &Options::default()).violation, None, "seed {seed}");
    true
}
