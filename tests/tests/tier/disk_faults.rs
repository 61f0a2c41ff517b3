//! Safekeepers whose disk is full or fails, under load: the others go on, and nothing acknowledged is lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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

/// Where a node keeps its only timeline.
fn timeline(tier: &Tier, node: &str) -> PathBuf {
    let timelines = fs::read_dir(tier.home().join(node).join("timelines")).expect("timelines");
    let paths: Vec<_> = timelines.flatten().map(|entry| entry.path()).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths[0].clone()
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], at).expect("a byte");
}

#[test]
fn a_control_file_that_rots_forgets_nothing_while_a_copy_is_left() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    load.advance(20);
    let node = "safekeeper-2";
    let [file, copy] = ["control", "control-copy"].map(|name| timeline(&tier, node).join(name));
    let term = |tier: &Tier| tier.status(node)["timelines"][0]["term"].as_u64();
    let promised = term(&tier);
    assert!(promised >= Some(1));
    // In the promised term, while it is down: either copy is enough, and there are two again at once.
    for rotten in [&file, &copy] {
        tier.kill_role(node);
        flip(rotten, 20 + 8);
        tier.start_role(node);
        assert_eq!(reason(&tier, node, "stopped_reason"), None);
        assert_eq!(term(&tier), promised);
        assert_eq!(fs::read(&file).expect("a file"), fs::read(&copy).expect("a copy"));
        load.advance(20);
    }
    // While it runs: what is in memory is written anew, also when both are gone.
    flip(&file, 30);
    flip(&copy, 30);
    let scrubbed = tier.scrub(node)["timelines"][0]["scrub"].clone();
    assert_eq!(scrubbed["damage"], serde_json::json!([]), "{scrubbed}");
    tier.kill_role(node);
    tier.start_role(node);
    assert_eq!(reason(&tier, node, "stopped_reason"), None);
    // Both while it is down: what it promised is forgotten, and it says nothing any more.
    tier.kill_role(node);
    flip(&file, 30);
    flip(&copy, 30);
    tier.start_role(node);
    let why = reason(&tier, node, "stopped_reason").expect("a reason");
    assert!(why.contains("is damaged"), "{why}");
    load.advance(20);
    let records = load.stop(&compute);
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    compute.stop();
}
