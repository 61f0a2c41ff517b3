//! Postgres's own regression suite, run through the tier: its answers must be what the suite expects, after each group
//! of tests every page must equal the primary's file, and the next group starts on a compute with an empty cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lakebed_pgtest::{Cluster, InitOptions, Installation, as_postgres, temp_dir};
use lakebed_tests::comparison::{Writer, compare};
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{recover, wal_directory};
use lakebed_tests::{Compute, Shape, Tier};

use crate::comparison::{quiet_position, read_all};

/// What `make check` sets too, and what keeps an idle server from writing.
const SETTINGS: [&str; 5] = [
    "--set=max_prepared_transactions=2",
    "--set=shared_buffers=128MB",
    "--set=autovacuum=off",
    "--set=bgwriter_lru_maxpages=0",
    "--set=max_connections=100",
];

/// The groups of a schedule: tests of one line run at the same time.
fn groups(schedule: &Path) -> Vec<String> {
    let text = fs::read_to_string(schedule).unwrap_or_else(|error| panic!("{}: {error}", schedule.display()));
    let lines = text.lines().filter(|line| line.starts_with("test:"));
    lines.map(str::to_owned).collect()
}

struct Suite {
    /// `src/test/regress` of the server's minor version, built.
    directory: PathBuf,
    output: tempfile::TempDir,
    server: Installation,
}

impl Suite {
    /// Runs one group; the suite's own differences are the panic's text.
    fn run(&self, compute: &Compute, group: &str, first: bool) {
        let schedule = self.output.path().join("schedule");
        fs::write(&schedule, format!("{group}\n")).expect("a schedule");
        let mut command = as_postgres(&self.directory.join("pg_regress"));
        command.current_dir(self.output.path());
        let path = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command.args([
            path("inputdir", &self.directory),
            path("outputdir", self.output.path()),
            path("dlpath", &self.directory),
            path("bindir", &self.server.bin_dir),
            path("schedule", &schedule),
        ]);
        command.args(["--host=127.0.0.1", "--user=postgres", "--dbname=regression"]);
        command.arg(format!("--port={}", compute.port));
        // At first it creates its database.
        if !first {
            command.arg("--use-existing");
        }
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        if !output.status.success() {
            let differences = fs::read_to_string(self.output.path().join("regression.diffs"));
            panic!(
                "{group}\n{}{}\n{}\n{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                differences.unwrap_or_default(),
                compute.postgres_log()
            );
        }
    }
}

#[test]
fn the_regression_suite_passes_and_every_page_is_right_after_each_group() {
    // The suites belong to one minor release, and this is the one that has them.
    let server = Installation::need(15, 0);
    let suite = Suite {
        directory: server.suites().join("regress"),
        output: temp_dir(),
        server,
    };
    let mut base = Cluster::init_with(&suite.server, &InitOptions::default());
    let shape = Shape {
        postgres: suite.server.clone(),
        ..Shape::default()
    };
    let tier = Tier::start_from(&shape, Some(&base.data_dir()));
    let groups = groups(&suite.directory.join("parallel_schedule"));
    let mut at = lakebed_types::Lsn(0);
    let mut pages = 0;
    for (number, group) in groups.iter().enumerate() {
        let compute = tier.compute_with("main", &format!("group-{number}"), &SETTINGS);
        suite.run(&compute, group, number == 0);
        compute.sql(&["alter database template0 allow_connections true"]);
        let databases = compute.sql(&["select datname from pg_database"]);
        for database in databases.lines() {
            read_all(&compute, database);
        }
        compute.sql(&["alter database template0 allow_connections false"]);
        let (position, session) = quiet_position(&compute);
        at = position;
        // `CREATE DATABASE` copies by WAL unless told otherwise.
        let copies = compute.sql(&["select oid from pg_database where oid >= 16384"]);
        let copied_by_wal: BTreeSet<u32> = copies.lines().map(|oid| oid.parse().expect("an oid")).collect();
        let writer = Writer::Primary { copied_by_wal };
        let branch = Pages::of(&tier, "main");
        let result = compare(&branch, at, &compute.data_dir(), &writer);
        println!("{group}: at {at}");
        result.assert_equal();
        drop(session);
        pages += result.relation_pages();
        compute.stop();
        fs::remove_dir_all(compute_directory(&tier, number)).expect("the compute's directory");
    }
    println!(
        "{} groups, {pages} pages of relations compared with the primary",
        groups.len()
    );
    // What nothing excuses: the same WAL through stock recovery.
    let branch = Pages::of(&tier, "main");
    let wal = wal_directory(&tier, "safekeeper-1", &branch);
    recover(&mut base, branch.start(), &wal, at);
    let result = compare(&branch, at, &base.data_dir(), &Writer::Recovery);
    result.assert_equal();
}

fn compute_directory(tier: &Tier, number: usize) -> PathBuf {
    tier.home().join(format!("group-{number}"))
}
