//! The first of several commits waits for the others, as long as that pays: the sidecar finds out by itself.

use std::process::Stdio;
use std::time::Duration;

use lakebed_pgtest::wait_until;
use lakebed_tests::{Compute, Shape, Tier};
use serde_json::Value;

use crate::load::{Load, check, prepare};

fn delay(compute: &Compute) -> Option<u64> {
    compute.status()["commit_delay_us"].as_u64()
}

#[test]
fn commits_wait_for_each_other_while_flushes_are_slow_and_shared() {
    let tier = Tier::start(&Shape {
        faults: Some(512 << 20),
        ..Shape::default()
    });
    let compute = tier.compute("main", "first");
    prepare(&compute);
    assert_eq!(compute.sql(&["show commit_delay"]), "0");
    for node in ["safekeeper-1", "safekeeper-2", "safekeeper-3"] {
        tier.faults(node).slow_fsync(Duration::from_millis(20));
    }
    let load = Load::start(&compute);
    wait_until("a delay", || delay(&compute).is_some_and(|us| us > 0));
    wait_until("Postgres to have it", || {
        let us = delay(&compute).unwrap_or_default();
        // `show` tells it in the unit that fits best.
        let set = compute.sql(&["select setting from pg_settings where name = 'commit_delay'"]);
        set == us.to_string() && compute.sql(&["show commit_siblings"]) == "1"
    });
    let records = load.stop(&compute);
    // One session alone has nobody to wait for.
    let mut alone = compute.program("pgbench");
    alone.args(["-n", "-c", "1", "-T", "3600"]);
    alone.stdout(Stdio::null()).stderr(Stdio::null());
    let mut alone = alone.spawn().expect("pgbench");
    wait_until("no delay", || delay(&compute) == Some(0));
    alone.kill().expect("pgbench still runs");
    alone.wait().expect("pgbench to end");
    check(&compute, &records);
    // Who sets it by hand is obeyed.
    compute.stop();
    let compute = tier.compute_with("main", "second", &["--set=commit_delay=70"]);
    assert_eq!(compute.status()["commit_delay_us"], Value::Null);
    assert_eq!(
        compute.sql(&["select setting from pg_settings where name = 'commit_delay'"]),
        "70"
    );
    check(&compute, &records);
    compute.stop();
}
