use bytes::Bytes;
use lakebed_types::{ForkNumber, SlruKind};

use super::*;
use crate::catalogue::{decode, encode};

fn rel(relnode: u32) -> RelTag {
    RelTag {
        spcnode: 1663,
        dbnode: 5 + relnode % 2,
        relnode,
        fork: ForkNumber::Main,
    }
}

pub(in crate::catalogue) fn of(entries: &[(Lsn, Entry)]) -> Catalogue {
    let mut catalogue = Catalogue::default();
    catalogue.add_all(entries);
    catalogue
}

/// Thins it as the resident one of a timeline.
pub(in crate::catalogue) fn thin_resident(catalogue: &mut Catalogue, points: &ReadPoints) {
    let mut next = Some(Progress::default());
    while let Some(progress) = next {
        next = catalogue.thin_slice(points, progress);
    }
    let times = ThinnedTimes::of(catalogue.times(), points);
    catalogue.replace_times(times);
}

/// Numbers at random below some bound.
pub(in crate::catalogue) fn random(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    }
}

/// 200 entries of few things after `start`, so many at an LSN.
pub(in crate::catalogue) fn some_entries(
    random: &mut impl FnMut(u64) -> u64,
    start: Lsn,
    each: u64,
) -> Vec<(Lsn, Entry)> {
    let mut entry = |step: u64| {
        let relation = rel(random(6) as u32);
        let blocks = random(6) as u32;
        let place = (1663, 5 + random(2) as u32);
        let path = format!("f{}", random(3));
        match random(9) {
            0..=2 => Entry::Size(relation, blocks),
            3 => Entry::Dropped(relation),
            4 => Entry::Reset(relation, blocks),
            5 => Entry::File(path, (random(2) > 0).then(|| Bytes::from(vec![step as u8]))),
            6 => Entry::SlruPage(SlruKind::Clog, random(3), random(2) > 0),
            7 => Entry::DatabaseGone(place),
            _ => Entry::DatabaseCopied {
                to: place,
                from: (1663, 1),
            },
        }
    };
    let steps = 0..200;
    steps
        .map(|step| (Lsn(start.0 + 1 + step / each), entry(step)))
        .collect()
}

fn times(catalogue: &Catalogue) -> Vec<(u64, i64)> {
    catalogue
        .times
        .iter()
        .map(|(lsn, micros)| (lsn.0, *micros))
        .collect()
}

/// Everything that can be asked at an LSN, but times.
pub(in crate::catalogue) fn seen(catalogue: &Catalogue, lsn: Lsn) -> String {
    let lives = (0..6).flat_map(|relnode| (0..6).map(move |block| (rel(relnode), block)));
    let lives: Vec<_> = lives
        .map(|(rel, block)| catalogue.life(rel, block, lsn))
        .collect();
    let relations: Vec<_> = catalogue.all_relations(lsn).collect();
    let files: Vec<_> = catalogue.files(lsn).collect();
    let slru: Vec<_> = catalogue.slru_pages(lsn).collect();
    let copied = catalogue.copied_databases(lsn);
    format!("{lives:?} {relations:?} {files:?} {slru:?} {copied:?}")
}

#[test]
fn what_is_read_stays() {
    let mut random = random(1);
    let mut given_up = 0;
    for round in 0..300 {
        let entries = some_entries(&mut random, Lsn(0), 1 + round % 3);
        let singles = [random(100), random(150)].map(|lsn| (Lsn(lsn), Lsn(lsn)));
        let points = ReadPoints::new(singles).and_since(Lsn(100 + random(110)));
        let all = of(&entries);
        let mut resident = all.clone();
        thin_resident(&mut resident, &points);
        // As layers: each run thinned by itself, the first knowing that there is nothing before it.
        let cut = random(200) as usize;
        let mut stored = Vec::new();
        for (run, is_first) in [(&entries[..cut], true), (&entries[cut..], false)] {
            let mut run = of(run);
            run.thin(&points, is_first);
            let thinned = run.entries();
            assert!(thinned.is_sorted_by_key(|(lsn, _)| *lsn));
            stored.extend(decode(encode(&thinned).into()).unwrap());
        }
        let stored = of(&stored);
        for lsn in (0..=220).map(Lsn).filter(|lsn| points.contains(*lsn)) {
            let expected = seen(&all, lsn);
            assert_eq!(seen(&resident, lsn), expected, "round {round}, resident at {lsn}");
            assert_eq!(seen(&stored, lsn), expected, "round {round}, stored at {lsn}");
        }
        assert_eq!(resident.versions(), resident.count());
        assert_eq!(all.versions(), all.count());
        given_up += all.versions() - resident.versions();
        // A second time there is nothing more to be had.
        let mut again = resident.clone();
        again.thin(&points, true);
        assert_eq!(again.versions(), resident.versions());
    }
    assert!(given_up > 300 * 50, "{given_up} versions were given up");
}

#[test]
fn what_is_dropped_is_forgotten_but_for_the_end_of_its_pages() {
    let entries: Vec<_> = (1..=1000)
        .flat_map(|number| {
            let at = Lsn(u64::from(number) * 10);
            [
                (at, Entry::Size(rel(number), 7)),
                (at, Entry::File(format!("{number}"), Some(Bytes::new()))),
                (at, Entry::SlruPage(SlruKind::Clog, u64::from(number), true)),
                (Lsn(at.0 + 1), Entry::Dropped(rel(number))),
                (Lsn(at.0 + 1), Entry::File(format!("{number}"), None)),
                (
                    Lsn(at.0 + 1),
                    Entry::SlruPage(SlruKind::Clog, u64::from(number), false),
                ),
            ]
        })
        .collect();
    let mut catalogue = of(&entries);
    catalogue.thin(&ReadPoints::since(Lsn(20_000)), true);
    assert_eq!(
        (
            catalogue.sizes.len(),
            catalogue.files.len(),
            catalogue.slru.len(),
            catalogue.versions()
        ),
        (0, 0, 0, 1000)
    );
    assert_eq!(catalogue.life(rel(5), 3, Lsn(20_000)).floor, Lsn(51));
    // What it says goes without saying only where nothing is before it.
    let mut later = of(&[(Lsn(5), Entry::Dropped(rel(1)))]);
    later.thin(&ReadPoints::since(Lsn(9)), false);
    assert_eq!(later.entries(), [(Lsn(5), Entry::Dropped(rel(1)))]);
}

#[test]
fn old_times_are_kept_less_exactly() {
    const SECOND: i64 = 1_000_000;
    // Two days; a commit each 30 ms, at odd microseconds.
    let day = 86_400 * SECOND;
    let commits = (1..)
        .map(|at| at * 30_017)
        .take_while(|micros| *micros <= 2 * day);
    let entries: Vec<_> = (1..).map(Lsn).zip(commits.map(Entry::Time)).collect();
    let exact = of(&entries);
    let mut catalogue = exact.clone();
    catalogue.thin(&ReadPoints::since(Lsn(0)), true);
    // 600 s whole, a day less that in tenths, a day in seconds.
    let expected = 600_000 / 30 + (86_400 - 600) * 10 + 86_400;
    let found = catalogue.versions() as i64;
    assert!((found - expected).abs() < expected / 100, "{found}, {expected}");
    for (micros, resolution) in [
        (day / 3, SECOND),
        (day + day / 2, SECOND / 10),
        (2 * day - 300 * SECOND, 1),
    ] {
        for step in 0..50 {
            let asked = micros + step * SECOND / 2;
            assert_eq!(
                catalogue.lsn_at(asked / resolution * resolution),
                exact.lsn_at(asked / resolution * resolution),
                "{asked}"
            );
        }
    }
    // What comes while one thins a copy stays.
    let mut resident = exact.clone();
    let thinned = ThinnedTimes::of(resident.times(), &ReadPoints::since(Lsn(0)));
    resident.add(Lsn(u64::MAX - 1), &Entry::Time(2 * day + 1));
    resident.replace_times(thinned);
    assert_eq!(resident.lsn_at(i64::MAX), Some(Lsn(u64::MAX - 1)));
    assert_eq!(resident.versions(), catalogue.versions() + 1);
    assert_eq!(resident.versions(), resident.count());
    // Below the window there is the one that counts at its begin.
    catalogue.thin(&ReadPoints::since(Lsn(1_000_000)), true);
    let (first, _) = times(&catalogue)[0];
    assert!(first <= 1_000_000 && times(&catalogue)[1].0 > 1_000_000);
    assert_eq!(catalogue.commit_at(Lsn(1_000_000)).unwrap().0, Lsn(first));
    // A clock that is set back loses nothing but what was to be given up anyway.
    let mut jumps = of(&[
        (Lsn(1), Entry::Time(50 * SECOND)),
        (Lsn(2), Entry::Time(10 * SECOND)),
        (Lsn(3), Entry::Time(10 * SECOND + 1)),
        (Lsn(4), Entry::Time(3 * day)),
    ]);
    jumps.thin(&ReadPoints::since(Lsn(0)), true);
    assert_eq!(
        times(&jumps),
        [(1, 50 * SECOND), (3, 10 * SECOND + 1), (4, 3 * day)]
    );
}
