//! `lakebed bench NAME`: measures a private tier that it starts, and removes afterwards.
//!
//! Every benchmark prints one result per line on standard output, as JSON with `--json`; what it does meanwhile goes
//! to standard error. A result carries the machine, its load before and after, the build and the command, because a
//! number without them cannot be compared. Nothing here passes or fails by its time.

mod admin;
mod branch;
mod branch_alone;
mod chains;
mod cold_start;
mod commit;
mod compute;
mod cpu;
mod feeder;
mod getpage;
mod idle;
mod images;
mod ingest;
mod isolation;
mod links;
mod machine;
mod metrics;
mod open_loop;
mod order_entry;
mod pgbench;
mod ping;
mod pinned;
mod proxy;
mod redo;
mod replayed;
mod space;
mod spans;
mod stats;
mod stock;
mod synthetic;
mod tier;
mod tpcc;
mod wal_volume;
mod written_wal;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::roles::shutdown_on_signals;
use tier::TierArgs;

/// What is measured.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time from the start of `lakebed compute` to the answer to its first query.
    ColdStart(cold_start::ColdStartArgs),
    /// One-row updates, beside stock Postgres with three synchronous receivers of WAL.
    Commit(commit::CommitArgs),
    /// TPC-B while WAL goes over slow links, beside stock Postgres; `benches/links` runs it.
    Links(links::LinksArgs),
    /// Pages at random from a pageserver that keeps no built ones, each compared with what it must be.
    Getpage(getpage::GetpageArgs),
    /// Reads at half of the rate that a pageserver can serve, while it compacts and while it does not.
    Isolation(isolation::IsolationArgs),
    /// How fast pageserver shards take in WAL without page images, from the feed to layers in object storage.
    Ingest(ingest::IngestArgs),
    /// What images of pages cost and give: a sweep of when they are made, and a table that is updated all the time.
    Images(images::ImagesArgs),
    /// Bytes on the wire between a compute and one safekeeper for each transaction, beside stock Postgres.
    WalVolume(wal_volume::WalVolumeArgs),
    /// Order entry in the manner of TPC-C, beside stock Postgres with three synchronous receivers of WAL.
    Tpcc(order_entry::OrderEntryArgs),
    /// Memory and open files of a safekeeper with many timelines on which nobody works.
    IdleTimelines(idle::IdleArgs),
    /// Time to make a branch of a small and of a large one: many relations, many layers.
    Branch(branch::BranchBenchArgs),
    /// Bytes that are stored for pages and their history, as more and more of it is given up, beside the least that it takes.
    Space(space::SpaceArgs),
    /// Time to build a page from its base and a chain of records, by kind of page, length of chain and callers.
    Redo(redo::RedoArgs),
}

impl BenchCommand {
    fn tier(&self) -> &TierArgs {
        match self {
            BenchCommand::ColdStart(args) => &args.tier,
            BenchCommand::Commit(args) => &args.tier,
            BenchCommand::Links(args) => &args.tier,
            BenchCommand::Getpage(args) => &args.tier,
            BenchCommand::Isolation(args) => &args.tier,
            BenchCommand::Images(args) => &args.tier,
            BenchCommand::Ingest(args) => &args.tier,
            BenchCommand::WalVolume(args) => &args.tier,
            BenchCommand::Tpcc(args) => &args.tier,
            BenchCommand::IdleTimelines(args) => &args.tier,
            BenchCommand::Branch(args) => &args.tier,
            BenchCommand::Redo(args) => &args.tier,
            BenchCommand::Space(args) => &args.tier,
        }
    }
}

/// Where results go.
#[derive(Debug)]
pub struct Report {
    as_json: bool,
    name: &'static str,
    machine: Value,
    load_before: String,
}

impl Report {
    /// Of one benchmark that begins now.
    fn begin(name: &'static str, as_json: bool) -> Report {
        Report {
            as_json,
            name,
            machine: machine::describe(),
            load_before: machine::load(),
        }
    }

    /// Prints one result, an object.
    fn result(&self, fields: Value) {
        let mut line = Map::new();
        line.insert("bench".to_owned(), json!(self.name));
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        if !self.as_json {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let parts: Vec<_> = line
                .iter()
                .map(|(key, value)| format!("{key}={}", text(value)))
                .collect();
            println!("{}", parts.join(" "));
            return;
        }
        line.insert("load_before".to_owned(), json!(self.load_before));
        line.insert("load_after".to_owned(), json!(machine::load()));
        line.insert("machine".to_owned(), self.machine.clone());
        line.insert("build".to_owned(), machine::build());
        line.insert("command".to_owned(), json!(machine::command()));
        println!("{}", Value::Object(line));
    }
}

/// Runs one, to its end or a signal.
pub async fn run(args: BenchArgs, as_json: bool) -> anyhow::Result<()> {
    let shutdown = shutdown_on_signals()?;
    let mut tier = tier::PrivateTier::prepare(args.command.tier())?;
    let measured = async {
        match &args.command {
            BenchCommand::ColdStart(args) => {
                cold_start::run(args, &mut tier, &Report::begin("cold-start", as_json)).await
            }
            BenchCommand::Commit(args) => {
                commit::run(args, &mut tier, &Report::begin("commit", as_json)).await
            }
            BenchCommand::Links(args) => links::run(args, &mut tier, &Report::begin("links", as_json)).await,
            BenchCommand::Getpage(args) => {
                getpage::run(args, &mut tier, &Report::begin("getpage", as_json)).await
            }
            BenchCommand::Isolation(args) => {
                isolation::run(args, &mut tier, &Report::begin("isolation", as_json)).await
            }
            BenchCommand::Images(args) => {
                images::run(args, &mut tier, &Report::begin("images", as_json)).await
            }
            BenchCommand::Ingest(args) => {
                ingest::run(args, &mut tier, &Report::begin("ingest", as_json)).await
            }
            BenchCommand::WalVolume(args) => {
                wal_volume::run(args, &mut tier, &Report::begin("wal-volume", as_json)).await
            }
            BenchCommand::Branch(args) => {
                branch::run(args, &mut tier, &Report::begin("branch", as_json)).await
            }
            BenchCommand::IdleTimelines(args) => {
                idle::run(args, &mut tier, &Report::begin("idle-timelines", as_json)).await
            }
            BenchCommand::Tpcc(args) => {
                order_entry::run(args, &mut tier, &Report::begin("tpcc", as_json)).await
            }
            BenchCommand::Space(args) => space::run(args, &mut tier, &Report::begin("space", as_json)).await,
            BenchCommand::Redo(args) => redo::run(args, &mut tier, &Report::begin("redo", as_json)).await,
        }
    };
    let result = tokio::select! {
        result = measured => result,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("stopped by a signal")),
    };
    tier.stop().await;
    result
}
