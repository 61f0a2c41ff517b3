//! Seeded, deterministic simulation of the safekeeper quorum: the same seed gives the same run.
//!
//! Three to five acceptors on virtual disks, two computes that compete, a network and a controller; faults come from
//! the seed. After every step the [invariants](Violation) are checked. A run has a phase with faults and one without,
//! in which everything must become healthy in time.
//!
//! * `world`: the queue of events. `node`: acceptor and driver. `host`: proposer and driver. `network`: streams.
//! * `disk`: what a crash loses. `chaos`: faults and the control plane. `ledger`: what only the simulator knows.
//! * `invariants`: one file each.
//!
//! A simulator that finds nothing may be blind: with [`Options::mutation`] one rule of the protocol does not hold, and
//! the tests demand that some invariant notices.
//!
//! `cargo test -p lakebed-sim` runs thousands of seeds and every broken rule. More, and one seed step by step:
//!
//! ```text
//! cargo run -p lakebed-sim --example campaign -- --first 1000000 --seeds 1000000 --threads 8
//! cargo run -p lakebed-sim --example campaign -- --events 10000 --seeds 20000
//! cargo run -p lakebed-sim --example campaign -- --first 7 --trace
//! ```
#![forbid(unsafe_code)]

mod campaign;
mod chaos;
mod disk;
mod host;
mod invariants;
mod ledger;
mod network;
mod node;
mod rng;
mod trace;
mod world;

pub use campaign::{Campaign, campaign};
pub use invariants::Violation;
pub use lakebed_quorum::mutation::Mutation;

/// How to run a seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Events with faults; healing comes on top.
    pub events: u64,
    /// One rule that does not hold.
    pub mutation: Option<Mutation>,
    /// Keep the text of every step.
    pub keep_trace: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            events: 1000,
            mutation: None,
            keep_trace: false,
        }
    }
}

/// How often things happened; added up over seeds, all must be above zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name says what is counted")]
pub struct Report {
    pub events: u64,
    pub elections: u64,
    pub appends: u64,
    pub commits: u64,
    pub truncations: u64,
    pub crashes: u64,
    pub failed_flushes: u64,
    pub partitions: u64,
    pub losses: u64,
    pub fenced: u64,
    pub leases: u64,
    pub reconfigurations: u64,
    pub aborted_reconfigurations: u64,
}

impl Report {
    /// Adds another seed's counts.
    pub fn add(&mut self, one: &Report) {
        let Report {
            events,
            elections,
            appends,
            commits,
            truncations,
            crashes,
            failed_flushes,
            partitions,
            losses,
            fenced,
            leases,
            reconfigurations,
            aborted_reconfigurations,
        } = one;
        self.events += events;
        self.elections += elections;
        self.appends += appends;
        self.commits += commits;
        self.truncations += truncations;
        self.crashes += crashes;
        self.failed_flushes += failed_flushes;
        self.partitions += partitions;
        self.losses += losses;
        self.fenced += fenced;
        self.leases += leases;
        self.reconfigurations += reconfigurations;
        self.aborted_reconfigurations += aborted_reconfigurations;
    }

    /// Every counter with its name.
    pub fn counters(&self) -> [(&'static str, u64); 13] {
        [
            ("events", self.events),
            ("elections", self.elections),
            ("appends", self.appends),
            ("commits", self.commits),
            ("truncations", self.truncations),
            ("crashes", self.crashes),
            ("failed flushes", self.failed_flushes),
            ("partitions", self.partitions),
            ("losses", self.losses),
            ("fenced", self.fenced),
            ("leases expired", self.leases),
            ("reconfigurations", self.reconfigurations),
            ("aborted reconfigurations", self.aborted_reconfigurations),
        ]
    }
}

/// The result of one seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What happened.
    pub report: Report,
    /// The invariant that did not hold, if any.
    pub violation: Option<Violation>,
    /// Hash of every step.
    pub trace_hash: u64,
    /// Every step, when asked for.
    pub trace: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut world = world::World::new(seed, options);
    let violation = world.run(options.events).err();
    Outcome {
        violation,
        trace_hash: world.trace.hash(),
        report: world.report,
        trace: world.trace.lines.unwrap_or_default(),
    }
}
