//! What redo of a page reads of its record beyond the page's own block reference. The rest is not stored with the page.
//!
//! Each entry follows from the redo function of that record type and page role in this crate. An entry that is too
//! small shows at once: the test against Postgres's images replays every record from its stored form as well. What is
//! not listed is stored whole, so that a resource manager or record type that this table does not know is safe.
//!
//! Much of what goes is main data that describes the record's other pages (tuples of an SP-GiST pick split), and what
//! only logical decoding reads: old tuples and keys after the fixed part of a heap update or delete.

use std::borrow::Cow;

use lakebed_types::PgVersion;

use crate::page_record::PageRecord;
use crate::{rmgr, spgist};

/// See the module header.
pub(crate) struct Needs<'a> {
    /// Whether `xl_xid` is read.
    pub xid: bool,
    /// Ids of other references whose block numbers are read, if the record has them.
    pub others: Others,
    /// The main data that is read.
    pub main: Cow<'a, [u8]>,
}

/// Which other references are read.
#[derive(Clone, Copy)]
pub(crate) enum Others {
    /// Every one.
    All,
    /// At most these two.
    Ids(Option<u8>, Option<u8>),
}

impl Others {
    pub(crate) const NONE: Others = Others::Ids(None, None);

    pub(crate) const fn one(id: u8) -> Others {
        Others::Ids(Some(id), None)
    }

    pub(crate) fn contain(self, id: u8) -> bool {
        match self {
            Others::All => true,
            Others::Ids(one, other) => one == Some(id) || other == Some(id),
        }
    }
}

/// As a length of main data: whatever there is.
pub(crate) const ALL: usize = usize::MAX;

pub(crate) fn of<'a>(record: &PageRecord<'a>) -> Needs<'a> {
    // An image stands for itself; GiST alone looks at the record's type after it.
    if record.own.image.is_some() {
        return needs(record, false, Others::NONE, 0);
    }
    let (operation, id) = (record.info & 0xF0, record.own.id);
    match record.rmid {
        rmgr::XLOG => needs(record, false, Others::NONE, 0),
        rmgr::HEAP => heap(record, operation & 0x70, id),
        rmgr::HEAP2 => heap2(record, operation & 0x70, id),
        rmgr::BTREE => btree(record, operation, id),
        rmgr::HASH => hash(record, operation, id),
        rmgr::GIN => gin(record, operation, id),
        rmgr::GIST => gist(record, operation, id),
        rmgr::SPGIST => spgist::needs(record),
        rmgr::BRIN => {
            // Insert and update: the range map's page gets a link to the regular page.
            let link = matches!(operation & 0x70, 0x10 | 0x20) && id == 1;
            let others = if link { Others::one(0) } else { Others::NONE };
            needs(record, false, others, ALL)
        }
        rmgr::SEQUENCE => needs(record, false, Others::NONE, ALL),
        rmgr::GENERIC => needs(record, false, Others::NONE, 0),
        _ => needs(record, true, Others::All, ALL),
    }
}

/// With the first `main` bytes of the main data.
pub(crate) fn needs<'a>(record: &PageRecord<'a>, xid: bool, others: Others, main: usize) -> Needs<'a> {
    let main = Cow::Borrowed(record.main.get(..main).unwrap_or(record.main));
    Needs { xid, others, main }
}

fn heap<'a>(record: &PageRecord<'a>, operation: u8, id: u8) -> Needs<'a> {
    match (operation, id) {
        // A visibility-map page: the flags, and whose bits they are about.
        (0x00 | 0x10 | 0x60, 1) => needs(record, false, Others::one(0), 8),
        (0x20 | 0x40, 2 | 3) => needs(record, false, Others::Ids(Some(0), Some(1)), 8),
        (0x00, _) => needs(record, true, Others::NONE, 3),
        (0x10, _) => needs(record, true, Others::NONE, 8),
        // Whether the old version is on another page, and on which page the new one is.
        (0x20 | 0x40, 0) => needs(record, true, Others::one(1), 14),
        (0x20 | 0x40, 1) => needs(record, true, Others::one(0), 14),
        (0x50 | 0x70, _) => needs(record, false, Others::NONE, 2),
        (0x60, _) => needs(record, false, Others::NONE, 8),
        _ => needs(record, true, Others::All, ALL),
    }
}

fn heap2<'a>(record: &PageRecord<'a>, operation: u8, id: u8) -> Needs<'a> {
    match (operation, id) {
        // The map's page, whose bits belong to the heap page.
        (0x40, 0) => needs(record, false, Others::one(1), ALL),
        // A map page that a multi-insert or a lock clears bits of.
        (0x50 | 0x60, 1) => needs(record, false, Others::one(0), 8),
        // The flags.
        (0x10..=0x30, _) if record.version >= PgVersion::V17 => needs(record, false, Others::NONE, 2),
        (0x10..=0x40 | 0x60, _) => needs(record, false, Others::NONE, ALL),
        (0x50, _) => needs(record, true, Others::NONE, ALL),
        _ => needs(record, true, Others::All, ALL),
    }
}

fn btree<'a>(record: &PageRecord<'a>, operation: u8, id: u8) -> Needs<'a> {
    let (others, main) = match (operation, id) {
        (0x00..=0x20 | 0x50 | 0x60, 0) => (Others::NONE, 2),
        (0x30 | 0x40, 0) => (Others::one(1), 10),
        (0x30 | 0x40, 1) => (Others::Ids(Some(0), Some(2)), 10),
        (0x30 | 0x40, 2) => (Others::one(1), 0),
        (0x10..=0x50 | 0xA0, 1..) | (0xE0, _) => (Others::NONE, 0),
        (0x70..=0xC0, _) => (Others::NONE, ALL),
        _ => (Others::All, ALL),
    };
    needs(record, false, others, main)
}

fn hash<'a>(record: &PageRecord<'a>, operation: u8, id: u8) -> Needs<'a> {
    let (others, main) = match (operation, id) {
        // A new overflow page: its neighbours, and for the metapage a new bitmap page.
        (0x30, 0) => (Others::one(1), ALL),
        (0x30, 1) => (Others::one(0), ALL),
        (0x30, 4) => (Others::one(3), ALL),
        (0x10 | 0x20, 1) => (Others::NONE, 0),
        // The metapage needs how many items go, not which.
        (0xC0, 1) => (Others::NONE, 8),
        (0x00..=0xC0, _) => (Others::NONE, ALL),
        _ => (Others::All, ALL),
    };
    needs(record, false, others, main)
}

fn gin<'a>(record: &PageRecord<'a>, operation: u8, id: u8) -> Needs<'a> {
    let main = match (operation, id) {
        (0x20, 1) => 2,
        (0x30, 3) => 26,
        (0x90, _) => 0,
        _ => ALL,
    };
    needs(record, false, Others::NONE, main)
}

fn gist<'a>(record: &PageRecord<'a>, operation: u8, id: u8) -> Needs<'a> {
    let (others, main) = match (operation, id) {
        (0x00, 1) | (0x30, 0) => (Others::NONE, 0),
        // Whether the root is split, and the right neighbour.
        (0x30, _) => (Others::Ids(Some(1), id.checked_add(1)), ALL),
        _ => (Others::NONE, ALL),
    };
    needs(record, false, others, main)
}
