//! When is a replayed page right? The one place that knows, for images in records and for files.
//!
//! Both ways blank what Postgres's own masks blank ([`lakebed_redo::mask`]), with these exceptions, where more is
//! compared than Postgres compares:
//!
//! - heap: the lock bits of `t_infomask` (of its upper 12 bits only the four hint bits and the combo flag are blanked);
//! - visibility map: all of it but LSN and checksum, where Postgres blanks the map;
//! - GiST: NSN and the flag to follow the right link, but on the left half of a split that the record finishes.
//!
//! Differences that are right are told apart and counted ([`Allowed`]).

use lakebed_redo::{Managers, PageBytes, mask, page, restore_image};
use lakebed_types::{ForkNumber, PAGE_SIZE, RelTag};
use lakebed_wal::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};
use serde::Serialize;

use crate::ahead::bits_missing;
use crate::fields::{FieldDifference, Layout, differences};

const HEAP2: u8 = 9;
const HEAP: u8 = 10;
const BTREE: u8 = 11;
const HASH: u8 = 12;
const GIST: u8 = 14;
const SEQUENCE: u8 = 15;
const SPGIST: u8 = 16;

/// `F_TUPLES_DELETED` of `access/gist.h`.
const GIST_TUPLES_DELETED: u8 = 4;
/// `F_FOLLOW_RIGHT`.
const GIST_FOLLOW_RIGHT: u8 = 8;
const GIST_NSN: std::ops::Range<usize> = PAGE_SIZE - 16..PAGE_SIZE - 8;
const GIST_FLAGS: usize = PAGE_SIZE - 4;
const LSN_AND_CHECKSUM: usize = 10;

/// A difference that is right: stock recovery differs from the server that wrote the WAL in the same way, or would if
/// it were asked at this position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Allowed {
    /// A server that removes dead tuples from a GiST leaf on insert does not set the page's "tuples were deleted" flag;
    /// its redo sets it (`gistRedoDeleteRecord`). Nothing reads the flag.
    GistTuplesDeletedFlag,
    /// `CREATE DATABASE … STRATEGY wal_log` logs visibility map pages with everything between `pd_lower` and
    /// `pd_upper` cut out as a hole, which in a map is everything: recovery has zeros where the server has bits.
    VisibilityMapLostInDatabaseCopy,
    /// A server whose heap records do not name the map page clears a bit before it writes the record; another record's
    /// image lies between ([`crate::ahead`]). The record that clears the bit followed.
    VisibilityMapClearedAhead,
}

impl Allowed {
    /// Why it is right, for the reader of a report.
    pub fn justification(self) -> &'static str {
        match self {
            Allowed::GistTuplesDeletedFlag => {
                "GiST sets the flag in redo of DELETE and not on the server; stock recovery does the same, nothing reads it"
            }
            Allowed::VisibilityMapLostInDatabaseCopy => {
                "CREATE DATABASE STRATEGY wal_log logs map pages without their bits; stock recovery loses them too"
            }
            Allowed::VisibilityMapClearedAhead => {
                "the server clears a map's bit just before it writes the record that does; an image of the map lies \
                 between, and the record follows"
            }
        }
    }
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs that counts.
    Same,
    /// The same but for this.
    Allowed(Allowed),
    /// Something else differs.
    Different {
        /// The fields, at most as many as was asked for.
        fields: Vec<FieldDifference>,
        /// Postgres's own mask hides all of it: stock Postgres would not notice.
        stricter_than_postgres: bool,
    },
    /// The image of a map page lacks bits that ours has, and nothing else differs: right if a record that clears them
    /// follows.
    ClearedAhead {
        /// Byte of the page, and the bits.
        bits: Vec<(usize, u8)>,
        /// The bits, named.
        fields: Vec<FieldDifference>,
    },
}

/// What is known of a page that cannot be seen on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    /// A GiST `DELETE` record was replayed on it.
    pub gist_pruned: bool,
    /// A map page that was last logged without its content.
    pub map_lost: bool,
}

/// Compares a replayed page with the checking image that the record carries for it. `limit`: most fields to name.
///
/// # Errors
/// The image is damaged.
pub fn with_image(
    managers: &Managers,
    record: &DecodedRecord,
    block: &BlockRef,
    image: &BlockImage,
    ours: &PageBytes,
    history: History,
    limit: usize,
) -> Result<Verdict, &'static str> {
    if equals_stored(record.rmid, image, ours) {
        return Ok(Verdict::Same);
    }
    let mut expected = [0; PAGE_SIZE];
    restore_image(image, &mut expected)?;
    if block.rel.fork == ForkNumber::Vm {
        return Ok(visibility_map(ours, &expected, history, limit));
    }
    let mut ours = *ours;
    let mut allowed = None;
    let mut strict = Vec::new();
    if record.rmid == GIST {
        if history.gist_pruned && ours[GIST_FLAGS] & !expected[GIST_FLAGS] & GIST_TUPLES_DELETED != 0 {
            expected[GIST_FLAGS] |= GIST_TUPLES_DELETED;
            allowed = Some(Allowed::GistTuplesDeletedFlag);
        }
        strict = split_marks(record, block, &ours, &expected);
    }
    let layout = Layout::of(&expected);
    managers.mask(record.rmid, &mut ours, &mut expected, block.block);
    if ours == expected && strict.is_empty() {
        return Ok(allowed.map_or(Verdict::Same, Verdict::Allowed));
    }
    let stricter_than_postgres = ours == expected || equal_without_lock_bits(layout, &ours, &expected);
    let mut fields = differences(layout, &ours, &expected, limit);
    fields.extend(strict);
    fields.truncate(limit);
    Ok(Verdict::Different {
        fields,
        stricter_than_postgres,
    })
}

/// Compares a replayed page with the same page of a recovered cluster's file.
pub fn with_file(
    rel: RelTag,
    block: u32,
    ours: &PageBytes,
    theirs: &PageBytes,
    limit: usize,
) -> Vec<FieldDifference> {
    let (mut ours, mut theirs) = (*ours, *theirs);
    let layout = match rel.fork {
        ForkNumber::Vm => {
            mask::visibility_map(&mut ours);
            mask::visibility_map(&mut theirs);
            Layout::VisibilityMap
        }
        _ => {
            let layout = Layout::of(&theirs);
            mask::by_layout(&mut ours, block);
            mask::by_layout(&mut theirs, block);
            layout
        }
    };
    differences(layout, &ours, &theirs, limit)
}

/// The cheap and usual case: all stored bytes of an uncompressed image but LSN and checksum are on the page. What lies
/// in the image's hole is the free space of both, which the masks of these access methods blank.
fn equals_stored(rmid: u8, image: &BlockImage, ours: &PageBytes) -> bool {
    let (start, length) = (usize::from(image.hole_offset), usize::from(image.hole_length));
    let free_space_is_blanked = matches!(rmid, HEAP | HEAP2 | BTREE | HASH | GIST | SEQUENCE | SPGIST);
    if image.compression != ImageCompression::None || start + length > PAGE_SIZE {
        return false;
    }
    if length > 0
        && (start < LSN_AND_CHECKSUM
            || !free_space_is_blanked
            || start != page::lower(ours)
            || start + length != page::upper(ours))
    {
        return false;
    }
    if length == 0 {
        return image.bytes.get(LSN_AND_CHECKSUM..) == ours.get(LSN_AND_CHECKSUM..);
    }
    let (Some(before), Some(after)) = (image.bytes.get(..start), image.bytes.get(start..)) else {
        return false;
    };
    match rmid {
        HEAP | HEAP2 => mask::heap_surely_equal(ours, before, after),
        _ => {
            before.get(LSN_AND_CHECKSUM..) == ours.get(LSN_AND_CHECKSUM..start)
                && Some(after) == ours.get(start + length..)
        }
    }
}

fn visibility_map(ours: &PageBytes, expected: &PageBytes, history: History, limit: usize) -> Verdict {
    if ours[LSN_AND_CHECKSUM..] == expected[LSN_AND_CHECKSUM..] {
        return Verdict::Same;
    }
    if history.map_lost && bits_missing(expected, ours).is_some() {
        return Verdict::Allowed(Allowed::VisibilityMapLostInDatabaseCopy);
    }
    let bits = bits_missing(ours, expected);
    let (mut ours, mut expected) = (*ours, *expected);
    mask::visibility_map(&mut ours);
    mask::visibility_map(&mut expected);
    let fields = differences(Layout::VisibilityMap, &ours, &expected, limit);
    match bits {
        Some(bits) => Verdict::ClearedAhead { bits, fields },
        None => Verdict::Different {
            fields,
            stricter_than_postgres: true,
        },
    }
}

/// GiST's NSN and its flag to follow the right link, which Postgres's mask hides: a server writes them after the record,
/// but only on the left half of a split that the record finishes.
fn split_marks(
    record: &DecodedRecord,
    block: &BlockRef,
    ours: &PageBytes,
    expected: &PageBytes,
) -> Vec<FieldDifference> {
    const PAGE_UPDATE: u8 = 0x00;
    const PAGE_SPLIT: u8 = 0x30;
    let left_half = matches!((record.info & 0xF0, block.id), (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0));
    if left_half {
        return Vec::new();
    }
    let (mut of_ours, mut of_expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    for (blank, page) in [(&mut of_ours, ours), (&mut of_expected, expected)] {
        // Enough of the page to have its layout told.
        blank[12..20].copy_from_slice(&expected[12..20]);
        blank[PAGE_SIZE - 2..].copy_from_slice(&expected[PAGE_SIZE - 2..]);
        blank[GIST_NSN].copy_from_slice(&page[GIST_NSN]);
        blank[GIST_FLAGS] = page[GIST_FLAGS] & GIST_FOLLOW_RIGHT;
    }
    differences(Layout::Gist, &of_ours, &of_expected, 2)
}

/// Whether two masked heap pages are equal under Postgres's mask, which blanks the upper 12 bits of `t_infomask`.
fn equal_without_lock_bits(layout: Layout, ours: &PageBytes, expected: &PageBytes) -> bool {
    const INFOMASK: usize = 20;
    if layout != Layout::Heap {
        return false;
    }
    let (mut ours, mut expected) = (*ours, *expected);
    for page in [&mut ours, &mut expected] {
        for number in 1..=page::item_count(page) {
            let Ok(id) = page::item_id(page, number) else {
                return false;
            };
            let at = usize::from(id.offset) + INFOMASK;
            if let (page::ItemState::Normal, Some(bytes)) = (id.state, page.get_mut(at..at + 2)) {
                bytes[0] &= 0x0F;
                bytes[1] = 0;
            }
        }
    }
    ours == expected
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lakebed_types::{Lsn, PgVersion};

    use super::*;

    const REL: RelTag = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: ForkNumber::Main,
    };

    fn heap_page(infomask: u16) -> PageBytes {
        let mut page = [0; PAGE_SIZE];
        page::init(&mut page, 0);
        let tuple: u16 = 8192 - 32;
        page[12..14].copy_from_slice(&28u16.to_le_bytes());
        page[14..16].copy_from_slice(&tuple.to_le_bytes());
        page[24..28].copy_from_slice(&(u32::from(tuple) | 1 << 15 | 32 << 17).to_le_bytes());
        page[8160 + 20..8160 + 22].copy_from_slice(&infomask.to_le_bytes());
        page
    }

    fn verdict(
        rmid: u8,
        fork: ForkNumber,
        ours: &PageBytes,
        theirs: &PageBytes,
        history: History,
    ) -> Verdict {
        let block = BlockRef {
            id: 0,
            rel: REL.with_fork(fork),
            block: 7,
            will_init: false,
            image: None,
            data: None,
        };
        let record = DecodedRecord {
            version: PgVersion::V15,
            start: Lsn(100),
            end: Lsn(200),
            prev: Lsn(0),
            xid: 5,
            rmid,
            info: 0,
            origin: None,
            toplevel_xid: None,
            blocks: vec![block.clone()],
            main_data: Bytes::new(),
        };
        let image = BlockImage {
            bytes: Bytes::copy_from_slice(theirs),
            compression: ImageCompression::None,
            hole_offset: 0,
            hole_length: 0,
            apply: false,
        };
        with_image(&Managers::default(), &record, &block, &image, ours, history, 9).unwrap()
    }

    #[test]
    fn lock_bits_count_and_hint_bits_do_not() {
        let plain = heap_page(0x0002);
        let table = [
            (0x0502, None),
            (0x0022, None),
            (0x0082, Some(true)),
            (0x0006, Some(false)),
        ];
        for (infomask, expected) in table {
            let found = verdict(
                HEAP,
                ForkNumber::Main,
                &plain,
                &heap_page(infomask),
                History::default(),
            );
            match (found, expected) {
                (Verdict::Same, None) => {}
                (
                    Verdict::Different {
                        fields,
                        stricter_than_postgres,
                    },
                    Some(stricter),
                ) => {
                    assert_eq!(fields[0].field, "tuple 1 t_infomask");
                    assert_eq!(stricter_than_postgres, stricter, "{infomask:#x}");
                }
                (found, _) => panic!("{infomask:#x}: {found:?}"),
            }
        }
        // LSN and checksum.
        let mut stamped = plain;
        stamped[..10].fill(9);
        let found = verdict(HEAP, ForkNumber::Main, &stamped, &plain, History::default());
        assert_eq!(found, Verdict::Same);
    }

    #[test]
    fn bits_of_a_map_may_be_missing_only_where_they_were_lost() {
        let mut page = [0; PAGE_SIZE];
        page::init(&mut page, 0);
        let mut with_bits = page;
        with_bits[30] = 3;
        let lost = History {
            map_lost: true,
            ..History::default()
        };
        let vm = |ours, theirs, history| verdict(HEAP2, ForkNumber::Vm, ours, theirs, history);
        let allowed = Verdict::Allowed(Allowed::VisibilityMapLostInDatabaseCopy);
        assert_eq!(vm(&page, &with_bits, lost), allowed);
        assert!(matches!(
            vm(&with_bits, &page, lost),
            Verdict::ClearedAhead { .. }
        ));
        let none = History::default();
        assert!(matches!(vm(&page, &with_bits, none), Verdict::Different { .. }));
    }
}
