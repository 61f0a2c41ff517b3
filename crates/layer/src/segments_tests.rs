use std::convert::Infallible;

use super::*;

/// A page is the text of its values one after the other.
struct Join;

impl MakeImage for Join {
    type Error = Infallible;

    fn ends(&mut self, _: &PageKey) -> Vec<Lsn> {
        Vec::new()
    }

    fn image(&mut self, _: &PageKey, _: Lsn, values: &[(Lsn, Value)]) -> Result<Option<Bytes>, Infallible> {
        Ok(Some(
            values.iter().flat_map(|(_, value)| value.body.to_vec()).collect(),
        ))
    }
}

/// `b10` is a value that stands alone, at 10; `d11` a delta.
fn value(text: &str) -> (Lsn, Value) {
    let kind = match &text[..1] {
        "b" => ValueKind::Base,
        _ => ValueKind::Delta,
    };
    let body = Bytes::copy_from_slice(text.as_bytes());
    (Lsn(text[1..].parse().unwrap()), Value { kind, body })
}

fn text(values: &[(Lsn, Value)]) -> String {
    let text = |(lsn, value): &(Lsn, Value)| {
        let body = String::from_utf8_lossy(&value.body);
        match value.kind {
            ValueKind::Image => format!("i{}={body}", lsn.0),
            _ => body.into_owned(),
        }
    };
    values.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// History and the current version. `x15` among the values says that a life ended at 15.
fn cut(values: &str, points: &ReadPoints, deltas: u32) -> (String, String) {
    let (history, current, _) = cut_and_superseded(values, points, deltas);
    (history, current)
}

fn cut_and_superseded(values: &str, points: &ReadPoints, deltas: u32) -> (String, String, Superseded) {
    let policy = ImagePolicy {
        deltas,
        bytes: 1 << 20,
    };
    let ends = values
        .split_whitespace()
        .filter_map(|text| text.strip_prefix('x'));
    let ends = ends.map(|lsn| Lsn(lsn.parse().unwrap())).collect();
    let (mut segments, mut history) = (Segments::new(ends), Vec::new());
    let mut superseded = Superseded::default();
    let values = values.split_whitespace().filter(|text| !text.starts_with('x'));
    for (lsn, value) in values.map(value) {
        let cut = segments.push((&PageKey::Control, lsn, value), (&policy, points), &mut Join);
        let cut = cut.unwrap();
        history.extend(cut.history);
        superseded.add_all(&cut.superseded);
    }
    let (cut, current) = segments
        .end(&PageKey::Control, (&policy, points), &mut Join)
        .unwrap();
    history.extend(cut.history);
    superseded.add_all(&cut.superseded);
    (text(&history), text(&current), superseded)
}

#[test]
fn segments_go_where_reads_find_them() {
    let many = 99;
    let points = |list: &[(u64, u64)]| ReadPoints::new(list.iter().map(|(from, to)| (Lsn(*from), Lsn(*to))));
    let all = points(&[(0, u64::MAX)]);
    // Values, LSNs that are read, deltas that make an image; history, current.
    let rows = [
        ("b10 d11 d12", &all, many, "", "b10 d11 d12"),
        ("b10 d11 b20 d21", &all, many, "b10 d11", "b20 d21"),
        ("d10 d11 b20", &all, many, "d10 d11", "b20"),
        // Read only from 20 on, or at single LSNs.
        ("b10 d11 b20 d21", &points(&[(20, u64::MAX)]), many, "", "b20 d21"),
        (
            "b10 d11 b20 d21",
            &points(&[(19, u64::MAX)]),
            many,
            "b10 d11",
            "b20 d21",
        ),
        (
            "b10 d11 d15 b20 d21",
            &points(&[(12, 12), (30, u64::MAX)]),
            many,
            "b10 d11",
            "b20 d21",
        ),
        (
            "b10 d11 d15 b20 d21",
            &points(&[(9, 9), (30, u64::MAX)]),
            many,
            "",
            "b20 d21",
        ),
        (
            "b10 b20 b30 b40",
            &points(&[(25, 25), (35, 35)]),
            many,
            "b20 b30",
            "b40",
        ),
        // The newest version is kept when nothing is read.
        ("b10 d11", &points(&[]), many, "", "b10 d11"),
        // Two values at one LSN: reads of it begin at the second.
        ("b10 b10 d10", &all, many, "", "b10 d10"),
        // Images. The delta that an image includes is not read any more.
        ("b10 d11 d12", &all, 2, "b10 d11", "i12=b10d11d12"),
        ("b10 d11 d12 d13", &all, 2, "b10 d11", "i12=b10d11d12 d13"),
        ("b10 d11 d12 d12 d13", &all, 2, "b10 d11", "i12=b10d11d12d12 d13"),
        ("b10 d11 d12 b13", &all, 2, "b10 d11 i12=b10d11d12", "b13"),
        ("b10 d11 d12 b12", &all, 2, "b10 d11", "b12"),
        ("d10 d11", &all, 2, "d10", "i11=d10d11"),
        (
            "b10 d11 d12 d13 d14",
            &points(&[(14, u64::MAX)]),
            2,
            "",
            "i14=b10d11d12d13d14",
        ),
        // Ends of lives. What comes later stands on nothing of before.
        ("b10 d11 x15", &all, many, "b10 d11", ""),
        ("b10 d11 x15", &points(&[(15, u64::MAX)]), many, "", ""),
        ("b10 d11 x15", &points(&[(14, u64::MAX)]), many, "b10 d11", ""),
        (
            "b10 d13 x15",
            &points(&[(12, 12), (15, u64::MAX)]),
            many,
            "b10",
            "",
        ),
        (
            "b10 d15 x15 d16",
            &points(&[(15, u64::MAX)]),
            many,
            "",
            "i15= d16",
        ),
        (
            "b10 x12 x14 d15 d16",
            &points(&[(13, 13)]),
            many,
            "",
            "i14= d15 d16",
        ),
        ("b10 x12 b13", &all, many, "b10", "b13"),
        ("b10 x12 d13 x14 d15", &all, many, "b10 i12= d13", "i14= d15"),
        ("x5 b10 d11", &all, many, "", "b10 d11"),
        ("x5 d10 d11", &all, many, "", "i5= d10 d11"),
        (
            "d10 d11 x12 d13 d14 d15",
            &all,
            3,
            "d10 d11 i12= d13 d14",
            "i15=d13d14d15",
        ),
    ];
    for (values, points, deltas, history, current) in rows {
        let found = cut(values, points, deltas);
        assert_eq!(
            found,
            (history.to_owned(), current.to_owned()),
            "{values} {points:?} {deltas}"
        );
    }
}

#[test]
fn it_is_known_until_when_the_window_needs_history() {
    let points = |singles: &[u64], horizon| {
        let singles = singles.iter().map(|lsn| (Lsn(*lsn), Lsn(*lsn)));
        ReadPoints::new(singles).and_since(Lsn(horizon))
    };
    // Values; LSNs that are read; when how many of their bytes are superseded, and how many are for single LSNs.
    type Row = (&'static str, ReadPoints, &'static [(u64, u64)], u64);
    let rows: [Row; 6] = [
        ("b10 d11", points(&[], 0), &[], 0),
        ("b10 d11 b20 b30", points(&[], 0), &[(20, 6), (30, 3)], 0),
        ("b10 d11 b20 b30", points(&[], 20), &[(30, 3)], 0),
        ("b10 d11 b20 b30", points(&[15], 20), &[(30, 3)], 6),
        ("b10 d11 b20 b30", points(&[10], 30), &[], 3),
        ("b10 d11 x80", points(&[], 20), &[(80, 6)], 0),
    ];
    for (values, points, steps, pinned) in rows {
        let (_, _, superseded) = cut_and_superseded(values, &points, 99);
        let mut expected = Superseded::default();
        steps
            .iter()
            .for_each(|(lsn, bytes)| expected.add(Lsn(*lsn), *bytes));
        expected.add_pinned(pinned);
        assert_eq!(superseded, expected, "{values} {points:?}");
    }
}

#[test]
fn whatever_is_read_is_there() {
    // All sequences of six values, some with the LSN of the one before.
    for shape in 0..4_u32.pow(6) {
        let (mut values, mut lsn) = (Vec::new(), 10);
        for place in 0..6 {
            let digit = shape / 4_u32.pow(place) % 4;
            lsn += u64::from(digit & 1);
            values.push(format!("{}{lsn}", if digit & 2 == 0 { "d" } else { "b" }));
        }
        let parsed: Vec<_> = values.iter().map(|text| value(text)).collect();
        for (points, ends) in [
            (vec![(0, u64::MAX)], vec![]),
            (vec![(11, 11), (13, u64::MAX)], vec![]),
            (vec![(12, 12), (99, u64::MAX)], vec![]),
            (vec![(0, u64::MAX)], vec![12]),
            (vec![(11, 11), (13, u64::MAX)], vec![11, 13]),
            (vec![(12, 12), (99, u64::MAX)], vec![13, 19]),
        ] {
            let points = ReadPoints::new(points.into_iter().map(|(from, to)| (Lsn(from), Lsn(to))));
            let given: Vec<_> = values
                .iter()
                .cloned()
                .chain(ends.iter().map(|end| format!("x{end}")))
                .collect();
            let (history, current) = cut(&given.join(" "), &points, 2);
            let kept = format!("{history} {current}");
            for at in (10..20).filter(|at| points.contains(Lsn(*at))) {
                let floor = ends.iter().copied().filter(|end| *end <= at).max();
                let page = |list: &[(Lsn, String, bool)]| {
                    let seen = |lsn: Lsn| lsn.0 <= at && Some(lsn.0) > floor;
                    let seen: Vec<_> = list.iter().filter(|(lsn, ..)| seen(*lsn)).collect();
                    let base = seen.iter().rposition(|(.., alone)| *alone).unwrap_or(0);
                    seen[base..]
                        .iter()
                        .map(|(_, body, _)| body.as_str())
                        .collect::<String>()
                };
                let whole: Vec<_> = parsed
                    .iter()
                    .map(|(lsn, value)| {
                        let body = String::from_utf8(value.body.to_vec()).unwrap();
                        (*lsn, body, value.kind.stands_alone())
                    })
                    .collect();
                let kept: Vec<_> = kept.split_whitespace().map(parse_kept).collect();
                assert_eq!(page(&kept), page(&whole), "{given:?} at {at}: {kept:?}");
            }
        }
    }
}

fn parse_kept(text: &str) -> (Lsn, String, bool) {
    match text.split_once('=') {
        Some((image, body)) => (Lsn(image[1..].parse().unwrap()), body.to_owned(), true),
        None => (
            Lsn(text[1..].parse().unwrap()),
            text.to_owned(),
            text.starts_with('b'),
        ),
    }
}
