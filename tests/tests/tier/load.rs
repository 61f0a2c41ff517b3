//! Work for a compute while something is broken, and the check that nothing acknowledged is lost.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lakebed_pgtest::wait_until;
use lakebed_tests::recorder::{Record, Recorder, TABLE};
use lakebed_tests::{Compute, process_exists};

/// Recorders of one load.
const RECORDERS: i32 = 3;
/// Four numbers that every committed pgbench transaction keeps equal.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                    (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)";
/// Content of every table that the load writes to, in an order that does not depend on its place.
const CONTENT: [&str; 5] = [
    "select count(*), md5(string_agg(t::text, ',' order by aid)) from pgbench_accounts t",
    "select count(*), md5(string_agg(t::text, ',' order by tid)) from pgbench_tellers t",
    "select count(*), md5(string_agg(t::text, ',' order by bid)) from pgbench_branches t",
    "select count(*), md5(string_agg(t::text, ',' order by t::text)) from pgbench_history t",
    "select count(*), md5(string_agg(t::text, ',' order by client, n)) from recorded t",
];

/// Makes the tables.
pub fn prepare(compute: &Compute) {
    compute.run("pgbench", &["-i", "-q", "-s", "1"]);
    compute.sql(&[TABLE]);
}

/// Recorders and a pgbench that go on until they are stopped, or lose their server.
pub struct Load {
    recorders: Vec<Recorder>,
    pgbench: Child,
    errors: PathBuf,
}

impl Load {
    /// Starts it; the recorders begin after the numbers that `compute` has already.
    pub fn start(compute: &Compute) -> Load {
        let next = |client| {
            let max = format!("select coalesce(max(n), 0) from recorded where client = {client}");
            compute.sql(&[&max]).parse().expect("a number")
        };
        let recorders = (0..RECORDERS)
            .map(|client| Recorder::start(&compute.url(), client, next(client)))
            .collect();
        let errors = compute.directory().with_extension("pgbench");
        let mut pgbench = compute.program("pgbench");
        pgbench
            .args(["-n", "-c", "2", "-T", "3600"])
            .stdout(Stdio::null());
        pgbench.stderr(File::create(&errors).expect("a file"));
        let pgbench = pgbench.spawn().expect("pgbench");
        let load = Load {
            recorders,
            pgbench,
            errors,
        };
        load.advance(20);
        load
    }

    /// What each recorder has had acknowledged.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.recorders.iter().map(Recorder::acknowledged).collect()
    }

    /// Waits until each recorder has had `by` more acknowledged.
    pub fn advance(&self, by: u64) {
        let begin = self.acknowledged();
        wait_until("each recorder to go on", || {
            let now = self.acknowledged();
            begin.iter().zip(now).all(|(begin, now)| now >= begin + by)
        });
    }

    /// Stops it where nothing may have failed.
    pub fn stop(mut self, compute: &Compute) -> Vec<Record> {
        let errors = self.end_pgbench();
        assert!(errors.is_empty(), "pgbench: {errors}");
        let records: Vec<Record> = std::mem::take(&mut self.recorders)
            .into_iter()
            .map(Recorder::stop)
            .collect();
        for record in &records {
            assert_eq!(record.error, None, "a transaction failed");
            assert_eq!(record.acknowledged, record.attempted);
        }
        // The transaction that a killed client has under way still ends.
        wait_until("the sessions of pgbench to end", || {
            compute.sql(&["select count(*) from pg_stat_activity where application_name = 'pgbench'"]) == "0"
        });
        records
    }

    /// Waits until the server is gone for all of it.
    pub fn lost(mut self) -> Vec<Record> {
        let records: Vec<Record> = std::mem::take(&mut self.recorders)
            .into_iter()
            .map(Recorder::join)
            .collect();
        wait_until("pgbench to lose its server", || {
            matches!(self.pgbench.try_wait(), Ok(Some(_)))
        });
        assert!(records.iter().all(|record| record.error.is_some()));
        records
    }

    fn end_pgbench(&mut self) -> String {
        let _ = self.pgbench.kill();
        let _ = self.pgbench.wait();
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end_pgbench();
    }
}

/// Checks that a compute has everything acknowledged, nothing that was never sent, and only whole transactions.
pub fn check(compute: &Compute, records: &[Record]) {
    for (client, record) in records.iter().enumerate() {
        let found = format!("select count(*), coalesce(max(n), 0) from recorded where client = {client}");
        let found = compute.sql(&[&found]);
        let (count, max) = found.split_once('|').expect("two columns");
        let (count, max): (u64, u64) = (count.parse().expect("a count"), max.parse().expect("a maximum"));
        assert_eq!(count, max, "client {client} has a gap");
        assert!(
            (record.acknowledged..=record.attempted).contains(&max),
            "client {client}: {record:?}, found up to {max}"
        );
    }
    let sums = compute.sql(&[SUMS]);
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(
        sums.iter().all(|sum| *sum == sums[0]),
        "the four sums differ: {sums:?}"
    );
}

/// All rows of all tables, in few words.
pub fn content(compute: &Compute) -> String {
    compute.sql(&CONTENT)
}

/// Waits until all these processes are gone; how long that took since `begin`. More than `limit` is too long.
pub fn wait_for_end(processes: &[i32], begin: Instant, limit: Duration) -> Duration {
    let left = |processes: &[i32]| -> Vec<i32> {
        let all = processes.iter().copied();
        all.filter(|pid| process_exists(*pid)).collect()
    };
    wait_until("processes of Postgres to end", || {
        left(processes).is_empty() || begin.elapsed() > limit
    });
    let (took, left) = (begin.elapsed(), left(processes));
    assert!(
        left.is_empty(),
        "after {took:?} these processes of Postgres still run: {left:?}"
    );
    took
}
