//! One program with every role of the tier and the commands of its users.
//!
//! * [`roles`]: a daemon each, with a TOML file.
//! * [`up`]: all of them on one machine, as child processes.
//! * [`client`]: commands that ask a running tier.
//! * [`bench`]: benchmarks, each on a tier of its own.
//! * [`wal`]: WAL in object storage.
//! * [`verify_wal`]: redo against stock Postgres, on anybody's WAL.

mod bench;
mod cli;
mod client;
mod connection;
mod initdb;
mod roles;
mod up;
mod verify_wal;
mod wal;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Up(args) => up::run(args, cli.json).await,
        Command::Controller(args) => {
            tie(args.stop_with_parent)?;
            roles::controller::run(args).await
        }
        Command::Safekeeper(args) => {
            tie(args.stop_with_parent)?;
            roles::safekeeper::run(args).await
        }
        Command::Pageserver(args) => {
            tie(args.stop_with_parent)?;
            roles::pageserver::run(args).await
        }
        Command::Compute(args) => match args.command {
            Some(command) => client::compute::run(command, cli.json).await,
            None => {
                tie(args.run.stop_with_parent)?;
                roles::compute::run(args.run).await
            }
        },
        Command::Tenant(args) => client::tenant::run(args.command, cli.json).await,
        Command::Branch(args) => client::branch::run(args.command, cli.json).await,
        Command::Status(args) => client::status::run(args, cli.json).await,
        Command::Bench(args) => bench::run(args, cli.json).await,
        Command::Wal(args) => wal::run(args.command, cli.json).await,
        Command::VerifyWal(args) => verify_wal::run(args, cli.json),
    }
}

fn tie(with_parent: bool) -> anyhow::Result<()> {
    if with_parent {
        roles::stop_with_parent()
    } else {
        Ok(())
    }
}
