//! Branches: isolated, writable, at any position or time, and refused where they cannot be.

use lakebed_pgtest::Installation;
use lakebed_tests::{Compute, Shape, Tier};
use lakebed_types::Lsn;

fn rows(compute: &Compute) -> String {
    compute.sql(&["select string_agg(n::text, ',' order by n) from t"])
}

/// The position that everything so far is at or below.
fn position(compute: &Compute) -> String {
    compute.sql(&["select pg_current_wal_flush_lsn()"])
}

/// The database's clock, in the form of `--at-time`.
fn now(compute: &Compute) -> String {
    compute
        .sql(&["select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"])
}

#[test]
fn branches_are_isolated_and_start_where_they_are_told() {
    let tier = Tier::start(&Shape::default());
    let main = tier.compute("main", "main");
    main.sql(&["create table t (n int primary key)"]);
    let empty = position(&main);
    main.sql(&["insert into t values (1)"]);
    let first = position(&main);
    main.sql(&["insert into t values (2)"]);
    let time = now(&main);
    main.sql(&["insert into t values (3)"]);

    // At the head: everything that was acknowledged.
    tier.client(&["branch", "create", "head"]);
    tier.client(&["branch", "create", "early", "--at-lsn", &first]);
    tier.client(&["branch", "create", "timed", "--at-time", &time]);
    let head = tier.compute("head", "head");
    assert_eq!(rows(&head), "1,2,3");
    let early = tier.compute("early", "early");
    assert_eq!(rows(&early), "1");
    let timed = tier.compute("timed", "timed");
    assert_eq!(rows(&timed), "1,2");
    timed.stop();

    // Writes of one are seen by no other; both write the same blocks at the same positions.
    early.sql(&["insert into t values (100)", "create table only_here (a int)"]);
    main.sql(&["insert into t values (4)", "delete from t where n = 1"]);
    head.sql(&["update t set n = n + 1000"]);
    assert_eq!(rows(&early), "1,100");
    assert_eq!(rows(&main), "2,3,4");
    assert_eq!(rows(&head), "1001,1002,1003");

    // A branch of a branch: before and after its parent's own writes.
    let own = position(&early);
    early.sql(&["insert into t values (101)"]);
    tier.client(&[
        "branch",
        "create",
        "grandchild",
        "--from",
        "early",
        "--at-lsn",
        &own,
    ]);
    let grandchild = tier.compute("grandchild", "grandchild");
    assert_eq!(rows(&grandchild), "1,100");
    assert_eq!(grandchild.sql(&["select count(*) from only_here"]), "0");
    grandchild.sql(&["insert into t values (500)"]);
    assert_eq!(rows(&early), "1,100,101");
    // A position before a branch's own start is its ancestor's.
    tier.client(&[
        "branch",
        "create",
        "past",
        "--from",
        "grandchild",
        "--at-lsn",
        &empty,
    ]);
    let past = tier.compute("past", "past");
    assert_eq!(rows(&past), "");
    past.stop();
    // What was written stays over a restart of the compute.
    grandchild.stop();
    let grandchild = tier.compute("grandchild", "again");
    assert_eq!(rows(&grandchild), "1,100,500");
    grandchild.stop();

    let list = tier.branches();
    let parent = |name: &str| list[name]["parent"].as_str().map(str::to_owned);
    assert_eq!(parent("main"), None);
    assert_eq!(parent("head").as_deref(), Some("main"));
    assert_eq!(parent("grandchild").as_deref(), Some("early"));
    assert_eq!(parent("past").as_deref(), Some("main"));
    assert!(
        list.values().all(|branch| branch["state"] == "active"),
        "{list:?}"
    );
    let start = |name: &str| {
        let start = list[name]["start_lsn"].as_str().expect("a position");
        start.parse::<Lsn>().expect("a position")
    };
    let limit: Lsn = first.parse().expect("a position");
    assert!(start("early") <= limit && start("timed") > limit && start("head") > start("timed"));
    assert!(start("past") < start("early"));

    for compute in [main, head, early] {
        compute.stop();
    }
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let tier = Tier::start(&Shape::default());
    let main = tier.compute("main", "main");
    main.sql(&["create table t (n int primary key)", "insert into t values (1)"]);
    let at = position(&main);
    tier.client(&["branch", "create", "b", "--at-lsn", &at]);
    tier.client(&["branch", "create", "c", "--from", "b"]);

    let create = |name: &str, more: &[&str]| {
        let mut arguments = vec!["branch", "create", name];
        arguments.extend(more);
        tier.refused_client(&arguments)
    };
    let said = [
        (create("b", &[]), "exists"),
        (create("x", &["--at-lsn", "0/10"]), "before the history"),
        (create("x", &["--at-lsn", "FFFF/0"]), "beyond the end"),
        (create("x", &["--at-lsn", "nonsense"]), "nonsense"),
        (
            create("x", &["--at-time", "2001-01-01T00:00:00Z"]),
            "before the history of this branch, which starts at 20",
        ),
        (create("x", &["--at-time", "2999-01-01T00:00:00Z"]), "future"),
        (create("x", &["--from", "nowhere"]), "nowhere"),
        (create("No Name", &[]), "No Name"),
        (tier.refused_client(&["branch", "delete", "b"]), "b"),
        (tier.refused_client(&["branch", "delete", "main"]), "main"),
        (tier.refused_client(&["branch", "delete", "nowhere"]), "nowhere"),
    ];
    for (text, expected) in said {
        println!("{}", text.trim_end());
        assert!(
            text.contains(expected) && !text.contains("panicked"),
            "`{expected}`: {text}"
        );
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    }
    let names = || tier.branches().into_keys().collect::<Vec<_>>();
    assert_eq!(names(), ["b", "c", "main"]);

    // Children first; then the name is free again, for another position.
    tier.client(&["branch", "delete", "c"]);
    tier.client(&["branch", "delete", "b"]);
    assert_eq!(names(), ["main"]);
    main.sql(&["insert into t values (2)"]);
    tier.client(&["branch", "create", "b"]);
    let again = tier.compute("b", "b");
    assert_eq!(rows(&again), "1,2");
    let gone = Compute::try_start(
        &Installation::default_15(),
        &tier.connect("c"),
        &tier.home().join("c"),
        &[],
    );
    let why = gone.expect_err("no compute on a deleted branch");
    assert!(why.contains('c') && why.contains("branch"), "{why}");
    again.stop();
    main.stop();
}
