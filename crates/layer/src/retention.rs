//! Which LSNs are still read.
//!
//! Retention is one notion: a set of LSNs, given from outside. The window of point-in-time recovery is an interval that
//! ends at [`Lsn::MAX`]; a branch point, a lease or a database that was copied from its template is a single LSN.
//! Compaction keeps, for each page, what a read at one of them replays, and drops everything else. There is no other
//! garbage collection.

use lakebed_types::Lsn;

/// LSNs that are read. The newest version of a page is kept in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPoints {
    /// Closed, ascending, with a gap between each two.
    intervals: Vec<(Lsn, Lsn)>,
}

impl ReadPoints {
    /// The union of closed intervals; those that end before they begin are empty.
    pub fn new(intervals: impl IntoIterator<Item = (Lsn, Lsn)>) -> ReadPoints {
        let mut given: Vec<_> = intervals.into_iter().filter(|(from, to)| from <= to).collect();
        given.sort_unstable();
        let mut intervals: Vec<(Lsn, Lsn)> = Vec::with_capacity(given.len());
        for (from, to) in given {
            match intervals.last_mut() {
                Some((_, end)) if from.0 <= end.0.saturating_add(1) => *end = to.max(*end),
                _ => intervals.push((from, to)),
            }
        }
        ReadPoints { intervals }
    }

    /// Everything from `lsn` on, and nothing else.
    pub fn since(lsn: Lsn) -> ReadPoints {
        ReadPoints::new([(lsn, Lsn::MAX)])
    }

    /// These, and everything from `lsn` on.
    pub fn and_since(self, lsn: Lsn) -> ReadPoints {
        ReadPoints::new(self.intervals.into_iter().chain([(lsn, Lsn::MAX)]))
    }

    /// These, and `lsn`.
    pub fn and(self, lsn: Lsn) -> ReadPoints {
        ReadPoints::new(self.intervals.into_iter().chain([(lsn, lsn)]))
    }

    /// Whether reads at `lsn` are answered.
    pub fn contains(&self, lsn: Lsn) -> bool {
        lsn.checked_add(1)
            .map_or(self.intervals.last().is_some_and(|(_, to)| *to == lsn), |after| {
                self.newest_in(lsn, after).is_some()
            })
    }

    /// The greatest LSN of the set in `from..before`.
    pub fn newest_in(&self, from: Lsn, before: Lsn) -> Option<Lsn> {
        let last = Lsn(before.0.checked_sub(1)?);
        let begun = self.intervals.partition_point(|(begin, _)| *begin <= last);
        let (_, to) = self.intervals.get(begun.checked_sub(1)?)?;
        Some((*to).min(last)).filter(|lsn| *lsn >= from)
    }

    /// The newest LSN of each interval that ends below `lsn`.
    pub fn below(&self, lsn: Lsn) -> impl Iterator<Item = Lsn> + '_ {
        let ends = self.intervals.iter().map(|(_, to)| *to);
        ends.take_while(move |to| *to < lsn)
    }

    /// Begin of the interval that has no end: older LSNs are single points or gaps.
    pub fn horizon(&self) -> Option<Lsn> {
        let open = self.intervals.last().filter(|(_, to)| *to == Lsn::MAX);
        open.map(|(from, _)| *from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_one_set() {
        let points = ReadPoints::new(
            [(50, 60), (10, 10), (61, 65), (9, 3), (90, u64::MAX), (55, 58)]
                .map(|(from, to)| (Lsn(from), Lsn(to))),
        );
        let expected = [(10, 10), (50, 65), (90, u64::MAX)].map(|(from, to)| (Lsn(from), Lsn(to)));
        assert_eq!(points.intervals, expected);
        // from, before, the newest LSN between them.
        let rows = [
            (0, 10, None),
            (0, 11, Some(10)),
            (10, 11, Some(10)),
            (11, 50, None),
            (0, 51, Some(50)),
            (52, 60, Some(59)),
            (52, 80, Some(65)),
            (66, 90, None),
            (66, 91, Some(90)),
            (0, u64::MAX, Some(u64::MAX - 1)),
            (5, 5, None),
            (0, 0, None),
        ];
        for (from, before, expected) in rows {
            let found = points.newest_in(Lsn(from), Lsn(before));
            assert_eq!(found, expected.map(Lsn), "{from}..{before}");
        }
        for (lsn, inside) in [
            (9, false),
            (10, true),
            (66, false),
            (89, false),
            (90, true),
            (u64::MAX, true),
        ] {
            assert_eq!(points.contains(Lsn(lsn)), inside, "{lsn}");
        }
        assert_eq!(points.horizon(), Some(Lsn(90)));
        let none = ReadPoints::new([(Lsn(3), Lsn(4))]);
        assert_eq!((none.horizon(), none.contains(Lsn::MAX)), (None, false));
    }
}
