//! Postgres 16, 17 and 18 on the tier, each as 15 is everywhere else, and side by side.
//!
//! `tests/postgres-builds` provides them.

use std::fs;
use std::process::{Command, Stdio};

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, temp_dir, wait_until};
use lakebed_redo::checksum;
use lakebed_tests::pages::Pages;
use lakebed_tests::{Compute, Shape, Tier, build_dir};
use lakebed_types::{PAGE_SIZE, PageKey};

use crate::comparison::{IDLE, answers, compare_with_primary, everything};
use crate::workload;

/// Indexes of every kind that a server has without extensions.
const INDEXES: [&str; 9] = [
    "create table ix as select n, array[n % 50, n % 7] a, point(n % 100, n / 100) p, md5(n::text) t \
     from generate_series(1, 20000) n",
    "create index on ix using gin (a)",
    "create index on ix using gist (p)",
    "create index on ix using spgist (t)",
    "create index on ix using hash (t)",
    "create index on ix using brin (n)",
    "delete from ix where n % 3 = 0",
    "vacuum ix",
    "insert into ix select n, array[n % 50, n % 7], point(n % 100, n / 100), md5(n::text) \
     from generate_series(20001, 30000) n",
];

/// What each of the indexes finds, and what there is without them.
fn found(compute: &Compute) -> String {
    let questions = "select (select count(*) from ix where a @> array[3]), \
        (select count(*) from ix where p <@ box '((10, 10), (30, 300))'), \
        (select count(*) from ix where t ^@ 'ab'), (select count(*) from ix where t = md5('20777')), \
        (select count(*) from ix where n between 500 and 25000)";
    let (by_index, by_scan) = (
        compute.sql(&["set enable_seqscan = off", questions]),
        compute.sql(&[
            "set enable_indexscan = off",
            "set enable_bitmapscan = off",
            questions,
        ]),
    );
    assert_eq!(by_index, by_scan);
    by_index
}

/// Everything that SQL does; `kill -9` under load; a compute that starts from nothing has what was acknowledged, goes
/// on, and every page of the tier equals its own files.
fn serves(postgres: &Installation, data: Option<&Cluster>, more: &[&str]) {
    let shape = Shape {
        postgres: postgres.clone(),
        ..Shape::default()
    };
    let data_dir = data.map(Cluster::data_dir);
    let tier = Tier::start_from(&shape, data_dir.as_deref());
    let mut settings = [workload::SETTINGS, IDLE].concat();
    settings.extend(more);
    let compute = tier.compute_with("main", "first", &settings);
    let version = compute.sql(&["show server_version"]);
    assert!(version.starts_with(&postgres.to_string()), "{version}");
    let tablespace = temp_dir();
    compute.sql(&[&format!(
        "create tablespace ts location '{}'",
        tablespace.path().display()
    )]);
    everything(&compute, 1);
    compute.sql(&INDEXES);
    let (expected, indexed) = (answers(&compute), found(&compute));

    compute.sql(&["create table acknowledged (n int primary key)"]);
    let mut load = compute.program("pgbench");
    load.stdout(Stdio::null()).stderr(Stdio::null());
    let mut load = load
        .args(["-n", "-c", "4", "-T", "600", "bench"])
        .spawn()
        .expect("pgbench");
    let mut session = compute.connection();
    let mut count = 0;
    wait_until("transactions of pgbench", || {
        count += 1;
        let insert = format!("insert into acknowledged values ({count})");
        session.batch_execute(&insert).expect("an insert");
        let mut bench = compute.connection_to("bench");
        let row = bench.query_one("select count(*) from pgbench_history", &[]);
        row.expect("a count").get::<_, i64>(0) > 100
    });
    compute.kill();
    load.wait().expect("pgbench");

    let compute = tier.compute_with("main", "second", &settings);
    assert_eq!(
        compute.sql(&["select count(*), max(n) from acknowledged"]),
        format!("{count}|{count}")
    );
    compute.sql(&["drop table acknowledged"]);
    assert_eq!(answers(&compute), expected);
    assert_eq!(found(&compute), indexed);
    let mut bench = compute.connection_to("bench");
    let sums = "select (select sum(abalance) from pgbench_accounts) = sum(delta) from pgbench_history";
    let row = bench.query_one(sums, &[]).expect("a row");
    assert!(row.get::<_, bool>(0), "pgbench's sums differ");
    drop(bench);
    let prepared = compute.sql(&["select gid from pg_prepared_xacts"]);
    for gid in prepared.lines() {
        compute.sql(&[&format!("commit prepared '{gid}'")]);
    }
    assert!(!prepared.is_empty(), "no transaction was prepared");
    compute.run("pgbench", &["-n", "-c", "4", "-j", "2", "-t", "200"]);
    compute.sql(&["delete from ix where n % 7 = 0", "vacuum ix", "vacuum (full) t"]);
    let indexed = found(&compute);
    let result = compare_with_primary(&tier, &compute);
    assert!(result.relation_pages() > 15_000, "{result}");
    let has_amcheck = "select count(*) from pg_available_extensions where name = 'amcheck'";
    if compute.sql(&[has_amcheck]) == "1" {
        compute.run("pg_amcheck", &["--install-missing", "--heapallindexed", "--all"]);
    } else {
        println!("the build of Postgres {postgres} has no amcheck");
    }
    compute.stop();

    let compute = tier.compute_with("main", "third", &settings);
    assert_eq!(found(&compute), indexed);
    if data.is_some() {
        checksums_hold(&tier, &compute);
    }
    compute.stop();
}

/// Of a cluster with checksums: the compute verified each page that it read, and each page that the tier serves has its
/// own.
fn checksums_hold(tier: &Tier, compute: &Compute) {
    assert_eq!(compute.sql(&["show data_checksums"]), "on");
    let failures = "select coalesce(sum(checksum_failures), 0) from pg_stat_database";
    assert_eq!(compute.sql(&[failures]), "0");
    let log = fs::read_to_string(compute.directory().join("postgres.log")).expect("the log");
    assert!(!log.contains("page verification failed"), "{log}");
    let pages = Pages::of(tier, "main");
    let at = compute
        .sql(&["select pg_current_wal_flush_lsn()"])
        .parse()
        .expect("a position");
    let (mut checked, mut new) = (0, 0);
    let database = compute.sql(&["select oid from pg_database where datname = 'postgres'"]);
    for place in [(1664, 0), (1663, database.parse().expect("an oid"))] {
        for (rel, blocks) in pages.relations(at, place) {
            let keys: Vec<PageKey> = (0..blocks).map(|block| PageKey::Rel { rel, block }).collect();
            for (block, served) in (0..).zip(pages.get(at, &keys)) {
                let page = served.unwrap_or_else(|why| panic!("{rel} block {block}: {why}"));
                assert!(checksum::is_right(&page, block), "{rel} block {block}");
                match page.iter().all(|&byte| byte == 0) {
                    true => new += 1,
                    false => checked += 1,
                }
            }
        }
    }
    println!("{checked} served pages with a right checksum, {new} pages of zeros");
    assert!(checked > 1000);
}

#[test]
fn postgres_16() {
    serves(&Installation::need(16, 14), None, &[]);
}

#[test]
fn postgres_17() {
    serves(
        &Installation::need(17, 11),
        None,
        &["--set=io_combine_limit=256kB"],
    );
}

#[test]
fn postgres_18() {
    serves(
        &Installation::need(18, 6),
        None,
        &["--set=file_copy_method=clone"],
    );
}

/// What `initdb` of 18 makes by default, and reads and writes by processes of their own.
#[test]
fn postgres_18_with_data_checksums() {
    let postgres = Installation::need(18, 6);
    let options = InitOptions {
        data_checksums: true,
        ..InitOptions::default()
    };
    let mut cluster = Cluster::init_with(&postgres, &options);
    // Pages that the cluster itself wrote.
    cluster.start(&["fsync=off"]);
    cluster.sql("create table before as select n, md5(n::text) t from generate_series(1, 5000) n");
    cluster.stop(Stop::Clean);
    serves(
        &postgres,
        Some(&cluster),
        &["--set=io_method=worker", "--set=io_workers=4"],
    );
}

/// An import looks at every page: damage is found before the tier takes it over.
#[test]
fn a_damaged_page_is_not_imported() {
    let postgres = Installation::need(18, 6);
    let options = InitOptions {
        data_checksums: true,
        ..InitOptions::default()
    };
    let cluster = Cluster::init_with(&postgres, &options);
    let file = cluster.data_dir().join("base/1/1259");
    let mut bytes = fs::read(&file).expect("pg_class");
    bytes[PAGE_SIZE + 5000] ^= 4;
    fs::write(&file, bytes).expect("pg_class");
    let tier = Tier::start(&Shape::default());
    let said = tier.refused_client(&[
        "tenant",
        "create",
        "damaged",
        &format!("--from={}", cluster.data_dir().display()),
    ]);
    assert!(
        said.contains("checksum of 1663/1/1259 block 1 is wrong"),
        "{said}"
    );
}

/// Tenants of every version in one tier, all running; each refuses the programs of another version and says what to do.
#[test]
fn tenants_of_different_versions_side_by_side() {
    let of = |(major, minor)| Installation::need(major, minor);
    let all = [(15, 0), (16, 14), (17, 11), (18, 6)].map(of);
    let tier = Tier::start(&Shape::default());
    let connect = |major: u16| format!("lakebed://{}/pg{major}/main", tier.controller());
    for postgres in &all {
        let shape = Shape {
            postgres: postgres.clone(),
            ..Shape::default()
        };
        tier.create_tenant(&format!("pg{}", postgres.major), &shape, None);
    }
    let start = |postgres: &Installation, directory: &str| {
        let directory = tier.home().join(format!("{directory}-{}", postgres.major));
        Compute::start(postgres, &connect(postgres.major), &directory, &[])
    };
    let mut computes: Vec<Compute> = all.iter().map(|postgres| start(postgres, "first")).collect();
    for (postgres, compute) in all.iter().zip(&computes) {
        compute.sql(&[
            "create table t (n int primary key, s text)",
            &format!(
                "insert into t select n, 'of {} ' || n from generate_series(1, 5000) n",
                postgres.major
            ),
        ]);
    }
    for (postgres, other) in all.iter().zip(all.iter().cycle().skip(1)) {
        let directory = tier.home().join("refused");
        let said = Compute::try_start(other, &connect(postgres.major), &directory, &[])
            .expect_err("a compute of another version");
        for part in [
            format!(
                "branch pg{}/main was made by Postgres {}",
                postgres.major, postgres.major
            ),
            format!("is Postgres {}:", other.major),
            format!(
                "name the directory of the programs of Postgres {} (--pg-bin)",
                postgres.major
            ),
        ] {
            assert!(said.contains(&part), "`{part}` is not in: {said}");
        }
    }
    // Who was refused fenced nobody.
    for compute in &computes {
        compute.sql(&["update t set s = s || '!' where n <= 10"]);
    }
    for compute in computes.drain(..) {
        compute.kill();
    }
    for postgres in &all {
        let compute = start(postgres, "second");
        let major = postgres.major;
        let rows = "select count(*), min(s), count(*) filter (where s like '%!') from t";
        assert_eq!(compute.sql(&[rows]), format!("5000|of {major} 1!|10"));
        assert!(
            compute
                .sql(&["show server_version"])
                .starts_with(&major.to_string())
        );
        compute.stop();
    }
}

/// The kernel would read relation files past the shim.
#[test]
fn settings_that_go_behind_the_shim_are_refused() {
    let postgres = Installation::need(18, 6);
    let tier = Tier::start(&Shape {
        postgres: postgres.clone(),
        ..Shape::default()
    });
    let connect = tier.connect("main");
    for (setting, says) in [
        ("io_method=io_uring", "io_method can be worker or sync"),
        ("debug_io_direct=data", "cannot be changed"),
        ("summarize_wal=on", "cannot be changed"),
    ] {
        let directory = tier.home().join("refused");
        let said = Compute::try_start(&postgres, &connect, &directory, &[&format!("--set={setting}")]);
        let said = said.expect_err("a refusal");
        assert!(said.contains(says), "{setting}: {said}");
    }
    let compute = tier.compute_with("main", "first", &["--set=io_method=sync"]);
    compute.sql(&[
        "create table t as select generate_series(1, 100000) n",
        "alter system set io_method = sync",
        "alter system set summarize_wal = on",
    ]);
    assert_eq!(compute.sql(&["show io_method"]), "sync");
    compute.stop();
    let compute = tier.compute("main", "second");
    let rows = compute.sql(&["select count(*) from t", "show io_method", "show summarize_wal"]);
    assert_eq!(rows, "100000\nworker\noff");
    compute.stop();
}

/// `lakebed tenant create` and `lakebed compute` say so when they are given no Postgres, or one that is not served.
#[test]
fn programs_that_are_no_postgres_of_a_known_version_are_refused() {
    let tier = Tier::start(&Shape::default());
    let dir = temp_dir();
    let odd = dir.path().join("odd");
    fs::create_dir(&odd).expect("a directory");
    for (program, text) in [
        ("postgres", "echo 'postgres (PostgreSQL) 14.2'"),
        ("initdb", "exit 1"),
    ] {
        let path = odd.join(program);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a program");
        let mut chmod = Command::new("chmod");
        lakebed_pgtest::run(chmod.arg("755").arg(&path));
    }
    let with = |bin: &std::path::Path| {
        tier.refused_client(&["tenant", "create", "x", &format!("--pg-bin={}", bin.display())])
    };
    let said = with(&odd);
    assert!(
        said.contains("Postgres 14 is not supported, only 15 to 18"),
        "{said}"
    );
    let said = with(&build_dir());
    assert!(
        said.contains("there is no") && said.contains("--pg-bin"),
        "{said}"
    );
}
