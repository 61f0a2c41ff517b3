//! Full page writes are switched on and off while Postgres runs, and every page is right in both modes.

use lakebed_pgtest::wait_until;
use lakebed_tests::{Compute, Shape, Tier};

use crate::comparison::{IDLE, compare_with_primary};
use crate::load::{Load, check, content, prepare};
use crate::workload;

/// Page images that Postgres wrote for the load's first changes after a checkpoint.
fn images_after_checkpoint(compute: &Compute, load: &Load) -> u64 {
    let images = || -> u64 {
        compute
            .sql(&["select wal_fpi from pg_stat_wal"])
            .parse()
            .expect("a count")
    };
    compute.sql(&["checkpoint"]);
    // Sessions report what they wrote at the end of a transaction, not more often than each second.
    let records = || -> u64 {
        compute
            .sql(&["select wal_records from pg_stat_wal"])
            .parse()
            .expect("a count")
    };
    let (before, reported) = (images(), records());
    load.advance(50);
    wait_until("a report of what was written", || records() > reported + 500);
    images() - before
}

fn switch(compute: &Compute, body: &str) -> (u16, String) {
    compute.put("/v1/full_page_writes", body)
}

#[test]
fn full_page_writes_are_switched_under_load() {
    let tier = Tier::start(&Shape::default());
    let settings = [workload::SETTINGS, IDLE].concat();
    let compute = tier.compute_with("main", "first", &settings);
    prepare(&compute);
    let load = Load::start(&compute);
    assert_eq!(compute.status()["full_page_writes"]["on"], false);
    assert_eq!(images_after_checkpoint(&compute, &load), 0);

    let (status, body) = switch(&compute, "on");
    assert_eq!(status, 200, "{body}");
    let told: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(told["on"], true);
    assert_eq!(compute.status()["full_page_writes"], told);
    assert_eq!(compute.sql(&["show full_page_writes"]), "on");
    assert!(images_after_checkpoint(&compute, &load) > 0);

    let (status, body) = switch(&compute, "maybe");
    assert!(status == 400 && body.contains("`maybe`"), "{status} {body}");
    assert_eq!(compute.status()["full_page_writes"], told);

    let (status, body) = switch(&compute, "off");
    assert_eq!(status, 200, "{body}");
    assert_eq!(compute.sql(&["show full_page_writes"]), "off");
    assert_eq!(images_after_checkpoint(&compute, &load), 0);
    // Once more, for images that lie between deltas of the same pages.
    assert_eq!(switch(&compute, "on").0, 200);
    load.advance(50);

    let records = load.stop(&compute);
    compare_with_primary(&tier, &compute);
    let before = content(&compute);
    compute.stop();
    let compute = tier.compute_with("main", "second", &settings);
    assert_eq!(
        compute.status()["full_page_writes"]["on"],
        false,
        "a start begins anew"
    );
    check(&compute, &records);
    assert_eq!(content(&compute), before);
    compute.stop();
}
