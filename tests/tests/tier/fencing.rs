//! Of two computes on a branch the newer one has it, and the older one is gone before anybody can be confused.

use std::time::{Duration, Instant};

use lakebed_pgtest::wait_until;
use lakebed_tests::{Shape, Tier};

use crate::load::{Load, check, prepare, wait_for_end};

/// The deadline is 2 s; machines that run many tests at once are slower.
const FENCED_WITHIN: Duration = Duration::from_secs(4);

/// Highest term that a quorum of three safekeepers has promised.
fn term(tier: &Tier) -> u64 {
    let mut terms: Vec<u64> = tier
        .names("safekeeper")
        .iter()
        .filter_map(|name| tier.status(name)["timelines"][0]["term"].as_u64())
        .collect();
    terms.sort_unstable();
    terms.get(terms.len() / 2).copied().unwrap_or(0)
}

#[test]
fn a_second_compute_fences_the_first() {
    let tier = Tier::start(&Shape::default());
    let mut first = tier.compute("main", "first");
    prepare(&first);
    let load = Load::start(&first);
    let processes = first.processes();
    let old = term(&tier);
    let (second, fenced) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            wait_until("the second compute's term", || term(&tier) > old);
            wait_for_end(&processes, Instant::now(), FENCED_WITHIN)
        });
        // Here and not in a thread, with whose end the compute would end.
        let second = tier.compute("main", "second");
        (second, watch.join().expect("a measurement"))
    });
    println!("the first compute's Postgres was gone {fenced:?} after the second had its term");
    let records = load.lost();
    check(&second, &records);
    assert!(!first.sidecar.wait().success());
    let log = first.sidecar.log();
    let told = format!("fenced: another compute has this branch, in term {}", term(&tier));
    assert!(log.contains(&told), "`{told}` is not in the log:\n{log}");
    // The second one works, and goes on without the first.
    let load = Load::start(&second);
    let records = load.stop(&second);
    check(&second, &records);
    second.stop();
}

/// The older compute's sidecar is frozen while it loses the branch, so nobody can tell it.
#[test]
fn a_compute_that_slept_through_its_fencing_acknowledges_nothing_more() {
    let tier = Tier::start(&Shape::default());
    let mut first = tier.compute("main", "first");
    prepare(&first);
    let load = Load::start(&first);
    let processes = first.processes();
    first.sidecar.pause();
    let second = tier.compute("main", "second");
    let acknowledged = load.acknowledged();
    first.sidecar.resume();
    let took = wait_for_end(&processes, Instant::now(), FENCED_WITHIN);
    println!("the first compute's Postgres was gone {took:?} after it woke");
    assert!(!first.sidecar.wait().success());
    let records = load.lost();
    let after: Vec<u64> = records.iter().map(|record| record.acknowledged).collect();
    println!("acknowledged before it woke {acknowledged:?}, in the end {after:?}");
    check(&second, &records);
    second.stop();
}
