//! Segments of the SLRUs in a basebackup: with their pages, or only their size.
//!
//! A cluster keeps two bits of `pg_xact` for each transaction back to its oldest unfrozen one, and more for multixacts
//! and commit times: hundreds of megabytes where much is written, of which a start reads next to nothing. So only the
//! segments that new entries go into are sent whole, and of the others that they are there: a compute asks for their
//! pages as it does for those of relations. Where all of it is little, it is sent.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lakebed_ingest::slru::entries_per_page;
use lakebed_types::data_directory::SLRU_SEGMENT_PAGES;
use lakebed_types::{Lsn, PAGE_SIZE, PageKey, SlruKind};
use lakebed_wal::control::Checkpoint;

use super::{BackupItem, BasebackupError};
use crate::timeline::Timeline;

/// With this many pages of SLRUs or fewer all are sent: asking for one costs as much as sending some.
const FEW_PAGES: usize = 64;

type Segment = (SlruKind, u64);

/// The files. With `on_demand` some come without their pages.
pub(super) fn items(
    timeline: &Timeline,
    lsn: Lsn,
    next: &Checkpoint,
    on_demand: bool,
) -> Result<Vec<BackupItem>, BasebackupError> {
    let pages: Vec<(SlruKind, u64)> = timeline.catalogue(|catalogue| catalogue.slru_pages(lsn).collect());
    let mut segments: BTreeMap<Segment, Vec<u64>> = BTreeMap::new();
    for (kind, page) in pages {
        let segment = segments.entry((kind, page / SLRU_SEGMENT_PAGES)).or_default();
        segment.push(page % SLRU_SEGMENT_PAGES);
    }
    let later = if on_demand {
        later(&segments, next)
    } else {
        BTreeSet::new()
    };
    let mut items = Vec::new();
    for ((kind, segment), pages) in segments {
        let path = format!("{}/{segment:04X}", kind.directory());
        let bytes = pages.last().map_or(0, |last| last + 1) * PAGE_SIZE as u64;
        if later.contains(&(kind, segment)) {
            items.push(BackupItem::OnDemand { path, bytes });
            continue;
        }
        let mut pieces = Vec::new();
        for page in pages {
            let key = PageKey::Slru {
                kind,
                page: segment * SLRU_SEGMENT_PAGES + page,
            };
            let content = timeline.page(&key, lsn)?;
            pieces.push((page * PAGE_SIZE as u64, Bytes::copy_from_slice(&content[..])));
        }
        items.push(BackupItem::File { path, bytes, pieces });
    }
    Ok(items)
}

/// The segments whose pages a compute asks for when it reads them. `segments` holds the pages of each in order.
fn later(segments: &BTreeMap<Segment, Vec<u64>>, next: &Checkpoint) -> BTreeSet<Segment> {
    if segments.values().map(Vec::len).sum::<usize>() <= FEW_PAGES {
        return BTreeSet::new();
    }
    let written = SlruKind::ALL.map(|kind| {
        let entry = match kind {
            // The epoch is in the high half.
            SlruKind::Clog | SlruKind::CommitTs => next.next_xid as u32,
            SlruKind::MultiXactOffsets => next.next_multi,
            SlruKind::MultiXactMembers => next.next_multi_offset,
        };
        (
            kind,
            u64::from(entry / entries_per_page(kind)) / SLRU_SEGMENT_PAGES,
        )
    });
    // A page in the middle that does not exist reads as zeros in a file, and cannot be asked for.
    let whole = |pages: &[u64]| (0..).zip(pages).all(|(expected, page)| expected == *page);
    let mut later = BTreeSet::new();
    for (segment, pages) in segments {
        if !written.contains(segment) && whole(pages) {
            later.insert(*segment);
        }
    }
    later
}

#[cfg(test)]
mod tests {
    use super::*;
    use lakebed_types::PgVersion;
    use lakebed_wal::control::CHECKPOINT_BYTES;

    fn segments(of: &[(SlruKind, u64, &[u64])]) -> BTreeMap<Segment, Vec<u64>> {
        let segment = |(kind, number, pages): &(SlruKind, u64, &[u64])| ((*kind, *number), pages.to_vec());
        of.iter().map(segment).collect()
    }

    #[test]
    fn what_a_start_writes_to_is_sent_and_what_has_holes() {
        use SlruKind::{Clog, CommitTs, MultiXactMembers, MultiXactOffsets};
        let whole: Vec<u64> = (0..SLRU_SEGMENT_PAGES).collect();
        let next = Checkpoint {
            // Page 65 of pg_xact, in segment 2, of the third epoch.
            next_xid: (3 << 32) + 65 * 32_768 + 7,
            next_multi: 5,
            next_multi_offset: 1636 * 32 + 1,
            ..Checkpoint::decode(&[0; CHECKPOINT_BYTES], PgVersion::V18)
        };
        let there = segments(&[
            (Clog, 0, &whole),
            (Clog, 1, &whole),
            (Clog, 2, &[0, 1]),
            (MultiXactOffsets, 0, &[0]),
            (MultiXactOffsets, 0xFFFF, &whole),
            (MultiXactMembers, 0, &whole[1..]),
            (MultiXactMembers, 1, &[0]),
            (CommitTs, 3, &[0, 1, 2]),
        ]);
        let expected = [
            (Clog, 0),
            (Clog, 1),
            (MultiXactOffsets, 0xFFFF),
            // It ends early, which is no hole.
            (CommitTs, 3),
        ];
        assert_eq!(later(&there, &next), BTreeSet::from(expected));
        let few = segments(&[(Clog, 0, &whole), (CommitTs, 3, &whole)]);
        assert_eq!(later(&few, &next), BTreeSet::new());
    }
}
