//! Random operations on timelines made of layers, against a list of all values that were ever ingested.
//!
//! [`timeline`] is a small pageserver: it ingests into memory tables, flushes, merges and answers reads with the
//! crate's own parts, and keeps objects and manifests in maps. [`world`] does random things with a few of them, parent
//! and branches: ingest, image, flush, a step of a merge, a step of making something durable, move the horizon, branch,
//! crash in between, go on as an owner that was superseded. After each, what is durable must be whole: a manifest names
//! only what is there. Reads at every retained LSN are compared with [`reference`], and so are the blocks they cost.
//!
//! [`Sabotage`] breaks one rule; the test fails unless the rest notices.

mod reference;
mod sabotage;
mod timeline;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sabotage::Sabotage;
use world::{Done, run};

/// How long new seeds are tried.
const TIME: Duration = Duration::from_secs(30);
/// So many are tried on the slowest machine.
const LEAST_SEEDS: u64 = 50;
/// A broken rule must be noticed within so many seeds.
const SEEDS: u64 = 2000;

#[test]
fn every_read_is_right_whatever_happens() {
    let (next, failed, total) = (
        AtomicU64::new(0),
        Mutex::new(Vec::new()),
        Mutex::new(Done::default()),
    );
    let start = Instant::now();
    let work = || {
        while failed.lock().unwrap().is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= LEAST_SEEDS && start.elapsed() >= TIME {
                return;
            }
            match run(seed, None) {
                Ok(done) => total.lock().unwrap().add(&done),
                Err(violation) => failed.lock().unwrap().push((seed, violation)),
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let total = total.into_inner().unwrap();
    println!("{} seeds: {total:?}", next.into_inner().saturating_sub(2));
    assert_eq!(failed.into_inner().unwrap(), []);
    assert!(total.is_varied(), "something never happened: {total:?}");
}

#[test]
fn every_broken_rule_is_noticed() {
    let (next, missed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(sabotage) = Sabotage::ALL.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            if !is_noticed(*sabotage) {
                missed.lock().unwrap().push(*sabotage);
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    assert_eq!(
        missed.into_inner().unwrap(),
        [],
        "not noticed within {SEEDS} seeds"
    );
}

fn is_noticed(sabotage: Sabotage) -> bool {
    let noticed = (0..SEEDS).find_map(|seed| Some((seed, run(seed, Some(sabotage)).err()?)));
    let Some((seed, violation)) = noticed else {
        return false;
    };
    println!("{sabotage:?}: seed {seed}: {violation}");
    // It is the broken rule that was noticed.
    run(seed, None).unwrap();
    true
}
