//! What was acknowledged survives the compute, and its pages really come from the tier.

use std::path::Path;
use std::time::Duration;

use lakebed_pgtest::wait_until;
use lakebed_tests::recorder::{Recorder, TABLE};
use lakebed_tests::{Compute, Shape, Tier};

const SUMS: &str = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                    (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)";

/// Bytes that are allocated on disk below a directory.
fn allocated(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(directory).expect("a directory");
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("an entry");
        let status = entry.metadata().expect("a status");
        if status.is_dir() {
            allocated(&entry.path())
        } else {
            status.blocks() * 512
        }
    };
    entries.map(size).sum()
}

fn relation_bytes(compute: &Compute) -> u64 {
    let bytes = compute.sql(&["select sum(pg_database_size(oid)) from pg_database"]);
    bytes.parse().expect("a number")
}

/// Test 1: the compute is killed and its directory deleted under load.
#[test]
fn acknowledged_transactions_survive_the_loss_of_the_compute() {
    let tier = Tier::start(&Shape::default());
    let compute = tier.compute("main", "first");
    compute.run("pgbench", &["-i", "-q", "-s", "5"]);
    compute.sql(&[TABLE, "create extension amcheck"]);
    compute.run("pgbench", &["-n", "-c", "4", "-t", "250"]);
    let recorders: Vec<Recorder> = (0..4)
        .map(|client| Recorder::start(&compute.url(), client, 0))
        .collect();
    let mut load = compute.program("pgbench");
    let mut load = load.args(["-n", "-c", "2", "-T", "60"]).spawn().expect("pgbench");
    wait_until("each client to have 100 transactions", || {
        recorders.iter().all(|recorder| recorder.acknowledged() >= 100)
    });
    let directory = compute.directory().to_owned();
    compute.kill();
    let records: Vec<_> = recorders.into_iter().map(Recorder::join).collect();
    load.wait().expect("pgbench");
    std::fs::remove_dir_all(&directory).expect("the compute's directory deleted");

    let compute = tier.compute("main", "first");
    let local = allocated(&compute.data_dir().join("base"));
    let sums = compute.sql(&[SUMS]);
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(
        sums.iter().all(|sum| *sum == sums[0]),
        "the four sums differ: {sums:?}"
    );
    for (client, record) in records.iter().enumerate() {
        let found = compute.sql(&[&format!(
            "select count(*), max(n) from recorded where client = {client}"
        )]);
        let (count, max) = found.split_once('|').expect("two columns");
        let (count, max): (u64, u64) = (count.parse().expect("a count"), max.parse().expect("a maximum"));
        assert_eq!(count, max, "client {client}: no gap");
        assert!(
            (record.acknowledged..=record.attempted).contains(&max),
            "client {client}: {record:?}, found up to {max}"
        );
    }
    compute.run("pg_amcheck", &["--heapallindexed", "-d", "postgres"]);
    let logical = relation_bytes(&compute);
    assert!(
        local * 10 < logical,
        "after the boot {local} bytes were local of {logical}: they did not come on demand"
    );
    compute.stop();
}

/// No way around the quorum: whatever a session asks for, nothing is acknowledged without it.
#[test]
fn nothing_is_acknowledged_without_a_quorum() {
    let mut tier = Tier::start(&Shape::default());
    let compute = tier.compute_with(
        "main",
        "compute",
        &["--lease-ms=120000", "--set=max_prepared_transactions=5"],
    );
    compute.sql(&[
        "create table t (n int)",
        "create procedure p() language plpgsql as $$ begin insert into t values (3); commit; end $$",
    ]);
    let mut sessions = Vec::new();
    let statements: [&[&str]; 5] = [
        &["insert into t values (1)"],
        &["begin", "insert into t values (2)", "prepare transaction 'two'"],
        &["call p()"],
        &["set synchronous_commit = local", "insert into t values (4)"],
        &[
            "set synchronous_commit = remote_write",
            "insert into t values (5)",
        ],
    ];
    for statements in statements {
        let mut connection = compute.connection();
        let (last, first) = statements.split_last().expect("a statement");
        for statement in first {
            connection.batch_execute(statement).expect("no commit yet");
        }
        sessions.push((connection, *last));
    }
    tier.kill_role("safekeeper-1");
    tier.kill_role("safekeeper-2");
    let (tell, told) = std::sync::mpsc::channel();
    let mut cancels = Vec::new();
    let mut threads = Vec::new();
    for (mut connection, last) in sessions {
        cancels.push(connection.cancel_token());
        let tell = tell.clone();
        threads.push(std::thread::spawn(move || {
            let result = connection.batch_execute(last);
            let _ = tell.send((last, result.map_err(|error| error.to_string())));
        }));
    }
    // Deliberately a duration: what is asserted is that nothing happens.
    let early = told.recv_timeout(Duration::from_secs(3));
    assert!(
        early.is_err(),
        "acknowledged by one of three safekeepers: {early:?}"
    );
    for cancel in cancels {
        cancel.cancel_query(postgres::NoTls).expect("a cancel");
    }
    let early = told.recv_timeout(Duration::from_secs(2));
    assert!(early.is_err(), "a cancelled wait was answered: {early:?}");
    tier.start_role("safekeeper-1");
    for _ in 0..5 {
        let (statement, _) = told
            .recv_timeout(Duration::from_secs(60))
            .expect("an answer with a quorum");
        println!("answered: {statement}");
    }
    for thread in threads {
        thread.join().expect("a session");
    }
    compute.sql(&["insert into t values (6)"]);
    compute.kill();
    let compute = tier.compute_with("main", "again", &["--set=max_prepared_transactions=5"]);
    let rows = compute.sql(&["select n from t where n = 6", "select count(*) from t"]);
    assert!(rows.starts_with('6'), "{rows}");
    compute.stop();
}
