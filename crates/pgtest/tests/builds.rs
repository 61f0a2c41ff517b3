//! The Postgres builds that the tests run against are what the tests take them for.

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop};

#[test]
fn every_version_starts_crashes_and_recovers() {
    for (major, minor) in [(15, 0), (16, 14), (17, 10), (17, 11), (18, 4), (18, 6)] {
        Installation::need(major, minor);
    }
    for installation in Installation::all() {
        let mut cluster = Cluster::init_with(&installation, &InitOptions::default());
        cluster.start(&[]);
        let version = cluster.sql("select version()");
        assert!(version.contains(&installation.to_string()), "{version}");
        assert_eq!(cluster.sql("show data_checksums"), "off", "{version}");
        cluster.sql("create table t as select generate_series(1, 1000) as n; insert into t values (1001)");
        cluster.stop(Stop::Crash);
        cluster.recover(&[]);
        cluster.start(&[]);
        assert_eq!(cluster.sql("select count(*) from t"), "1001", "{version}");
        cluster.stop(Stop::Clean);
    }
}

#[test]
fn a_cluster_has_checksums_when_asked_for() {
    for (major, minor) in [(15, 0), (18, 4)] {
        let options = InitOptions {
            data_checksums: true,
            ..InitOptions::default()
        };
        let mut cluster = Cluster::init_with(&Installation::need(major, minor), &options);
        cluster.start(&[]);
        assert_eq!(cluster.sql("show data_checksums"), "on");
    }
}

#[test]
#[should_panic(expected = "Postgres 99.1 is not here: run `tests/postgres-builds 99.1`")]
fn a_missing_version_names_the_command_that_provides_it() {
    Installation::need(99, 1);
}

/// Why there are two releases of 17 and of 18: a record that clears bits of the visibility map names the map's block in
/// the later ones alone.
#[test]
fn the_later_releases_refer_to_the_visibility_map() {
    for (major, minor, refers) in [
        (15, 0, false),
        (16, 14, false),
        (17, 10, false),
        (17, 11, true),
        (18, 4, false),
        (18, 6, true),
    ] {
        let installation = Installation::need(major, minor);
        let mut cluster = Cluster::init_with(&installation, &InitOptions::default());
        cluster.start(&["autovacuum=off"]);
        cluster.sql(
            "create table t as select generate_series(1, 1000) as n, repeat('x', 100) as filler;
             vacuum (freeze) t",
        );
        let before = cluster.sql("select pg_current_wal_insert_lsn()");
        // One all-visible page after another loses its bit; the update moves a row from a full page to the last.
        cluster.sql(
            "delete from t where n = 1;
             update t set filler = filler where n = 500;
             insert into t values (1001)",
        );
        // A clean stop, so that all of it is on disk.
        cluster.stop(Stop::Clean);
        let mut pg_waldump = installation.program("pg_waldump");
        pg_waldump
            .args(["--rmgr", "Heap", "--start", &before, "--path"])
            .arg(cluster.data_dir().join("pg_wal"));
        // It ends with an error at the end of the WAL.
        let dump = pg_waldump.output().expect("the output of pg_waldump");
        let dump = String::from_utf8_lossy(&dump.stdout);
        for kind in ["DELETE", "UPDATE"] {
            let record = dump
                .lines()
                .find(|line| line.contains(&format!("desc: {kind} ")))
                .unwrap_or_else(|| panic!("{installation}: no {kind} in\n{dump}"));
            assert_eq!(record.contains("fork vm"), refers, "{installation}: {record}");
        }
    }
}
