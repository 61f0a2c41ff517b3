//! Safekeepers, whole tiers, sidecars and processes of Postgres that die under load: nobody loses what was
//! acknowledged, and what can go on goes on.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lakebed_pgtest::wait_until;
use lakebed_tests::{Compute, Shape, Tier};

use crate::load::{Load, check, content, prepare, wait_for_end};

/// Longer than any test: these computes must not lose patience.
const LONG_LEASE: &str = "--lease-ms=120000";

/// A position of the only timeline of a node, as a number.
fn position(tier: &Tier, node: &str, what: &str) -> u64 {
    let status = tier.status(node);
    let text = status["timelines"][0][what].as_str().expect("a position");
    let (high, low) = text.split_once('/').expect("two halves");
    let half = |text: &str| u64::from_str_radix(text, 16).expect("a hexadecimal number");
    half(high) << 32 | half(low)
}

fn signal(pid: i32, name: &str) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(status.expect("kill").success());
}

#[test]
fn a_safekeeper_that_dies_is_not_noticed_and_catches_up() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    prepare(&compute);
    let load = Load::start(&compute);
    for name in tier.names("safekeeper") {
        tier.kill_role(&name);
        load.advance(50);
        let others = tier
            .names("safekeeper")
            .into_iter()
            .filter(|other| *other != name);
        let ahead = others.map(|other| position(&tier, &other, "commit_lsn")).max();
        tier.start_role(&name);
        wait_until("the safekeeper to catch up under load", || {
            Some(position(&tier, &name, "flush_lsn")) >= ahead
        });
    }
    let records = load.stop(&compute);
    wait_until("all safekeepers to be equal", || {
        let flushed =
            ["safekeeper-1", "safekeeper-2", "safekeeper-3"].map(|name| position(&tier, name, "flush_lsn"));
        flushed.iter().all(|flush| *flush == flushed[0])
    });
    let longest = records.iter().map(|record| record.longest).max();
    println!("longest commit {longest:?}");
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    compute.stop();
}

#[test]
fn without_a_quorum_commits_wait_and_then_go_on() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute_with("main", "first", &[LONG_LEASE]);
    prepare(&compute);
    let load = Load::start(&compute);
    tier.kill_role("safekeeper-2");
    tier.kill_role("safekeeper-3");
    // The transaction under way may have had its quorum already; the one after it cannot.
    let most: Vec<u64> = load.acknowledged().iter().map(|count| count + 1).collect();
    // Deliberately a duration: what is asserted is that nothing happens.
    std::thread::sleep(Duration::from_secs(3));
    let waiting = load.acknowledged();
    assert!(
        waiting.iter().zip(&most).all(|(count, most)| count <= most),
        "acknowledged by one of three safekeepers: {waiting:?}, at most {most:?}"
    );
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(load.acknowledged(), waiting);
    tier.start_role("safekeeper-3");
    load.advance(50);
    let records = load.stop(&compute);
    assert!(
        records
            .iter()
            .all(|record| record.longest > Duration::from_secs(3))
    );
    check(&compute, &records);
    let before = content(&compute);
    compute.kill();
    let compute = tier.compute("main", "second");
    check(&compute, &records);
    assert_eq!(content(&compute), before);
    compute.stop();
}

/// Boots with an empty directory while a safekeeper accepts connections and does not answer.
#[test]
fn a_frozen_safekeeper_holds_nobody_up() {
    let tier = Tier::start(&Shape::default());
    let mut compute = tier.compute("main", "first");
    prepare(&compute);
    for name in tier.names("safekeeper") {
        let load = Load::start(&compute);
        tier.pause_role(&name);
        load.advance(50);
        let records = load.stop(&compute);
        compute.kill();
        let begin = Instant::now();
        compute = tier.compute("main", &format!("without-{name}"));
        check(&compute, &records);
        let took = begin.elapsed();
        println!("boot and reads without {name}: {took:?}");
        assert!(took < Duration::from_secs(6), "{took:?} without {name}");
        tier.resume_role(&name);
    }
    compute.stop();
}

#[test]
fn a_compute_that_is_cut_off_stops_when_its_lease_ends() {
    let mut tier = Tier::start(&Shape::default());
    for way in ["killed", "frozen"] {
        let mut compute = tier.compute_with("main", way, &["--lease-ms=2000"]);
        if way == "killed" {
            prepare(&compute);
        }
        let load = Load::start(&compute);
        let processes = compute.processes();
        for name in tier.names("safekeeper") {
            match way {
                "killed" => tier.kill_role(&name),
                _ => tier.pause_role(&name),
            }
        }
        let begin = Instant::now();
        let took = wait_for_end(&processes, begin, Duration::from_secs(6));
        println!("safekeepers {way}: Postgres gone after {took:?}, with a lease of 2 s");
        assert!(
            took > Duration::from_secs(1),
            "the lease was not over yet: {took:?}"
        );
        assert!(!compute.sidecar.wait().success());
        let log = compute.sidecar.log();
        assert!(log.contains("no quorum of safekeepers for too long"), "{log}");
        let records = load.lost();
        for name in tier.names("safekeeper") {
            match way {
                "killed" => tier.start_role(&name),
                _ => tier.resume_role(&name),
            }
        }
        let compute = tier.compute("main", &format!("after-{way}"));
        check(&compute, &records);
        compute.kill();
    }
}

/// Sessions that sleep, that do nothing, and that wait for a quorum.
#[test]
fn a_killed_sidecar_takes_its_postgres_along() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute_with("main", "first", &[LONG_LEASE]);
    prepare(&compute);
    let mut idle = compute.connection();
    let mut in_transaction = compute.connection();
    in_transaction
        .batch_execute("begin; select 1")
        .expect("a transaction");
    let asleep = spawn(&compute, "select pg_sleep(3600)");
    let load = Load::start(&compute);
    tier.kill_role("safekeeper-1");
    tier.kill_role("safekeeper-2");
    let flushing = spawn(&compute, "create table waits (n int)");
    wait_until("sessions to wait for a quorum and to sleep", || {
        let waits = "select count(*) filter (where wait_event = 'PgSleep') > 0, \
                     count(*) filter (where wait_event = 'WALSync') > 0 from pg_stat_activity";
        compute.sql(&[waits]) == "t|t"
    });
    let processes = compute.processes();
    assert!(
        processes.contains(&compute.postmaster()) && processes.len() > 8,
        "{processes:?}"
    );
    let begin = Instant::now();
    compute.kill();
    let took = wait_for_end(&processes, begin, Duration::from_secs(5));
    println!(
        "{} processes of Postgres gone {took:?} after their sidecar",
        processes.len()
    );
    let records = load.lost();
    assert!(asleep.join().expect("a session").is_err());
    assert!(flushing.join().expect("a session").is_err());
    assert!(idle.batch_execute("select 1").is_err());
    assert!(in_transaction.batch_execute("select 1").is_err());
    tier.start_role("safekeeper-1");
    let compute = tier.compute("main", "first");
    check(&compute, &records);
    compute.stop();
}

/// Where no session waits for the sidecar, nothing but the kernel tells Postgres of its end.
#[test]
fn a_killed_sidecar_takes_a_quiet_postgres_along() {
    let tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    let mut idle = compute.connection();
    let asleep = spawn(&compute, "select pg_sleep(3600)");
    wait_until("a session to sleep", || {
        compute.sql(&["select count(*) from pg_stat_activity where wait_event = 'PgSleep'"]) == "1"
    });
    let processes = compute.processes();
    let begin = Instant::now();
    compute.kill();
    let took = wait_for_end(&processes, begin, Duration::from_secs(5));
    println!("a quiet Postgres was gone {took:?} after its sidecar");
    assert!(asleep.join().expect("a session").is_err());
    assert!(idle.batch_execute("select 1").is_err());
}

/// A statement in a session and a thread of its own.
fn spawn(compute: &Compute, statement: &'static str) -> std::thread::JoinHandle<Result<(), String>> {
    let mut connection = compute.connection();
    std::thread::spawn(move || {
        connection
            .batch_execute(statement)
            .map_err(|error| error.to_string())
    })
}

/// After a crash of one process Postgres starts again by itself from local state; that must not happen here.
#[test]
fn a_killed_process_of_postgres_ends_the_compute() {
    let tier = Tier::start(&Shape::default());
    for what in ["client backend", "checkpointer", "walwriter"] {
        let mut compute = tier.compute("main", &what.replace(' ', "-"));
        if what == "client backend" {
            prepare(&compute);
        }
        let load = Load::start(&compute);
        let processes = compute.processes();
        let victim = format!(
            "select pid from pg_stat_activity where backend_type = '{what}' and pid <> pg_backend_pid() limit 1"
        );
        let victim = compute.sql(&[&victim]).parse().expect("a process id");
        let begin = Instant::now();
        signal(victim, "-KILL");
        let took = wait_for_end(&processes, begin, Duration::from_secs(10));
        println!("{what} killed: Postgres gone after {took:?}");
        assert!(!compute.sidecar.wait().success());
        let log = compute.sidecar.log();
        assert!(log.contains("Postgres ended by itself"), "{log}");
        let records = load.lost();
        let compute = tier.compute("main", "again");
        check(&compute, &records);
        compute.kill();
    }
}

#[test]
fn everything_acknowledged_survives_the_end_of_every_process() {
    let mut tier = Tier::start(&Shape::default());
    let mut directory = "first";
    let compute = tier.compute("main", directory);
    prepare(&compute);
    let mut compute = Some(compute);
    // Whether processes die before or after what they depend on must not matter, nor in which order they come back.
    for backwards in [false, true] {
        let running = compute.take().unwrap_or_else(|| tier.compute("main", directory));
        let load = Load::start(&running);
        let mut names = tier.names("");
        if backwards {
            names.reverse();
        }
        for name in &names {
            tier.kill_role(name);
        }
        running.kill();
        let records = load.lost();
        for name in &names {
            tier.start_role(name);
        }
        directory = if backwards { "third" } else { "second" };
        assert!(!Path::new(&tier.home().join(directory)).exists());
        let again = tier.compute("main", directory);
        check(&again, &records);
        compute = Some(again);
    }
    compute.expect("a compute").stop();
}

/// Nobody is left then who tells the safekeepers what is committed.
#[test]
fn a_branch_made_after_a_stop_has_everything_acknowledged() {
    let tier = Tier::start(&Shape::default());
    for name in ["one", "two", "three"] {
        let compute = tier.compute("main", name);
        if name == "one" {
            prepare(&compute);
        }
        let load = Load::start(&compute);
        compute.stop();
        let records = load.lost();
        let begin = Instant::now();
        tier.client(&["branch", "create", name]);
        println!("branch {name} made in {:?}", begin.elapsed());
        let branch = tier.compute(name, &format!("branch-{name}"));
        check(&branch, &records);
        branch.kill();
    }
}
