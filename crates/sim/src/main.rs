//! `lakebed-sim`: many seeds of the quorum simulation, or one with every step.

use clap::Parser;
use lakebed_sim::{Campaign, Mutation, Options, campaign, run};
use std::process::ExitCode;

/// Simulates the safekeeper quorum with faults, from seeds: the same seed gives the same run.
///
/// Exit code 0: every invariant held; with --mutant: one did not, so the broken rule was noticed. Else 1.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Number of seeds.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// First seed. With --trace and without --seeds: the only one.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print every step of the first seed, and run no other.
    #[arg(long)]
    trace: bool,
    /// Break this rule and stop at the first seed that notices; `list` names them.
    #[arg(long)]
    mutant: Option<String>,
    /// Events with faults in each seed, at least 500; healing comes on top.
    #[arg(long, default_value_t = Options::default().events, value_parser = clap::value_parser!(u64).range(Options::MIN_EVENTS..))]
    events: u64,
    /// Threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mutation = match arguments.mutant.as_deref().map(find) {
        Some(None) => return list_mutants(arguments.mutant.as_deref() == Some("list")),
        found => found.flatten(),
    };
    let options = Options {
        events: arguments.events,
        mutation,
        keep_trace: arguments.trace,
        hash_trace: arguments.trace,
    };
    let holds = if arguments.trace {
        trace(arguments.seed, &options)
    } else if let Some(mutation) = mutation {
        hunt(&arguments, mutation, &options)
    } else {
        many(&arguments, &options)
    };
    ExitCode::from(u8::from(holds == mutation.is_some()))
}

fn find(name: &str) -> Option<Mutation> {
    Mutation::ALL.into_iter().find(|m| format!("{m:?}") == name)
}

fn list_mutants(asked: bool) -> ExitCode {
    for mutation in Mutation::ALL {
        println!("{mutation:?}");
    }
    if !asked {
        eprintln!("error: no such mutant; these are the ones that there are");
    }
    ExitCode::from(u8::from(!asked))
}

/// One seed, step by step; whether every invariant held.
fn trace(seed: u64, options: &Options) -> bool {
    let outcome = run(seed, options);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("trace hash {:016x}", outcome.trace_hash);
    if let Some(violation) = &outcome.violation {
        println!(
            "seed {seed} violates {}: {}",
            violation.invariant, violation.detail
        );
    }
    let mut one = Campaign {
        seeds: 1,
        ..Campaign::default()
    };
    one.report.add(&outcome.report);
    one.failures
        .extend(outcome.violation.clone().map(|violation| (seed, violation)));
    summary(&one);
    outcome.violation.is_none()
}

/// Seeds until one notices the broken rule; whether none did.
fn hunt(arguments: &Arguments, mutation: Mutation, options: &Options) -> bool {
    for seed in (arguments.seed..).take(usize::try_from(arguments.seeds).unwrap_or(usize::MAX)) {
        if let Some(violation) = run(seed, options).violation {
            println!(
                "{mutation:?} is caught by seed {seed}, {}: {}",
                violation.invariant, violation.detail
            );
            return false;
        }
    }
    println!(
        "{mutation:?} is not caught by {} seeds from {} on",
        arguments.seeds, arguments.seed
    );
    true
}

/// All seeds; whether every invariant held in each.
fn many(arguments: &Arguments, options: &Options) -> bool {
    let more = |begun| begun < arguments.seeds;
    let threads = usize::from(arguments.threads);
    let result = campaign(arguments.seed, threads, options, more, |seed, violation| {
        println!(
            "seed {seed} violates {}: {}",
            violation.invariant, violation.detail
        );
    });
    summary(&result);
    result.failures.is_empty()
}

fn summary(result: &Campaign) {
    let mut line = format!("seeds {}, failed {}", result.seeds, result.failures.len());
    for (name, count) in result.report.counters() {
        line += &format!(", {name} {count}");
    }
    if let Some(fewest) = result.fewest_events {
        line += &format!("; at least {fewest} events a seed");
    }
    println!("{line}");
}
