//! Random histories of a pageserver's timelines against a naive model: every page at every LSN that must be kept is what it
//! must be, whatever was flushed, merged, branched, given up, deleted, evicted, damaged, and wherever the owner died.
//!
//! `LAKEBED_SEEDS=FIRST..END cargo test -p lakebed-pageserver --test model -- --nocapture pages_are` runs other seeds.

mod faulty;
#[path = "../records/mod.rs"]
mod records;
mod sabotage;
#[path = "../toy/mod.rs"]
mod toy;
mod world;

use std::ops::Range;
use std::path::Path;

use lakebed_pgtest::Cluster;

use sabotage::Sabotage;
use world::{Violation, World};

/// Things that are done with one seed.
const STEPS: usize = 60;

async fn step(world: &mut World) -> Result<(), Violation> {
    let (choice, at) = (world.numbers.below(100), world.any());
    let what = format!("{choice} on {at}");
    world.log.push(what);
    match choice {
        0..=24 => world.ingest(at).await?,
        25..=35 => world.flush(at).await?,
        36..=39 => world.detach(at).await?,
        40..=49 => world.compact(at).await?,
        50..=52 => world.stop_in_the_middle(at).await?,
        53 | 54 => world.split().await?,
        55..=58 => world.sweep(at).await?,
        59..=62 => world.image(at).await?,
        63..=67 if world.branches.len() < 5 => world.branch(at).await?,
        68..=72 => {
            world.raise_horizon(at);
            if world.does(Sabotage::ForgottenBranch) {
                world.forget_branches(at).await;
            }
        }
        73..=75 => world.evict(at),
        76..=78 => world.rot(at),
        79 | 80 => world.delete().await?,
        81..=84 => world.failing([0, 50, 200, 600][choice as usize - 81]),
        // It dies on the way of what comes next, and another takes over.
        85..=94 => {
            world.doom();
            for _ in 0..4 {
                let at = world.any();
                match world.numbers.below(7) {
                    0 => world.ingest(at).await?,
                    1 => world.flush(at).await?,
                    2 => world.compact(at).await?,
                    3 => world.sweep(at).await?,
                    4 => world.detach(at).await?,
                    5 if world.branches.len() < 5 => world.branch(at).await?,
                    _ => world.delete().await?,
                }
            }
            let new_disk = world.numbers.below(2) == 0;
            drop(world.take_over(new_disk).await?);
        }
        // Another takes over, and the one before does not know.
        _ => {
            world.failing(0);
            let before = world.take_over(true).await?;
            for branch in before {
                let timeline = branch.timeline;
                match world.numbers.below(3) {
                    0 => drop(timeline.flush().await),
                    1 => drop(timeline.compact().await),
                    _ => {}
                }
                let _ = timeline.sweep().await;
            }
        }
    }
    Ok(())
}

/// What the sabotage does by itself, besides what it changes elsewhere.
async fn sabotage(world: &mut World) {
    let at = world.any();
    match world.sabotage {
        Some(Sabotage::DeletedLayer) => world.harm_object(at, true).await,
        Some(Sabotage::RottenObject) => world.harm_object(at, false).await,
        Some(Sabotage::OldImage) => world.wrong_image(at, false).await,
        Some(Sabotage::EarlyImage) => world.wrong_image(at, true).await,
        _ => {}
    }
}

/// What seeds came to.
#[derive(Default)]
struct Count {
    reads: u64,
    detached: u64,
    splits: u64,
}

async fn run(initdb: &Path, seed: u64, wrong: Option<Sabotage>, count: &mut Count) -> Result<(), Violation> {
    let mut world = World::new(initdb, seed, wrong).await;
    let done = all(&mut world).await;
    count.reads += world.reads.load(std::sync::atomic::Ordering::Relaxed);
    count.detached += world.detached;
    count.splits += world.splits;
    done.map_err(|violation| format!("seed {seed}: {violation}\nafter {:?}", world.log))
}

async fn all(world: &mut World) -> Result<(), Violation> {
    for number in 0..STEPS {
        step(world).await?;
        if number % 8 == 7 {
            sabotage(world).await;
        }
        let at = world.any();
        world.check(at, Some(6)).await?;
    }
    // Another owner, from object storage alone, without faults.
    drop(world.take_over(true).await?);
    for at in 0..world.branches.len() {
        if !world.branches[at].deleting {
            world.flush(at).await?;
            world.compact(at).await?;
            world.sweep(at).await?;
            world.check(at, None).await?;
        }
    }
    world.check_references().await
}

fn seeds(default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("LAKEBED_SEEDS") else {
        return default;
    };
    let (first, end) = text.split_once("..").expect("LAKEBED_SEEDS=FIRST..END");
    first.parse().expect("a number")..end.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_what_they_must_be_whatever_happens() {
    let cluster = Cluster::init();
    let initdb = cluster.data_dir();
    let (seeds, mut count) = (seeds(0..40), Count::default());
    for seed in seeds.clone() {
        if let Err(violation) = run(&initdb, seed, None, &mut count).await {
            panic!("{violation}");
        }
    }
    let Count {
        reads,
        detached,
        splits,
    } = count;
    println!(
        "seeds {seeds:?}, {reads} pages compared, {detached} branches detached, {splits} splits, 0 differences"
    );
    let seeds = seeds.count() as u64;
    assert!(reads > seeds * 500, "{reads} pages");
    assert!(
        detached > seeds / 4 && splits > seeds / 4,
        "{detached} detached, {splits} splits"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_noticed() {
    let cluster = Cluster::init();
    let initdb = cluster.data_dir();
    for wrong in Sabotage::ALL {
        let mut noticed = None;
        for seed in 0..40 {
            if let Err(violation) = run(&initdb, seed, Some(wrong), &mut Count::default()).await {
                noticed = Some(violation);
                break;
            }
        }
        let violation = noticed.unwrap_or_else(|| panic!("{wrong:?} was not noticed"));
        println!("{wrong:?}: {}", violation.lines().next().unwrap_or_default());
    }
}
