//! A tenant gets more shards while it is in use, whoever dies on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use lakebed_pgtest::wait_until;
use lakebed_tests::pages::Pages;
use lakebed_tests::{Compute, Shape, Tier, lakebed};
use lakebed_types::{Lsn, PageKey};
use serde_json::Value;

const ROWS: &str = "select count(*), sum(n), md5(string_agg(filler, '' order by n)) from kept";

const SETTINGS: [&str; 1] = ["--set=max_prepared_transactions=4"];

type PageBytes = BTreeMap<PageKey, Vec<u8>>;

fn tenant(tier: &Tier) -> Value {
    let list = tier.client(&["--json", "tenant", "list"]);
    serde_json::from_str(list.trim()).expect("one tenant as JSON")
}

/// All pages of branches are what they were.
fn same(tier: &Tier, databases: &[u32], known: &[(&str, Lsn, PageBytes)], when: &str) {
    for (branch, lsn, expected) in known {
        let found = Pages::of(tier, branch).all(databases, *lsn);
        assert_eq!(found.len(), expected.len(), "{branch} at {lsn}, {when}");
        let differs = found.iter().find(|(key, page)| expected.get(key) != Some(page));
        assert_eq!(differs.map(|(key, _)| key), None, "{branch} at {lsn}, {when}");
    }
}

/// Shards of which object storage has something, as `index-count`, each with one of its objects. Directories stay.
fn stored_shards(tier: &Tier) -> BTreeMap<String, PathBuf> {
    let id = tenant(tier)["tenant"].as_str().expect("an id").to_owned();
    let shards = tier.home().join("objects/tenants").join(id).join("shards");
    let shards = std::fs::read_dir(shards).expect("shards");
    let paths = shards.map(|shard| shard.expect("a directory").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    paths
        .filter_map(|path| Some((name(&path), a_file(&path)?)))
        .collect()
}

/// An object; what a process that was killed had not finished has a number sign in its name, and is none.
fn a_file(path: &Path) -> Option<PathBuf> {
    let unfinished = |path: &Path| path.to_string_lossy().contains('#');
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut entries = entries.map(|entry| entry.path()).filter(|path| !unfinished(path));
    entries.find_map(|path| if path.is_file() { Some(path) } else { a_file(&path) })
}

/// All these shards have something, and no other.
fn check_stored(tier: &Tier, count: usize) {
    let mut found = stored_shards(tier);
    for index in 0..count {
        let name = format!("{index}-{count}");
        assert!(found.remove(&name).is_some(), "{name} has no objects");
    }
    assert!(found.is_empty(), "{found:?}");
}

/// Reads everything again and again, and writes; how many rows were acknowledged.
fn work(compute: &Compute, reader: &Compute, rows: &str, stop: &AtomicBool) -> usize {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        compute.sql(&["insert into own values (1)"]);
        written += 1;
        assert_eq!(reader.sql(&[ROWS]), rows);
    }
    written
}

#[test]
fn a_tenant_in_use_gets_more_shards() {
    let shape = Shape {
        flush_bytes: 512 << 10,
        ..Shape::default()
    };
    let mut tier = Tier::start(&shape);
    let main = tier.compute_with("main", "main", &SETTINGS);
    main.sql(&[
        "create table kept as select n, repeat(md5(n::text), 20) as filler from generate_series(1, 8000) as n",
        "create table cut as select generate_series(1, 50000) as n",
        "create table gone as select generate_series(1, 50000) as n",
        "create database copied strategy file_copy",
    ]);
    let early = main.position();
    let databases = main.databases();
    tier.client(&["branch", "create", "dev"]);
    main.sql(&[
        "truncate cut",
        "insert into cut select generate_series(1, 100)",
        "drop table gone",
        "update kept set filler = 'changed' where n % 10 = 0",
        "create table own (n int)",
        "alter system set work_mem = '5MB'",
    ]);
    let dev = tier.compute("dev", "dev");
    dev.sql(&["update kept set n = n + 1000000"]);
    let (dev_rows, rows) = (dev.sql(&[ROWS]), main.sql(&[ROWS]));
    let points = [
        ("main", early),
        ("main", main.position()),
        ("dev", dev.position()),
    ];
    let known = points.map(|(branch, lsn)| (branch, lsn, Pages::of(&tier, branch).all(&databases, lsn)));
    dev.stop();
    check_stored(&tier, 2);
    // It has read nothing yet.
    let reader = tier.compute("dev", "reader");
    let refused = tier.refused_client(&["tenant", "split", "test", "3"]);
    assert!(refused.contains("times as many"), "{refused}");

    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let working = scope.spawn(|| work(&main, &reader, &dev_rows, &stop));
        tier.client(&["tenant", "split", "test", "4", "--no-wait"]);
        main.sql(&["alter system set work_mem = '6MB'"]);
        main.sql(&[
            "begin",
            "insert into own values (1000)",
            "prepare transaction 'half'",
        ]);
        tier.client(&["tenant", "split", "test", "4"]);
        // It comes to the new shard 0.
        main.sql(&["alter system set maintenance_work_mem = '70MB'"]);
        wait_until("the former shards gone", || tenant(&tier)["former_shards"] == 0);
        stop.store(true, Ordering::Relaxed);
        working.join().expect("reads and writes that succeed")
    });
    let now = tenant(&tier);
    assert_eq!(
        (&now["shards"], &now["split_into"]),
        (&Value::from(4), &Value::Null)
    );
    check_stored(&tier, 4);
    same(&tier, &databases, &known, "after the split");

    // Again, and owners and controllers die in between. One is called off before.
    tier.client(&["tenant", "split", "test", "12", "--no-wait"]);
    tier.client(&["tenant", "split", "test", "--abort"]);
    tier.client(&["tenant", "split", "test", "8", "--no-wait"]);
    for role in ["pageserver-1", "controller", "pageserver-2"] {
        tier.kill_role(role);
        main.sql(&["insert into own values (1)"]);
        tier.start_role(role);
    }
    tier.client(&["tenant", "split", "test", "8"]);
    assert_eq!(reader.sql(&[ROWS]), dev_rows);
    reader.stop();
    main.kill();
    wait_until("the former shards gone", || tenant(&tier)["former_shards"] == 0);
    check_stored(&tier, 8);
    same(&tier, &databases, &known, "after the second split");

    let copies = |name: &String| {
        let status = tier.status(name);
        let all = status["timelines"].as_array().expect("timelines").clone();
        all.iter()
            .map(|one| one["copied_layers"].as_u64().expect("a number"))
            .sum::<u64>()
    };
    wait_until("nothing left that is another shard's", || {
        tier.names("pageserver").iter().map(copies).sum::<u64>() == 0
    });
    same(&tier, &databases, &known, "when copies were rewritten");

    // All on one node.
    let owners = tenant(&tier)["pageservers"].clone();
    let owners: Vec<u64> = serde_json::from_value(owners).expect("numbers of pageservers");
    let one = owners[0].to_string();
    for (shard, _) in owners
        .iter()
        .enumerate()
        .filter(|(_, owner)| **owner != owners[0])
    {
        tier.client(&["tenant", "move-shard", "test", &shard.to_string(), &one]);
    }
    let name = format!("pageserver-{}", owners[0] - 100);
    let all_there = || tier.status(&name)["timelines"].as_array().map(Vec::len);
    wait_until("all shards on one node", || all_there() == Some(16));
    same(&tier, &databases, &known, "on one node");

    let again = tier.compute_with("main", "again", &SETTINGS);
    assert_eq!(again.sql(&[ROWS]), rows);
    again.sql(&["commit prepared 'half'"]);
    let expected = format!("{}|{}", written + 4, written + 3 + 1000);
    assert_eq!(again.sql(&["select count(*), sum(n) from own"]), expected);
    let settings = again.sql(&["show work_mem", "show maintenance_work_mem"]);
    assert_eq!(settings.lines().collect::<Vec<_>>(), ["6MB", "70MB"]);
    again.stop();
    // Every reference of what is stored, and every byte.
    let store = format!("file://{}", tier.home().join("objects").display());
    lakebed(&["scrub", "--deep", &store]);
}

#[test]
fn what_is_done_while_a_split_waits_is_in_the_new_shards() {
    let mut tier = Tier::start(&Shape::default());
    let main = tier.compute("main", "main");
    main.sql(&["create table kept as select n, n::text as filler from generate_series(1, 1000) as n"]);
    tier.client(&["branch", "create", "early"]);
    // Old shards are on one node, and new ones on that and on one which is away.
    tier.client(&["tenant", "move-shard", "test", "1", "101"]);
    let has = |tier: &Tier, shard: &str, timelines: usize| {
        let status = tier.status("pageserver-1");
        let all = status["timelines"].as_array().expect("timelines");
        all.iter().filter(|one| one["shard"] == shard).count() == timelines
    };
    wait_until("both shards on one node", || has(&tier, "1of2", 2));
    tier.kill_role("pageserver-2");
    tier.client(&["tenant", "split", "test", "4", "--no-wait"]);
    wait_until("the new shard 0", || has(&tier, "0of4", 2));
    // From here on it is another shard that takes this, and a branch has it from its parent.
    main.sql(&[
        "alter system set work_mem = '7MB'",
        "update kept set filler = 'later' where n = 7",
    ]);
    tier.client(&["branch", "create", "late"]);
    main.sql(&["update kept set filler = 'last' where n = 7"]);
    tier.client(&["branch", "delete", "early"]);
    wait_until(
        "the new branch on the new shard, and the deleted one gone",
        || has(&tier, "0of4", 2) && has(&tier, "0of2", 2),
    );
    assert_eq!(tenant(&tier)["split_into"], 4);
    main.stop();
    tier.start_role("pageserver-2");
    tier.client(&["tenant", "split", "test", "4"]);
    wait_until("the former shards gone", || tenant(&tier)["former_shards"] == 0);
    check_stored(&tier, 4);
    for (branch, filler) in [("main", "last"), ("late", "later")] {
        let compute = tier.compute(branch, &format!("{branch}-again"));
        assert_eq!(compute.sql(&["select filler from kept where n = 7"]), filler);
        assert_eq!(compute.sql(&["show work_mem"]), "7MB", "{branch}");
        compute.stop();
    }
}
