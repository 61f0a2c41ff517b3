//! WAL redo of pages, in safe Rust: `(record, block reference, page bytes) -> page bytes`.
//!
//! A page's redo sees its own bytes and the record, never another page. What a record changes outside relation
//! pages (sizes, SLRUs, counters) belongs to the crate `ingest`.
//!
//! - [`PageRecord`] is a record as far as one of its pages is concerned, borrowed.
//! - [`PageRecord::redo`] restores an image or runs the resource manager's redo, then stamps the LSN. [`redo_block`]
//!   does that for a decoded record of Postgres's own managers.
//! - [`ResourceManager`] and [`Managers`]: redo of extensions' records, as plug-ins.
//! - [`redo_vm_clear`] is for visibility-map bits that a heap record clears without naming the map's page.
//! - [`PageRecord::encode`] and [`PageRecord::decode`]: what a pageserver keeps of one record for one page.
//! - [`checksum`] is for clusters with data checksums: redo leaves the field alone, and who hands out a page sets it.
//! - [`mask`] hides what Postgres itself allows to differ, for comparisons.
//!
//! Every length, offset and line pointer that comes from a record or a page is checked: hostile bytes give a
//! [`RedoError`], never a panic, and the caller must stop the timeline there. The page's content after an error
//! is unspecified.

mod brin;
mod btree;
mod btree_tuple;
pub mod checksum;
mod custom;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod image;
pub mod mask;
mod needs;
pub mod page;
mod page_record;
mod reader;
mod sequence;
mod spgist;
mod stored;
mod vm;

pub use custom::{Managers, RegisterError, ResourceManager};
pub use image::restore_image;
pub use page::PageBytes;
pub use page_record::{BlockView, ImageView, PageRecord};
pub use stored::{StoredError, StoredPlace};
pub use vm::{redo_vm_clear, redo_vm_truncate};

use lakebed_types::{Lsn, RelTag};
use lakebed_wal::record::{BlockRef, DecodedRecord};

/// Resource manager numbers (`access/rmgrlist.h`), those whose records change pages.
pub mod rmgr {
    /// Full page images, among others.
    pub const XLOG: u8 = 0;
    /// Heap, first list of operations.
    pub const HEAP2: u8 = 9;
    /// Heap, second list of operations.
    pub const HEAP: u8 = 10;
    /// B-tree indexes.
    pub const BTREE: u8 = 11;
    /// Hash indexes.
    pub const HASH: u8 = 12;
    /// GIN indexes.
    pub const GIN: u8 = 13;
    /// GiST indexes.
    pub const GIST: u8 = 14;
    /// Sequences.
    pub const SEQUENCE: u8 = 15;
    /// SP-GiST indexes.
    pub const SPGIST: u8 = 16;
    /// Block range indexes.
    pub const BRIN: u8 = 17;
    /// Generic records of extensions.
    pub const GENERIC: u8 = 20;
}

/// What was wrong, in words; the place is added by [`RedoError`].
type Fault = &'static str;

/// A record that cannot be replayed on a page. Nothing after it on this timeline may be replayed either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot replay the record that ends at {end} (resource manager {rmid}, info {info:#04x}) on {rel} block {block}: {fault}"
)]
pub struct RedoError {
    /// End of the record.
    pub end: Lsn,
    /// Resource manager.
    pub rmid: u8,
    /// `xl_info`.
    pub info: u8,
    /// Relation fork of the page.
    pub rel: RelTag,
    /// Block of the page.
    pub block: u32,
    /// What was wrong.
    pub fault: &'static str,
}

/// Replays `record`, of one of Postgres's own resource managers, on the page that `block` (one of the record's
/// references) names; see [`PageRecord::redo`].
///
/// # Errors
/// See [`PageRecord::redo`].
pub fn redo_block(record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), RedoError> {
    PageRecord::new(record, block).redo(page, Managers::none())
}

impl PageRecord<'_> {
    /// Replays the record on its page.
    ///
    /// `page` holds the version before the record, zeros if there is none; afterwards the version at the record's
    /// end. A page that already carries the record's LSN or a later one is left alone, as in Postgres's
    /// `XLogReadBufferForRedoExtended`. `managers` replay what is not Postgres's own.
    ///
    /// # Errors
    /// The record does not fit the page, is malformed, or its type is unknown here.
    pub fn redo(&self, page: &mut PageBytes, managers: &Managers) -> Result<(), RedoError> {
        redo_inner(self, page, managers).map_err(|fault| RedoError {
            end: self.end,
            rmid: self.rmid,
            info: self.info,
            rel: self.own.rel,
            block: self.own.block,
            fault,
        })
    }
}

fn redo_inner(record: &PageRecord<'_>, page: &mut PageBytes, managers: &Managers) -> Result<(), Fault> {
    if let Some(image) = &record.own.image {
        image.restore(page)?;
        // An all-zero page stays all zero (PageIsNew).
        if !page::is_new(page) {
            page::set_lsn(page, record.end);
        }
        if record.rmid == rmgr::GIST {
            gist::after_image(record, page)?;
        }
        return Ok(());
    }
    if record.own.will_init {
        page.fill(0);
    } else if page::lsn(page) >= record.end {
        return Ok(());
    }
    match redo_of(record.rmid) {
        Some(redo) => redo(record, page),
        None => managers.redo(record, page),
    }
}

type Redo = fn(&PageRecord<'_>, &mut PageBytes) -> Result<(), Fault>;

fn redo_of(rmid: u8) -> Option<Redo> {
    Some(match rmid {
        rmgr::XLOG => |record, _| redo_xlog(record),
        rmgr::HEAP => heap::redo,
        rmgr::HEAP2 => heap2::redo,
        rmgr::BTREE => btree::redo,
        rmgr::HASH => hash::redo,
        rmgr::GIN => gin::redo,
        rmgr::GIST => gist::redo,
        rmgr::SPGIST => spgist::redo,
        rmgr::SEQUENCE => sequence::redo,
        rmgr::BRIN => brin::redo,
        rmgr::GENERIC => generic::redo,
        _ => return None,
    })
}

/// `XLOG_FPI` (0xB0) always carries images to apply. `XLOG_FPI_FOR_HINT` (0xA0) need not while full page writes are
/// off, and then changes nothing (`xlog_redo`).
fn redo_xlog(record: &PageRecord<'_>) -> Result<(), Fault> {
    match record.info & 0xF0 {
        0xA0 => Ok(()),
        0xB0 => Err("a full page image record without an image"),
        _ => Err("a record of this type names no page"),
    }
}

#[cfg(test)]
mod tests;
