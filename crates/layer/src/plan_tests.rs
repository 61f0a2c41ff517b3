use lakebed_types::{Generation, PageKey, SlruKind};

use super::*;
use crate::{Edit, LayerDesc, LayerKind, Merged};

fn key(page: u64) -> PageKey {
    PageKey::Slru {
        kind: SlruKind::Clog,
        page,
    }
}

fn desc(number: u64, kind: LayerKind, lsns: (u64, u64), pages: Option<(u64, u64)>) -> LayerDesc {
    LayerDesc {
        id: LayerId {
            generation: Generation(1),
            number,
        },
        kind,
        first: Lsn(lsns.0),
        last: Lsn(lsns.1),
        pages_span: pages.map(|(low, high)| (key(low), key(high))),
        pages: 1,
        values: 1,
        bytes: 1000,
    }
}

/// Numbers of level-0 layers with their pages; 10 LSNs each.
fn with_level0(map: &LayerMap, layers: &[(u64, (u64, u64))]) -> LayerMap {
    let layers = layers.iter().map(|(number, pages)| {
        let lsns = (number * 10, number * 10 + 10);
        desc(*number, LayerKind::Level0, lsns, Some(*pages))
    });
    map.apply(&Edit::Flush(layers.collect())).unwrap().0
}

/// Merges the beginning of partition `at`, before page `to`, into these current and history layers.
fn merged(map: &LayerMap, at: usize, to: Option<u64>, through: u64, made: (u64, Option<u64>)) -> LayerMap {
    let (range, of) = map.partitions().nth(at).unwrap();
    let layer = |number, kind| desc(number, kind, (1, through), Some((0, 9)));
    let merged = Merged {
        pages: PageRange {
            to: to.map(key).or(range.to),
            ..range
        },
        of: of.clone(),
        through: Lsn(through),
        current: Some(layer(made.0, LayerKind::Current)),
        history: made.1.map(|number| layer(number, LayerKind::History)),
        superseded: None,
        pinned: Vec::new(),
        reclaimed: None,
    };
    map.apply(&Edit::Merge(Box::new(merged))).unwrap().0
}

const POLICY: PlanPolicy = PlanPolicy {
    level0: 2,
    layer_bytes: 1000,
    history: 2,
    waste: 8,
    catalogue: 3,
};

/// First page, LSN that is reached, inputs, horizon of a merge of history.
type Expected = (u64, u64, Vec<u64>, Option<u64>);

fn planned(map: &LayerMap, horizon: u64) -> Option<Expected> {
    match plan(
        map,
        &ReadPoints::since(Lsn(horizon)),
        &POLICY,
        &DeadBytes::default(),
    )? {
        Plan::Merge(job) => {
            let from = match job.pages.from {
                PageKey::Slru { page, .. } => page,
                _ => 0,
            };
            let inputs = job.inputs.iter().map(|id| id.number).collect();
            assert_eq!(job.of.from, job.pages.from);
            Some((
                from,
                job.through.0,
                inputs,
                job.reclaims.map(|kept| kept.horizon.0),
            ))
        }
        Plan::Catalogue(_) => panic!("no catalogue here"),
    }
}

#[test]
fn level0_is_merged_where_reads_ask_the_most_of_it() {
    let empty = LayerMap::default();
    let one = with_level0(&empty, &[(1, (0, 9))]);
    let two = with_level0(&one, &[(2, (0, 9))]);
    // Pages from 5 on have a partition of their own, which has taken over nothing.
    let split = merged(&two, 0, Some(5), 30, (20, None));
    let third = with_level0(&split, &[(3, (0, 4)), (4, (0, 4)), (5, (7, 9))]);
    let left_more = with_level0(&third, &[(6, (0, 4)), (7, (0, 4))]);
    let rows = [
        ("nothing", &empty, None),
        ("too little", &one, None),
        ("all of it", &two, Some((0, 30, vec![1, 2], None))),
        ("the other half", &split, Some((5, 30, vec![1, 2], None))),
        ("the half with more", &third, Some((5, 60, vec![1, 2, 5], None))),
        (
            "the half with more again",
            &left_more,
            Some((0, 80, vec![20, 3, 4, 6, 7], None)),
        ),
    ];
    for (what, map, expected) in rows {
        assert_eq!(planned(map, 0), expected, "{what}");
    }
}

#[test]
fn merges_are_late_when_one_part_waits_for_twice_of_what_is_enough() {
    let late = |layers| is_late(&with_level0(&merged_twice(), layers), &POLICY);
    assert!(!late(&[]));
    assert!(
        !late(&[(10, (0, 9)), (11, (0, 3)), (12, (5, 9)), (13, (0, 3))]),
        "three in each half"
    );
    assert!(
        late(&[(10, (0, 9)), (11, (0, 3)), (12, (1, 9)), (13, (0, 3))]),
        "four in the first"
    );
}

/// Two partitions, parted before page 5.
fn merged_twice() -> LayerMap {
    let map = with_level0(&LayerMap::default(), &[(1, (0, 9))]);
    let map = merged(&map, 0, Some(5), 20, (2, None));
    merged(&map, 1, None, 20, (3, None))
}

#[test]
fn history_is_rewritten_when_it_is_in_many_layers_or_old() {
    let mut map = LayerMap::default();
    for round in 0..3 {
        map = with_level0(&map, &[(round + 1, (0, 9))]);
        map = merged(&map, 0, None, round * 10 + 20, (10 + round, Some(20 + round)));
        let expected = (round == 2).then(|| (0, 40, vec![20, 21, 22, 12], Some(1)));
        assert_eq!(planned(&map, 1), expected, "{round}");
    }
    let one = merged(
        &with_level0(&LayerMap::default(), &[(1, (0, 9))]),
        0,
        None,
        20,
        (10, Some(20)),
    );
    // History of LSNs 1 to 20 and as much that is current: an eighth of all is passed at a quarter of the history.
    assert_eq!(planned(&one, 5), None);
    assert_eq!(planned(&one, 6), Some((0, 20, vec![20, 10], Some(6))));
    // Together with level 0, when that is ripe.
    let more = with_level0(&one, &[(2, (0, 9)), (3, (0, 9))]);
    assert_eq!(planned(&more, 5), Some((0, 40, vec![10, 2, 3], None)));
    assert_eq!(planned(&more, 20), Some((0, 40, vec![20, 10, 2, 3], Some(20))));
    // Without history there is nothing to rewrite.
    let none = merged(
        &with_level0(&LayerMap::default(), &[(1, (0, 9))]),
        0,
        None,
        20,
        (10, None),
    );
    assert_eq!(planned(&none, 100_000), None);
}

/// Rewrites the history of the only partition into layer `made`, of LSNs 1 to 20.
fn rewritten(map: &LayerMap, made: u64, reclaimed: Reclaimed) -> LayerMap {
    let (pages, of) = map.partitions().next().unwrap();
    let merged = Merged {
        pages,
        of: of.clone(),
        through: of.through,
        current: Some(desc(made, LayerKind::Current, (1, 20), Some((0, 9)))),
        history: Some(desc(made + 1, LayerKind::History, (1, 20), Some((0, 9)))),
        superseded: None,
        pinned: Vec::new(),
        reclaimed: Some(reclaimed),
    };
    map.apply(&Edit::Merge(Box::new(merged))).unwrap().0
}

#[test]
fn history_is_rewritten_once_when_a_single_lsn_is_not_read_any_more() {
    let level0 = with_level0(&LayerMap::default(), &[(1, (0, 9))]);
    let map = merged(&level0, 0, None, 20, (10, Some(20)));
    let with = |singles: &[u64]| {
        let singles = singles.iter().map(|lsn| (Lsn(*lsn), Lsn(*lsn)));
        ReadPoints::new(singles.chain([(Lsn(100), Lsn::MAX)]))
    };
    let reclaims =
        |map: &LayerMap, singles: &[u64]| match plan(map, &with(singles), &POLICY, &DeadBytes::default()) {
            Some(Plan::Merge(job)) => job.reclaims,
            _ => None,
        };
    // An LSN below all history has nothing of it.
    let first = reclaims(&map, &[0, 5, 9, 50]).unwrap();
    assert_eq!(
        (first.horizon, &first.pinned),
        (Lsn(100), &vec![Lsn(5), Lsn(9), Lsn(50)])
    );
    let map = rewritten(&map, 30, first);
    assert_eq!(reclaims(&map, &[0, 5, 9, 50]), None);
    assert_eq!(
        reclaims(&map, &[5, 9, 50, 70]),
        None,
        "one more keeps nothing that is gone"
    );
    let second = reclaims(&map, &[5, 50]).unwrap();
    assert_eq!(second.pinned, [Lsn(5), Lsn(50)]);
    let map = rewritten(&map, 40, second);
    assert_eq!(reclaims(&map, &[5, 50]), None);
    assert_eq!(reclaims(&map, &[]).unwrap().pinned, []);
}

#[test]
fn level0_that_fell_out_of_the_window_is_merged_before_there_is_much_of_it() {
    let map = with_level0(&LayerMap::default(), &[(1, (0, 9))]);
    assert_eq!(planned(&map, 10), None);
    assert_eq!(planned(&map, 15), Some((0, 20, vec![1], Some(15))));
}

#[test]
fn catalogue_layers_become_one() {
    // Sizes, oldest first, and how many of the newest become one.
    let rows: [(&[u64], Option<usize>); 7] = [
        (&[10, 10], None),
        (&[10, 10, 10], Some(3)),
        (&[80, 10, 10], Some(3)),
        (&[81, 10, 10], Some(2)),
        (&[400, 1000, 50, 100, 100], Some(5)),
        // The newest alone says nothing about those before it.
        (&[10_000, 1000, 1000, 1000, 1], Some(5)),
        (&[100_000, 10_000, 1], Some(2)),
    ];
    for (sizes, expected) in rows {
        let layers = (0..).zip(sizes).map(|(number, bytes)| LayerDesc {
            bytes: *bytes,
            ..desc(number, LayerKind::Catalogue, (0, 0), None)
        });
        let layers: Vec<LayerDesc> = layers.collect();
        let newest = expected.map(|count| layers[layers.len() - count..].iter().map(|desc| desc.id));
        let map = LayerMap::default().apply(&Edit::Flush(layers.clone())).unwrap().0;
        let planned = plan(&map, &ReadPoints::since(Lsn(0)), &POLICY, &DeadBytes::default());
        let expected = newest.map(|ids| Plan::Catalogue(ids.collect()));
        assert_eq!(planned, expected, "{sizes:?}");
    }
}

#[test]
fn pages_that_are_gone_are_merged_away_without_history() {
    let level0 = with_level0(&LayerMap::default(), &[(1, (0, 9))]);
    let map = merged(&level0, 0, None, 20, (10, Some(20)));
    let planned = |map: &LayerMap, dead: &[(u64, u64)]| {
        let mut gone = DeadBytes::default();
        for (number, bytes) in dead {
            gone.add(desc(*number, LayerKind::Current, (0, 0), None).id, *bytes);
        }
        match plan(map, &ReadPoints::since(Lsn(0)), &POLICY, &gone) {
            Some(Plan::Merge(job)) => {
                let inputs: Vec<u64> = job.inputs.iter().map(|id| id.number).collect();
                Some((inputs, job.through.0, job.reclaims))
            }
            _ => None,
        }
    };
    assert_eq!(planned(&map, &[]), None);
    // An eighth of the current layer, of which history is no part.
    assert_eq!(planned(&map, &[(10, 124)]), None);
    assert_eq!(planned(&map, &[(10, 125)]), Some((vec![10], 20, None)));
    assert_eq!(planned(&map, &[(10, 60), (10, 65)]), Some((vec![10], 20, None)));
    assert_eq!(planned(&map, &[(99, 1000)]), None, "that is not there");
    // Together with level 0, of which there is too little for a merge.
    let more = with_level0(&map, &[(2, (0, 9))]);
    assert_eq!(planned(&more, &[(10, 249)]), None);
    assert_eq!(
        planned(&more, &[(10, 200), (2, 50)]),
        Some((vec![10, 2], 30, None))
    );
    // A flush that had nothing but drops: what is merged now has seen them.
    let catalogue = desc(50, LayerKind::Catalogue, (30, 77), None);
    let later = more.apply(&Edit::Flush(vec![catalogue])).unwrap().0;
    assert_eq!(planned(&later, &[(10, 500)]), Some((vec![10, 2], 77, None)));
}

#[test]
fn history_is_rewritten_when_what_superseded_it_leaves_the_window() {
    let level0 = with_level0(&LayerMap::default(), &[(1, (0, 9))]);
    let (pages, of) = level0.partitions().next().unwrap();
    let made = |superseded: &[(u64, u64)], pinned: u64| {
        let mut noted = crate::Superseded::default();
        for (lsn, bytes) in superseded {
            noted.add(Lsn(*lsn), *bytes);
        }
        noted.add_pinned(pinned);
        let merged = Merged {
            pages,
            of: of.clone(),
            through: Lsn(500),
            current: Some(desc(10, LayerKind::Current, (1, 500), Some((0, 9)))),
            history: Some(desc(20, LayerKind::History, (1, 20), Some((0, 9)))),
            superseded: Some(noted),
            pinned: if pinned > 0 { vec![Lsn(5)] } else { Vec::new() },
            reclaimed: None,
        };
        level0.apply(&Edit::Merge(Box::new(merged))).unwrap().0
    };
    // Its own LSNs are long past; it is needed as long as nothing else was there.
    let map = made(&[(400, 10), (450, 30)], 0);
    let until = (0..600).find(|horizon| planned(&map, *horizon).is_some());
    assert_eq!(until, Some(400));
    let map = made(&[(400, 5), (450, 35)], 0);
    let until = (0..600).find(|horizon| planned(&map, *horizon).is_some());
    assert_eq!(
        until,
        Some(450),
        "an eighth of the history is not an eighth of all"
    );
    // What is kept for a single LSN goes when that is not read any more.
    let map = made(&[], 40);
    let with = |singles: &[u64]| {
        let singles = singles.iter().map(|lsn| (Lsn(*lsn), Lsn(*lsn)));
        let points = ReadPoints::new(singles).and_since(Lsn(500));
        plan(&map, &points, &POLICY, &DeadBytes::default())
    };
    assert_eq!(with(&[5]), None);
    assert!(matches!(with(&[]), Some(Plan::Merge(job)) if job.reclaims.is_some()));
}
