//! A record that cannot be replayed stops its timeline, says why, and harms nothing else.

use lakebed_pgtest::wait_until;
use lakebed_tests::pages::Pages;
use lakebed_tests::{Shape, Tier};
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag};
use serde_json::Value;

/// What a timeline of a pageserver says about why it stopped.
fn stopped(status: &Value, timeline: &str) -> Option<String> {
    let timelines = status["timelines"].as_array().expect("timelines");
    let of = timelines.iter().find(|found| found["timeline"] == timeline);
    of?["stopped"].as_str().map(str::to_owned)
}

#[test]
fn a_record_that_cannot_be_replayed_stops_its_timeline_alone() {
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
    let good: Lsn = main
        .sql(&["select pg_current_wal_flush_lsn()"])
        .parse()
        .expect("a position");
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
        "create table g (a int[])",
        "create index on g using gin (a) with (fastupdate = off)",
        // No image of the page hides the record.
        "insert into g values ('{1,2,3}')",
        "insert into g values ('{4,5,6}')",
    ]);
    let timeline = pages.timeline().to_string();
    let mut reason = String::new();
    wait_until("the timeline to stop", || {
        reason = stopped(&tier.status("pageserver-1"), &timeline).unwrap_or_default();
        !reason.is_empty()
    });
    println!("{reason}");
    for part in ["Gin", "info 0x", "record at 0/"] {
        assert!(reason.contains(part), "no `{part}` in: {reason}");
    }
    let (code, text) = tier.health("pageserver-1");
    assert!(
        code == 503 && text.contains(&timeline) && text.contains(&reason),
        "{code} {text}"
    );
    // What came before is still served, as it was.
    assert_eq!(pages.get(good, &[key]).remove(0), Ok(before.clone()));

    // The other branch goes on: writes, ingest, reads of a new compute, and branches of it.
    other.sql(&["insert into t select generate_series(1001, 2000)"]);
    other.stop();
    let other = tier.compute("other", "again");
    assert_eq!(other.sql(&["select count(*) from t"]), "2000");
    other.stop();
    assert_eq!(
        stopped(
            &tier.status("pageserver-1"),
            &Pages::of(&tier, "other").timeline().to_string()
        ),
        None
    );
    // A position before the record is still a place to branch from.
    tier.client(&["branch", "create", "rescue", "--at-lsn", &good.to_string()]);
    let rescue = tier.compute("rescue", "rescue");
    assert_eq!(
        rescue.sql(&["select count(*), to_regclass('g') is null from t"]),
        "1000|t"
    );
    rescue.stop();

    // A restart does not skip the record.
    tier.kill_role("pageserver-1");
    tier.start_role("pageserver-1");
    wait_until("the timeline to stop again", || {
        stopped(&tier.status("pageserver-1"), &timeline).as_deref() == Some(&reason)
    });
    let pages = Pages::of(&tier, "main");
    assert_eq!(pages.get(good, &[key]).remove(0), Ok(before));
    main.kill();
}
