//! Many seeds, or one with every step: every failing seed is printed, at the end how often things happened.

use clap::Parser;
use lakebed_sim::{Mutation, Options, campaign, run};
use std::process::ExitCode;

/// Runs seeds of the quorum simulation.
#[derive(Debug, Parser)]
struct Arguments {
    /// First seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Number of seeds.
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// Events with faults in each seed.
    #[arg(long, default_value_t = Options::default().events)]
    events: u64,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Break this rule, by its name in `Mutation`; a failing seed is then what is wanted.
    #[arg(long)]
    mutation: Option<String>,
    /// Print every step of the first seed, and run no other.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let by_name = |name: &String| Mutation::ALL.into_iter().find(|m| format!("{m:?}") == *name);
    let mutation = arguments.mutation.as_ref().map(by_name);
    if mutation == Some(None) {
        eprintln!("no such rule; there are {:?}", Mutation::ALL);
        return ExitCode::FAILURE;
    }
    let options = Options {
        events: arguments.events,
        mutation: mutation.flatten(),
        keep_trace: arguments.trace,
    };
    if arguments.trace {
        let outcome = run(arguments.first, &options);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        println!("{:?}", outcome.violation);
        return ExitCode::from(u8::from(outcome.violation.is_some()));
    }
    let (first, seeds, threads) = (arguments.first, arguments.seeds, arguments.threads);
    let result = campaign(first, seeds, threads, &options, |seed, violation| {
        println!("seed {seed}: {}: {}", violation.invariant, violation.detail);
    });
    println!("seeds: {seeds}\nfailed: {}", result.failures.len());
    for (name, count) in result.report.counters() {
        println!("{name}: {count}");
    }
    ExitCode::from(u8::from(!result.failures.is_empty()))
}
