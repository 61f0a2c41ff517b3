//! Every broken rule is noticed by some invariant.

use lakebed_sim::{Mutation, Options, run};

/// A broken rule must be caught within so many seeds.
const SEEDS: u64 = 10_000;

#[test]
fn every_broken_rule_is_caught() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        let options = Options {
            mutation: Some(mutation),
            ..Options::default()
        };
        let caught = (0..SEEDS).find_map(|seed| run(seed, &options).violation.map(|v| (seed, v)));
        match caught {
            Some((seed, v)) => {
                println!("{mutation:?}: seed {seed}, {}: {}", v.invariant, v.detail);
                // It is the broken rule that was noticed: the same seed with all rules is well.
                assert_eq!(run(seed, &Options::default()).violation, None, "seed {seed}");
            }
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS} seeds: {missed:?}");
}
