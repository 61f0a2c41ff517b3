//! WAL objects in object storage: their names, and what a set of them covers.
//!
//! ```text
//! tenants/<tenant>/wal/<timeline>/<begin>-<end>-<term>-<node>-<kind>
//! ```
//!
//! Numbers are 16 hexadecimal digits. `term` wrote the last byte, `node` uploaded it, kind `w` is a whole segment and `p`
//! a part of one. Only committed WAL is uploaded, so objects of the same range hold the same WAL whoever wrote them:
//! several uploaders at once do no harm, and any object may be read. A *segment* here is cut at record boundaries: it
//! reaches from the last boundary at or below one segment file's start to the last one at or below the next file's.

use lakebed_types::{Lsn, NodeId, TenantId, Term, TimelineId};

/// An object's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalObject {
    /// First byte, a record boundary.
    pub begin: Lsn,
    /// Behind the last one, a record boundary.
    pub end: Lsn,
    /// Term that wrote the last byte.
    pub term: Term,
    /// Who uploaded it.
    pub node: NodeId,
    /// A whole segment, and not a part.
    pub whole: bool,
}

/// Where a timeline's WAL objects are.
pub fn directory(tenant: TenantId, timeline: TimelineId) -> String {
    format!("tenants/{tenant}/wal/{timeline}")
}

impl WalObject {
    /// Its name in the timeline's directory.
    pub fn name(&self) -> String {
        let kind = if self.whole { 'w' } else { 'p' };
        format!(
            "{:016x}-{:016x}-{:016x}-{:016x}-{kind}",
            self.begin.0, self.end.0, self.term.0, self.node.0
        )
    }

    /// Takes a path's last part apart, if it is a name of this form.
    pub fn parse(path: &str) -> Option<WalObject> {
        let name = path.rsplit('/').next()?;
        let mut parts = name.split('-');
        let mut number = || {
            let digits = parts.next().filter(|digits| digits.len() == 16)?;
            u64::from_str_radix(digits, 16).ok()
        };
        let (begin, end, term, node) = (number()?, number()?, number()?, number()?);
        let whole = match (parts.next()?, parts.next()) {
            ("w", None) => true,
            ("p", None) => false,
            _ => return None,
        };
        (begin <= end).then_some(WalObject {
            begin: Lsn(begin),
            end: Lsn(end),
            term: Term(term),
            node: NodeId(node),
            whole,
        })
    }

    /// Whether `other` makes this one superfluous.
    pub fn is_within(&self, other: &WalObject) -> bool {
        self != other && !self.whole && other.begin <= self.begin && self.end <= other.end
    }
}

/// How far the objects reach without a gap from `from` on.
pub fn covered<'a>(from: Lsn, objects: impl Iterator<Item = &'a WalObject> + Clone) -> Lsn {
    chain(from, objects).last().map_or(from, |object| object.end)
}

/// The fewest objects that cover what [`covered`] says, in order.
pub fn chain<'a>(from: Lsn, objects: impl Iterator<Item = &'a WalObject> + Clone) -> Vec<WalObject> {
    let (mut at, mut found) = (from, Vec::new());
    loop {
        let reaching = objects
            .clone()
            .filter(|object| object.begin <= at && object.end > at);
        // Of equals a whole one, so that a part may go meanwhile.
        let Some(furthest) = reaching.max_by_key(|object| (object.end, object.whole)) else {
            return found;
        };
        at = furthest.end;
        found.push(*furthest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(begin: u64, end: u64, whole: bool) -> WalObject {
        WalObject {
            begin: Lsn(begin),
            end: Lsn(end),
            term: Term(3),
            node: NodeId(2),
            whole,
        }
    }

    #[test]
    fn names_sort_by_position_and_parse() {
        let some = object(0x0155_4d60, 0x0200_0000, true);
        let name = some.name();
        assert_eq!(
            name,
            "0000000001554d60-0000000002000000-0000000000000003-0000000000000002-w"
        );
        assert_eq!(WalObject::parse(&format!("tenants/x/wal/y/{name}")), Some(some));
        assert!(name < object(0x0200_0000, 0x0200_0008, false).name());
        for other in [
            "",
            "tmp#1",
            &name[1..],
            &format!("{name}x"),
            &format!("{name}-p"),
            &name.replace("-w", "-q"),
        ] {
            assert_eq!(WalObject::parse(other), None, "{other}");
        }
        let backwards = object(9, 8, true).name();
        assert_eq!(WalObject::parse(&backwards), None);
    }

    #[test]
    fn coverage_has_no_gaps_and_takes_few_objects() {
        let (part, longer) = (object(10, 20, false), object(10, 30, false));
        let (whole, next) = (object(10, 50, true), object(50, 60, false));
        let far = object(70, 90, true);
        let all = [part, longer, whole, next, far];
        for (from, objects, end, fewest) in [
            (10, &all[..], 60, vec![whole, next]),
            (10, &all[..2], 30, vec![longer]),
            (15, &all[..1], 20, vec![part]),
            (60, &all[..], 60, vec![]),
            (70, &all[..], 90, vec![far]),
            (9, &all[..], 9, vec![]),
        ] {
            assert_eq!(covered(Lsn(from), objects.iter()), Lsn(end), "from {from}");
            assert_eq!(chain(Lsn(from), objects.iter()), fewest, "from {from}");
        }
        assert!(part.is_within(&whole) && part.is_within(&longer));
        assert!(
            !whole.is_within(&whole) && !whole.is_within(&object(0, 99, true)) && !next.is_within(&whole)
        );
    }
}
