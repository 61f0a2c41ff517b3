use lakebed_types::{Generation, SlruKind};

use super::*;

fn key(page: u64) -> PageKey {
    PageKey::Slru {
        kind: SlruKind::Clog,
        page,
    }
}

fn id(number: u64) -> LayerId {
    LayerId {
        generation: Generation(1),
        number,
    }
}

fn desc(number: u64, kind: LayerKind, lsns: (u64, u64), pages: Option<(u64, u64)>) -> LayerDesc {
    LayerDesc {
        id: id(number),
        kind,
        first: Lsn(lsns.0),
        last: Lsn(lsns.1),
        pages_span: pages.map(|(low, high)| (key(low), key(high))),
        pages: 1,
        values: 1,
        bytes: 1000,
    }
}

fn flush(map: &LayerMap, layers: &[LayerDesc]) -> Result<LayerMap, MapError> {
    let (map, gone) = map.apply(&Edit::Flush(layers.to_vec()))?;
    assert_eq!(gone, []);
    Ok(map)
}

fn level0(number: u64, lsns: (u64, u64), pages: (u64, u64)) -> LayerDesc {
    desc(number, LayerKind::Level0, lsns, Some(pages))
}

fn order(map: &LayerMap, page: u64, upto: u64) -> Vec<u64> {
    map.read_order(&key(page), Lsn(upto))
        .map(|desc| desc.id.number)
        .collect()
}

fn merged(map: &LayerMap, at: usize, to: Option<u64>, through: u64) -> Box<Merged> {
    let (range, of) = map.partitions().nth(at).unwrap();
    Box::new(Merged {
        pages: PageRange {
            from: range.from,
            to: to.map(key).or(range.to),
        },
        of: of.clone(),
        through: Lsn(through),
        current: None,
        history: None,
        superseded: None,
        pinned: Vec::new(),
        reclaimed: None,
    })
}

#[test]
fn reads_ask_what_can_have_the_page_newest_first() {
    let mut map = flush(
        &LayerMap::default(),
        &[level0(1, (10, 10), (0, 4)), level0(2, (10, 10), (5, 9))],
    )
    .unwrap();
    map = flush(&map, &[level0(3, (10, 20), (0, 9)), level0(4, (20, 30), (3, 5))]).unwrap();
    // page, LSN, layers.
    let rows: [(u64, u64, &[u64]); 6] = [
        (4, 99, &[4, 3, 1]),
        (5, 99, &[4, 3, 2]),
        (2, 99, &[3, 1]),
        (4, 20, &[3, 1]),
        (4, 10, &[1]),
        (4, 9, &[]),
    ];
    for (page, upto, expected) in rows {
        assert_eq!(order(&map, page, upto), expected, "page {page} at {upto}");
    }
}

#[test]
fn a_merge_goes_from_left_to_right_and_each_step_counts() {
    let mut map = LayerMap::default();
    for (number, lsns) in [(1, (10, 10)), (2, (10, 20)), (3, (20, 30))] {
        map = flush(&map, &[level0(number, lsns, (0, 9))]).unwrap();
    }
    // Pages before 5 up to 20: two level-0 layers remain for the others.
    let mut left = merged(&map, 0, Some(5), 20);
    left.current = Some(desc(10, LayerKind::Current, (10, 20), Some((0, 4))));
    let (map, gone) = map.apply(&Edit::Merge(left.clone())).unwrap();
    assert_eq!(gone, []);
    assert_eq!(
        (order(&map, 4, 99), order(&map, 5, 99)),
        (vec![3, 10], vec![3, 2, 1])
    );
    assert_eq!(
        map.apply(&Edit::Merge(left)),
        Err(MapError::Stale(PageKey::LOWEST))
    );
    // The rest up to 30.
    let mut right = merged(&map, 1, None, 30);
    right.current = Some(desc(11, LayerKind::Current, (10, 30), Some((5, 9))));
    right.history = Some(desc(12, LayerKind::History, (10, 29), Some((5, 9))));
    let (map, gone) = map.apply(&Edit::Merge(right)).unwrap();
    assert_eq!(gone, [id(1), id(2)]);
    assert_eq!(
        (order(&map, 4, 99), order(&map, 5, 99)),
        (vec![3, 10], vec![11, 12])
    );
    // The left catches up, its current layer is replaced, level 0 is empty.
    let mut left = merged(&map, 0, None, 30);
    left.current = Some(desc(13, LayerKind::Current, (10, 30), Some((0, 4))));
    let (map, gone) = map.apply(&Edit::Merge(left)).unwrap();
    assert_eq!(gone, [id(3), id(10)]);
    assert_eq!(map.level0_layers().count(), 0);
    // A rewrite of all history of one half; it had come from before the split.
    let mut right = merged(&map, 1, Some(7), 30);
    right.current = Some(desc(14, LayerKind::Current, (10, 30), Some((5, 6))));
    right.reclaimed = Some(Reclaimed {
        horizon: Lsn(25),
        pinned: vec![Lsn(7)],
    });
    let (map, gone) = map.apply(&Edit::Merge(right)).unwrap();
    assert_eq!(gone, []);
    assert_eq!((order(&map, 6, 99), order(&map, 7, 99)), (vec![14], vec![11, 12]));
    let mut rest = merged(&map, 2, None, 30);
    rest.reclaimed = Some(Reclaimed {
        horizon: Lsn(25),
        pinned: vec![Lsn(7)],
    });
    let (map, gone) = map.apply(&Edit::Merge(rest)).unwrap();
    assert_eq!(gone, [id(11), id(12)]);
    assert_eq!(map.layers().count(), 2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let map = flush(&LayerMap::default(), &[level0(1, (10, 20), (0, 9))]).unwrap();
    let gap_down = flush(&map, &[level0(2, (15, 30), (0, 9))]);
    assert_eq!(gap_down, Err(MapError::Misplaced(id(2))));
    assert_eq!(
        flush(&map, &[level0(1, (20, 30), (0, 9))]),
        Err(MapError::Twice(id(1)))
    );
    let current = desc(3, LayerKind::Current, (20, 30), Some((0, 9)));
    assert_eq!(flush(&map, &[current]), Err(MapError::Misplaced(id(3))));
    let mut wrong = merged(&map, 0, None, 20);
    wrong.current = Some(level0(4, (10, 20), (0, 9)));
    assert_eq!(map.apply(&Edit::Merge(wrong)), Err(MapError::Misplaced(id(4))));
    let (merged_map, _) = map.apply(&Edit::Merge(merged(&map, 0, None, 20))).unwrap();
    let late = flush(&merged_map, &[level0(5, (19, 30), (0, 9))]);
    assert_eq!(late, Err(MapError::Misplaced(id(5))), "below what was merged");
}

#[test]
fn sections_are_kept_whatever_becomes_of_pages() {
    let catalogue = |number| desc(number, LayerKind::Catalogue, (0, 0), None);
    let mut map = LayerMap::default();
    for number in 1..4 {
        let page = level0(number + 10, (number * 10, number * 10 + 10), (0, 9));
        map = flush(&map, &[page, catalogue(number)]).unwrap();
    }
    let (map, _) = map.apply(&Edit::Merge(merged(&map, 0, None, 40))).unwrap();
    assert_eq!(map.catalogue(), [id(1), id(2), id(3)]);
    let with = catalogue(9);
    let edit = |replaced: &[u64]| Edit::Catalogue {
        replaced: replaced.iter().copied().map(id).collect(),
        with,
    };
    for strange in [&[1, 3][..], &[4], &[3, 4], &[]] {
        assert_eq!(map.apply(&edit(strange)), Err(MapError::Misplaced(id(9))));
    }
    let (last, gone) = map.apply(&edit(&[2, 3])).unwrap();
    assert_eq!(
        (last.catalogue(), gone),
        (&[id(1), id(9)][..], vec![id(2), id(3)])
    );
    let (map, gone) = map.apply(&edit(&[1, 2])).unwrap();
    assert_eq!((map.catalogue(), gone), (&[id(9), id(3)][..], vec![id(1), id(2)]));
}

#[test]
fn a_map_is_stored_as_text_and_checked_when_it_is_read() {
    let map = flush(&LayerMap::default(), &[level0(0x1f, (10, 20), (0, 9))]).unwrap();
    let mut split = merged(&map, 0, Some(5), 20);
    split.current = Some(desc(2, LayerKind::Current, (10, 20), Some((0, 4))));
    let (map, _) = map.apply(&Edit::Merge(split)).unwrap();
    let text = serde_json::to_string(&map).unwrap();
    let read: LayerMap = serde_json::from_str(&text).unwrap();
    assert_eq!(read, map);
    read.check().unwrap();
    let unknown: LayerMap =
        serde_json::from_str(&text.replace("\"current\":\"1-2\"", "\"current\":\"1-3\"")).unwrap();
    assert_eq!(unknown.check(), Err(MapError::Unknown(id(3))));
    let kind: LayerMap =
        serde_json::from_str(&text.replace("\"kind\":\"current\"", "\"kind\":\"history\"")).unwrap();
    assert_eq!(kind.check(), Err(MapError::Misplaced(id(2))));
    assert!(serde_json::from_str::<LayerMap>(&text.replace("\"1-1f\"", "\"1-01f\"")).is_err());
}

/// Random edits: splits, merges that rewrite history or add to it, flushes, catalogue.
fn random_edit(map: &LayerMap, number: &mut u64, random: &mut impl FnMut(u64) -> u64) -> Edit {
    let mut next = || {
        *number += 1;
        *number
    };
    let newest = map.level0_layers().next_back().map(|desc| desc.last.0);
    let through = map.partitions().map(|(_, partition)| partition.through.0).max();
    let newest = newest.max(through).unwrap_or(0);
    let kind = random(4);
    match kind {
        // There is nothing to merge in a catalogue that has no layer yet.
        0 | 1 | 3 if kind < 3 || map.catalogue().is_empty() => {
            let low = random(50);
            let layer = level0(next(), (newest, newest + 10), (low, low + random(20)));
            let catalogue = desc(next(), LayerKind::Catalogue, (newest, newest + 10), None);
            Edit::Flush(vec![layer, catalogue])
        }
        2 => {
            let at = random(map.partitions().count() as u64) as usize;
            let mut of = merged(map, at, None, newest);
            let split = key(random(60));
            if split > of.pages.from && of.pages.to.is_none_or(|to| split < to) {
                of.pages.to = Some(split);
            }
            of.current = Some(desc(next(), LayerKind::Current, (0, newest), Some((0, 90))));
            if random(2) == 0 {
                of.history = Some(desc(next(), LayerKind::History, (0, newest), Some((0, 90))));
            }
            if random(3) == 0 {
                of.reclaimed = Some(Reclaimed {
                    horizon: Lsn(newest),
                    pinned: vec![Lsn(random(100))],
                });
            }
            Edit::Merge(of)
        }
        _ => {
            let from = random(map.catalogue().len() as u64) as usize;
            let replaced: Vec<_> = map.catalogue().iter().skip(from).take(2).copied().collect();
            let with = desc(next(), LayerKind::Catalogue, (0, newest), None);
            Edit::Catalogue { replaced, with }
        }
    }
}

#[test]
fn differences_lead_from_one_map_to_another_one_by_one_and_together() {
    for seed in 1..200_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut maps, mut number) = (vec![LayerMap::default()], 0);
        for _ in 0..25 {
            let map = &maps[maps.len() - 1];
            let edit = random_edit(map, &mut number, &mut random);
            maps.push(map.apply(&edit).unwrap().0);
        }
        let changes: Vec<MapChange> = maps.windows(2).map(|pair| pair[0].change_to(&pair[1])).collect();
        for (pair, change) in maps.windows(2).zip(&changes) {
            let text = serde_json::to_string(change).unwrap();
            let read: MapChange = serde_json::from_str(&text).unwrap();
            assert_eq!(
                pair[0].clone().changed(read).unwrap(),
                pair[1],
                "seed {seed}: {text}"
            );
        }
        for _ in 0..20 {
            let from = random(25) as usize;
            let to = from + 1 + random(25 - from as u64) as usize;
            let together = changes[from..to].iter().cloned().reduce(MapChange::then).unwrap();
            assert_eq!(
                maps[from].clone().changed(together).unwrap(),
                maps[to],
                "seed {seed}: {from} to {to}"
            );
            // Of another map it is an error, or the same layers are missing from both.
            if let Ok(other) = maps[to].clone().changed(changes[from].clone()) {
                other.check().unwrap();
            }
        }
    }
}

#[test]
fn a_base_goes_below_everything_and_cuts_partitions() {
    let mut map = LayerMap::default();
    for (number, lsns) in [(1, (10, 20)), (2, (20, 30))] {
        map = flush(&map, &[level0(number, lsns, (0, 9))]).unwrap();
    }
    let mut left = merged(&map, 0, Some(5), 20);
    left.current = Some(desc(10, LayerKind::Current, (11, 20), Some((0, 4))));
    left.history = Some(desc(11, LayerKind::History, (11, 15), Some((0, 4))));
    let (map, _) = map.apply(&Edit::Merge(left)).unwrap();
    let images = |number, pages| desc(number, LayerKind::History, (10, 10), Some(pages));
    let base = |from: PageKey, pages: LayerDesc| {
        Edit::Base(Base {
            from,
            pages: Some(pages),
            catalogue: None,
        })
    };
    let mut detached = map.clone();
    let last = Edit::Base(Base {
        from: key(8),
        pages: Some(images(22, (9, 30))),
        catalogue: Some(desc(23, LayerKind::Catalogue, (10, 10), None)),
    });
    for edit in [
        base(PageKey::LOWEST, images(20, (0, 2))),
        base(key(3), images(21, (3, 7))),
        last,
    ] {
        let (next, gone) = detached.apply(&edit).unwrap();
        assert_eq!(gone, []);
        assert_eq!(detached.clone().changed(detached.change_to(&next)).unwrap(), next);
        detached = next;
    }
    let from: Vec<PageKey> = detached.partitions().map(|(range, _)| range.from).collect();
    assert_eq!(from, [PageKey::LOWEST, key(3), key(5), key(8)]);
    // page, LSN, layers.
    let rows: [(u64, u64, &[u64]); 6] = [
        (1, 99, &[2, 10, 11, 20]),
        (1, 10, &[20]),
        (4, 99, &[2, 10, 11, 21]),
        (6, 99, &[2, 1, 21]),
        (9, 99, &[2, 1, 22]),
        (25, 99, &[22]),
    ];
    for (page, upto, expected) in rows {
        assert_eq!(order(&detached, page, upto), expected, "page {page} at {upto}");
    }
    assert_eq!(detached.catalogue(), [id(23)]);

    // Before its range, pages that have a base, above what there is, of several LSNs, of another kind, without pages.
    let refused = [
        base(key(31), images(30, (30, 40))),
        base(key(8), images(30, (30, 40))),
        base(key(3), desc(30, LayerKind::History, (12, 12), Some((3, 7)))),
        base(key(31), desc(30, LayerKind::History, (9, 10), Some((31, 40)))),
        base(key(31), desc(30, LayerKind::Current, (10, 10), Some((31, 40)))),
        base(key(31), desc(30, LayerKind::History, (10, 10), None)),
    ];
    for edit in refused {
        assert_eq!(
            detached.apply(&edit),
            Err(MapError::Misplaced(id(30))),
            "{edit:?}"
        );
    }
}
