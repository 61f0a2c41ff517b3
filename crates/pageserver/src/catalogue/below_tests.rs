use bytes::Bytes;
use lakebed_layer::ReadPoints;

use super::super::tests::rel;
use super::super::thin::tests::{of, random, seen, some_entries, thin_resident};
use super::*;
use crate::catalogue::Entry;

/// As [`seen`], and how databases came to be.
fn all(catalogue: &Catalogue, lsn: Lsn) -> String {
    let mut copies = catalogue.copies();
    copies.sort_unstable();
    format!("{} {copies:?}", seen(catalogue, lsn))
}

#[test]
fn a_branch_sees_what_was_there_and_what_it_did_itself() {
    let mut random = random(7);
    for round in 0..300 {
        let parents = some_entries(&mut random, Lsn(0), 1 + round % 3);
        let start = Lsn(1 + random(200));
        // The parent goes on after the branch is there, which it may be behind its head as well.
        let head = parents.partition_point(|(lsn, _)| lsn.0 <= start.0 + random(3) * 20);
        let parent = Shared::new(of(&parents[..head]));
        let branch = Shared::new(Catalogue::branch(parent.clone(), start));
        parent.change(|parent| parent.add_all(&parents[head..]));
        // What it would be if it had all by itself.
        let mut flat: Vec<_> = parents.into_iter().filter(|(lsn, _)| *lsn <= start).collect();
        let own = some_entries(&mut random, start, 1 + round % 2);
        branch.change(|branch| branch.add_all(&own));
        flat.extend_from_slice(&own);
        let expected = of(&flat);
        // A branch of the branch.
        let second_start = Lsn(start.0 + 1 + random(100));
        let second = Catalogue::branch(branch.clone(), second_start);
        let upto = flat.partition_point(|(lsn, _)| *lsn <= second_start);
        let expected_second = of(&flat[..upto]);
        let lsns = || (start.0..start.0 + 220).map(Lsn);
        branch.ask(|branch| {
            for lsn in lsns() {
                assert_eq!(all(branch, lsn), all(&expected, lsn), "round {round}, at {lsn}");
            }
        });

        // Each is thinned by its own rules, in which branch points are kept.
        let at = |lsn| [(lsn, lsn)];
        let points = ReadPoints::new(at(start)).and_since(Lsn(150 + random(100)));
        parent.change(|parent| thin_resident(parent, &points));
        let points = ReadPoints::new(at(second_start)).and_since(Lsn(start.0 + random(200)));
        let before = branch.ask(Catalogue::versions);
        branch.change(|branch| thin_resident(branch, &points));
        assert!(branch.ask(Catalogue::versions) < before);
        branch.ask(|branch| {
            for lsn in lsns().filter(|lsn| points.contains(*lsn)) {
                assert_eq!(
                    seen(branch, lsn),
                    seen(&expected, lsn),
                    "round {round}, thinned, at {lsn}"
                );
            }
            assert_eq!(branch.versions(), branch.count());
        });
        for lsn in lsns().filter(|lsn| *lsn >= second_start) {
            let expected = seen(&expected_second, lsn);
            assert_eq!(seen(&second, lsn), expected, "round {round}, the second at {lsn}");
        }
    }
}

#[test]
fn commits_are_found_up_to_the_branch_point_and_in_the_branch() {
    let time = |lsn, micros| (Lsn(lsn), Entry::Time(micros));
    let parent = Shared::new(of(&[time(10, 100), time(20, 200)]));
    let mut branch = Catalogue::branch(parent.clone(), Lsn(20));
    parent.change(|parent| parent.add_all(&[time(30, 300)]));
    assert_eq!(branch.lsn_at(1_000), Some(Lsn(20)));
    assert_eq!(branch.commit_at(Lsn(40)), Some((Lsn(20), 200)));
    branch.add_all(&[time(25, 250)]);
    assert_eq!(
        [99, 150, 249, 1_000].map(|at| branch.lsn_at(at)),
        [None, Some(Lsn(10)), Some(Lsn(20)), Some(Lsn(25))]
    );
    assert_eq!(branch.commit_at(Lsn(24)), Some((Lsn(20), 200)));
}

#[test]
fn a_file_that_comes_to_the_parent_at_the_branch_point_is_the_parents() {
    let file = |content: &'static str| Entry::File("conf".to_owned(), Some(Bytes::from(content)));
    let parent = Shared::new(of(&[(Lsn(10), file("before"))]));
    let branch = Catalogue::branch(parent.clone(), Lsn(20));
    parent.change(|parent| parent.add(Lsn(20), &file("after")));
    assert_eq!(branch.file("conf", Lsn(30)), Some(Bytes::from("before")));
    assert_eq!(branch.files(Lsn(30)).count(), 1);
}

#[test]
fn what_a_branch_drops_stays_dropped_and_what_was_only_its_own_is_forgotten() {
    let parent = Shared::new(of(&[(Lsn(10), Entry::Size(rel(5, 1), 7))]));
    let mut branch = Catalogue::branch(parent, Lsn(20));
    branch.add_all(&[
        (Lsn(30), Entry::Size(rel(5, 2), 1)),
        (Lsn(40), Entry::Dropped(rel(5, 1))),
        (Lsn(40), Entry::Dropped(rel(5, 2))),
    ]);
    thin_resident(&mut branch, &ReadPoints::since(Lsn(50)));
    assert_eq!(branch.size(rel(5, 1), Lsn(50)), None);
    assert_eq!(branch.all_relations(Lsn(50)).count(), 0);
    // Of the second one only that its pages ended.
    assert_eq!(branch.sizes.len(), 1);
    assert_eq!(branch.life(rel(5, 2), 0, Lsn(50)).floor, Lsn(40));
}

#[test]
fn a_branch_that_is_detached_keeps_what_there_was() {
    let mut random = random(11);
    let parents = some_entries(&mut random, Lsn(0), 2);
    let start = Lsn(100);
    let parent = Shared::new(of(&parents));
    let mut branch = Catalogue::branch(parent.clone(), start);
    branch.add_all(&some_entries(&mut random, start, 2));
    let seen = |branch: &Catalogue, lsn| {
        let relations: Vec<_> = branch.all_relations(lsn).collect();
        let pages: Vec<_> = branch.slru_pages(lsn).collect();
        let files: Vec<_> = branch.files(lsn).collect();
        format!("{relations:?} {pages:?} {files:?}")
    };
    let lsns = || (100..210).map(Lsn);
    let before: Vec<_> = lsns().map(|lsn| seen(&branch, lsn)).collect();
    let base: Vec<_> = branch
        .as_of(start)
        .into_iter()
        .map(|entry| (start, entry))
        .collect();
    branch.rest_on(Shared::new(of(&base)), start);
    drop(parent);
    let after: Vec<_> = lsns().map(|lsn| seen(&branch, lsn)).collect();
    assert_eq!(after, before);
}
