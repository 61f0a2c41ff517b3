//! What a verification counted, as values and as the JSON lines of `lakebed verify-wal --json`.

use std::collections::BTreeMap;

use lakebed_types::{Lsn, PgVersion};
use serde::Serialize;

use crate::compare::Allowed;
use crate::fields::FieldDifference;

/// Why a page reference of a record, or a record, was not compared with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotCheckable {
    /// The record names no page.
    NoPage,
    /// Its image is one to apply: it takes the place of redo, and would be compared with itself.
    ImageToApply,
    /// A hint without an image to apply: redo does nothing, and the WAL says nothing of the page.
    HintOnly,
    /// A page of the free space map, which WAL does not keep exact.
    FreeSpaceMap,
    /// The base's page is from a later time than the record (a backup of a running server): redo leaves it alone.
    NewerPage,
    /// The page does not exist in the base, because the relation was truncated or dropped later while the backup ran.
    MissingPage,
    /// The record carries no image: `wal_consistency_checking` was not on for it.
    NoImage,
    /// In front of `--from`.
    BeforeRange,
}

impl NotCheckable {
    /// All of them, in order.
    pub const ALL: [NotCheckable; 8] = [
        NotCheckable::NoPage,
        NotCheckable::ImageToApply,
        NotCheckable::HintOnly,
        NotCheckable::FreeSpaceMap,
        NotCheckable::NewerPage,
        NotCheckable::MissingPage,
        NotCheckable::NoImage,
        NotCheckable::BeforeRange,
    ];
}

/// Counts of one record type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeCounts {
    /// Records.
    pub seen: u64,
    /// Pages compared with an image.
    pub checked: u64,
    /// Of these, pages that differ.
    pub mismatched: u64,
    /// Of these, pages with an allowed difference.
    pub allowed: BTreeMap<Allowed, u64>,
    /// Pages not compared, or records in the case of `no_page`.
    pub not_checkable: BTreeMap<NotCheckable, u64>,
}

/// A page that differs from the image in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Start of the record.
    pub lsn: Lsn,
    /// Its resource manager.
    pub rmgr: String,
    /// Its type.
    pub operation: String,
    /// Tablespace, database and relfilenode.
    pub relation: String,
    /// Fork.
    pub fork: &'static str,
    /// Block of the fork.
    pub block: u32,
    /// Stock Postgres's own check would not notice.
    pub stricter_than_postgres: bool,
    /// What differs; empty when the page is missing.
    pub fields: Vec<FieldDifference>,
}

/// Something that differs from the recovered cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which page or file.
    pub what: String,
    /// What is different about it, in words; empty when fields tell.
    pub how: String,
    /// What differs of a page.
    pub fields: Vec<FieldDifference>,
}

/// A class of differences from a recovered cluster that are right, and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LegitimateClass {
    /// Pages, or files.
    pub count: u64,
    /// Why.
    pub justification: &'static str,
}

/// The comparison with a recovered cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Against {
    /// Compared pages by kind: `main`, `vm`, `init`, and the SLRUs' directories.
    pub pages: BTreeMap<String, u64>,
    /// Compared forks, with their sizes.
    pub forks: u64,
    /// Other compared files by kind.
    pub files: BTreeMap<&'static str, u64>,
    /// All differences that are not legitimate.
    pub differing: u64,
    /// Classes of legitimate differences, and of what is not compared.
    pub legitimate: BTreeMap<String, LegitimateClass>,
    /// The first differences.
    #[serde(skip)]
    pub differences: Vec<Difference>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Version of the cluster.
    pub version: PgVersion,
    /// Where replay began.
    pub start: Lsn,
    /// End of the last record.
    pub end: Lsn,
    /// Why there.
    pub end_reason: String,
    /// Records replayed.
    pub records: u64,
    /// Bytes of WAL read.
    pub wal_bytes: u64,
    /// Changed pages that did not fit into memory at some time.
    pub spilled_pages: u64,
    /// Counts by resource manager and operation.
    pub types: BTreeMap<(String, String), TypeCounts>,
    /// The first mismatches.
    pub mismatches: Vec<Mismatch>,
    /// References to pages that never existed and were not excused by a later truncation or drop.
    pub unresolved_pages: u64,
    /// Whether the base became consistent: a backup's end was replayed.
    pub consistent: bool,
    /// The comparison with a recovered cluster, if it was asked for.
    pub against: Option<Against>,
}

/// The last line of `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Nothing mismatched and nothing was skipped.
    pub ok: bool,
    /// Major version.
    pub postgres: u32,
    /// Where replay began.
    pub start: Lsn,
    /// End of the last record.
    pub end: Lsn,
    /// Why there.
    pub end_reason: String,
    /// Records replayed.
    pub records: u64,
    /// Bytes of WAL read.
    pub wal_bytes: u64,
    /// Pages compared with images.
    pub checked: u64,
    /// Pages that differ from their image.
    pub mismatched: u64,
    /// Pages with an allowed difference, by class.
    pub allowed: BTreeMap<Allowed, u64>,
    /// Pages or records not compared with an image, by reason.
    pub not_checkable: BTreeMap<NotCheckable, u64>,
    /// Record types that carried images to check.
    pub types_checked: usize,
    /// Record types that were seen.
    pub types_seen: usize,
    /// What was skipped, in words.
    pub skipped: Vec<String>,
    /// Changed pages that did not fit into memory at some time.
    pub spilled_pages: u64,
    /// The comparison with a recovered cluster.
    pub against: Option<Against>,
}

impl Report {
    /// Pages compared with images.
    pub fn checked(&self) -> u64 {
        self.types.values().map(|counts| counts.checked).sum()
    }

    /// Pages that differ from their image.
    pub fn mismatched(&self) -> u64 {
        self.types.values().map(|counts| counts.mismatched).sum()
    }

    /// Counts of a record type.
    pub fn of(&self, rmgr: &str, operation: &str) -> TypeCounts {
        let key = (rmgr.to_owned(), operation.to_owned());
        self.types.get(&key).cloned().unwrap_or_default()
    }

    /// What was not looked at although it could have been.
    pub fn skipped(&self) -> Vec<String> {
        let mut skipped = Vec::new();
        let no_image: u64 = self
            .types
            .values()
            .filter_map(|counts| counts.not_checkable.get(&NotCheckable::NoImage))
            .sum();
        if self.against.is_none() && no_image > 0 {
            skipped.push(format!(
                "{no_image} pages have no image in their record and no recovered cluster to compare with: set \
                 wal_consistency_checking = all on the server, or use --against"
            ));
        }
        if self.against.is_none() && self.checked() == 0 {
            skipped.push("nothing was compared: no record carries an image to check".to_owned());
        }
        if self.unresolved_pages > 0 {
            skipped.push(format!(
                "{} references to pages that do not exist in the base",
                self.unresolved_pages
            ));
        }
        if !self.consistent {
            skipped.push(
                "the WAL does not reach the end of the backup: the base never became consistent".to_owned(),
            );
        }
        skipped
    }

    /// Nothing mismatched, and nothing was skipped.
    pub fn ok(&self) -> bool {
        self.mismatched() == 0
            && self.against.as_ref().is_none_or(|against| against.differing == 0)
            && self.skipped().is_empty()
    }

    /// The summary.
    pub fn summary(&self) -> Summary {
        let mut allowed: BTreeMap<Allowed, u64> = BTreeMap::new();
        let mut not_checkable: BTreeMap<NotCheckable, u64> = BTreeMap::new();
        for counts in self.types.values() {
            for (class, count) in &counts.allowed {
                *allowed.entry(*class).or_default() += count;
            }
            for (reason, count) in &counts.not_checkable {
                *not_checkable.entry(*reason).or_default() += count;
            }
        }
        Summary {
            ok: self.ok(),
            postgres: self.version.major(),
            start: self.start,
            end: self.end,
            end_reason: self.end_reason.clone(),
            records: self.records,
            wal_bytes: self.wal_bytes,
            checked: self.checked(),
            mismatched: self.mismatched(),
            allowed,
            not_checkable,
            types_checked: self.types.values().filter(|counts| counts.checked > 0).count(),
            types_seen: self.types.len(),
            skipped: self.skipped(),
            spilled_pages: self.spilled_pages,
            against: self.against.clone(),
        }
    }
}
