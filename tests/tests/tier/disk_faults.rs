//! Safekeepers whose disk is full or fails, under load: the others go on, and nothing acknowledged is lost.

use lakebed_pgtest::wait_until;
use lakebed_tests::{Shape, Tier};

use crate::load::{Load, check, prepare};

/// Longer than any test: these computes must not lose patience.
const LONG_LEASE: &str = "--lease-ms=120000";
/// Room for the WAL of a test; filling up what is left of it takes a moment only.
const DISK_BYTES: u64 = 512 << 20;

fn tier() -> Tier {
    Tier::start(&Shape {
        faults: Some(DISK_BYTES),
        ..Shape::default()
    })
}

/// Why a node's only timeline does not do all its work.
fn reason(tier: &Tier, node: &str, what: &str) -> Option<String> {
    tier.status(node)["timelines"][0][what]
        .as_str()
        .map(str::to_owned)
}

#[test]
fn a_failed_fsync_stops_one_timeline_and_is_never_tried_again() {
    let mut tier = tier();
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    let broken = "safekeeper-2";
    tier.faults(broken).fail_fsync(true);
    wait_until("the timeline to stop", || {
        reason(&tier, broken, "stopped_reason").is_some()
    });
    load.advance(50);
    // An fsync would work again, and say nothing of what was lost.
    tier.faults(broken).fail_fsync(false);
    load.advance(50);
    let stopped = reason(&tier, broken, "stopped_reason").expect("a reason");
    assert!(stopped.contains("Input/output error"), "{stopped}");
    assert_eq!(tier.faults(broken).failed_fsyncs(), 1, "it was tried again");
    let (code, text) = tier.health(broken);
    assert!(
        code == 503 && text.contains("Input/output error"),
        "{code} {text}"
    );
    // Only a restart, which reads what the disk really holds, brings it back; it is needed for a quorum then.
    tier.cut_power(&[broken.to_owned()]);
    tier.start_role(broken);
    tier.kill_role("safekeeper-1");
    load.advance(50);
    let records = load.stop(&compute);
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    compute.stop();
}

#[test]
fn full_disks_are_waited_for_and_nothing_is_lost() {
    let tier = tier();
    let compute = tier.compute_with("main", "first", &[LONG_LEASE]);
    prepare(&compute);
    let load = Load::start(&compute);
    let names = tier.names("safekeeper");
    let is_full = |name: &str| reason(&tier, name, "full_reason");
    tier.disk(&names[0]).fill();
    wait_until("the full disk to be told of", || is_full(&names[0]).is_some());
    load.advance(50);
    assert_eq!(reason(&tier, &names[0], "stopped_reason"), None);
    for name in &names[1..] {
        tier.disk(name).fill();
    }
    // Without a quorum no more WAL comes, and what comes may fit into what the third has allocated.
    let full = || names[1..].iter().find(|name| is_full(name).is_some());
    wait_until("the quorum's disks to be full", || full().is_some());
    let full = full().expect("a full disk");
    let why = is_full(full).expect("a reason");
    assert!(why.contains("the disk is full"), "{why}");
    let (code, text) = tier.health(full);
    assert!(code == 503 && text.contains("the disk is full"), "{code} {text}");
    for name in &names {
        tier.disk(name).make_room();
    }
    load.advance(50);
    wait_until("all to take WAL again", || {
        names.iter().all(|name| is_full(name).is_none())
    });
    let records = load.stop(&compute);
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    compute.stop();
}
