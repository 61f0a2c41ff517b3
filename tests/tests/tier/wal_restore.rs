//! All safekeepers lose their disks, and the branch comes back from object storage over S3, which has its faults.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lakebed_pgtest::{temp_dir, wait_until};
use lakebed_s3test::{Fault, FaultyProxy, S3Server};
use lakebed_tests::pages::Pages;
use lakebed_tests::recovery::{SEGMENT_BYTES, segments, wal_directory};
use lakebed_tests::waldump::walk;
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
        assert!(
            ours[(end.0.clamp(first, first + SEGMENT_BYTES) - first) as usize..]
                .iter()
                .all(|b| *b == 0)
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
    let had = others.filter(|directory| walk(directory, start).end >= end);
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
