//! `lakebed draw WHAT`: pictures of what the tier tells and of what was measured, as SVG on standard output.

mod chains;
mod chart;
mod layers;
mod svg;
mod sweep;

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use lakebed_types::TimelineId;

/// What is drawn.
#[derive(Debug, Args)]
pub struct DrawArgs {
    #[command(subcommand)]
    pub command: DrawCommand,
}

#[derive(Debug, Subcommand)]
pub enum DrawCommand {
    /// The layers of a timeline by pages and LSNs, from what a pageserver's /v1/layers says.
    Layers(LayersArgs),
    /// How many values pages are built from, from results of `lakebed bench getpage`.
    Chains(ResultsArgs),
    /// Images against reads and bytes written, from results of `lakebed bench images`.
    Images(ResultsArgs),
}

#[derive(Debug, Args)]
pub struct LayersArgs {
    /// File with the JSON; standard input without one.
    pub file: Option<PathBuf>,
    /// The timeline, when there is more than one.
    #[arg(long)]
    pub timeline: Option<TimelineId>,
    /// Its shard, as the JSON writes it, when there is more than one.
    #[arg(long)]
    pub shard: Option<String>,
}

#[derive(Debug, Args)]
pub struct ResultsArgs {
    /// File of results, a JSON object a line; standard input without one.
    pub file: Option<PathBuf>,
}

/// Draws.
///
/// # Errors
/// The input cannot be read, or does not have what is drawn.
pub fn run(command: &DrawCommand) -> anyhow::Result<()> {
    let svg = match command {
        DrawCommand::Layers(args) => layers::draw(&text(args.file.as_deref())?, args)?,
        DrawCommand::Chains(args) => chains::draw(&results(args)?)?,
        DrawCommand::Images(args) => sweep::draw(&results(args)?)?,
    };
    println!("{svg}");
    Ok(())
}

fn text(file: Option<&Path>) -> anyhow::Result<String> {
    match file {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display())),
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("reading standard input")?;
            Ok(text)
        }
    }
}

fn results(args: &ResultsArgs) -> anyhow::Result<Vec<serde_json::Value>> {
    let text = text(args.file.as_deref())?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).context("a result"))
        .collect()
}
