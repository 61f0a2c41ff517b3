//! The WAL on each safekeeper is one unbroken chain for Postgres's own reader, over several computes.

use std::fs;

use lakebed_pgtest::{temp_dir, wait_until};
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{segments, wal_directory};
use lakebed_tests::waldump::walk;
use lakebed_tests::{Compute, Shape, Tier};
use lakebed_types::Lsn;

/// Commit and flush position of a timeline on a safekeeper.
fn positions(tier: &Tier, safekeeper: &str, branch: &Pages) -> (Lsn, Lsn) {
    let status = tier.status(safekeeper);
    let timelines = status["timelines"].as_array().expect("timelines");
    let id = branch.timeline().to_string();
    let timeline = timelines.iter().find(|timeline| timeline["timeline"] == id);
    let timeline = timeline.unwrap_or_else(|| panic!("no {id} in {status}"));
    let position = |name: &str| {
        let text = timeline[name].as_str().unwrap_or_else(|| panic!("{status}"));
        text.parse().expect("a position")
    };
    (position("commit_lsn"), position("flush_lsn"))
}

/// Copies the branch's WAL of every safekeeper, once it has all of it, and reads it. `compute` is idle.
fn check(tier: &Tier, branch: &Pages, compute: &Compute, least_records: usize) {
    let copies = temp_dir();
    for safekeeper in tier.names("safekeeper") {
        let copy = copies.path().join(&safekeeper);
        fs::create_dir(&copy).expect("a directory");
        let mut end = Lsn(0);
        // A quorum is enough for a commit: this one may still be behind. Should an idle Postgres write all the same,
        // the copy is made again.
        wait_until("a safekeeper at the end of WAL", || {
            let insert = compute.sql(&["select pg_current_wal_insert_lsn()"]);
            let insert: Lsn = insert.parse().expect("a position");
            // At the start of a page the reader's complaint would be about the page and not about the record.
            if insert.0 % 8192 < 64 {
                compute.sql(&["select pg_logical_emit_message(true, '', '')"]);
                return false;
            }
            let now = positions(tier, &safekeeper, branch);
            if now != (insert, insert) {
                return false;
            }
            for segment in segments(&wal_directory(tier, &safekeeper, branch)) {
                let name = segment.file_name().expect("a name");
                fs::copy(&segment, copy.join(name)).expect("a copy");
            }
            end = insert;
            positions(tier, &safekeeper, branch) == now
        });
        let found = walk(&copy, branch.start());
        println!("{safekeeper}: {found:?} from {}", branch.start());
        assert_eq!(found.end, end, "{safekeeper}");
        assert!(found.records > least_records, "{safekeeper}: {found:?}");
    }
}

fn load(compute: &Compute) {
    compute.run("pgbench", &["-n", "-c", "4", "-t", "100"]);
}

/// Test 7.
#[test]
fn the_wal_of_several_computes_is_one_chain_on_every_safekeeper() {
    let mut tier = Tier::start(&Shape::default());
    let first = tier.compute("main", "first");
    first.run("pgbench", &["-i", "-q", "-s", "2"]);
    load(&first);
    // A segment that ends early is part of the chain.
    first.sql(&["select pg_switch_wal()"]);
    load(&first);
    let mut busy = first.program("pgbench");
    busy.stderr(std::process::Stdio::null());
    let mut busy = busy.args(["-n", "-c", "4", "-T", "60"]).spawn().expect("pgbench");
    let mut session = first.connection();
    let mut transactions = |count: i64| {
        wait_until(&format!("{count} transactions"), || {
            let row = session.query_one("select count(*) from pgbench_history", &[]);
            row.expect("a count").get::<_, i64>(0) >= count
        });
    };
    // One safekeeper misses WAL and catches up later, from the others.
    transactions(900);
    tier.kill_role("safekeeper-3");
    transactions(1100);
    first.kill();
    busy.wait().expect("pgbench");
    let second = tier.compute("main", "second");
    load(&second);
    tier.start_role("safekeeper-3");
    load(&second);
    second.stop();
    let third = tier.compute("main", "third");
    load(&third);
    third.sql(&["checkpoint"]);
    check(&tier, &Pages::of(&tier, "main"), &third, 10_000);

    // A branch's WAL starts in the middle of a segment, with the branch.
    tier.client(&["branch", "create", "b"]);
    let fourth = tier.compute("b", "fourth");
    load(&fourth);
    fourth.kill();
    let fifth = tier.compute("b", "fifth");
    load(&fifth);
    check(&tier, &Pages::of(&tier, "b"), &fifth, 1000);
    fifth.stop();
    third.stop();
}
