//! Files of a Postgres compared with what the pageservers serve, page by page, under Postgres's own masks.
//!
//! The free space map is left out: it is a hint, which redo of single pages cannot make. Unlogged relations are left
//! out, but for their init forks: the tier does not keep them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use lakebed_pageserver::data_directory::{DataDirectoryError, Item, visit};
use lakebed_redo::{PageBytes, mask, page};
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag};

use crate::pages::Pages;

/// Pages that are fetched together.
const BATCH: usize = 4096;
/// Bytes of a page in front of the bits of a visibility map.
const PAGE_HEADER: usize = 24;

/// Who wrote the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Recovery: what it made of the WAL is what the tier must make of it.
    Recovery,
    /// The Postgres that wrote the WAL. It may differ from its own replay in more ways than recovery: a sequence's page
    /// is ahead in WAL by the values that are cached, an SP-GiST index remembers pages with room, and
    /// `CREATE DATABASE … STRATEGY wal_log` loses the bits of visibility maps, whose pages look like all hole to it: in
    /// these databases the tier may lack bits.
    Primary {
        /// Databases that were made so, and copies of them.
        copied_by_wal: BTreeSet<u32>,
    },
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Pages by kind: compared, not compared.
    pub pages: BTreeMap<&'static str, (u64, u64)>,
    /// What differs, in words.
    pub differences: Vec<String>,
}

impl Comparison {
    /// Compared pages of all kinds.
    pub fn compared(&self) -> u64 {
        self.pages.values().map(|(compared, _)| compared).sum()
    }

    /// Pages of relations that were compared.
    pub fn relation_pages(&self) -> u64 {
        let kinds = ["main", "vm", "init"];
        kinds
            .iter()
            .filter_map(|kind| self.pages.get(kind))
            .map(|(compared, _)| compared)
            .sum()
    }

    /// Panics with the first differences if there are any.
    pub fn assert_equal(&self) {
        println!("{self}");
        let shown = &self.differences[..self.differences.len().min(20)];
        assert!(
            shown.is_empty(),
            "{} differences, among them {shown:#?}",
            self.differences.len()
        );
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:>12}{:>14}", "pages", "compared", "not compared")?;
        for (kind, (compared, left)) in &self.pages {
            writeln!(f, "{kind:<24}{compared:>12}{left:>14}")?;
        }
        write!(
            f,
            "{:<24}{:>12}   {} differences",
            "all",
            self.compared(),
            self.differences.len()
        )
    }
}

/// Compares every page below `directory`, a data directory or a part of one, with the tier's at `lsn`.
pub fn compare(tier: &Pages, lsn: Lsn, directory: &Path, writer: &Writer) -> Comparison {
    let mut comparer = Comparer {
        tier,
        lsn,
        writer,
        sizes: BTreeMap::new(),
        found: BTreeMap::new(),
        batch: Vec::new(),
        result: Comparison::default(),
    };
    visit(directory, &mut |item| {
        match item {
            Item::Page(key, bytes) => comparer.page(key, bytes),
            Item::Fork { rel, blocks } => {
                let size = comparer.found.entry(rel).or_insert(0);
                *size = blocks.max(*size);
            }
            Item::File(..) | Item::Directory(_) => {}
        }
        Ok::<(), DataDirectoryError>(())
    })
    .expect("a directory that can be read");
    comparer.fetch();
    comparer.sizes();
    comparer.result
}

struct Comparer<'a> {
    tier: &'a Pages,
    lsn: Lsn,
    writer: &'a Writer,
    /// What the tier has of the databases seen.
    sizes: BTreeMap<(u32, u32), BTreeMap<RelTag, u32>>,
    /// What the directory has.
    found: BTreeMap<RelTag, u32>,
    batch: Vec<(PageKey, Box<PageBytes>)>,
    result: Comparison,
}

impl Comparer<'_> {
    fn size(&mut self, rel: RelTag) -> Option<u32> {
        let place = (rel.spcnode, rel.dbnode);
        let (tier, lsn) = (self.tier, self.lsn);
        let sizes = self
            .sizes
            .entry(place)
            .or_insert_with(|| tier.relations(lsn, place));
        sizes.get(&rel).copied()
    }

    fn unlogged(&mut self, rel: RelTag) -> bool {
        rel.fork != ForkNumber::Init && self.size(rel.with_fork(ForkNumber::Init)).is_some()
    }

    fn kind(&mut self, key: &PageKey) -> (&'static str, bool) {
        match *key {
            PageKey::Rel { rel, .. } if self.unlogged(rel) => ("unlogged", false),
            PageKey::Rel { rel, .. } => match rel.fork {
                ForkNumber::Main => ("main", true),
                ForkNumber::Fsm => ("fsm", false),
                ForkNumber::Vm => ("vm", true),
                ForkNumber::Init => ("init", true),
            },
            PageKey::Slru { kind, .. } => (kind.directory(), true),
            PageKey::Control => ("control", false),
        }
    }

    fn page(&mut self, key: PageKey, bytes: &PageBytes) {
        let (kind, wanted) = self.kind(&key);
        let counts = self.result.pages.entry(kind).or_default();
        if !wanted {
            counts.1 += 1;
            return;
        }
        counts.0 += 1;
        self.batch.push((key, Box::new(*bytes)));
        if self.batch.len() == BATCH {
            self.fetch();
        }
    }

    fn fetch(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let keys: Vec<PageKey> = batch.iter().map(|(key, _)| *key).collect();
        let served = self.tier.get(self.lsn, &keys);
        for ((key, mut theirs), ours) in batch.into_iter().zip(served) {
            let difference = match ours {
                Ok(mut ours) => self.difference(&key, &mut ours, &mut theirs),
                Err(why) => Some(why),
            };
            if let Some(difference) = difference {
                self.result.differences.push(format!("{key}: {difference}"));
            }
        }
    }

    fn difference(&self, key: &PageKey, ours: &mut PageBytes, theirs: &mut PageBytes) -> Option<String> {
        match (key, self.writer) {
            (PageKey::Rel { rel, .. }, Writer::Primary { copied_by_wal })
                if rel.fork == ForkNumber::Vm && copied_by_wal.contains(&rel.dbnode) =>
            {
                let more = (PAGE_HEADER..ours.len()).find(|&at| ours[at] & !theirs[at] != 0);
                return more.map(|at| format!("a bit at byte {at} that the primary does not have"));
            }
            (PageKey::Rel { rel, .. }, _) if rel.fork == ForkNumber::Vm => {
                mask::visibility_map(ours);
                mask::visibility_map(theirs);
            }
            (PageKey::Rel { block, .. }, _) => {
                if *self.writer != Writer::Recovery {
                    sequence_as_logged(ours, theirs);
                    forget_last_used_pages(ours);
                    forget_last_used_pages(theirs);
                }
                mask::by_layout(ours, *block);
                mask::by_layout(theirs, *block);
            }
            _ => {}
        }
        let at = (0..theirs.len()).find(|&at| ours[at] != theirs[at])?;
        let end = (at + 16).min(theirs.len());
        Some(format!(
            "at byte {at} the tier has {:02x?}, the file {:02x?}",
            &ours[at..end],
            &theirs[at..end]
        ))
    }

    /// Sizes of both sides, in both directions.
    fn sizes(&mut self) {
        for (rel, blocks) in self.found.clone() {
            if rel.fork == ForkNumber::Fsm || self.unlogged(rel) {
                continue;
            }
            let known = self.size(rel);
            // A primary extends a file with zeros first and logs the page when it has content; that blocks beyond are
            // zeros was compared above. A map is even created so (`vm_extend`), without a record.
            let same = match self.writer {
                Writer::Recovery => known == Some(blocks),
                Writer::Primary { .. } => known.map_or(rel.fork == ForkNumber::Vm, |known| known <= blocks),
            };
            if !same {
                self.result.differences.push(format!(
                    "{rel} has {known:?} blocks in the tier, {blocks} in its files"
                ));
            }
        }
        for (rel, blocks) in self.sizes.values().flatten() {
            if rel.fork != ForkNumber::Fsm && !self.found.contains_key(rel) {
                let what = format!("{rel} has {blocks} blocks in the tier and no file");
                self.result.differences.push(what);
            }
        }
    }
}

/// The last two bytes of an SP-GiST page (`SPGIST_PAGE_ID`), and its flags that tell the metapage (`SPGIST_META`).
const SPGIST_KIND: [u8; 2] = [0x82, 0xFF];
const SPGIST_META: [u8; 2] = [1, 0];

/// The metapage of an SP-GiST index remembers pages with free space, 8 pairs behind its magic number. Postgres stores
/// that as a hint, without a record (`SpGistUpdateMetaPage`).
fn forget_last_used_pages(bytes: &mut PageBytes) {
    let special = page::special(bytes);
    if bytes.get(special..special + 2) == Some(&SPGIST_META[..]) && bytes.ends_with(&SPGIST_KIND) {
        bytes[PAGE_HEADER + 4..PAGE_HEADER + 4 + 8 * 8].fill(0);
    }
}

/// `SEQ_MAGIC`, in the special area of a sequence's only page.
const SEQUENCE_MAGIC: u32 = 0x1717;

/// Place of a sequence's data in its only page; `None` when the page is no sequence's.
fn sequence_data(bytes: &PageBytes) -> Option<usize> {
    let special = page::special(bytes);
    if page::is_new(bytes) || bytes.get(special..) != Some(&u64::from(SEQUENCE_MAGIC).to_le_bytes()[..]) {
        return None;
    }
    let tuple = usize::from(page::item_id(bytes, 1).ok()?.offset);
    Some(tuple + usize::from(bytes[tuple + 22]))
}

/// `nextval` logs the state after the values that it fetches ahead (`SEQ_LOG_VALS`) and stores the one before: the
/// file's `last_value` plus `log_cnt` increments is the logged `last_value`. The increment is in the catalogue, so any
/// that fits is taken.
fn sequence_as_logged(logged: &PageBytes, bytes: &mut PageBytes) {
    let Some(data) = sequence_data(bytes).filter(|data| sequence_data(logged) == Some(*data)) else {
        return;
    };
    let number =
        |bytes: &PageBytes, at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let (ahead, fetched) = (
        number(logged, data) - number(bytes, data),
        number(bytes, data + 8),
    );
    if fetched != 0 && ahead % fetched == 0 {
        bytes[data..data + 8].copy_from_slice(&logged[data..data + 8]);
        bytes[data + 8..data + 16].fill(0);
    }
}
