//! The WAL on each safekeeper is one unbroken chain for Postgres's own reader, over several computes.

use std::fs;
use std::path::Path;
use std::process::Command;

use lakebed_pgtest::{bin_dir, temp_dir, wait_until};
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{segments, wal_directory};
use lakebed_tests::{Compute, Shape, Tier};
use lakebed_types::Lsn;

/// Start and end of WAL in a directory, and the number of its records, as `pg_waldump` reads it.
fn walk(directory: &Path, start: Lsn) -> (Lsn, usize) {
    let last = segments(directory).pop().expect("a segment");
    let mut waldump = Command::new(bin_dir().join("pg_waldump"));
    waldump.arg("-p").arg(directory).arg("-s").arg(start.to_string());
    let output = waldump.output().expect("pg_waldump");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let _ = last;
    // rmgr: Heap  len (rec/tot):     54/    54, tx:  7, lsn: 0/01500028, prev 0/014FFFA0, desc: …
    let field = |line: &str, name: &str| -> Lsn {
        let rest = line.split_once(name).unwrap_or_else(|| panic!("{line}")).1;
        let text = rest.split(',').next().expect("a value").trim();
        text.parse().unwrap_or_else(|_| panic!("{text} in {line}"))
    };
    let mut before = None;
    let mut records = 0;
    for line in out.lines() {
        let (lsn, prev) = (field(line, "lsn: "), field(line, "prev "));
        match before {
            Some(before) => assert_eq!(prev, before, "{line}"),
            None => assert!(
                lsn.0 - start.0 <= 40,
                "the first record is not at {start}: {line}"
            ),
        }
        before = Some(lsn);
        records += 1;
    }
    // Its only complaint: where the last record ends no other begins.
    let complaints: Vec<&str> = err.lines().collect();
    let [complaint] = complaints.as_slice() else {
        panic!("{complaints:#?}");
    };
    let after = format!("error in WAL record at {}: ", before.expect("a record"));
    let rest = complaint.split_once(&after);
    let rest = rest
        .unwrap_or_else(|| panic!("{complaint} does not tell `{after}`"))
        .1;
    let end = rest.strip_prefix("invalid record length at ");
    let end = end.unwrap_or_else(|| panic!("{complaint}"));
    (
        end.split(':')
            .next()
            .and_then(|end| end.parse().ok())
            .expect("its end"),
        records,
    )
}

/// Commit and flush position of the only timeline of a safekeeper.
fn positions(tier: &Tier, safekeeper: &str) -> (Lsn, Lsn) {
    let status = tier.status(safekeeper);
    let timeline = &status["timelines"][0];
    let position = |name: &str| {
        let text = timeline[name].as_str().unwrap_or_else(|| panic!("{status}"));
        text.parse().expect("a position")
    };
    (position("commit_lsn"), position("flush_lsn"))
}

fn load(compute: &Compute) {
    compute.run("pgbench", &["-n", "-c", "4", "-t", "100"]);
}

/// Test 7.
#[test]
fn the_wal_of_several_computes_is_one_chain_on_every_safekeeper() {
    let tier = Tier::start(&Shape::default());
    let first = tier.compute("main", "first");
    first.run("pgbench", &["-i", "-q", "-s", "2"]);
    load(&first);
    // Segments that end early are part of the chain.
    first.sql(&["select pg_switch_wal()"]);
    load(&first);
    let mut busy = first.program("pgbench");
    let mut busy = busy.args(["-n", "-c", "4", "-T", "60"]).spawn().expect("pgbench");
    let mut session = first.connection();
    wait_until("transactions under way", || {
        let row = session.query_one("select count(*) from pgbench_history", &[]);
        row.expect("a count").get::<_, i64>(0) >= 1000
    });
    first.kill();
    busy.wait().expect("pgbench");
    let second = tier.compute("main", "second");
    load(&second);
    second.stop();
    let third = tier.compute("main", "third");
    load(&third);
    third.sql(&["checkpoint"]);

    let pages = Pages::of(&tier, "main");
    let copies = temp_dir();
    for safekeeper in tier.names("safekeeper") {
        let copy = copies.path().join(&safekeeper);
        fs::create_dir(&copy).expect("a directory");
        let mut end = Lsn(0);
        // A quorum is enough for a commit: this one may still be behind. The compute is idle; should it write all the
        // same, the copy is made again.
        wait_until("a safekeeper at the end of WAL", || {
            let insert: Lsn = third
                .sql(&["select pg_current_wal_insert_lsn()"])
                .parse()
                .expect("a position");
            let (commit, flush) = positions(&tier, &safekeeper);
            if commit != insert || flush != insert {
                return false;
            }
            for segment in segments(&wal_directory(&tier, &safekeeper, &pages)) {
                fs::copy(&segment, copy.join(segment.file_name().expect("a name"))).expect("a copy");
            }
            end = insert;
            positions(&tier, &safekeeper) == (commit, flush)
        });
        let (found, records) = walk(&copy, pages.start());
        println!(
            "{safekeeper}: {records} records from {} to {found}",
            pages.start()
        );
        assert_eq!(found, end, "{safekeeper}");
        assert!(records > 10_000);
        let count = segments(&copy).len();
        assert!(count > 2, "{count} segments");
    }
    third.stop();
}
