//! A record that cannot be replayed stops its timeline, says why, and harms nothing else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use lakebed_pgtest::{temp_dir, wait_until};
use lakebed_redo::Managers;
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{SEGMENT_BYTES, segments, wal_directory};
use lakebed_tests::waldump::walk;
use lakebed_tests::{Shape, Tier, build_dir};
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag};
use serde_json::Value;

/// What a timeline of a pageserver says about why it stopped.
fn stopped(status: &Value, timeline: &str) -> Option<String> {
    let timelines = status["timelines"].as_array().expect("timelines");
    let of = timelines.iter().find(|found| found["timeline"] == timeline);
    of?["stopped"].as_str().map(str::to_owned)
}

/// Waits until pageserver 1 has stopped the timeline, for a reason with these parts, and tells it everywhere.
fn wait_for_stop(tier: &Tier, timeline: &str, parts: &[&str]) -> String {
    let mut reason = String::new();
    // Both at once: a restarted pageserver gets its shards a second time, from the controller, and stops again.
    wait_until("the timeline to stop, and /healthz to tell", || {
        reason = stopped(&tier.status("pageserver-1"), timeline).unwrap_or_default();
        let (code, text) = tier.health("pageserver-1");
        !reason.is_empty() && code == 503 && text.contains(timeline) && text.contains(&reason)
    });
    println!("{reason}");
    for part in parts {
        assert!(reason.contains(part), "no `{part}` in: {reason}");
    }
    reason
}

/// Index access methods, the number of each one's resource manager, and a table with an index of it.
const METHODS: [(u8, &str); 5] = [
    (
        13,
        "create table g as select array[1, 2] a; create index on g using gin (a) with (fastupdate = off)",
    ),
    (
        14,
        "create table g as select point(1, 2) a; create index on g using gist (a)",
    ),
    (
        16,
        "create table g as select point(1, 2) a; create index on g using spgist (a)",
    ),
    (
        17,
        "create table g as select 1 a; create index on g using brin (a)",
    ),
    (
        12,
        "create table g as select 1 a; create index on g using hash (a)",
    ),
];

#[test]
fn a_record_without_redo_stops_its_timeline_alone() {
    let Some((rmid, index)) = METHODS.iter().find(|(rmid, _)| !Managers::none().knows(*rmid)) else {
        // Then the test below is the one that is left.
        println!("every index access method has redo");
        return;
    };
    let mut tier = Tier::start(&Shape {
        shards: 1,
        ..Shape::default()
    });
    let main = tier.compute("main", "main");
    main.sql(&[
        "create table t (n int primary key)",
        "insert into t select generate_series(1, 1000)",
    ]);
    tier.client(&["branch", "create", "other"]);
    let other = tier.compute("other", "other");
    let good = main.sql(&["select pg_current_wal_flush_lsn()"]);
    let good: Lsn = good.parse().expect("a position");
    let file = main.sql(&[
        "select pg_relation_filenode('t')",
        "select oid from pg_database where datname = 'postgres'",
    ]);
    let (relnode, dbnode) = file.split_once('\n').expect("two lines");
    let key = PageKey::Rel {
        rel: RelTag {
            spcnode: 1663,
            dbnode: dbnode.parse().expect("an oid"),
            relnode: relnode.parse().expect("a number"),
            fork: ForkNumber::Main,
        },
        block: 0,
    };
    let pages = Pages::of(&tier, "main");
    let before = pages.get(good, &[key]).remove(0).expect("a page");

    main.sql(&[
        index,
        "insert into g select * from g",
        "insert into g select * from g",
    ]);
    let timeline = pages.timeline().to_string();
    let parts = ["record at 0/", lakebed_ingest::rmgr::name(*rmid), "info 0x"];
    let reason = wait_for_stop(&tier, &timeline, &parts);
    // What came before is still served, as it was.
    assert_eq!(pages.get(good, &[key]).remove(0), Ok(before.clone()));

    // The other branch goes on: writes, ingest, reads of a new compute, and branches of it.
    other.sql(&["insert into t select generate_series(1001, 2000)"]);
    other.stop();
    let other = tier.compute("other", "again");
    assert_eq!(other.sql(&["select count(*) from t"]), "2000");
    other.stop();
    let of_other = Pages::of(&tier, "other").timeline().to_string();
    assert_eq!(stopped(&tier.status("pageserver-1"), &of_other), None);
    // A position before the record is still a place to branch from.
    tier.client(&["branch", "create", "rescue", "--at-lsn", &good.to_string()]);
    let rescue = tier.compute("rescue", "rescue");
    let found = rescue.sql(&["select count(*), to_regclass('g') is null from t"]);
    assert_eq!(found, "1000|t");
    rescue.stop();

    // A restart does not skip the record.
    tier.kill_role("pageserver-1");
    tier.start_role("pageserver-1");
    assert_eq!(wait_for_stop(&tier, &timeline, &parts), reason);
    let pages = Pages::of(&tier, "main");
    wait_until("the page again", || {
        pages.get(good, &[key]).remove(0).as_ref() == Ok(&before)
    });
    main.kill();
}

/// An extension's own resource manager: the program has no plug-in for any number from 128 on.
const CUSTOM: u8 = 200;

/// A valid record of [`CUSTOM`] with one byte of main data.
fn custom_record(prev: Lsn) -> [u8; 32] {
    const LENGTH: usize = 27;
    let mut record = [0; 32];
    record[0..4].copy_from_slice(&(LENGTH as u32).to_le_bytes());
    record[8..16].copy_from_slice(&prev.0.to_le_bytes());
    record[16] = 0x30;
    record[17] = CUSTOM;
    // XLR_BLOCK_ID_DATA_SHORT, its length, the byte.
    record[24..LENGTH].copy_from_slice(&[255, 1, 7]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..LENGTH]), &record[..20]);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    record
}

#[test]
fn a_custom_resource_manager_stops_its_timeline_by_name() {
    let mut tier = Tier::start(&Shape::default());
    let pages = Pages::of(&tier, "main");
    let timeline = pages.timeline().to_string();
    let safekeepers = tier.names("safekeeper");
    let copy = temp_dir();
    // The record is put behind the last one by hand, on all safekeepers, which then have it as if a compute had
    // written it. It must fit into the page.
    let mut runs = 0;
    let end = loop {
        let compute = tier.compute("main", &format!("compute-{runs}"));
        compute.sql(&[&format!("create table t{runs} (n int)")]);
        compute.stop();
        runs += 1;
        let flushed = |name: &String| tier.status(name)["timelines"][0]["flush_lsn"].clone();
        wait_until("all safekeepers at one position", || {
            safekeepers
                .iter()
                .all(|name| flushed(name) == flushed(&safekeepers[0]))
        });
        for segment in segments(&wal_directory(&tier, "safekeeper-1", &pages)) {
            let name = segment.file_name().expect("a name");
            fs::copy(&segment, copy.path().join(name)).expect("a copy");
        }
        let found = walk(copy.path(), pages.start());
        if found.end.0 % 8192 <= 8192 - 32 {
            break found;
        }
    };
    for name in &safekeepers {
        tier.kill_role(name);
        let directory = wal_directory(&tier, name, &pages);
        let segment = segments(&directory).pop().expect("a segment");
        let file = File::options().write(true).open(segment).expect("a segment");
        file.write_all_at(&custom_record(end.last), end.end.0 % SEGMENT_BYTES)
            .expect("a record");
    }
    for name in &safekeepers {
        tier.start_role(name);
    }
    // A compute commits what a quorum has. It cannot serve: what comes after the record is not known.
    let mut compute = Command::new(build_dir().join("lakebed"));
    compute
        .args([
            "compute",
            "--stop-with-parent",
            "--pg-port=1",
            "--connect",
            &tier.connect("main"),
            "--dir",
        ])
        .arg(tier.home().join("never"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut compute = compute.spawn().expect("a compute");
    let at = format!("record at {}", end.end);
    wait_for_stop(&tier, &timeline, &[&at, "200", "info 0x30"]);
    let served = compute.try_wait().expect("its state");
    assert!(served.is_none_or(|status| !status.success()), "{served:?}");
    compute.kill().expect("its end");
    compute.wait().expect("its end");
    // In front of the record everything is as it was.
    tier.client(&["branch", "create", "before", "--at-lsn", &end.end.to_string()]);
    let before = tier.compute("before", "before");
    let tables = before.sql(&["select count(*) from pg_class where relname like 't_' and relkind = 'r'"]);
    assert_eq!(tables, runs.to_string());
    before.stop();
}
