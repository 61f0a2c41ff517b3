//! Full page writes are switched on and off while Postgres runs, and every page is right in both modes.

use lakebed_tests::{Compute, Shape, Tier};

use crate::comparison::{IDLE, compare_with_primary};
use crate::load::{Load, check, content, prepare};
use crate::workload;

/// Page images in the WAL of the load's first changes after a checkpoint. Counted in the WAL itself: Postgres's
/// statistics tell of a session's images up to a second after it wrote them, which may be after the mode was switched.
fn images_after_checkpoint(compute: &Compute, load: &Load) -> u64 {
    compute.sql(&["checkpoint"]);
    load.advance(50);
    compute
        .sql(&["select count(*) from pg_control_checkpoint(), \
             pg_get_wal_records_info(redo_lsn, pg_current_wal_flush_lsn()) where fpi_length > 0"])
        .parse()
        .expect("a count")
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
    compute.sql(&["create extension pg_walinspect"]);
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
