//! Redo of GiST indexes (`access/gist/gistxlog.c`).
//!
//! The special area (`GISTPageOpaqueData`, 16 bytes) is: NSN (as an LSN: high half, then low half), right link, flags
//! (16 bits), page kind (16 bits).
//!
//! | record | block 0 | block 1 | further blocks |
//! |---|---|---|---|
//! | page update 0x00 | the changed page | left half of the split that this downlink completes | |
//! | delete 0x10 | the leaf | | |
//! | page split 0x30 | left half of an earlier split | first part, in place of the split page | the other parts |
//! | page delete 0x60 | the leaf that goes | its parent | |
//!
//! Page reuse (0x20) and LSN assignment (0x70) name no page.

use lakebed_types::{Lsn, PgVersion};

use crate::page::{self, HEADER_BYTES, Place, get_u16, put_u16, put_u32};
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes};

/// Bits of the special area's flags.
pub(crate) mod flag {
    pub const LEAF: u16 = 1;
    pub const DELETED: u16 = 1 << 1;
    pub const TUPLES_DELETED: u16 = 1 << 2;
    pub const FOLLOW_RIGHT: u16 = 1 << 3;
    pub const HAS_GARBAGE: u16 = 1 << 4;
}

/// Offset of the special area in the page, which begins with the NSN.
pub(crate) const OPAQUE: usize = lakebed_types::PAGE_SIZE - 16;
const RIGHT_LINK: usize = OPAQUE + 8;
pub(crate) const FLAGS: usize = OPAQUE + 12;
const KIND: usize = OPAQUE + 14;
/// `GIST_PAGE_ID`.
pub(crate) const PAGE_KIND: u16 = 0xFF81;
const NO_BLOCK: u32 = u32::MAX;
const ROOT: u32 = 0;
/// `pd_lower` of a deleted page: it holds the deleting transaction's full id instead of line pointers.
const DELETED_LOWER: usize = HEADER_BYTES + 8;

const PAGE_UPDATE: u8 = 0x00;
const DELETE: u8 = 0x10;
const PAGE_SPLIT: u8 = 0x30;
const PAGE_DELETE: u8 = 0x60;

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let info = record.info & 0xF0;
    if record.own.will_init != (info == PAGE_SPLIT && record.own.id > 0) {
        return Err("it begins a page anew where its type does not, or the reverse");
    }
    match (info, record.own.id) {
        _ if completes_split(record) => finish_left_half(page, record.end)?,
        (PAGE_UPDATE, 0) => update(record, page)?,
        (DELETE, 0) => delete_dead(record, page)?,
        (PAGE_SPLIT, id) => split_part(record, usize::from(id) - 1, page)?,
        (PAGE_DELETE, 0) => delete_page(record, page)?,
        (PAGE_DELETE, 1) => delete_downlink(record, page)?,
        _ => return Err("a record of this type does not name this page"),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

/// What remains to do after the page was restored from an image in the record: the left half of a finished split is
/// marked after the image was taken, so that its image lacks the mark.
pub(crate) fn after_image(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    if completes_split(record) {
        finish_left_half(page, record.end)?;
    }
    Ok(())
}

/// Whether the page is the left half of a split whose right half gets its downlink with this record.
fn completes_split(record: &PageRecord<'_>) -> bool {
    matches!(
        (record.info & 0xF0, record.own.id),
        (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0)
    )
}

/// Checks that the page has content and a GiST page's special area.
fn check(page: &PageBytes) -> Result<(), Fault> {
    page::check(page)?;
    if page::special(page) == OPAQUE {
        Ok(())
    } else {
        Err("the page is not a GiST page")
    }
}

fn set_nsn(page: &mut PageBytes, nsn: Lsn) {
    put_u32(page, OPAQUE, (nsn.0 >> 32) as u32);
    put_u32(page, OPAQUE + 4, nsn.0 as u32);
}

fn change_flags(page: &mut PageBytes, set: u16, clear: u16) {
    put_u16(page, FLAGS, get_u16(page, FLAGS) & !clear | set);
}

fn finish_left_half(page: &mut PageBytes, end: Lsn) -> Result<(), Fault> {
    check(page)?;
    set_nsn(page, end);
    change_flags(page, 0, flag::FOLLOW_RIGHT);
    Ok(())
}

/// Takes the index tuple at the reader's position; sizes are aligned when tuples are formed, so nothing lies between.
fn take_tuple<'a>(data: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    let info = data.rest().get(6..8).ok_or("its data ends too early")?;
    let size = usize::from(u16::from_le_bytes([info[0], info[1]]) & 0x1FFF);
    if size < 8 {
        return Err("an index tuple is damaged");
    }
    data.take(size)
}

/// Adds all tuples up to the data's end after the last item; answers how many.
fn append_tuples(page: &mut PageBytes, data: &mut Reader<'_>) -> Result<u32, Fault> {
    let mut count = 0;
    while !data.is_empty() {
        let tuple = take_tuple(data)?;
        page::add_item(page, tuple, page::item_count(page) + 1, Place::Insert)?;
        count += 1;
    }
    Ok(count)
}

/// Main data: how many items go and how many come. Block data: the numbers of those that go, the new tuples.
fn update(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (deleted, inserted) = (main.u16()?, main.u16()?);
    check(page)?;
    let mut data = Reader::new(record.own.needed_data()?);
    let numbers = data.numbers(deleted)?;
    let mut added = 0;
    if let (Some(number), 1, 1) = (numbers.first(), numbers.len(), inserted) {
        // One for one keeps its place in the page.
        page::index_overwrite(page, number, take_tuple(&mut data)?)?;
        added += 1;
    } else if !numbers.is_empty() {
        page::index_multi_delete(page, numbers.iter())?;
        if get_u16(page, FLAGS) & flag::LEAF != 0 {
            change_flags(page, flag::TUPLES_DELETED, 0);
        }
    }
    added += append_tuples(page, &mut data)?;
    if added == u32::from(inserted) {
        Ok(())
    } else {
        Err("it does not carry as many tuples as it says")
    }
}

/// Items that scans had marked dead go. Main data: horizon, count, item numbers.
fn delete_dead(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_horizon, count) = (main.u32()?, main.u16()?);
    if record.version >= PgVersion::V16 {
        main.u16()?; // whether the table is a catalogue, and padding
    }
    check(page)?;
    if !main.is_empty() {
        let numbers = main.numbers(count)?;
        page::index_multi_delete(page, numbers.iter())?;
    }
    change_flags(page, flag::TUPLES_DELETED, flag::HAS_GARBAGE);
    Ok(())
}

/// `gistxlogPageSplit`.
struct Split {
    right_link: u32,
    nsn: Lsn,
    leaf: bool,
    parts: usize,
    mark_follow_right: bool,
}

impl Split {
    fn read(record: &PageRecord<'_>) -> Result<Split, Fault> {
        let mut main = Reader::new(record.main);
        let (right_link, _padding, nsn) = (main.u32()?, main.u32()?, Lsn(main.u64()?));
        let (leaf, _padding, parts) = (main.u8()?, main.u8()?, main.u16()?);
        Ok(Split {
            right_link,
            nsn,
            leaf: leaf != 0,
            parts: usize::from(parts),
            mark_follow_right: main.u8()? != 0,
        })
    }
}

/// One of the pages that a page is split into, built from the record alone. When the root is split, the first part is
/// the new root with downlinks to the others, and these are complete at once.
fn split_part(record: &PageRecord<'_>, part: usize, page: &mut PageBytes) -> Result<(), Fault> {
    let split = Split::read(record)?;
    if part >= split.parts {
        return Err("it names more pages than it has parts");
    }
    let block_of = |part: usize| {
        let id = u8::try_from(part + 1).ok();
        id.and_then(|id| record.block(id))
            .ok_or("it does not name a page that it needs")
    };
    let of_root = block_of(0)? == ROOT;
    let is_root = record.own.block == ROOT;
    let last = part + 1 == split.parts;
    let right_link = match (is_root, last) {
        (true, _) => NO_BLOCK,
        (false, true) => split.right_link,
        (false, false) => block_of(part + 1)?,
    };
    let leaf = split.leaf && !is_root;
    let follow_right = !is_root && !last && !of_root && split.mark_follow_right;
    page::init(page, 16);
    put_u32(page, RIGHT_LINK, right_link);
    put_u16(page, KIND, PAGE_KIND);
    set_nsn(page, split.nsn);
    change_flags(page, if leaf { flag::LEAF } else { 0 }, 0);
    change_flags(page, if follow_right { flag::FOLLOW_RIGHT } else { 0 }, 0);
    let mut data = Reader::new(record.own.needed_data()?);
    let count = data.u32()?;
    if append_tuples(page, &mut data)? == count {
        Ok(())
    } else {
        Err("it does not carry as many tuples as it says")
    }
}

/// `gistxlogPageDelete`: the last transaction that could see the page, the downlink's number in the parent.
fn delete_page(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let xid = Reader::new(record.main).u64()?;
    check(page)?;
    if page::item_count(page) != 0 || page::upper(page) < DELETED_LOWER {
        return Err("it deletes a page that is not empty");
    }
    change_flags(page, flag::DELETED, 0);
    page::set_lower(page, DELETED_LOWER);
    page[HEADER_BYTES..DELETED_LOWER].copy_from_slice(&xid.to_le_bytes());
    Ok(())
}

fn delete_downlink(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (_xid, number) = (main.u64()?, main.u16()?);
    check(page)?;
    page::index_delete(page, number)
}

#[cfg(test)]
mod tests;
