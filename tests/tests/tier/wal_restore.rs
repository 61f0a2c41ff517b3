//! All safekeepers lose their disks, and the branch comes back from object storage over S3, which has its faults.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lakebed_pgtest::{temp_dir, wait_until};
use lakebed_s3test::{Fault, FaultyProxy, S3Server};
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{SEGMENT_BYTES, segments, wal_directory};
use lakebed_tests::waldump::{reach, walk};
use lakebed_tests::{Compute, Shape, Tier, lakebed};
use lakebed_types::Lsn;
use serde_json::Value;

use crate::load::{Load, prepare};

/// What happens to requests, in turn: of the usual troubles some of each.
fn troubled(number: u64) -> Fault {
    match number % 11 {
        2 => Fault::Unavailable,
        4 => Fault::AnswerLost,
        7 => Fault::Lost,
        9 => Fault::Slow(Duration::from_millis(200)),
        _ => Fault::None,
    }
}

/// A position of the branch, the highest that a safekeeper tells.
fn highest(tier: &Tier, branch: &Pages, position: &str) -> Lsn {
    let id = branch.timeline().to_string();
    let of = |name: &String| -> Lsn {
        let status = tier.status(name);
        let timelines = status["timelines"].as_array().expect("timelines");
        let timeline = timelines.iter().find(|timeline| timeline["timeline"] == id);
        let text = timeline.and_then(|timeline| timeline[position].as_str());
        text.unwrap_or_else(|| panic!("{status}"))
            .parse()
            .expect("a position")
    };
    tier.names("safekeeper")
        .iter()
        .map(of)
        .max()
        .expect("safekeepers")
}

fn number(compute: &Compute, query: &str) -> u64 {
    compute.sql(&[query]).parse().expect("a number")
}

fn restore(store: &str, branch: &Pages, to: &Path, more: &[&str]) -> Value {
    let (from, to) = (format!("--from={store}"), format!("--to={}", to.display()));
    let tenant = format!("--tenant={}", branch.tenant());
    let timeline = format!("--timeline={}", branch.timeline());
    let mut arguments = vec!["wal", "restore", "--json", &from, &tenant, &timeline, &to];
    arguments.extend(more);
    serde_json::from_str(&lakebed(&arguments)).expect("JSON")
}

fn lsn(value: &Value, name: &str) -> Lsn {
    let text = value[name].as_str().unwrap_or_else(|| panic!("{value}"));
    text.parse().expect("a position")
}

/// The files of two directories hold the same WAL between two positions.
fn assert_same_wal(restored: &Path, lost: &Path, (begin, end): (Lsn, Lsn)) {
    for path in segments(restored) {
        let name = path.file_name().expect("a name");
        let digits = name.to_string_lossy();
        let number = u64::from_str_radix(&digits[8..16], 16).expect("digits") * (1 << 32) / SEGMENT_BYTES
            + u64::from_str_radix(&digits[16..], 16).expect("digits");
        let first = number * SEGMENT_BYTES;
        let range = begin.0.max(first) - first..end.0.clamp(first, first + SEGMENT_BYTES) - first;
        let range = range.start as usize..range.end.max(range.start) as usize;
        let (ours, theirs) = (fs::read(&path).expect("a segment"), fs::read(lost.join(name)));
        if range.is_empty() {
            continue;
        }
        let theirs = theirs.expect("a segment that was lost");
        assert!(ours[range.clone()] == theirs[range], "{digits}: other bytes");
        // Behind the end are zeros and, at most, the mark that tells how far it was durable.
        let behind = &ours[(end.0.clamp(first, first + SEGMENT_BYTES) - first) as usize..];
        let mark = 64..96.min(behind.len());
        let is_mark = |at| mark.contains(&at) && behind[64..].starts_with(b"LKBDMARK");
        let others = behind.iter().enumerate().filter(|(at, _)| !is_mark(*at));
        assert!(
            others.into_iter().all(|(_, byte)| *byte == 0),
            "{digits}: bytes behind the end"
        );
    }
}

#[test]
fn a_lost_quorum_comes_back_from_object_storage() {
    let server = S3Server::start();
    let proxy = FaultyProxy::start(&server.address);
    let store = S3Server::store(&proxy.address, "tier");
    let mut tier = Tier::start(&Shape {
        flush_bytes: 2 << 20,
        store: Some((store.clone(), 1000)),
        ..Shape::default()
    });
    let branch = Pages::of(&tier, "main");
    proxy.set(|seen| troubled(seen.number));
    let compute = tier.compute("main", "first");
    prepare(&compute);
    compute.sql(&["create table filler as select n, md5(n::text) from generate_series(1, 300000) n"]);
    let load = Load::start(&compute);
    load.advance(100);
    // Everything that is acknowledged now reaches object storage while the load goes on.
    let kept: Vec<u64> = load.acknowledged();
    let position: Lsn = compute
        .sql(&["select pg_current_wal_insert_lsn()"])
        .parse()
        .expect("a position");
    wait_until("the upload of what was committed", || {
        highest(&tier, &branch, "backup_lsn") >= position
    });
    load.advance(50);
    let (known, committed) = (
        highest(&tier, &branch, "backup_lsn"),
        highest(&tier, &branch, "commit_lsn"),
    );
    for name in tier
        .names("safekeeper")
        .into_iter()
        .chain(tier.names("pageserver"))
    {
        tier.kill_role(&name);
    }
    load.lost();
    compute.kill();
    let lost = temp_dir();
    for name in tier.names("safekeeper") {
        fs::rename(tier.home().join(&name), lost.path().join(&name)).expect("a disk is gone");
    }
    for name in tier.names("pageserver") {
        fs::remove_dir_all(tier.home().join(&name)).expect("a cache is gone");
    }

    let copy = temp_dir();
    let all = copy.path().join("all");
    let again = restore(&store, &branch, &all, &[]);
    let (start, end) = (lsn(&again, "start_lsn"), lsn(&again, "end_lsn"));
    println!("restored {start} to {end}; commit was at least {committed}: {again}");
    assert_eq!(start, branch.start());
    assert!(end >= known && known >= position, "{end} {known} {position}");
    let others = tier.names("safekeeper").into_iter().map(|name| {
        let part = wal_directory(&tier, &name, &branch);
        lost.path()
            .join(part.strip_prefix(tier.home()).expect("in the tier"))
    });
    // At least a quorum had it.
    let had = others.filter(|directory| reach(directory, start) >= end);
    let had: Vec<_> = had.collect();
    assert!(had.len() >= 2, "{had:?}");
    for directory in &had {
        assert_same_wal(&all, directory, (start, end));
    }
    assert_eq!(walk(&all, start).end, end);

    // A copy of an earlier moment, as of a record boundary.
    let until = format!("--until={position}");
    let earlier = copy.path().join("earlier");
    let part = lsn(&restore(&store, &branch, &earlier, &[&until]), "end_lsn");
    assert!(part <= position && walk(&earlier, start).end == part);

    for (number, name) in (1..).zip(tier.names("safekeeper")) {
        let node = format!("--safekeeper={number}");
        let restored = restore(
            &store,
            &branch,
            &tier.home().join(&name),
            &[&node, "--rewind-layers"],
        );
        assert_eq!(lsn(&restored, "end_lsn"), end);
        tier.start_role(&name);
    }
    for name in tier.names("pageserver") {
        tier.start_role(&name);
    }
    let second = tier.compute("main", "second");
    for (client, kept) in kept.iter().enumerate() {
        let of = format!("from recorded where client = {client}");
        let (count, highest) = (
            number(&second, &format!("select count(*) {of}")),
            number(&second, &format!("select coalesce(max(n), 0) {of}")),
        );
        assert!(
            highest >= *kept,
            "client {client}: {highest}, uploaded were {kept}"
        );
        assert_eq!(count, highest, "client {client}: without holes");
    }
    let sums = second.sql(&["select (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history)"]);
    assert_eq!(sums, "t");
    // It goes on, and so does the upload.
    second.run("pgbench", &["-n", "-c", "2", "-t", "50"]);
    let position: Lsn = second
        .sql(&["select pg_current_wal_insert_lsn()"])
        .parse()
        .expect("a position");
    wait_until("the upload to go on", || {
        highest(&tier, &branch, "backup_lsn") >= position
    });
    second.stop();
    let troubles = proxy
        .seen()
        .iter()
        .filter(|(_, fault)| *fault != Fault::None)
        .count();
    assert!(troubles > 20, "{troubles} faults");
    println!("{troubles} faults in {} requests", proxy.seen().len());
}

/// A tier whose WAL goes to a directory.
fn with_directory(interval_ms: u64, directory: &Path) -> Tier {
    Tier::start(&Shape {
        flush_bytes: 1 << 20,
        store: Some((format!("file://{}", directory.display()), interval_ms)),
        ..Shape::default()
    })
}

fn lose_disks(tier: &mut Tier) {
    let names: Vec<String> = tier
        .names("safekeeper")
        .into_iter()
        .chain(tier.names("pageserver"))
        .collect();
    for name in &names {
        tier.kill_role(name);
    }
    for name in &names {
        fs::remove_dir_all(tier.home().join(name)).expect("a disk is gone");
    }
}

/// Brings a branch back on every safekeeper, which do not run; what was told about it.
fn restore_all(tier: &Tier, store: &str, branch: &Pages) -> Value {
    let mut told = Value::Null;
    for (number, name) in (1..).zip(tier.names("safekeeper")) {
        let node = format!("--safekeeper={number}");
        told = restore(
            store,
            branch,
            &tier.home().join(&name),
            &[&node, "--rewind-layers"],
        );
    }
    told
}

fn start_all(tier: &mut Tier) {
    for name in tier
        .names("safekeeper")
        .into_iter()
        .chain(tier.names("pageserver"))
    {
        tier.start_role(&name);
    }
}

/// Where the WAL of a branch is in a directory of objects.
fn wal_of(store: &Path, branch: &Pages) -> PathBuf {
    store.join(format!("tenants/{}/wal/{}", branch.tenant(), branch.timeline()))
}

fn has_wal(store: &Path, branch: &Pages) -> bool {
    fs::read_dir(wal_of(store, branch)).is_ok_and(|mut entries| entries.next().is_some())
}

/// A branch that nobody has written to has no WAL of its own, and comes back too.
#[test]
fn a_branch_without_a_commit_comes_back() {
    let objects = temp_dir();
    let store = format!("file://{}", objects.path().display());
    let mut tier = with_directory(200, objects.path());
    let main = Pages::of(&tier, "main");
    let compute = tier.compute("main", "first");
    compute.sql(&["create table t as select n, md5(n::text) from generate_series(1, 50000) n"]);
    tier.client(&["branch", "create", "still"]);
    compute.sql(&["insert into t values (0, 'later')"]);
    compute.stop();
    let still = Pages::of(&tier, "still");
    let commit = highest(&tier, &main, "commit_lsn");
    wait_until("the upload", || {
        has_wal(objects.path(), &still) && highest(&tier, &main, "backup_lsn") >= commit
    });
    lose_disks(&mut tier);
    for branch in [&main, &still] {
        let told = restore_all(&tier, &store, branch);
        assert_eq!(told["lost_branches"], serde_json::json!([]), "{told}");
    }
    start_all(&mut tier);
    for (branch, count) in [("still", "50000"), ("main", "50001")] {
        let compute = tier.compute(branch, &format!("{branch}-again"));
        assert_eq!(compute.sql(&["select count(*) from t"]), count);
        compute.sql(&["insert into t select n, 'more' from generate_series(1, 1000) n"]);
        compute.stop();
    }
}

/// A branch that was made of WAL that never got to object storage cannot come back, and is named.
#[test]
fn a_branch_of_what_is_lost_is_named() {
    let objects = temp_dir();
    let store = format!("file://{}", objects.path().display());
    let mut tier = with_directory(200, objects.path());
    let main = Pages::of(&tier, "main");
    let compute = tier.compute("main", "first");
    compute.sql(&["create table t as select 1 as n"]);
    wait_until("the first upload", || {
        highest(&tier, &main, "backup_lsn") > main.start()
    });
    // Where the next objects would go is no directory: they cannot be stored.
    let (place, aside) = (wal_of(objects.path(), &main), objects.path().join("aside"));
    fs::rename(&place, &aside).expect("a directory");
    fs::write(&place, "").expect("a file");
    compute.sql(&["insert into t values (2)"]);
    tier.client(&["branch", "create", "gone"]);
    let gone = Pages::of(&tier, "gone");
    compute.kill();
    lose_disks(&mut tier);
    fs::remove_file(&place).expect("a file");
    fs::rename(&aside, &place).expect("a directory");
    let told = restore_all(&tier, &store, &main);
    assert_eq!(
        told["lost_branches"],
        serde_json::json!([gone.timeline().to_string()]),
        "{told}"
    );
    start_all(&mut tier);
    tier.client(&["branch", "delete", "gone"]);
    let again = tier.compute("main", "again");
    again.sql(&["create table u as select 3 as n"]);
    assert_eq!(again.sql(&["select n from u"]), "3");
    again.stop();
}

/// The newest layers of a pageserver are gone after safekeepers have removed the WAL that they were made of: it comes
/// from object storage.
#[test]
fn layers_are_made_again_of_wal_that_safekeepers_removed() {
    let objects = temp_dir();
    let mut tier = with_directory(200, objects.path());
    let main = Pages::of(&tier, "main");
    let compute = tier.compute("main", "first");
    compute.sql(&[
        "create table t as select n, repeat(md5(n::text), 20) as filler from generate_series(1, 1000) n",
    ]);
    let fill = "insert into t select n, repeat(md5(n::text), 20) from generate_series(1, 30000) n";
    let removed = || {
        let id = main.timeline().to_string();
        tier.names("safekeeper").iter().all(|name| {
            let status = tier.status(name);
            let timelines = status["timelines"].as_array().expect("timelines");
            let timeline = timelines.iter().find(|timeline| timeline["timeline"] == id);
            let truncate = timeline
                .and_then(|timeline| timeline["truncate_lsn"].as_str())
                .expect("a position");
            truncate.parse::<Lsn>().expect("a position") > main.start()
        })
    };
    let mut rounds = 0;
    wait_until("local WAL to be removed", || {
        if rounds < 6 {
            rounds += 1;
            compute.sql(&[fill]);
        }
        removed()
    });
    let sum = "select count(*), sum(n), md5(string_agg(md5(filler), '' order by n)) from t";
    let expected = compute.sql(&[sum]);
    compute.stop();
    for name in tier.names("pageserver") {
        tier.kill_role(&name);
        fs::remove_dir_all(tier.home().join(&name)).expect("a cache is gone");
    }
    // Of every shard only the import is left.
    let shards = objects.path().join(format!("tenants/{}/shards", main.tenant()));
    for shard in fs::read_dir(shards).expect("shards") {
        let timeline = shard
            .expect("a shard")
            .path()
            .join(format!("timelines/{}", main.timeline()));
        let mut manifests: Vec<_> = fs::read_dir(timeline.join("manifests"))
            .expect("manifests")
            .map(|entry| entry.expect("a manifest").path())
            .collect();
        manifests.sort();
        assert!(manifests.len() > 3, "{manifests:?}");
        for later in &manifests[1..] {
            fs::remove_file(later).expect("a manifest is gone");
        }
    }
    for name in tier.names("pageserver") {
        tier.start_role(&name);
    }
    let again = tier.compute("main", "again");
    assert_eq!(again.sql(&[sum]), expected);
    again.stop();
}
