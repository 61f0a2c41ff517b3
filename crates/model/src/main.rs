//! `lakebed-model`: explores every state within bounds, and prints how many there are.

use clap::Parser;
use lakebed_model::{Change, Scenario};
use lakebed_quorum::mutation::Mutation;
use stateright::{Checker, HasDiscoveries, Model};
use std::process::ExitCode;

/// Checks the quorum's core exhaustively: 3 acceptors, 2 proposers, delayed and doubled messages.
///
/// Exit code 0: every property holds in every state. With --mutant: it did not, as it should.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// none, replace, move or remove.
    #[arg(long, default_value = "none")]
    change: String,
    /// Attempts at a term of the first proposer.
    #[arg(long, default_value_t = 1)]
    attempts: u8,
    /// Attempts at a term of the second proposer.
    #[arg(long, default_value_t = 1)]
    rival_attempts: u8,
    /// Records of each attempt.
    #[arg(long, default_value_t = 1)]
    records: usize,
    /// The controller may give the change up.
    #[arg(long)]
    abort: bool,
    /// Safekeepers recover from each other.
    #[arg(long)]
    exchange: bool,
    /// Answers arrive at once; requests still take any time.
    #[arg(long)]
    prompt_answers: bool,
    /// Requests are not doubled.
    #[arg(long)]
    no_duplicates: bool,
    /// Time passes once for each attempt.
    #[arg(long)]
    ticks: bool,
    /// Go without the reductions that need an argument about idle proposers; see `idle.rs`.
    #[arg(long)]
    plain: bool,
    /// Break this rule of the core.
    #[arg(long)]
    mutant: Option<String>,
    /// Search depth first.
    #[arg(long)]
    depth_first: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Stop after so many transitions; the run is then not exhaustive and fails.
    #[arg(long, default_value_t = 100_000_000)]
    states: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let change = match arguments.change.as_str() {
        "none" => Change::None,
        "replace" => Change::Replace,
        "move" => Change::Move,
        "remove" => Change::Remove,
        other => {
            eprintln!("error: no change {other:?}; there are none, replace, move and remove");
            return ExitCode::FAILURE;
        }
    };
    let named = |name: &String| Mutation::ALL.into_iter().find(|m| format!("{m:?}") == *name);
    let sabotage = match arguments.mutant.as_ref().map(named) {
        Some(None) => {
            eprintln!("error: no such mutant; there are {:?}", Mutation::ALL);
            return ExitCode::FAILURE;
        }
        mutant => mutant.flatten(),
    };
    let scenario = Scenario {
        attempts: [arguments.attempts, arguments.rival_attempts],
        records: arguments.records,
        change,
        abort: arguments.abort,
        slow_answers: !arguments.prompt_answers,
        duplicates: !arguments.no_duplicates,
        exchange: arguments.exchange,
        ticks: arguments.ticks,
        plain: arguments.plain,
        sabotage,
    };
    let checker = scenario
        .checker()
        .threads(arguments.threads)
        .target_state_count(arguments.states)
        .finish_when(HasDiscoveries::AnyFailures);
    // Breadth first finds the shortest way to what is wrong, depth first finds one sooner and needs less memory.
    if arguments.depth_first {
        report(checker.spawn_dfs().join(), &arguments)
    } else {
        report(checker.spawn_bfs().join(), &arguments)
    }
}

fn report(checker: impl Checker<Scenario>, arguments: &Arguments) -> ExitCode {
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!(
        "{states} states, {} transitions, depth {depth}",
        checker.state_count()
    );
    let violated = checker.discovery(Scenario::SAFETY);
    if let Some(path) = &violated {
        println!("violated: {:?}, after", path.last_state().violation);
        for step in path.clone().into_actions() {
            println!("  {step:?}");
        }
    }
    let all = checker.state_count() < arguments.states;
    if !all {
        println!("not exhaustive: there are more states");
    }
    ExitCode::from(u8::from(
        violated.is_some() != arguments.mutant.is_some() || !(all || violated.is_some()),
    ))
}
