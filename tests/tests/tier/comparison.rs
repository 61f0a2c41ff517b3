//! What the pageservers serve equals what stock Postgres makes of the same WAL, page by page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use lakebed_pgtest::{Cluster, temp_dir, wait_until};
use lakebed_tests::comparison::{Comparison, Writer, compare};
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{recover, wal_directory};
use lakebed_tests::{Compute, Shape, Tier};
use lakebed_types::Lsn;

use crate::workload;

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no LSN"))
}

/// Copies one relation file to the same path below another directory.
fn copy_file(from: &Path, to: &Path, path: &str) {
    let target = to.join(path);
    fs::create_dir_all(target.parent().expect("a directory")).expect("directories");
    fs::copy(from.join(path), &target).expect("a copy");
}

/// The comparison sees a single flipped bit: without this, finding nothing would mean nothing.
fn one_flipped_byte_is_found(pages: &Pages, at: Lsn, directory: &Path, path: &str, writer: &Writer) {
    let other = temp_dir();
    copy_file(directory, other.path(), path);
    // Only this relation is there: that others have no file is not what is looked for.
    let of_pages = |result: Comparison| {
        let mut found = result.differences;
        found.retain(|difference| !difference.ends_with("no file"));
        found
    };
    let same = of_pages(compare(pages, at, other.path(), writer));
    assert!(same.is_empty(), "{same:?}");
    let file = other.path().join(path);
    let mut bytes = fs::read(&file).expect("the copy");
    let last = bytes.len() / 8192 * 8192 - 20;
    bytes[last] ^= 1;
    fs::write(&file, bytes).expect("the copy");
    let found = of_pages(compare(pages, at, other.path(), writer));
    assert_eq!(found.len(), 1, "{found:?}");
}

/// Test 5: a branch taken under load is what stock recovery to its LSN makes.
#[test]
fn a_branch_under_load_equals_stock_recovery_to_its_lsn() {
    let mut base = Cluster::init();
    let mut tier = Tier::start_from(&Shape::default(), Some(&base.data_dir()));
    let compute = tier.compute_with("main", "main", &workload::SETTINGS);
    compute.run("pgbench", &["-i", "-q", "-s", "5"]);
    compute.sql(&["vacuum"]);
    workload::ddl(&compute);
    workload::multixacts(&compute);
    workload::subtransactions(&compute);
    compute.sql(&[
        "create database by_log strategy wal_log",
        "create database by_copy strategy file_copy",
    ]);
    let mut load = compute.program("pgbench");
    load.stdout(Stdio::null()).stderr(Stdio::null());
    let mut load = load.args(["-n", "-c", "4", "-T", "60"]).spawn().expect("pgbench");
    let mut session = compute.connection();
    let mut history = |count: i64| {
        wait_until(&format!("{count} transactions"), || {
            let row = session.query_one("select count(*) from pgbench_history", &[]);
            row.expect("a count").get::<_, i64>(0) >= count
        });
    };
    // What a shard had in memory only comes again from the safekeepers, one of which is away for a while.
    history(200);
    tier.kill_role("pageserver-2");
    tier.kill_role("safekeeper-3");
    tier.start_role("pageserver-2");
    history(500);
    tier.start_role("safekeeper-3");
    let asked = lsn(&compute.sql(&["select pg_current_wal_flush_lsn()"]));
    history(800);
    tier.client(&["branch", "create", "b", "--at-lsn", &asked.to_string()]);
    history(1000);
    // Its own session ends it, so that none of its transactions is left open.
    compute
        .sql(&["select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgbench'"]);
    load.wait().expect("pgbench");

    let (main, branch) = (Pages::of(&tier, "main"), Pages::of(&tier, "b"));
    let at = branch.start();
    assert!(
        at <= asked && asked.0 - at.0 < 8192,
        "asked for {asked}, branched at {at}"
    );
    let wal = wal_directory(&tier, "safekeeper-1", &main);
    recover(&mut base, main.start(), &wal, at);
    let result = compare(&branch, at, &base.data_dir(), &Writer::Recovery);
    result.assert_equal();
    assert!(result.relation_pages() > 12_000, "{result}");
    one_flipped_byte_is_found(&branch, at, &base.data_dir(), "base/1/1259", &Writer::Recovery);

    // The branch is consistent for its own Postgres too, and the parent's LSN serves the same pages.
    let on_branch = tier.compute("b", "b");
    let sums =
        "select count(*), (select sum(abalance) from pgbench_accounts) = sum(delta) from pgbench_history";
    let found = on_branch.sql(&[sums]);
    let (count, same) = found.split_once('|').expect("two columns");
    let count: u64 = count.parse().expect("a count");
    assert!(count >= 500 && same == "t", "{found}");
    on_branch.sql(&["update pgbench_accounts set abalance = 0 where aid <= 1000"]);
    compare(&main, at, &base.data_dir(), &Writer::Recovery).assert_equal();
    compare(&branch, at, &base.data_dir(), &Writer::Recovery).assert_equal();
    on_branch.stop();
    compute.stop();
}

/// Makes all blocks of a database's relations local. Reading the files asks nobody but the storage, so they get what
/// stock Postgres would read; it leaves the buffers alone, so nothing is pruned or hinted on the way, as a query would.
pub fn read_all(compute: &Compute, database: &str) {
    let mut session = compute.connection_to(database);
    let read = "select sum(length(pg_read_binary_file(path, 0, size))) from (
          select path, (pg_stat_file(path, true)).size from (
            select pg_relation_filepath(oid) || suffix as path
            from pg_class, unnest(array['', '_fsm', '_vm', '_init']) suffix
            where relkind in ('r', 'i', 't', 'S', 'm')) paths) files
        where size is not null";
    let row = session.query_one(read, &[]);
    let bytes: i64 = row.unwrap_or_else(|error| panic!("{database}: {error:?}")).get(0);
    assert!(bytes > 1 << 20, "{database} has {bytes} bytes only");
}

/// A position at which all of an idle primary's pages are in its files, and the session that must stay until they are
/// compared.
///
/// One session with warm caches: between the checkpoint and the position nothing reads a page for the first time, so
/// nothing is pruned.
pub fn quiet_position(compute: &Compute) -> (Lsn, postgres::Client) {
    let mut session = compute.connection();
    let mut at = Lsn(0);
    for _ in 0..2 {
        session.batch_execute("checkpoint").expect("a checkpoint");
        let row = session.query_one("select pg_current_wal_insert_lsn()::text", &[]);
        at = lsn(row.expect("a position").get(0));
    }
    (at, session)
}

/// What the same cluster must answer, wherever its pages come from.
pub fn answers(compute: &Compute) -> Vec<String> {
    let mut all = vec![compute.sql(&[
        "select count(*), sum(abalance), md5(string_agg(aid || filler, '' order by aid)) from pgbench_accounts",
        "select count(*), sum(delta) from pgbench_history",
        "select count(*), sum(k), md5(string_agg(v || filler, '' order by id)) from t",
        "select count(*), sum(length(data)), md5(string_agg(data, '' order by id)) from big",
        "select a, count(*), sum(b) from d group by a order by a",
        "select count(*), sum(a), sum(b) from locked",
        "select count(*), sum(a) from nested",
        "select count(*), sum(a) from shrinks",
        "select count(*) from copied",
        "select count(*) from in_ts",
        "select gid from pg_prepared_xacts",
        "select datname, dattablespace from pg_database order by 1",
        "select relname, relkind, relpages from pg_class order by relname collate \"C\", oid",
    ])];
    for database in ["by_copy", "second_copy", "bench_copy", "bench_log"] {
        let mut session = compute.connection_to(database);
        let table = if database.starts_with("bench") {
            "pgbench_accounts"
        } else {
            "here"
        };
        let column = if database.starts_with("bench") { "aid" } else { "a" };
        let statement = format!("select count(*), sum({column}) from {table}");
        let row = session.query_one(&statement, &[]).expect("a row");
        all.push(format!(
            "{database} {} {}",
            row.get::<_, i64>(0),
            row.get::<_, i64>(1)
        ));
    }
    all
}

/// Everything that SQL does, with a database of `scale` times 100,000 accounts that is copied in every way.
pub fn everything(compute: &Compute, scale: u32) {
    compute.sql(&["create database bench strategy file_copy"]);
    compute.run("pgbench", &["-i", "-q", "-s", &scale.to_string(), "bench"]);
    compute.sql(&[
        "create database bench_copy template bench strategy file_copy",
        "create database bench_log template bench strategy wal_log",
        "create database bench_both template bench_log strategy file_copy",
    ]);
    compute.run("pgbench", &["-i", "-q", "-s", "2"]);
    compute.run("pgbench", &["-n", "-c", "4", "-j", "2", "-t", "300"]);
    compute.run(
        "pgbench",
        &["-n", "-c", "4", "-j", "2", "-t", "200", "bench_copy"],
    );
    workload::ddl(compute);
    workload::multixacts(compute);
    workload::subtransactions(compute);
    workload::databases(compute);
    compute.run("pgbench", &["-n", "-c", "4", "-j", "2", "-t", "200"]);
}

/// Compares every block of the cluster with the primary's own file; tells what was compared.
pub fn compare_with_primary(tier: &Tier, compute: &Compute) -> Comparison {
    compute.sql(&["alter database template0 allow_connections true"]);
    let databases = compute.sql(&["select datname from pg_database"]);
    for database in databases.lines() {
        read_all(compute, database);
    }
    let derived =
        "select oid from pg_database where datname in ('bench_log', 'bench_both', 'by_copy', 'second_copy')";
    let copied_by_wal: BTreeSet<u32> = compute
        .sql(&[derived])
        .lines()
        .map(|oid| oid.parse().expect("an oid"))
        .collect();
    let (at, _session) = quiet_position(compute);
    let pages = Pages::of(tier, "main");
    let writer = Writer::Primary { copied_by_wal };
    let result = compare(&pages, at, &compute.data_dir(), &writer);
    result.assert_equal();
    let accounts = compute.run(
        "psql",
        &["-qAtc", "select pg_relation_filepath('pgbench_accounts')"],
    );
    one_flipped_byte_is_found(&pages, at, &compute.data_dir(), &accounts, &writer);
    result
}

/// Besides [`workload::SETTINGS`]: an idle server must not write.
pub const IDLE: [&str; 2] = ["--set=shared_buffers=256MB", "--set=bgwriter_lru_maxpages=0"];

/// Test 6: after everything that SQL does, every block equals the primary's own file.
#[test]
fn every_page_equals_the_primary_after_load_and_ddl() {
    let tier = Tier::start(&Shape::default());
    let settings = [workload::SETTINGS, IDLE].concat();
    let compute = tier.compute_with("main", "first", &settings);
    let tablespace = temp_dir();
    let location = format!("create tablespace ts location '{}'", tablespace.path().display());
    compute.sql(&[&location]);
    everything(&compute, 12);
    let expected = answers(&compute);
    let result = compare_with_primary(&tier, &compute);
    assert!(result.relation_pages() > 100_000, "{result}");
    compute.stop();

    let compute = tier.compute_with("main", "second", &settings);
    assert_eq!(answers(&compute), expected);
    compute.stop();
}
