//! A branch is detached from its parent while it works, whoever dies on the way, and outlives what it came from.

use std::collections::BTreeMap;

use lakebed_pgtest::wait_until;
use lakebed_tests::pages::Pages;
use lakebed_tests::{Shape, Tier, lakebed};
use lakebed_types::{Lsn, PageKey};

const ROWS: &str = "select count(*), sum(n), md5(string_agg(filler, '' order by n)) from kept";

/// Every page, at the branch point or at an LSN.
fn pages(tier: &Tier, databases: &[u32], lsn: Lsn) -> BTreeMap<PageKey, Vec<u8>> {
    let pages = Pages::of(tier, "dev");
    let lsn = if lsn == Lsn(0) { pages.start() } else { lsn };
    pages.all(databases, lsn)
}

/// Timelines that pageservers have.
fn timelines(tier: &Tier) -> Vec<String> {
    let of = |name: &String| {
        let status = tier.status(name);
        let all = status["timelines"].as_array().cloned().expect("timelines");
        all.into_iter()
            .map(|one| one["timeline"].as_str().expect("a timeline").to_owned())
    };
    tier.names("pageserver").iter().flat_map(of).collect()
}

#[test]
fn a_branch_is_detached_while_it_works_and_outlives_its_parent() {
    let shape = Shape {
        flush_bytes: 512 << 10,
        ..Shape::default()
    };
    let mut tier = Tier::start(&shape);
    let main = tier.compute("main", "main");
    let before_all = main.position();
    main.sql(&[
        "create table kept as select n, repeat(md5(n::text), 20) as filler from generate_series(1, 8000) as n",
        "create table cut as select generate_series(1, 50000) as n",
        "create table gone as select generate_series(1, 50000) as n",
        "create database copied strategy file_copy",
        "truncate cut",
        "insert into cut select generate_series(1, 100)",
        "drop table gone",
        "checkpoint",
    ]);
    tier.client(&["branch", "create", "dev"]);
    // Nobody ever works on this one before it is alone.
    tier.client(&["branch", "create", "untouched"]);
    main.sql(&[
        "update kept set n = n + 1000000",
        "drop table cut",
        "drop database copied",
    ]);
    let dev = tier.compute("dev", "dev");
    dev.sql(&[
        "update kept set filler = 'changed' where n % 10 = 0",
        "create database later template copied strategy file_copy",
        "create table own (n int)",
    ]);
    let databases = dev.databases();
    let (now, rows) = (dev.position(), dev.sql(&[ROWS]));
    // Of the branch point only what was there then has pages: not the database that was made later.
    let (at_start, at_now) = (pages(&tier, &databases, Lsn(0)), pages(&tier, &databases, now));
    assert!(at_start.len() > 2500 && at_now.len() > 3000, "{}", at_start.len());
    let refused = tier.refused_client(&["branch", "delete", "main"]);
    assert!(refused.contains("branch detach"), "{refused}");

    // An owner dies in between, and the controllers; writes go on.
    tier.client(&["branch", "detach", "dev", "--no-wait"]);
    tier.kill_role("pageserver-1");
    tier.kill_role("controller");
    tier.start_role("controller");
    tier.start_role("pageserver-1");
    let mut written = 0;
    std::thread::scope(|scope| {
        let detach = scope.spawn(|| tier.client(&["branch", "detach", "dev"]));
        while !detach.is_finished() {
            dev.sql(&["insert into own values (1)"]);
            written += 1;
        }
        detach.join().expect("a detached branch");
    });
    tier.client(&["branch", "detach", "untouched"]);
    let branches = tier.branches();
    assert!(branches["dev"]["parent"].is_null(), "{}", branches["dev"]);
    let main_timeline = branches["main"]["timeline"]
        .as_str()
        .expect("a timeline")
        .to_owned();
    main.stop();
    tier.client(&["branch", "delete", "main"]);
    wait_until("the parent gone from all pageservers", || {
        !timelines(&tier).contains(&main_timeline)
    });

    let same = |tier: &Tier, when: &str| {
        for (lsn, expected) in [(Lsn(0), &at_start), (now, &at_now)] {
            let found = pages(tier, &databases, lsn);
            assert_eq!(found.len(), expected.len(), "{when}");
            let differs = found.iter().find(|(key, page)| expected.get(key) != Some(page));
            assert_eq!(differs.map(|(key, _)| key), None, "{when}");
        }
    };
    same(&tier, "after the parent was deleted");
    for name in tier.names("pageserver") {
        tier.kill_role(&name);
        tier.start_role(&name);
    }
    same(&tier, "after all pageservers started again");
    assert_eq!(dev.sql(&[ROWS]), rows);
    assert_eq!(dev.sql(&["select count(*) from own"]), written.to_string());
    dev.stop();

    // A compute that has no page yet, and a branch where the detached one began to write.
    let again = tier.compute("dev", "again");
    assert_eq!(again.sql(&[ROWS]), rows);
    assert_eq!(again.sql(&["select count(*), sum(n) from cut"]), "100|5050");
    again.stop();
    let untouched = tier.compute("untouched", "untouched");
    assert_eq!(
        untouched.sql(&["select count(*), sum(n) from kept"]),
        "8000|32004000"
    );
    untouched.stop();
    let at = now.to_string();
    tier.client(&["branch", "create", "past", "--from", "dev", "--at-lsn", &at]);
    let past = tier.compute("past", "past");
    assert_eq!(past.sql(&[ROWS]), rows);
    past.stop();
    let at = before_all.to_string();
    let refused = tier.refused_client(&["branch", "create", "none", "--from", "dev", "--at-lsn", &at]);
    assert!(refused.contains("before"), "{refused}");
    // Every reference of what is stored, and every byte.
    let store = format!("file://{}", tier.home().join("objects").display());
    lakebed(&["scrub", "--deep", &store]);
}
