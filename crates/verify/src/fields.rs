//! Differences of two pages, by field.
//!
//! The layout of a page is told from its special area, as `pageinspect` users do by hand: heap pages have none, and all
//! index pages of Postgres end with a page kind but those of B-trees and GIN. If the two pages do not agree on where
//! things are, the header's fields come first and show it; what follows is named by the second page, Postgres's.

use lakebed_redo::page::{self, ItemState};
use lakebed_redo::{PageBytes, page::HEADER_BYTES};
use lakebed_types::PAGE_SIZE;
use serde::Serialize;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldDifference {
    /// Name, such as `pd_lower`, `line pointer 3` or `tuple 3 t_infomask`.
    pub field: String,
    /// First differing byte of the page.
    pub at: usize,
    /// Ours, hexadecimal, at most [`SHOWN_BYTES`] from `at` on.
    pub ours: String,
    /// Postgres's.
    pub postgres: String,
}

/// Bytes that are shown of a difference.
pub const SHOWN_BYTES: usize = 16;

/// What a page is, as far as its special area tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A table's page.
    Heap,
    /// A B-tree page.
    Btree,
    /// A hash index page.
    Hash,
    /// A GIN page.
    Gin,
    /// A GiST page.
    Gist,
    /// An SP-GiST page.
    Spgist,
    /// A BRIN page.
    Brin,
    /// A sequence's page.
    Sequence,
    /// A visibility map page.
    VisibilityMap,
    /// An SLRU page, which has no header.
    Slru,
    /// Of an extension, or damaged.
    Unknown,
}

fn u16_at(page: &PageBytes, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

impl Layout {
    /// Tells the layout of a relation's main fork page.
    pub fn of(page: &PageBytes) -> Layout {
        let kind = u16_at(page, PAGE_SIZE - 2);
        match PAGE_SIZE.saturating_sub(page::special(page)) {
            0 => Layout::Heap,
            16 => match kind {
                0xFF80 => Layout::Hash,
                0xFF81 => Layout::Gist,
                0..0xFF80 => Layout::Btree,
                _ => Layout::Unknown,
            },
            8 => match kind {
                0xF091..=0xF093 => Layout::Brin,
                0xFF82 => Layout::Spgist,
                _ if page[PAGE_SIZE - 8..] == [0x17, 0x17, 0, 0, 0, 0, 0, 0] => Layout::Sequence,
                0..0xF000 => Layout::Gin,
                _ => Layout::Unknown,
            },
            _ => Layout::Unknown,
        }
    }

    /// Fields of the special area: offset from its start and name.
    fn special_fields(self) -> &'static [(usize, &'static str)] {
        match self {
            Layout::Btree => &[
                (0, "btpo_prev"),
                (4, "btpo_next"),
                (8, "btpo_level"),
                (12, "btpo_flags"),
                (14, "btpo_cycleid"),
            ],
            Layout::Hash => &[
                (0, "hasho_prevblkno"),
                (4, "hasho_nextblkno"),
                (8, "hasho_bucket"),
                (12, "hasho_flag"),
                (14, "hasho_page_id"),
            ],
            Layout::Gin => &[(0, "rightlink"), (4, "maxoff"), (6, "flags")],
            Layout::Gist => &[(0, "nsn"), (8, "rightlink"), (12, "flags"), (14, "gist_page_id")],
            Layout::Spgist => &[
                (0, "flags"),
                (2, "nRedirection"),
                (4, "nPlaceholder"),
                (6, "spgist_page_id"),
            ],
            Layout::Brin => &[(0, "vector"), (4, "flags"), (6, "type")],
            Layout::Sequence => &[(0, "sequence magic")],
            _ => &[(0, "special area")],
        }
    }

    /// Fields of an item: offset from its start and name.
    fn item_fields(self) -> &'static [(usize, &'static str)] {
        match self {
            Layout::Heap | Layout::Sequence => &[
                (0, "t_xmin"),
                (4, "t_xmax"),
                (8, "t_cid"),
                (12, "t_ctid"),
                (18, "t_infomask2"),
                (20, "t_infomask"),
                (22, "t_hoff"),
                (23, "data"),
            ],
            Layout::Btree | Layout::Hash | Layout::Gin | Layout::Gist => {
                &[(0, "t_tid"), (6, "t_info"), (8, "key")]
            }
            Layout::Brin => &[(0, "bt_blkno"), (4, "bt_info"), (5, "values")],
            _ => &[(0, "bytes")],
        }
    }

    /// Fields of what is no item: absolute offset and name. Meta pages keep a structure where others have line pointers.
    fn content_fields(self, page: &PageBytes) -> &'static [(usize, &'static str)] {
        const HASH_META: u16 = 8;
        const GIN_META: u16 = 8;
        const BTREE_META: u16 = 8;
        let special = page::special(page).min(PAGE_SIZE - 16);
        match self {
            Layout::Hash if u16_at(page, special + 12) & 0xF == HASH_META => &[
                (24, "hashm_magic"),
                (28, "hashm_version"),
                (32, "hashm_ntuples"),
                (40, "hashm_ffactor"),
                (42, "hashm_bsize"),
                (44, "hashm_bmsize"),
                (46, "hashm_bmshift"),
                (48, "hashm_maxbucket"),
                (52, "hashm_highmask"),
                (56, "hashm_lowmask"),
                (60, "hashm_ovflpoint"),
                (64, "hashm_firstfree"),
                (68, "hashm_nmaps"),
                (72, "hashm_procid"),
                (76, "hashm_spares"),
                (468, "hashm_mapp"),
            ],
            Layout::Btree if u16_at(page, special + 12) & BTREE_META != 0 => &[
                (24, "btm_magic"),
                (28, "btm_version"),
                (32, "btm_root"),
                (36, "btm_level"),
                (40, "btm_fastroot"),
                (44, "btm_fastlevel"),
                (48, "btm_last_cleanup_num_delpages"),
                (56, "btm_last_cleanup_num_heap_tuples"),
                (64, "btm_allequalimage"),
            ],
            Layout::Gin if u16_at(page, PAGE_SIZE - 2) & GIN_META != 0 => &[
                (24, "head"),
                (28, "tail"),
                (32, "tailFreeSize"),
                (36, "nPendingPages"),
                (40, "nPendingHeapTuples"),
                (48, "nTotalPages"),
                (52, "nEntryPages"),
                (56, "nDataPages"),
                (64, "nEntries"),
                (72, "ginVersion"),
            ],
            Layout::Brin if u16_at(page, PAGE_SIZE - 2) == 0xF091 => &[
                (24, "brinMagic"),
                (28, "brinVersion"),
                (32, "pagesPerRange"),
                (36, "lastRevmapPage"),
            ],
            Layout::Brin if u16_at(page, PAGE_SIZE - 2) == 0xF092 => &[(24, "revmap tids")],
            Layout::VisibilityMap => &[(24, "map bits")],
            _ => &[],
        }
    }
}

const HEADER_FIELDS: [(usize, &str); 8] = [
    (0, "pd_lsn"),
    (8, "pd_checksum"),
    (10, "pd_flags"),
    (12, "pd_lower"),
    (14, "pd_upper"),
    (16, "pd_special"),
    (18, "pd_pagesize_version"),
    (20, "pd_prune_xid"),
];

/// The differing fields of two pages, in the order of their bytes, at most `limit`.
pub fn differences(
    layout: Layout,
    ours: &PageBytes,
    postgres: &PageBytes,
    limit: usize,
) -> Vec<FieldDifference> {
    let mut found: Vec<FieldDifference> = Vec::new();
    let mut last = String::new();
    let items = items(layout, postgres);
    for at in (0..PAGE_SIZE).filter(|&at| ours[at] != postgres[at]) {
        let field = field_at(layout, postgres, &items, at);
        if field == last {
            continue;
        }
        if found.len() == limit {
            break;
        }
        let end = (at + SHOWN_BYTES).min(PAGE_SIZE);
        found.push(FieldDifference {
            field: field.clone(),
            at,
            ours: hex(&ours[at..end]),
            postgres: hex(&postgres[at..end]),
        });
        last = field;
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Number, first byte and length with padding of each item with storage.
fn items(layout: Layout, page: &PageBytes) -> Vec<(u16, usize, usize)> {
    if matches!(layout, Layout::VisibilityMap | Layout::Slru | Layout::Unknown)
        || !layout.content_fields(page).is_empty()
    {
        return Vec::new();
    }
    (1..=page::item_count(page))
        .filter_map(|number| {
            let id = page::item_id(page, number).ok()?;
            let stored = id.length > 0 && id.state != ItemState::Unused;
            stored.then(|| {
                (
                    number,
                    usize::from(id.offset),
                    page::max_align(usize::from(id.length)),
                )
            })
        })
        .collect()
}

/// The field that covers a byte, of fields sorted by their first byte.
fn covering<'a>(fields: &[(usize, &'a str)], at: usize) -> Option<&'a str> {
    fields
        .iter()
        .rev()
        .find(|(start, _)| *start <= at)
        .map(|(_, name)| *name)
}

fn field_at(layout: Layout, page: &PageBytes, items: &[(u16, usize, usize)], at: usize) -> String {
    if layout == Layout::Slru {
        return format!("bytes {}..{}", at / 16 * 16, at / 16 * 16 + 16);
    }
    if at < HEADER_BYTES {
        return covering(&HEADER_FIELDS, at).unwrap_or_default().to_owned();
    }
    if layout == Layout::VisibilityMap {
        let first = (at - HEADER_BYTES) * 4;
        return format!(
            "bits of the heap blocks {first} to {} of this map page",
            first + 3
        );
    }
    let special = page::special(page);
    if special >= HEADER_BYTES && at >= special {
        return covering(layout.special_fields(), at - special)
            .unwrap_or_default()
            .to_owned();
    }
    if let Some(name) = covering(layout.content_fields(page), at) {
        return name.to_owned();
    }
    if at < page::lower(page) {
        return format!("line pointer {}", (at - HEADER_BYTES) / 4 + 1);
    }
    let item = items
        .iter()
        .find(|(_, start, length)| (*start..start + length).contains(&at));
    match item {
        Some((number, start, _)) => {
            let name = covering(layout.item_fields(), at - start).unwrap_or_default();
            let what = if layout == Layout::Heap { "tuple" } else { "item" };
            format!("{what} {number} {name}")
        }
        None if at < page::upper(page) => "free space".to_owned(),
        None => format!("bytes {}..{}", at / 16 * 16, at / 16 * 16 + 16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap_page() -> PageBytes {
        let mut page = [0; PAGE_SIZE];
        page::init(&mut page, 0);
        let tuple: u16 = 8192 - 32;
        page[12..14].copy_from_slice(&28u16.to_le_bytes());
        page[14..16].copy_from_slice(&tuple.to_le_bytes());
        page[24..28].copy_from_slice(&(u32::from(tuple) | 1 << 15 | 30 << 17).to_le_bytes());
        page
    }

    #[test]
    fn each_byte_of_a_heap_page_has_a_name() {
        let page = heap_page();
        let names = [
            (3, "pd_lsn"),
            (10, "pd_flags"),
            (21, "pd_prune_xid"),
            (26, "line pointer 1"),
            (5000, "free space"),
            (8160, "tuple 1 t_xmin"),
            (8160 + 16, "tuple 1 t_ctid"),
            (8160 + 20, "tuple 1 t_infomask"),
            (8160 + 29, "tuple 1 data"),
        ];
        for (at, name) in names {
            let mut other = page;
            other[at] ^= 0x81;
            let found = differences(Layout::of(&page), &other, &page, 9);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].field.as_str(), found[0].at), (name, at));
        }
        assert!(differences(Layout::Heap, &page, &page, 9).is_empty());
    }

    #[test]
    fn index_pages_are_told_apart_by_their_end() {
        let mut page = [0; PAGE_SIZE];
        page::init(&mut page, 16);
        assert_eq!(Layout::of(&page), Layout::Btree);
        let mut other = page;
        other[PAGE_SIZE - 12] = 7;
        let found = differences(Layout::Btree, &other, &page, 9);
        assert_eq!(found[0].field, "btpo_next");
        page[PAGE_SIZE - 2..].copy_from_slice(&[0x81, 0xFF]);
        assert_eq!(Layout::of(&page), Layout::Gist);
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut random = 88_172_645_463_325_252u64;
        for _ in 0..300 {
            let mut page = [0; PAGE_SIZE];
            for byte in page.iter_mut().take(64) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *byte = random as u8;
            }
            let mut other = page;
            other.iter_mut().step_by(97).for_each(|byte| *byte ^= 1);
            assert!(!differences(Layout::of(&page), &page, &other, 1000).is_empty());
        }
    }
}
