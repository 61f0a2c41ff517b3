//! The program with every role of the tier and the commands of its users, as a library: an operator whose Postgres has
//! extensions with resource managers of their own builds a program with plug-ins for them.
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     let mut managers = lakebed::redo::Managers::default();
//!     // managers.register(RMID, Arc::new(TheExtension))
//!     lakebed::run(managers)
//! }
//! ```
//!
//! [`redo`] has the trait and what a redo function needs.
//!
//! * `roles`: a daemon each, with a TOML file.
//! * `up`: all of them on one machine, as child processes.
//! * `client`: commands that ask a running tier.
//! * `bench`: benchmarks, each on a tier of its own.
//! * `wal`: WAL in object storage.
//! * `scrub`: whether object storage has all that it should.
//! * `verify_wal`: redo against stock Postgres, on anybody's WAL.

mod bench;
mod cli;
mod client;
mod connection;
mod draw;
mod initdb;
mod roles;
mod scrub;
mod up;
mod verify_wal;
mod wal;
mod window;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cli::{Cli, Command};
pub use lakebed_redo as redo;
use redo::Managers;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Does what the command line says, with plug-ins for these custom resource managers. Child processes are of the same
/// program, so they have the same plug-ins.
pub fn run(managers: Managers) -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(command(cli, managers)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn command(cli: Cli, managers: Managers) -> anyhow::Result<()> {
    match cli.command {
        Command::Up(args) => up::run(args, cli.json).await,
        Command::Controller(args) => {
            tie(args.stop_with_parent)?;
            roles::controller::run(args).await
        }
        Command::Safekeeper(args) => match args.command {
            Some(command) => client::safekeepers::run_node(command, cli.json).await,
            None => {
                tie(args.run.stop_with_parent)?;
                let config = args.run.config.context("--config is missing")?;
                roles::safekeeper::run(&config).await
            }
        },
        Command::Safekeepers(args) => client::safekeepers::run(args.command, cli.json).await,
        Command::Pageserver(args) => {
            tie(args.stop_with_parent)?;
            roles::pageserver::run(args, managers).await
        }
        Command::Compute(args) => match args.command {
            Some(command) => client::compute::run(command, cli.json).await,
            None => {
                tie(args.run.stop_with_parent)?;
                roles::compute::run(args.run).await
            }
        },
        Command::WalClient(args) => {
            tie(args.stop_with_parent)?;
            roles::wal_client::run(args).await
        }
        Command::Tenant(args) => client::tenant::run(args.command, cli.json).await,
        Command::Branch(args) => client::branch::run(args.command, cli.json).await,
        Command::Restore(args) => client::restore::run(args, cli.json).await,
        Command::Explain(args) => client::explain::run(args.command, cli.json).await,
        Command::Draw(args) => draw::run(&args.command),
        Command::Status(args) => client::status::run(args, cli.json).await,
        Command::Bench(args) => bench::run(args, cli.json).await,
        Command::Wal(args) => wal::run(args.command, cli.json).await,
        Command::Scrub(args) => scrub::run(args, cli.json).await,
        Command::VerifyWal(args) => verify_wal::run(args, cli.json, &managers),
    }
}

fn tie(with_parent: bool) -> anyhow::Result<()> {
    if with_parent {
        roles::stop_with_parent()
    } else {
        Ok(())
    }
}
