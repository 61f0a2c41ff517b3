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
//! `cargo test -p lakebed-sim` runs seeds for a time and every broken rule. More, and one seed step by step:
//!
//! ```text
//! lakebed-sim --seed 1000000 --seeds 1000000 --threads 8
//! lakebed-sim --seed 7 --trace
//! lakebed-sim --mutant AckBeforeFlush
//! ```
#![forbid(unsafe_code)]

mod campaign;
mod chaos;
mod control_plane;
mod damage;
mod describe;
mod disk;
mod exchange;
mod host;
mod invariants;
mod ledger;
mod network;
mod node;
mod report;
mod rng;
mod trace;
mod world;

pub use campaign::{Campaign, campaign};
pub use invariants::Violation;
pub use lakebed_quorum::mutation::Mutation;
pub use report::Report;

/// How to run a seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Events with faults; healing comes on top.
    pub events: u64,
    /// One rule that does not hold.
    pub mutation: Option<Mutation>,
    /// Keep the text of every step.
    pub keep_trace: bool,
    /// Hash the text of every step; it takes half of the time.
    pub hash_trace: bool,
}

impl Options {
    /// Fewest events that a seed may have: fewer hardly get anywhere.
    pub const MIN_EVENTS: u64 = 500;
}

impl Default for Options {
    fn default() -> Options {
        Options {
            events: 1000,
            mutation: None,
            keep_trace: false,
            hash_trace: false,
        }
    }
}

/// The result of one seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What happened.
    pub report: Report,
    /// The invariant that did not hold, if any.
    pub violation: Option<Violation>,
    /// Hash of every step, or 0 when that was not asked for.
    pub trace_hash: u64,
    /// Every step, when asked for.
    pub trace: Vec<String>,
}

/// Runs one seed, with at least [`Options::MIN_EVENTS`] events unless an invariant breaks before.
///
/// # Panics
///
/// When fewer are asked for.
pub fn run(seed: u64, options: &Options) -> Outcome {
    assert!(
        options.events >= Options::MIN_EVENTS,
        "a seed needs {} events",
        Options::MIN_EVENTS
    );
    let mut world = world::World::new(seed, options);
    let violation = world.run(options.events).err();
    Outcome {
        violation,
        trace_hash: world.trace.hash(),
        report: world.report,
        trace: world.trace.lines.unwrap_or_default(),
    }
}
