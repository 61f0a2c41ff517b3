//! Many seeds on many threads; every failing seed is printed, at the end how often things happened.

use clap::Parser;
use lakebed_sim::{Mutation, Options, Report, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs many seeds of the quorum simulation.
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
    threads: u64,
    /// Break this rule, by its name in `Mutation`; a failing seed is then what is wanted.
    #[arg(long)]
    mutation: Option<String>,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let by_name = |name: &String| Mutation::ALL.into_iter().find(|m| format!("{m:?}") == *name);
    let mutation = arguments.mutation.as_ref().map(by_name);
    if mutation == Some(None) {
        eprintln!("no such rule; there are {:?}", Mutation::ALL);
        return std::process::ExitCode::FAILURE;
    }
    let options = Options {
        events: arguments.events,
        mutation: mutation.flatten(),
        ..Options::default()
    };
    let next = AtomicU64::new(arguments.first);
    let (total, failed) = (Mutex::new(Report::default()), AtomicU64::new(0));
    let work = || {
        let mut mine = Report::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - arguments.first >= arguments.seeds {
                break;
            }
            let outcome = run(seed, &options);
            if let Some(violation) = outcome.violation {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed}: {}: {}", violation.invariant, violation.detail);
            }
            mine.add(&outcome.report);
        }
        if let Ok(mut total) = total.lock() {
            total.add(&mine);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(work);
        }
    });
    let failed = failed.load(Ordering::Relaxed);
    println!("seeds: {}\nfailed: {failed}", arguments.seeds);
    for (name, count) in total.into_inner().unwrap_or_default().counters() {
        println!("{name}: {count}");
    }
    u8::from(failed > 0).into()
}
