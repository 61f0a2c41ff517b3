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

/// Which safekeepers are being emptied.
fn emptied(tier: &Tier) -> Vec<u64> {
    let status: Value = serde_json::from_str(&tier.client(&["--json", "status"])).expect("a status");
    let nodes = status["nodes"].as_array().expect("nodes").iter();
    let emptied = nodes.filter(|node| node["draining"] == true);
    emptied
        .map(|node| node["node_id"].as_u64().expect("a number"))
        .collect()
}

/// Who counts.
fn members(tier: &Tier) -> Vec<u64> {
    let status = safekeepers(tier, "status", &[]);
    let nodes = status["current"].as_array().expect("members").iter();
    nodes.map(|node| node.as_u64().expect("a number")).collect()
}

fn change(tier: &Tier, to: &str) -> Value {
    let told = safekeepers(tier, "change", &["--to", to, "--wait=60"]);
    assert_eq!(told["finished"], true, "{told}");
    told
}

/// Starts one more safekeeper and waits until the controller knows it.
fn add_safekeeper(tier: &mut Tier, number: usize) {
    tier.add_safekeeper(number);
    wait_until("a safekeeper to be registered", || {
        let status: Value = serde_json::from_str(&tier.client(&["--json", "status"])).expect("a status");
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().any(|node| node["node_id"] == number)
    });
}

/// Waits until so many safekeepers have to do with the branch: those who left are free again.
fn wait_until_only(tier: &Tier, count: usize) {
    wait_until("those who left to be free again", || {
        let told = safekeepers(tier, "status", &[]);
        let nodes = told["safekeepers"].as_array();
        nodes.is_some_and(|nodes| nodes.len() == count)
    });
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
    add_safekeeper(&mut tier, 4);
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
}

/// Two of the three that are to follow get no further: were they members, no transaction would commit.
#[test]
fn commits_do_not_wait_for_those_who_catch_up() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    let slow = ["safekeeper-4", "safekeeper-5"];
    for (number, name) in (4..).zip(slow) {
        add_safekeeper(&mut tier, number);
        tier.pause_role(name);
    }
    let told = safekeepers(&tier, "change", &["--to=3,4,5"]);
    assert_eq!(
        (&told["generation"], &told["next"]),
        (&1.into(), &serde_json::json!([]))
    );
    assert_eq!(told["joining"]["learners"], serde_json::json!([4, 5]));
    load.advance(100);
    // One of them has it all; it still counts for nothing, and then it falls behind.
    tier.resume_role(slow[0]);
    let follows = || {
        let status = compute.sidecar.status();
        let peers = status["safekeepers"].as_array().expect("safekeepers").iter();
        peers
            .filter(|peer| peer["learner"] == true && peer["phase"] == "Streaming")
            .count()
            == 1
    };
    wait_until("a learner to follow", follows);
    tier.pause_role(slow[0]);
    load.advance(100);
    assert_eq!(generation(&compute), 1);
    let refused = tier.refused_client(&["safekeepers", "change", "test", "main", "--to=3,4,5", "--wait=1"]);
    assert!(
        refused.contains("5 has nothing yet; 3, 4, 5 follow when"),
        "{refused}"
    );
    for name in slow {
        tier.resume_role(name);
    }
    let told = change(&tier, "3,4,5");
    assert_eq!((&told["generation"], &told["joining"]), (&3.into(), &Value::Null));
    // Now they are what counts.
    tier.kill_role("safekeeper-3");
    load.advance(50);
    let records = load.stop(&compute);
    check(&compute, &records);
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    compute.stop();
}

/// A change whose joiner never comes ends by itself, and says so; it may be asked for again.
#[test]
fn who_does_not_catch_up_in_time_does_not_join() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    add_safekeeper(&mut tier, 4);
    tier.kill_role("safekeeper-4");
    let refused = tier.refused_client(&[
        "safekeepers",
        "change",
        "test",
        "main",
        "--to=2,3,4",
        "--deadline=1",
        "--wait=60",
    ]);
    assert!(
        refused.contains("safekeepers 4 did not catch up in time"),
        "{refused}"
    );
    let told = safekeepers(&tier, "status", &[]);
    assert_eq!(
        (
            &told["generation"],
            &told["joining"],
            &told["timed_out"]["learners"]
        ),
        (&1.into(), &Value::Null, &serde_json::json!([4]))
    );
    assert_eq!(members(&tier), [1, 2, 3]);
    load.advance(50);
    tier.start_role("safekeeper-4");
    wait_until_only(&tier, 3);
    let told = change(&tier, "2,3,4");
    assert_eq!(told["timed_out"], Value::Null);
    load.advance(50);
    let records = load.stop(&compute);
    check(&compute, &records);
    compute.stop();
}

/// The one who joins is away, so that the change cannot go on; then the controller and a member die in the middle of it.
#[test]
fn a_change_may_be_given_up_repeated_and_interrupted() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    add_safekeeper(&mut tier, 4);
    tier.kill_role("safekeeper-4");
    for _ in 0..2 {
        let told = safekeepers(&tier, "change", &["--to=2,3,4"]);
        assert_eq!(
            (
                &told["generation"],
                &told["joining"]["learners"],
                &told["finished"]
            ),
            (&1.into(), &serde_json::json!([4]), &false.into())
        );
    }
    load.advance(50);
    let refused = tier.refused_client(&["safekeepers", "change", "test", "main", "--to=1,2,4"]);
    assert!(refused.contains("finish or abort that change first"), "{refused}");
    // Given up, twice; the one who should have joined has nothing to delete, but nobody knows.
    for _ in 0..2 {
        let told = safekeepers(&tier, "abort", &["--wait=60"]);
        assert_eq!(
            (&told["generation"], &told["current"], &told["joining"]),
            (&1.into(), &serde_json::json!([1, 2, 3]), &Value::Null)
        );
    }
    load.advance(20);
    let refused = tier.refused_client(&["safekeepers", "change", "test", "main", "--to=2,3,4"]);
    assert!(refused.contains("safekeeper 4 has not yet deleted"), "{refused}");
    tier.start_role("safekeeper-4");
    wait_until_only(&tier, 3);
    assert_eq!(tier.status("safekeeper-4")["timelines"], serde_json::json!([]));

    // One whose sets must both agree already: half of the set that is to follow is away.
    tier.kill_role("safekeeper-2");
    load.advance(20);
    for _ in 0..2 {
        let told = safekeepers(&tier, "change", &["--to=1,2"]);
        assert_eq!(
            (&told["generation"], &told["next"], &told["finished"]),
            (&2.into(), &serde_json::json!([1, 2]), &false.into())
        );
    }
    wait_until("the compute to hear of both sets", || generation(&compute) == 2);
    let refused = tier.refused_client(&["safekeepers", "change", "test", "main", "--to=1,2", "--wait=1"]);
    assert!(
        refused.contains("quorums of 1, 2, 3 and of 1, 2 must agree"),
        "{refused}"
    );
    for _ in 0..2 {
        let told = safekeepers(&tier, "abort", &["--wait=60"]);
        assert_eq!(
            (&told["generation"], &told["current"], &told["next"]),
            (&3.into(), &serde_json::json!([1, 2, 3]), &serde_json::json!([]))
        );
    }
    assert_eq!(generation(&compute), 3);
    load.advance(20);
    tier.start_role("safekeeper-2");

    // Once more. Whoever dies comes back; neither the compute nor its clients notice.
    safekeepers(&tier, "change", &["--to=2,3,4"]);
    tier.kill_role("controller");
    tier.kill_role("safekeeper-1");
    load.advance(50);
    tier.start_role("controller");
    tier.start_role("safekeeper-1");
    tier.kill_role("safekeeper-4");
    load.advance(20);
    tier.start_role("safekeeper-4");
    assert_eq!(change(&tier, "2,3,4")["generation"], 5);
    assert_eq!(generation(&compute), 5);
    tier.kill_role("safekeeper-1");
    tier.kill_role("safekeeper-3");
    load.advance(50);
    let records = load.stop(&compute);
    assert_eq!(compute.sidecar.status()["lost"], Value::Null);
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    compute.stop();
}

/// Who joins gets only what the others still have, and what was removed everywhere is not missed.
#[test]
fn a_safekeeper_joins_where_wal_was_removed_and_all_three_are_exchanged() {
    let objects = lakebed_pgtest::temp_dir();
    let mut tier = Tier::start(&Shape {
        flush_bytes: 1 << 20,
        store: Some((format!("file://{}", objects.path().display()), 200)),
        ..Shape::default()
    });
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let truncated = |tier: &Tier| {
        let status = tier.status("safekeeper-1");
        let timeline = &status["timelines"][0];
        timeline["truncate_lsn"] != timeline["start_lsn"]
    };
    wait_until("WAL to be removed", || {
        compute.sql(&[
            "create table filler as select repeat(md5(n::text), 50) from generate_series(1, 5000) as n",
            "drop table filler",
            "checkpoint",
            "select pg_switch_wal()",
        ]);
        truncated(&tier)
    });
    let load = Load::start(&compute);
    for number in 4..=6 {
        add_safekeeper(&mut tier, number);
    }
    change(&tier, "4,5,6");
    let status = tier.status("safekeeper-4");
    let joined = &status["timelines"][0];
    assert_ne!(joined["truncate_lsn"], joined["start_lsn"], "{joined}");
    let mut now = members(&tier);
    assert_eq!(now, [4, 5, 6]);
    for node in [4, 5] {
        if node == 5 {
            // For good: it is replaced all the same.
            lose(&mut tier, "safekeeper-5");
        }
        let said = tier.client(&["safekeeper", "decommission", &node.to_string(), "--wait=60"]);
        assert_eq!(said, "");
        now = members(&tier);
        assert!(now.len() == 3 && !now.contains(&node), "{now:?} without {node}");
    }
    // They have the fewest branches now, and get none until somebody says so, whatever dies meanwhile.
    tier.kill_role("controller");
    tier.start_role("controller");
    // Its page is there a moment before it has read its log.
    wait_until("the controller to know them", || emptied(&tier) == [4, 5]);
    tier.create_tenant("other", &Shape::default(), None);
    let told: Value =
        serde_json::from_str(&tier.client(&["--json", "safekeepers", "status", "other", "main"]))
            .expect("a status");
    let placed = told["current"].as_array().expect("members");
    assert!(
        placed.len() == 3 && placed.iter().all(|node| *node != 4 && *node != 5),
        "{told}"
    );
    tier.client(&["safekeeper", "decommission", "4", "--undo"]);
    assert_eq!(emptied(&tier), [5]);
    load.advance(50);
    let records = load.stop(&compute);
    let before = content(&compute);
    compute.kill();
    // Those who left, or never joined, are not needed to start again.
    for number in [1, 2, 3, 4] {
        if !now.contains(&number) {
            lose(&mut tier, &format!("safekeeper-{number}"));
        }
    }
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    assert_eq!(content(&compute), before);
    compute.stop();
}

/// Nobody writes to the branch: a command takes the compute's part, but not from a compute.
#[test]
fn a_change_is_finished_without_a_compute() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    load.advance(50);
    let records = load.stop(&compute);
    let before = content(&compute);
    add_safekeeper(&mut tier, 4);
    tier.kill_role("safekeeper-4");
    safekeepers(&tier, "change", &["--to=2,3,4"]);
    let refused = tier.refused_client(&["safekeepers", "finish", "test", "main"]);
    assert!(refused.contains("finishes the change by itself"), "{refused}");
    compute.stop();
    tier.start_role("safekeeper-4");
    wait_until("the streams of the compute to end", || {
        let status = safekeepers(&tier, "status", &[]);
        let all = status["safekeepers"].as_array().expect("safekeepers");
        all.iter().all(|node| node["proposers"] == 0)
    });
    assert_eq!(safekeepers(&tier, "status", &[])["finished"], false);
    for _ in 0..2 {
        let told = safekeepers(&tier, "finish", &["--wait=60"]);
        assert_eq!(told["finished"], true, "{told}");
        assert_eq!(told["current"], serde_json::json!([2, 3, 4]));
    }
    lose(&mut tier, "safekeeper-1");
    tier.kill_role("safekeeper-2");
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    assert_eq!(content(&compute), before);
    compute.stop();
}
