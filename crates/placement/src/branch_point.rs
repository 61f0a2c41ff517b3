//! Which timeline holds a position, and how far a quorum of safekeepers has committed.

use std::collections::BTreeMap;

use lakebed_types::{Lsn, NodeId, Term, TimelineId};

use crate::state::{SafekeeperSet, Tenant, Timeline};

/// What one safekeeper says about a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Term of the last WAL it holds, and where that term starts.
    pub last_term: (Term, Lsn),
    /// Up to where it flushed.
    pub flush: Lsn,
    /// Up to where it knows the WAL as committed.
    pub commit: Lsn,
}

/// How far the WAL is committed, judged from the reports of a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The highest position that a safekeeper was told to be committed. What pageservers can reach.
    pub known: Lsn,
    /// The highest position that may have been acknowledged: no quorum can have flushed more. Above `known` for the moment between
    /// a quorum's flushes and the proposer's next message, and it may stay there when the proposer dies in that moment.
    pub possible: Lsn,
}

/// What must be known as committed before a branch is made: everything up to a position, or [all](Awaited::all).
#[derive(Clone, Copy, Debug)]
pub struct Awaited(Option<Lsn>);

impl Awaited {
    /// Everything that was possibly acknowledged when it is looked at first. What is later came after the question, and while
    /// there is much to commit there is always more of it.
    pub fn all() -> Awaited {
        Awaited(None)
    }

    /// Everything up to a position.
    pub fn upto(lsn: Lsn) -> Awaited {
        Awaited(Some(lsn))
    }

    /// Whether the wait is over, by one more look: it is known.
    pub fn is_known(&mut self, head: &Head) -> bool {
        let awaited = self.0.get_or_insert(head.possible);
        // A report that was missing may tell that it is less.
        *awaited = head.possible.min(*awaited);
        head.known >= *awaited
    }
}

/// The head of a timeline, or `None` while the reports are no quorum of every set.
///
/// What was acknowledged is flushed by a quorum. So it is not above what a quorum can have flushed, where those who did not report may
/// have everything. WAL of an older term counts up to where the last term starts: its proposer met a quorum and had from it
/// all that was committed.
pub fn head(set: &SafekeeperSet, reports: &BTreeMap<NodeId, Report>) -> Option<Head> {
    if !set.is_quorum(|node| reports.contains_key(&node)) {
        return None;
    }
    let members = set.members();
    let reports: BTreeMap<_, _> = reports
        .iter()
        .filter(|(node, _)| members.contains(node))
        .collect();
    let known = reports.values().map(|report| report.commit).max()?;
    let last_term = reports.values().map(|report| report.last_term).max()?;
    let flushed = |report: &Report| match report.last_term.0 == last_term.0 {
        true => report.flush,
        false => report.flush.min(last_term.1),
    };
    let may_have =
        |at: Lsn| set.is_quorum(|node| reports.get(&node).is_none_or(|report| flushed(report) >= at));
    let candidates = reports.values().map(|report| flushed(report));
    let possible = candidates.filter(|&at| may_have(at)).max();
    Some(Head {
        known,
        possible: possible.map_or(known, |lsn| lsn.max(known)),
    })
}

/// The timeline whose own WAL holds `lsn`: this one or an ancestor. `None` before the first position of its history,
/// which is that of the tenant or, with an ancestor that was detached, that ancestor's start.
pub fn holder(tenant: &Tenant, timeline: TimelineId, lsn: Lsn) -> Option<TimelineId> {
    let mut family = family(tenant, timeline);
    family
        .find(|(_, member)| lsn >= member.start_lsn)
        .map(|(id, _)| id)
}

/// Where the history of a timeline begins: the start of its oldest ancestor. Invalid if there is no such timeline.
pub fn history_start(tenant: &Tenant, timeline: TimelineId) -> Lsn {
    let oldest = family(tenant, timeline).last();
    oldest.map_or(Lsn::INVALID, |(_, oldest)| oldest.start_lsn)
}

/// A timeline and its ancestors, youngest first.
fn family(tenant: &Tenant, timeline: TimelineId) -> impl Iterator<Item = (TimelineId, &Timeline)> {
    let find = move |id: TimelineId| tenant.timelines.get(&id).map(|found| (id, found));
    let members = std::iter::successors(find(timeline), move |(_, younger)| find(younger.parent?));
    // Bounded by the number of timelines, so that even a cycle in damaged data ends.
    members.take(tenant.timelines.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, timeline_id};
    use lakebed_types::Generation;

    #[test]
    fn the_head_of_a_quorum() {
        let set = |current: &[u64], next: Option<&[u64]>| SafekeeperSet {
            generation: Generation(1),
            current: current.iter().copied().map(NodeId).collect(),
            next: next.map(|next| next.iter().copied().map(NodeId).collect()),
        };
        let three = set(&[1, 2, 3], None);
        // Rows: what is tested, the set, (node, last term, its start, flush, commit), expected (known, possible).
        type Row<'a> = (
            &'a str,
            &'a SafekeeperSet,
            &'a [(u64, u64, u64, u64, u64)],
            Option<(u64, u64)>,
        );
        let joint = set(&[1, 2, 3], Some(&[3, 4, 5]));
        let rows: &[Row] = &[
            ("one of three is no quorum", &three, &[(1, 1, 10, 50, 50)], None),
            (
                "all agree",
                &three,
                &[(1, 1, 10, 50, 50), (2, 1, 10, 50, 50)],
                Some((50, 50)),
            ),
            (
                "flushed by two, not told yet",
                &three,
                &[(1, 1, 10, 60, 40), (2, 1, 10, 70, 30), (3, 1, 10, 50, 40)],
                Some((40, 60)),
            ),
            (
                "the same, and perhaps more by the one that does not report",
                &three,
                &[(1, 1, 10, 60, 40), (2, 1, 10, 70, 30)],
                Some((40, 70)),
            ),
            (
                "flushed by one only",
                &three,
                &[(1, 1, 10, 90, 40), (2, 1, 10, 40, 40), (3, 1, 10, 40, 40)],
                Some((40, 40)),
            ),
            (
                "flushed by one, and perhaps by the one that does not report",
                &three,
                &[(1, 1, 10, 90, 40), (2, 1, 10, 40, 40)],
                Some((40, 90)),
            ),
            (
                "flushes of an older term count up to the start of the last one",
                &three,
                &[(1, 2, 50, 60, 40), (2, 1, 10, 90, 40), (3, 1, 10, 90, 40)],
                Some((40, 50)),
            ),
            (
                "flushed below the term's start: acknowledged by the term before, perhaps",
                &three,
                &[(1, 2, 80, 70, 40), (2, 2, 80, 75, 40), (3, 1, 10, 60, 40)],
                Some((40, 70)),
            ),
            (
                "a stranger does not count",
                &three,
                &[(1, 1, 10, 50, 50), (9, 1, 10, 50, 50)],
                None,
            ),
            (
                "joint: old majority alone",
                &joint,
                &[(1, 1, 10, 50, 50), (2, 1, 10, 50, 50)],
                None,
            ),
            (
                "joint: both",
                &joint,
                &[
                    (1, 1, 10, 50, 20),
                    (2, 1, 10, 10, 10),
                    (3, 1, 10, 50, 20),
                    (4, 1, 10, 45, 20),
                    (5, 1, 10, 10, 10),
                ],
                Some((20, 45)),
            ),
        ];
        for (what, set, reports, expected) in rows {
            let reports = reports.iter().map(|&(node, term, start, flush, commit)| {
                let last_term = (Term(term), Lsn(start));
                (
                    NodeId(node),
                    Report {
                        last_term,
                        flush: Lsn(flush),
                        commit: Lsn(commit),
                    },
                )
            });
            let got = head(set, &reports.collect());
            let expected = expected.map(|(known, possible)| Head {
                known: Lsn(known),
                possible: Lsn(possible),
            });
            assert_eq!(got, expected, "{what}");
        }
    }

    #[test]
    fn a_wait_for_the_head_ends_although_more_is_committed_meanwhile() {
        let looks = |mut awaited: Awaited, heads: &[(u64, u64)]| {
            let heads = heads.iter().map(|&(known, possible)| Head {
                known: Lsn(known),
                possible: Lsn(possible),
            });
            heads.map(|head| awaited.is_known(&head)).collect::<Vec<_>>()
        };
        let busy = [(40, 60), (50, 80), (60, 90)];
        assert_eq!(looks(Awaited::all(), &busy), [false, false, true]);
        assert_eq!(looks(Awaited::upto(Lsn(50)), &busy), [false, true, true]);
        assert_eq!(looks(Awaited::all(), &[(40, 40)]), [true]);
        // The one that did not answer the first time does not have it either.
        assert_eq!(looks(Awaited::all(), &[(40, 60), (50, 50)]), [false, true]);
    }

    #[test]
    fn a_position_belongs_to_the_youngest_ancestor_that_holds_it() {
        let mut state = fixture::active();
        fixture::apply(&mut state, fixture::branch("b", 2, 1, 2000)).unwrap();
        fixture::make_ready(&mut state, 2);
        fixture::apply(&mut state, fixture::branch("c", 3, 2, 3000)).unwrap();
        let tenant = &state.tenants[&fixture::tenant_id(1)];
        let rows = [
            (5000, Some(3)),
            (3000, Some(3)),
            (2999, Some(2)),
            (2000, Some(2)),
            (1000, Some(1)),
            (999, None),
        ];
        for (lsn, expected) in rows {
            assert_eq!(
                holder(tenant, timeline_id(3), Lsn(lsn)),
                expected.map(timeline_id),
                "{lsn}"
            );
        }
        assert_eq!(history_start(tenant, timeline_id(3)), Lsn(1000));

        // What is before the start of one that was detached is not its history.
        fixture::apply(&mut state, fixture::detach("b")).unwrap();
        fixture::apply(&mut state, fixture::detached(2)).unwrap();
        let tenant = &state.tenants[&fixture::tenant_id(1)];
        let rows = [
            (3, 2999, Some(2)),
            (3, 2000, Some(2)),
            (3, 1999, None),
            (1, 1999, Some(1)),
        ];
        for (timeline, lsn, expected) in rows {
            let found = holder(tenant, timeline_id(timeline), Lsn(lsn));
            assert_eq!(found, expected.map(timeline_id), "{timeline} {lsn}");
        }
        for (timeline, start) in [(3, Lsn(2000)), (2, Lsn(2000)), (1, Lsn(1000)), (9, Lsn::INVALID)] {
            assert_eq!(history_start(tenant, timeline_id(timeline)), start, "{timeline}");
        }
    }

    #[test]
    fn damaged_data_with_a_cycle_of_parents_ends_every_search() {
        let mut state = fixture::active();
        fixture::apply(&mut state, fixture::branch("b", 2, 1, 2000)).unwrap();
        let tenant = state.tenants.get_mut(&fixture::tenant_id(1)).unwrap();
        tenant.timelines.get_mut(&timeline_id(1)).unwrap().parent = Some(timeline_id(2));
        assert_eq!(holder(tenant, timeline_id(2), Lsn(999)), None);
        assert!(history_start(tenant, timeline_id(2)).is_valid());
    }
}
