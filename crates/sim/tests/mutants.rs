//! Every broken rule is noticed by some invariant.

use lakebed_sim::{Mutation, Options, run};

/// A broken rule must be caught within so many seeds.
const SEEDS: u64 = 10_000;

const MUTATIONS: [Mutation; 18] = [
    Mutation::VoteWithoutDurableTerm,
    Mutation::VoteWithoutWalFlush,
    Mutation::VoteTwice,
    Mutation::DonorByFlushAlone,
    Mutation::DonorByTermAlone,
    Mutation::CountFlushFromVote,
    Mutation::CommitBelowTermStart,
    Mutation::AppendBeforeElected,
    Mutation::HistoryBeforeTruncation,
    Mutation::NoTruncation,
    Mutation::TruncateBelowCommit,
    Mutation::AckBeforeFlush,
    Mutation::RetryFailedFsync,
    Mutation::NewSetAlone,
    Mutation::GenerationNotDurable,
    Mutation::RemoveUnconsumed,
    Mutation::DonorServesOldTerm,
    Mutation::KeepAnswersOverTruncation,
];

#[test]
fn every_broken_rule_is_caught() {
    let mut missed = Vec::new();
    for mutation in MUTATIONS {
        let options = Options {
            mutation: Some(mutation),
            ..Options::default()
        };
        let caught = (0..SEEDS).find_map(|seed| run(seed, &options).violation.map(|v| (seed, v)));
        match caught {
            Some((seed, v)) => println!("{mutation:?}: seed {seed}, {}: {}", v.invariant, v.detail),
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS} seeds: {missed:?}");
}
