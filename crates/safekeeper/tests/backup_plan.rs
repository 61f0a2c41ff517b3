//! The decisions about WAL in object storage, as tables.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_safekeeper::backup::objects::WalObject;
use lakebed_safekeeper::backup::plan::*;
use lakebed_types::{Generation, Lsn, NodeId, Term, TimelineId};

const TIMELINE: TimelineId = TimelineId([7; 16]);

fn report(node: u64, commit: u64) -> Report {
    Report {
        node: NodeId(node),
        works: true,
        commit: Lsn(commit),
        backup: Lsn(0),
        shards: Vec::new(),
    }
}

fn members() -> BTreeSet<NodeId> {
    [1, 2, 3].map(NodeId).into()
}

#[test]
fn members_with_the_same_reports_elect_the_same_one() {
    let all = [report(1, 100), report(2, 100), report(3, 100)];
    let reversed: Vec<_> = all.iter().rev().cloned().collect();
    for seed in 0..100u8 {
        let timeline = TimelineId([seed; 16]);
        let elected = elect(timeline, &members(), &all, 10);
        assert!(elected.is_some());
        assert_eq!(elected, elect(timeline, &members(), &reversed, 10));
    }
}

#[test]
fn timelines_spread_over_members() {
    let all = [report(1, 100), report(2, 100), report(3, 100)];
    let mut counts = BTreeMap::new();
    for seed in 0..3000u32 {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&seed.to_le_bytes());
        *counts
            .entry(elect(TimelineId(id), &members(), &all, 10))
            .or_insert(0) += 1;
    }
    assert!(
        counts.len() == 3 && counts.values().all(|count| *count > 700),
        "{counts:?}"
    );
}

#[test]
fn only_a_working_member_that_is_not_behind_is_elected() {
    let elected = elect(
        TIMELINE,
        &members(),
        &[report(1, 100), report(2, 100), report(3, 100)],
        10,
    );
    let chosen = elected.unwrap().0;
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != chosen).collect();
    let with = |changed: Report| {
        let mut reports = vec![report(others[0], 100), report(others[1], 100)];
        reports.push(changed);
        elect(TIMELINE, &members(), &reports, 10)
    };
    assert_eq!(with(report(chosen, 90)), elected, "as far behind as may be");
    assert_ne!(with(report(chosen, 89)), elected, "too far behind");
    let stopped = Report {
        works: false,
        ..report(chosen, 100)
    };
    assert_ne!(with(stopped.clone()), elected);
    assert_eq!(elect(TIMELINE, &members(), &[stopped], 10), None);
    assert_eq!(
        elect(TIMELINE, &members(), &[report(9, 100)], 10),
        None,
        "not a member"
    );
}

fn object(begin: u64, end: u64, whole: bool) -> WalObject {
    WalObject {
        begin: Lsn(begin),
        end: Lsn(end),
        term: Term(1),
        node: NodeId(1),
        whole,
    }
}

/// Segment's end, objects, commit, and what is uploaded.
type UploadRow = (Option<u64>, Vec<WalObject>, u64, Option<(u64, u64, bool)>);

#[test]
fn parts_follow_each_other_until_the_segment_is_whole() {
    let part = |begin, end| object(begin, end, false);
    let many: Vec<_> = (0..MAX_PARTS as u64).map(|n| part(10 + n, 11 + n)).collect();
    let filled = 10 + MAX_PARTS as u64;
    let rows: Vec<UploadRow> = vec![
        (None, vec![], 10, None),
        (None, vec![], 30, Some((10, 30, false))),
        (None, vec![part(10, 30)], 30, None),
        (None, vec![part(10, 30)], 40, Some((30, 40, false))),
        (None, many.clone(), filled, None),
        (None, many, filled + 1, Some((10, filled + 1, false))),
        // What another one uploaded of the middle does not help.
        (None, vec![part(20, 30)], 40, Some((10, 40, false))),
        (Some(90), vec![], 95, Some((10, 90, true))),
        (Some(90), vec![part(10, 90)], 95, Some((10, 90, true))),
    ];
    for (end, objects, commit, expected) in rows {
        let segment = Segment {
            begin: Lsn(10),
            end: end.map(Lsn),
        };
        let next = next_upload(segment, &objects, Lsn(commit));
        let next = next.map(|s| (s.begin.0, s.end.0, s.whole));
        assert_eq!(next, expected, "{end:?} {objects:?} {commit}");
    }
}

#[test]
fn parts_go_when_another_object_holds_them() {
    let (a, b) = (object(10, 20, false), object(20, 30, false));
    let (both, whole) = (object(10, 30, false), object(10, 50, true));
    assert_eq!(superfluous(&[a, b]), []);
    assert_eq!(superfluous(&[a, b, both]), [a, b]);
    assert_eq!(superfluous(&[a, both, whole]), [a, both]);
    // Two uploaders with the same range: one part stays.
    let twin = WalObject { node: NodeId(2), ..a };
    assert_eq!(superfluous(&[a, twin]), [twin]);
    assert_eq!(
        superfluous(&[
            whole,
            WalObject {
                node: NodeId(2),
                ..whole
            }
        ]),
        []
    );
}

#[test]
fn an_object_expires_when_it_is_old_consumed_and_removed_here() {
    let objects = [
        (object(10, 20, true), 100),
        (object(20, 30, true), 200),
        (object(30, 40, true), 300),
    ];
    for (truncate, consumed, until, gone) in [
        (40, 40, 1000, 3),
        (40, 40, 250, 2),
        (40, 25, 1000, 1),
        (29, 40, 1000, 1),
        (0, 40, 1000, 0),
        (40, 40, 99, 0),
    ] {
        let found = expired(&objects, (Lsn(truncate), Lsn(consumed)), until);
        assert_eq!(found.len(), gone, "{truncate} {consumed} {until}");
    }
}

fn fed(node: u64, shards: &[(u8, u8, u64, u64)]) -> Report {
    let shard = |&(count, index, generation, remote): &(u8, u8, u64, u64)| ShardReport {
        shard: (count, index),
        generation: Generation(generation),
        remote_consistent: Lsn(remote),
        fed: false,
    };
    Report {
        shards: shards.iter().map(shard).collect(),
        ..report(node, 100)
    }
}

#[test]
fn consumed_is_what_the_slowest_shard_has_and_nothing_before_all_have_told() {
    let rows: Vec<(Vec<Report>, Option<u64>)> = vec![
        // A member is silent.
        (vec![fed(1, &[(1, 0, 1, 50)]), fed(2, &[])], None),
        // No shard told anything.
        (vec![fed(1, &[]), fed(2, &[]), fed(3, &[])], None),
        // One of two shards.
        (vec![fed(1, &[(2, 0, 1, 50)]), fed(2, &[]), fed(3, &[])], None),
        (
            vec![fed(1, &[(2, 0, 1, 50)]), fed(2, &[(2, 1, 1, 40)]), fed(3, &[])],
            Some(40),
        ),
        // A shard that moved to another member: the same owner's later word counts, and a newer owner's before both.
        (
            vec![fed(1, &[(1, 0, 1, 50)]), fed(2, &[(1, 0, 1, 60)]), fed(3, &[])],
            Some(60),
        ),
        (
            vec![fed(1, &[(1, 0, 1, 90)]), fed(2, &[(1, 0, 2, 60)]), fed(3, &[])],
            Some(60),
        ),
        (
            vec![fed(1, &[(1, 0, 1, 90)]), fed(2, &[(1, 0, 2, 0)]), fed(3, &[])],
            Some(0),
        ),
        // Shards of another count hold it up until all are there.
        (
            vec![fed(1, &[(1, 0, 1, 90)]), fed(2, &[(2, 1, 2, 60)]), fed(3, &[])],
            None,
        ),
    ];
    for (reports, expected) in rows {
        assert_eq!(consumed(&members(), &reports), expected.map(Lsn), "{reports:?}");
    }
}

#[test]
fn shards_of_another_count_that_are_not_fed_any_more_hold_nothing_up() {
    // By count and index: where it is, and whether it is fed.
    type Shards = &'static [(u8, u8, u64, bool)];
    let rows: [(&str, Shards, Option<u64>); 8] = [
        ("a split begins", &[(1, 0, 90, true), (2, 0, 60, true)], None),
        (
            "the new ones catch up",
            &[(1, 0, 90, true), (2, 0, 60, true), (2, 1, 70, true)],
            Some(60),
        ),
        (
            "the old one is gone",
            &[(1, 0, 50, false), (2, 0, 60, true), (2, 1, 70, true)],
            Some(60),
        ),
        (
            "an owner of a new one is away, or it is still being split",
            &[(1, 0, 50, false), (2, 0, 60, true), (2, 1, 70, false)],
            Some(50),
        ),
        (
            "called off early",
            &[(1, 0, 90, true), (2, 0, 60, false)],
            Some(90),
        ),
        (
            "called off late",
            &[(1, 0, 90, true), (2, 0, 60, false), (2, 1, 70, false)],
            Some(90),
        ),
        (
            "nobody is there",
            &[(1, 0, 90, false), (2, 0, 60, false), (2, 1, 70, false)],
            Some(60),
        ),
        (
            "nobody, and one has told nothing",
            &[(1, 0, 90, false), (2, 0, 60, false)],
            None,
        ),
    ];
    for (when, shards, expected) in rows {
        let shard = |&(count, index, remote, fed): &(u8, u8, u64, bool)| ShardReport {
            shard: (count, index),
            generation: Generation(1),
            remote_consistent: Lsn(remote),
            fed,
        };
        // Each is fed by one member; another may have fed it before.
        let before = shards.iter().map(shard).map(|shard| ShardReport {
            remote_consistent: Lsn(10),
            fed: false,
            ..shard
        });
        let reports = [
            Report {
                shards: shards.iter().map(shard).collect(),
                ..report(1, 100)
            },
            Report {
                shards: before.collect(),
                ..report(2, 100)
            },
            report(3, 100),
        ];
        assert_eq!(consumed(&members(), &reports), expected.map(Lsn), "{when}");
    }
}

#[test]
fn some_segments_are_kept_whatever_was_consumed() {
    for (consumed, commit, keep, first) in [
        (1000, 1050, 1, 9),
        (1000, 1050, 0, 10),
        (450, 1050, 1, 4),
        (0, 50, 1, 0),
    ] {
        assert_eq!(
            removable(Lsn(consumed), Lsn(commit), 100, keep),
            first,
            "{consumed} {commit} {keep}"
        );
    }
}
