//! Safekeepers that are replaced while transactions run: none fails, none is lost, and whoever joined counts.

use lakebed_pgtest::wait_until;
use lakebed_tests::{Compute, Shape, Tier};
use serde_json::Value;

use crate::load::{Load, check, content, prepare};

/// What a command about the safekeepers of `test/main` tells.
fn safekeepers(tier: &Tier, command: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["--json", "safekeepers", command, "test", "main"];
    arguments.extend(more);
    let told = tier.client(&arguments);
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

fn change(tier: &Tier, to: &str) -> Value {
    let told = safekeepers(tier, "change", &["--to", to, "--wait=60"]);
    assert_eq!(told["finished"], true, "{told}");
    told
}

/// Kills a safekeeper and removes its directory.
fn lose(tier: &mut Tier, name: &str) {
    tier.kill_role(name);
    std::fs::remove_dir_all(tier.home().join(name)).expect("its directory");
}

/// The generation that the compute acts under.
fn generation(compute: &Compute) -> u64 {
    let status = compute.sidecar.status();
    status["safekeepers_generation"].as_u64().expect("a generation")
}

#[test]
fn a_safekeeper_is_replaced_under_load() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    tier.add_safekeeper(4);
    let told = change(&tier, "2,3,4");
    assert_eq!(
        (&told["generation"], &told["current"]),
        (&3.into(), &serde_json::json!([2, 3, 4]))
    );
    assert_eq!(generation(&compute), 3);
    load.advance(50);
    // The one that left has nothing any more, and nobody misses it.
    assert_eq!(tier.status("safekeeper-1")["timelines"], serde_json::json!([]));
    lose(&mut tier, "safekeeper-1");
    load.advance(50);
    // Nothing commits now without the one that joined.
    tier.kill_role("safekeeper-2");
    load.advance(50);
    let records = load.stop(&compute);
    check(&compute, &records);
    let before = content(&compute);
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    assert_eq!(content(&compute), before);
    // A change that is asked for again is done already.
    assert_eq!(change(&tier, "2,3,4")["generation"], 3);
    compute.stop();
    wait_until("pages from the WAL of the new safekeepers", || {
        tier.status("pageserver-1")["timelines"].as_array().is_some()
    });
}
