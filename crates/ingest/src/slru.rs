//! Geometry of the SLRUs: which page and slot holds a transaction, a multixact or a member, and which pages a
//! truncation removes (`access/transam/{slru,clog,commit_ts,multixact}.c`).
//!
//! All numbers wrap around at 2^32, so "older" means "less than half the circle behind". Files hold 32 pages; a
//! truncation removes whole files only.

use lakebed_types::{PageKey, SlruKind};

/// Pages of an SLRU segment file (`SLRU_PAGES_PER_SEGMENT`).
pub const PAGES_PER_SEGMENT: u64 = 32;
/// Transactions of a `pg_xact` page, two bits each.
pub const CLOG_XIDS_PER_PAGE: u32 = 32_768;
/// Transactions of a `pg_commit_ts` page, ten bytes each.
pub const COMMIT_TS_XIDS_PER_PAGE: u32 = 819;
/// Multixacts of a `pg_multixact/offsets` page, four bytes each.
pub const OFFSETS_PER_PAGE: u32 = 2048;
/// Members of a `pg_multixact/members` page: 409 groups of four, 20 bytes each.
pub const MEMBERS_PER_PAGE: u32 = 1636;

const FIRST_NORMAL_XID: u32 = 3;
const FIRST_MULTI: u32 = 1;

/// Entries of a page.
pub fn entries_per_page(kind: SlruKind) -> u32 {
    match kind {
        SlruKind::Clog => CLOG_XIDS_PER_PAGE,
        SlruKind::MultiXactOffsets => OFFSETS_PER_PAGE,
        SlruKind::MultiXactMembers => MEMBERS_PER_PAGE,
        SlruKind::CommitTs => COMMIT_TS_XIDS_PER_PAGE,
    }
}

/// The page that holds an entry, and the entry's slot in it.
pub(crate) fn locate(kind: SlruKind, entry: u32) -> (PageKey, u16) {
    let per_page = entries_per_page(kind);
    let page = u64::from(entry / per_page);
    // A page has at most 32768 entries.
    (PageKey::Slru { kind, page }, (entry % per_page) as u16)
}

/// `TransactionIdPrecedes`: the special ids 0 to 2 are older than all others.
pub(crate) fn xid_precedes(a: u32, b: u32) -> bool {
    if a < FIRST_NORMAL_XID || b < FIRST_NORMAL_XID {
        return a < b;
    }
    wrapped_precedes(a, b)
}

/// `MultiXactIdPrecedes` and `MultiXactOffsetPrecedes`.
pub(crate) fn wrapped_precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Which pages of an SLRU a truncation removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlruCut {
    /// Segment files whose every page is older than this one (`SimpleLruTruncate`).
    Before {
        /// The oldest page that is needed.
        page: u64,
    },
    /// Segment files from `first` up to, not including, `end`, around the end of the number space if need be
    /// (`PerformMembersTruncation`). Equal numbers: none.
    Segments {
        /// First segment number that is gone.
        first: u64,
        /// First segment number that stays.
        end: u64,
    },
    /// All (`DeactivateCommitTs`).
    All,
}

impl SlruCut {
    /// Whether this page of this SLRU is gone.
    pub fn removes(&self, kind: SlruKind, page: u64) -> bool {
        let segment = page / PAGES_PER_SEGMENT;
        match *self {
            SlruCut::Before { page: cutoff } => {
                let first = segment * PAGES_PER_SEGMENT;
                let last = first + (PAGES_PER_SEGMENT - 1);
                page_precedes(kind, first, cutoff) && page_precedes(kind, last, cutoff)
            }
            SlruCut::Segments { first, end } if first <= end => (first..end).contains(&segment),
            SlruCut::Segments { first, end } => segment >= first || segment < end,
            SlruCut::All => true,
        }
    }
}

/// The `PagePrecedes` function of each SLRU: both ends of page `b` must be newer than the start of `a`.
fn page_precedes(kind: SlruKind, a: u64, b: u64) -> bool {
    let per_page = entries_per_page(kind);
    // All versions compute in 32 bits, those with 64-bit page numbers too; a greater one is cut just as they do.
    let first_entry = |page: u64| (page as u32).wrapping_mul(per_page);
    let (bias, precedes): (u32, fn(u32, u32) -> bool) = match kind {
        SlruKind::Clog | SlruKind::CommitTs => (FIRST_NORMAL_XID + 1, xid_precedes),
        SlruKind::MultiXactOffsets => (FIRST_MULTI + 1, wrapped_precedes),
        SlruKind::MultiXactMembers => (0, wrapped_precedes),
    };
    let (a, b) = (
        first_entry(a).wrapping_add(bias),
        first_entry(b).wrapping_add(bias),
    );
    precedes(a, b) && precedes(a, b.wrapping_add(per_page - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_removes_whole_segments_and_understands_wrap_around() {
        let clog = |cutoff, page| SlruCut::Before { page: cutoff }.removes(SlruKind::Clog, page);
        let last_clog_page = u64::from(u32::MAX / CLOG_XIDS_PER_PAGE);
        let rows = [
            (clog(31, 0), false),
            (clog(32, 0), true),
            (clog(32, 31), true),
            (clog(32, 32), false),
            (clog(40, 33), false),
            (clog(70, 33), true),
            // After wrap-around the high pages are the old ones.
            (clog(1, last_clog_page), true),
            (clog(last_clog_page, 1), false),
        ];
        for (row, (found, expected)) in rows.into_iter().enumerate() {
            assert_eq!(found, expected, "row {row}");
        }
        let members =
            |first, end, page| SlruCut::Segments { first, end }.removes(SlruKind::MultiXactMembers, page);
        assert!(members(1, 3, 32) && members(1, 3, 95) && !members(1, 3, 96) && !members(1, 3, 31));
        assert!(!members(2, 2, 64));
        assert!(members(80_000, 1, 31) && members(80_000, 1, 80_001 * 32) && !members(80_000, 1, 32));
        assert!(SlruCut::All.removes(SlruKind::CommitTs, u64::MAX));
        assert!(!SlruCut::Before { page: u64::MAX }.removes(SlruKind::Clog, u64::MAX));
    }

    #[test]
    fn comparisons_are_postgres_s() {
        assert!(xid_precedes(0, 3) && xid_precedes(2, u32::MAX) && xid_precedes(u32::MAX, 3));
        assert!(!xid_precedes(3, u32::MAX) && !xid_precedes(5, 5) && xid_precedes(5, 6));
        assert!(wrapped_precedes(u32::MAX, 0) && !wrapped_precedes(0, u32::MAX));
    }
}
