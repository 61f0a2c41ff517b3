//! WAL that this acceptor said it had, and that its disk no longer returns as it was written.
//!
//! An acceptor that acknowledged WAL may be what makes it committed, so it must not come back with less: a vote or a
//! flush position that forgets it could elect a log without it. It stays silent until the WAL is whole again. Two ways
//! lead back, and [`mend`] says which of them a peer, or an object in object storage, opens:
//!
//! * **The same bytes.** Below what both know to be committed, and below the point where the two histories part, the two
//!   logs are equal byte for byte (a term has one writer), so the peer's may take the place of those that rotted.
//! * **Nothing to bring back.** A term above the last one that wrote here has committed WAL of its own on the peer. All
//!   that was ever committed under the terms that this acceptor acknowledged lies below the start of that term, hence in
//!   the peer's log, hence below the point where the two part. If what is readable here reaches that point, the rest is a
//!   fork that was given up, and goes.

use super::Durable;
use crate::history::TermHistory;
use lakebed_types::Lsn;

/// What a peer, or an object, has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy<'a> {
    /// Which term wrote what of it.
    pub history: &'a TermHistory,
    /// It is committed up to here.
    pub commit: Lsn,
    /// Its end; at or behind `commit`.
    pub end: Lsn,
}

/// What a [`Copy`] is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mend {
    /// Its bytes from `after` up to here are those that were written here.
    Wal {
        /// A position behind `after`, perhaps inside a record.
        end: Lsn,
    },
    /// What lies behind `after` here was given up by all: it may be cut off.
    Cut,
    /// Nothing: ask another one, or later.
    Nothing,
}

/// What a copy is good for to an acceptor whose WAL was acknowledged up to `below` and is readable up to `after` only.
pub fn mend(own: &Durable, (after, below): (Lsn, Lsn), copy: Copy<'_>) -> Mend {
    let Some(common) = own.term_history.common_point(below, copy.history) else {
        return Mend::Nothing;
    };
    let committed = own.commit.min(copy.commit);
    let end = common.min(copy.end).max(committed).min(below);
    if end > after {
        return Mend::Wal { end };
    }
    let committing = copy.history.below(copy.commit).last().0;
    if after >= own.commit && committing > own.term_history.last().0 {
        return Mend::Cut;
    }
    Mend::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acceptor_tests::{acceptor, history};

    #[test]
    fn a_copy_replaces_equal_wal_only_and_a_cut_needs_a_later_commit() {
        // The acceptor's history is (0, 50), (2, 100), (3, 150), committed to 100, acknowledged to 200.
        type Row = (u64, &'static [(u64, u64)], u64, u64, Mend);
        let wal = |end| Mend::Wal { end: Lsn(end) };
        let table: [Row; 11] = [
            // The same log, committed there or only flushed.
            (120, &[(0, 50), (2, 100), (3, 150)], 200, 200, wal(200)),
            (120, &[(0, 50), (2, 100), (3, 150)], 100, 180, wal(180)),
            (120, &[(0, 50), (2, 100), (3, 150)], 260, 260, wal(200)),
            (160, &[(0, 50), (2, 100), (3, 150)], 100, 160, Mend::Nothing),
            // Below the commit of both, whatever the histories say.
            (60, &[(0, 50), (2, 100), (5, 120)], 100, 120, wal(120)),
            (60, &[(0, 50), (9, 70)], 90, 90, wal(90)),
            // A log that parts from this one at 120: equal below, and no replacement above.
            (110, &[(0, 50), (2, 100), (5, 120)], 100, 180, wal(120)),
            (120, &[(0, 50), (2, 100), (5, 120)], 120, 180, Mend::Nothing),
            // Its term 5 has committed: what is here behind 120 was given up.
            (120, &[(0, 50), (2, 100), (5, 120)], 128, 180, Mend::Cut),
            // The later term was only won, and a term below ours proves nothing.
            (160, &[(0, 50), (2, 100)], 150, 150, Mend::Nothing),
            (120, &[(1, 50)], 300, 300, Mend::Nothing),
        ];
        for (after, entries, commit, end, expected) in table {
            let entries = history(entries);
            let copy = Copy {
                history: &entries,
                commit: Lsn(commit),
                end: Lsn(end),
            };
            let found = mend(acceptor().state(), (Lsn(after), Lsn(200)), copy);
            assert_eq!(found, expected, "after {after}: {copy:?}");
        }
    }
}
