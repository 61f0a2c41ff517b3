//! History is kept as long as was said, and what is read or branched from it longer; a branch is taken back in time.

use lakebed_pgtest::wait_until;
use lakebed_tests::{Compute, Shape, Tier};
use lakebed_types::Lsn;
use serde_json::Value;

fn position(compute: &Compute) -> String {
    compute.sql(&["select pg_current_wal_flush_lsn()"])
}

/// The database's clock, in the form of `--at`.
fn now(compute: &Compute) -> String {
    compute
        .sql(&["select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"])
}

fn lsn(text: &Value) -> Lsn {
    let text = text.as_str().expect("a position");
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A timeline on every pageserver.
fn shards(tier: &Tier, timeline: &Value) -> Vec<Value> {
    let of = |name: &String| {
        let status = tier.status(name);
        let all = status["timelines"].as_array().cloned().expect("timelines");
        all.into_iter().filter(move |one| one["timeline"] == *timeline)
    };
    tier.names("pageserver").iter().flat_map(of).collect()
}

fn sum(shards: &[Value], what: &str) -> u64 {
    shards.iter().filter_map(|shard| shard[what].as_u64()).sum()
}

/// Rewrites the whole table some times, so that each page has as many versions.
fn rewrite(compute: &Compute, times: usize) {
    for _ in 0..times {
        compute.sql(&["update hot set n = n + 1", "vacuum hot", "checkpoint"]);
    }
}

const HOT: &str = "select count(*), min(n), max(n), md5(string_agg(id || filler, '' order by id)) from hot";
const COLD: &str = "select count(*), md5(string_agg(filler, '' order by n)) from cold";

#[test]
fn a_compute_and_a_branch_read_on_while_history_goes_and_space_comes_back() {
    let shape = Shape {
        flush_bytes: 256 << 10,
        lease_s: 2,
        ..Shape::default()
    };
    let tier = Tier::start(&shape);
    let first = tier.compute("main", "first");
    first.sql(&[
        "create table hot as select g as id, 0 as n, md5(g::text) as filler from generate_series(1, 10000) as g",
        "create table cold as select n, repeat(md5(n::text), 20) as filler from generate_series(1, 5000) as n",
        "alter table hot set (autovacuum_enabled = false)",
    ]);
    rewrite(&first, 2);
    let (early, rows) = (position(&first), first.sql(&[HOT]));
    tier.client(&["branch", "create", "early", "--at-lsn", &early]);
    rewrite(&first, 2);
    let between = position(&first);
    let cold = first.sql(&[COLD]);
    rewrite(&first, 2);
    let path = first.sql(&["select pg_relation_filepath('cold')"]);
    first.stop();

    // It boots at a position that will be out of the window soon, and has read nothing of a table yet.
    let second = tier.compute("main", "second");
    let boot = second.status()["start_lsn"]
        .as_str()
        .expect("a position")
        .to_owned();
    assert_eq!(second.status()["history_lease"]["lsn"], boot.as_str());
    rewrite(&second, 6);
    let timeline = tier.branches()["main"]["timeline"].clone();
    let all = sum(&shards(&tier, &timeline), "history_bytes");
    assert!(all > 0);
    let listed = tier.client(&["tenant", "set", "test", "--window", "1s"]);
    assert!(listed.contains("1s"), "{listed}");
    // What was committed since it booted is older than that soon.
    let past = boot.parse::<Lsn>().expect("a position");
    wait_until("the horizon behind the compute's boot", || {
        let shards = shards(&tier, &timeline);
        shards.iter().all(|shard| lsn(&shard["horizon_lsn"]) > past)
    });
    wait_until("half of history gone", || {
        sum(&shards(&tier, &timeline), "history_bytes") < all / 2
    });
    for shard in shards(&tier, &timeline) {
        let leases = shard["leases"].as_array().expect("leases");
        assert_eq!(
            (leases.len(), &leases[0]["lsn"]),
            (1, &Value::from(boot.as_str())),
            "{shard}"
        );
        let holder = leases[0]["holder"].as_str().expect("a holder");
        assert!(holder.contains(&format!("port {}", second.port)), "{holder}");
    }
    let explain =
        |at: &str| ["explain", "page", "test", "main", path.as_str(), "0", "--lsn", at].map(str::to_owned);
    let explained = |at: &str| {
        let arguments = explain(at);
        tier.client(&arguments.each_ref().map(String::as_str))
    };
    explained(&boot);
    assert_eq!(second.sql(&[COLD]), cold);
    // What is neither leased nor a branch point is refused in words.
    let refused = tier.refused_client(&explain(&between).each_ref().map(String::as_str));
    assert!(
        refused.contains("older than the history that is kept"),
        "{refused}"
    );
    let refused = tier.refused_client(&["branch", "create", "late", "--at-lsn", &between]);
    assert!(
        refused.contains("older than the history that is kept of this branch, which begins at"),
        "{refused}"
    );
    let refused = tier.refused_client(&["branch", "create", "late", "--at-time", "2020-01-01T00:00:00Z"]);
    assert!(refused.contains("histor"), "{refused}");
    assert!(!tier.branches().contains_key("late"));

    // The branch in the middle of it is what it was, and one of the head works as ever.
    let branch = tier.compute("early", "early");
    assert_eq!(branch.sql(&[HOT]), rows);
    branch.stop();
    let head = second.sql(&[HOT]);
    tier.client(&["branch", "create", "head"]);
    let branch = tier.compute("head", "head");
    assert_eq!(branch.sql(&[HOT]), head);
    branch.stop();

    // Nobody holds the boot position any more.
    let held = sum(&shards(&tier, &timeline), "history_bytes");
    second.stop();
    wait_until("what was kept for the compute to go", || {
        sum(&shards(&tier, &timeline), "history_bytes") < held
    });
    let refused = tier.refused_client(&explain(&boot).each_ref().map(String::as_str));
    assert!(
        refused.contains("older than the history that is kept"),
        "{refused}"
    );

    // A branch that is deleted leaves nothing behind.
    let early = tier.branches()["early"]["timeline"]
        .as_str()
        .expect("an id")
        .to_owned();
    let objects = |id: &str| {
        let found = std::process::Command::new("find")
            .arg(tier.home().join("objects"))
            .args(["-type", "f", "-path", &format!("*{id}*")])
            .output()
            .expect("find");
        String::from_utf8_lossy(&found.stdout).lines().count()
    };
    assert!(objects(&early) > 0);
    tier.client(&["branch", "delete", "early"]);
    wait_until("the objects of the branch to go", || objects(&early) == 0);
    // What it read of its parent is let go with the next merge for which that is worth it.
    wait_until("its parent to forget it", || {
        let held = |shard: &Value| shard["branches"].as_array().expect("branches").clone();
        let shards = shards(&tier, &timeline);
        shards
            .iter()
            .flat_map(held)
            .all(|branch| branch["timeline"] != early.as_str())
    });
    let again = tier.compute("main", "again");
    assert_eq!((again.sql(&[HOT]), again.sql(&[COLD])), (head, cold));
    again.stop();
}

#[test]
fn a_branch_is_taken_back_in_place_and_its_head_stays() {
    let tier = Tier::start(&Shape::default());
    let main = tier.compute("main", "main");
    main.sql(&["create table t (n int primary key)", "insert into t values (1)"]);
    let time = now(&main);
    main.sql(&["insert into t values (2)"]);
    let refused = tier.refused_client(&["restore", "main", "--at", &time]);
    assert!(refused.contains("stop it first"), "{refused}");
    main.stop();
    let refused = tier.refused_client(&["restore", "main", "--at", "yesterday"]);
    assert!(refused.contains("neither an LSN nor a time"), "{refused}");
    tier.client(&["restore", "main", "--at", &time, "--keep-as", "oops"]);
    let rows = |branch: &str, directory: &str| {
        let compute = tier.compute(branch, directory);
        let rows = compute.sql(&["select string_agg(n::text, ',' order by n) from t"]);
        (compute, rows)
    };
    let (restored, found) = rows("main", "restored");
    assert_eq!(found, "1");
    restored.sql(&["insert into t values (3)"]);
    let (before, found) = rows("oops", "oops");
    assert_eq!(found, "1,2");
    before.stop();
    let (position, list) = (position(&restored), tier.branches());
    restored.stop();
    assert_eq!(list["main"]["parent"], "oops");
    // Once more, to a position of its own history; the name is chosen.
    let told: Value = serde_json::from_str(&tier.client(&["restore", "main", "--at", &position, "--json"]))
        .expect("what was done");
    let name = told["before"]["name"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("main-before-20"), "{name}");
    let (again, found) = rows("main", "again");
    assert_eq!(found, "1,3");
    again.stop();
    let names: Vec<String> = tier.branches().into_keys().collect();
    assert_eq!(names, ["main".to_owned(), name, "oops".to_owned()]);
}

#[test]
fn a_branch_with_a_time_goes_by_itself_once_nobody_uses_it() {
    let tier = Tier::start(&Shape::default());
    let main = tier.compute("main", "main");
    tier.client(&["branch", "create", "used", "--ttl", "5s"]);
    let used = tier.compute("used", "used");
    tier.client(&["branch", "create", "parent", "--ttl", "5s"]);
    tier.client(&["branch", "create", "child", "--from", "parent"]);
    tier.client(&["branch", "create", "unused", "--ttl", "5s"]);
    assert!(tier.branches()["unused"]["expires"].is_string());
    let names = || tier.branches().into_keys().collect::<Vec<_>>();
    wait_until("the branch that nobody uses to go", || {
        !names().contains(&"unused".to_owned())
    });
    // Their time was over before.
    assert_eq!(names(), ["child", "main", "parent", "used"]);
    assert_eq!(used.sql(&["select 1"]), "1");
    used.stop();
    tier.client(&["branch", "delete", "child"]);
    wait_until("the others to go", || names() == ["main"]);
    main.stop();
}

/// Bytes of layers, but for history: what there is now.
fn present(tier: &Tier, timeline: &Value) -> u64 {
    let shards = shards(tier, timeline);
    sum(&shards, "layer_bytes") - sum(&shards, "history_bytes")
}

#[test]
fn what_is_dropped_truncated_or_gone_with_its_database_gives_its_space_back() {
    let shape = Shape {
        flush_bytes: 512 << 10,
        lease_s: 2,
        ..Shape::default()
    };
    let mut tier = Tier::start(&shape);
    let compute = tier.compute("main", "main");
    let timeline = tier.branches()["main"]["timeline"].clone();
    tier.client(&["tenant", "set", "test", "--window", "1s"]);
    compute
        .sql(&["create table kept as select g as n, md5(g::text) as filler from generate_series(1, 5000) g"]);
    let before = present(&tier, &timeline);
    // Does not compress.
    let fill = "as select g, (select string_agg(md5(g::text || i), '') from generate_series(1, 40) i) as filler \
                from generate_series(1, 12000) g";
    let dropped = format!("create table dropped {fill}");
    let truncated = format!("create table truncated {fill}");
    compute.sql(&[
        &dropped,
        &truncated,
        "create database copied template template0 strategy file_copy",
    ]);
    compute.sql(&["checkpoint"]);
    wait_until("both tables in layers", || {
        present(&tier, &timeline) > before + (15 << 20)
    });
    let full = present(&tier, &timeline);

    compute.sql(&["drop table dropped", "truncate truncated", "drop database copied"]);
    wait_until("the space of what is gone", || {
        // The window goes on with commits; nothing else is written.
        compute.sql(&["insert into kept values (0, 'a commit')"]);
        present(&tier, &timeline) < before + (full - before) / 8
    });
    let rows = compute.sql(&["select count(*), min(filler) from kept where n > 0"]);
    assert!(rows.starts_with("5000"), "{rows}");
    assert_eq!(compute.sql(&["select count(*) from truncated"]), "0");
    compute.stop();

    // It stays so, and what is there can be read by who has nothing yet.
    for name in tier.names("pageserver") {
        tier.kill_role(&name);
        tier.start_role(&name);
    }
    let again = tier.compute("main", "again");
    assert_eq!(
        again.sql(&["select count(*), min(filler) from kept where n > 0"]),
        rows
    );
    assert_eq!(again.sql(&["select count(*) from truncated"]), "0");
    assert!(present(&tier, &timeline) < before + (full - before) / 8);
}
