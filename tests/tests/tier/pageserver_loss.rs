//! Pageservers without their disks, and a tier without its controller.

use std::time::Duration;

use lakebed_pgtest::wait_until;
use lakebed_tests::{Compute, Shape, Tier};
use postgres::{Client, NoTls};

use crate::load::{Load, check, content, prepare};

/// Small, so that there are layers, and pages that are spread over them.
fn shape() -> Shape {
    Shape {
        flush_bytes: 1 << 20,
        ..Shape::default()
    }
}

/// Kills a pageserver and deletes everything it had on its own disk.
fn lose(tier: &mut Tier, name: &str) {
    tier.kill_role(name);
    std::fs::remove_dir_all(tier.home().join(name)).expect("the pageserver's directory deleted");
}

/// A table that no test writes to again, larger than one shard's run of blocks.
fn add_cold_table(compute: &Compute) {
    compute.sql(&[
        "create table cold as select n, repeat(md5(n::text), 20) as filler from generate_series(1, 8000) as n",
        "checkpoint",
    ]);
}

const COLD: &str = "select count(*), sum(n), md5(string_agg(filler, '' order by n)) from cold";

/// The last column of [`COLD`].
const COLD_FILLER: &str = "select md5(string_agg(filler, '' order by n)) from cold";

/// Reads pages that nobody has read yet, in a session and a thread of its own: the connection may have to wait too.
fn read_cold(compute: &Compute) -> std::thread::JoinHandle<Result<String, String>> {
    let url = compute.url();
    std::thread::spawn(move || {
        let read = Client::connect(&url, NoTls).and_then(|mut session| session.query_one(COLD_FILLER, &[]));
        read.map(|row| row.get(0)).map_err(|error| error.to_string())
    })
}

#[test]
fn a_pageserver_without_its_disk_comes_back() {
    let mut tier = Tier::start(&shape());
    let first = tier.compute("main", "first");
    prepare(&first);
    add_cold_table(&first);
    let cold = first.sql(&[COLD]);
    first.stop();
    for (round, name) in tier.names("pageserver").into_iter().enumerate() {
        // A compute that has read nothing yet, so that its reads need the pageserver.
        let compute = tier.compute("main", &format!("during-{round}"));
        let load = Load::start(&compute);
        lose(&mut tier, &name);
        let read = read_cold(&compute);
        // Deliberately a duration: a read that needs a lost pageserver waits.
        std::thread::sleep(Duration::from_secs(1));
        assert!(!read.is_finished(), "read without {name}");
        tier.start_role(&name);
        wait_until("the read to go on", || read.is_finished());
        let read = read.join().expect("a session").expect("the read goes on");
        assert!(cold.ends_with(&read), "{read} is not in {cold}");
        load.advance(50);
        let records = load.stop(&compute);
        check(&compute, &records);
        let before = content(&compute);
        compute.kill();
        let fresh = tier.compute("main", &format!("after-{round}"));
        assert_eq!(content(&fresh), before, "after the loss of {name}");
        assert_eq!(fresh.sql(&[COLD]), cold, "after the loss of {name}");
        check(&fresh, &records);
        fresh.kill();
    }
}

#[test]
fn the_tier_goes_on_without_its_controller() {
    let mut tier = Tier::start(&shape());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    add_cold_table(&compute);
    let cold = compute.sql(&[COLD]);
    tier.client(&["branch", "create", "side"]);
    let branches = tier.client(&["branch", "list", "--json"]);
    // It has read nothing of the cold table yet.
    let side = tier.compute("side", "side");
    let load = Load::start(&compute);
    tier.kill_role("controller");
    load.advance(50);
    for arguments in [["branch", "create", "other"].as_slice(), &["branch", "list"]] {
        let said = tier.refused_client(arguments);
        assert!(
            said.contains("controller") && said.contains("does not answer"),
            "{said}"
        );
    }
    // These come back from what they have on disk.
    tier.kill_role("safekeeper-1");
    tier.start_role("safekeeper-1");
    tier.kill_role("pageserver-1");
    tier.start_role("pageserver-1");
    let read = read_cold(&side);
    wait_until("a read from the restarted pageserver", || read.is_finished());
    let read = read.join().expect("a session").expect("the read goes on");
    assert!(cold.ends_with(&read), "{read} is not in {cold}");
    side.stop();
    load.advance(50);
    // This one has to ask the controller what is its own.
    lose(&mut tier, "pageserver-2");
    tier.start_role("pageserver-2");
    load.advance(20);
    tier.start_role("controller");
    wait_until("the lost pageserver to have its shard again", || {
        tier.status("pageserver-2")["timelines"]
            .as_array()
            .is_some_and(|timelines| timelines.len() == 2)
    });
    let records = load.stop(&compute);
    assert_eq!(tier.client(&["branch", "list", "--json"]), branches);
    tier.client(&["branch", "create", "other"]);
    check(&compute, &records);
    let before = content(&compute);
    compute.kill();
    for branch in ["main", "other"] {
        let fresh = tier.compute(branch, &format!("fresh-{branch}"));
        assert_eq!(content(&fresh), before, "{branch}");
        assert_eq!(fresh.sql(&[COLD]), cold, "{branch}");
        fresh.kill();
    }
    let side = tier.compute("side", "fresh-side");
    assert_eq!(side.sql(&[COLD]), cold);
    side.stop();
}
