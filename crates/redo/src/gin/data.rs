//! Posting trees. All pages have their own right bound (a TID, in 8 bytes) after the header; then come
//!
//! - on a leaf, posting lists ("segments") one after the other, up to `pd_lower`; see [`super::posting_list`],
//! - on an inner page, links of 10 bytes: child block (high half first), greatest TID below it.

use super::posting_list::{self, Encoder, TID};
use super::{COUNT, FLAGS, NOT_THIS_PAGE, OPAQUE, RIGHT};
use super::{block_id, check, check_data, flag, flags, init};
use crate::page::{self, HEADER_BYTES, get_u16, put_u16, put_u32};
use crate::page_record::BlockView;
use crate::reader::Reader;
use crate::{Fault, PageBytes};

/// Where segments or links begin.
const CONTENT: usize = HEADER_BYTES + 8;
/// Bytes of a link (`PostingItem`).
const LINK: usize = 10;
const NO_ROOM: Fault = "the page has no room for its posting lists";

/// Changes of a segment (`GIN_SEGMENT_*`).
mod action {
    pub const DELETE: u8 = 1;
    pub const INSERT: u8 = 2;
    pub const REPLACE: u8 = 3;
    pub const ADD_ITEMS: u8 = 4;
}

fn set_content_bytes(page: &mut PageBytes, bytes: usize) {
    page::set_lower(page, CONTENT + bytes);
}

/// Main data: number of bytes, then the segments.
pub(super) fn create_tree(mut main: Reader<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let bytes = main.u32()? as usize;
    let segments = main.take(bytes)?;
    init(page, flag::DATA | flag::LEAF | flag::COMPRESSED);
    page[CONTENT..OPAQUE]
        .get_mut(..bytes)
        .ok_or(NO_ROOM)?
        .copy_from_slice(segments);
    set_content_bytes(page, bytes);
    Ok(())
}

/// Where the page's segments go, one after the other.
struct Output<'a> {
    content: &'a mut [u8],
    at: usize,
}

impl Output<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.content[self.at..]
            .get_mut(..bytes.len())
            .ok_or(NO_ROOM)?
            .copy_from_slice(bytes);
        self.at += bytes.len();
        Ok(())
    }

    /// The segment and these TIDs, both in ascending order, as a new segment.
    fn put_merged(&mut self, segment: &[u8], added: &[u8]) -> Result<(), Fault> {
        let mut old = posting_list::Items::new(segment)?;
        let mut added = added.as_chunks::<TID>().0.iter();
        let mut next_added = || added.next().map(posting_list::pack).transpose();
        let mut encoder = Encoder::new(&mut self.content[self.at..]);
        let (mut a, mut b) = (next_added()?, old.next()?);
        loop {
            let item = match (a, b) {
                (Some(new), Some(item)) if new < item => {
                    a = next_added()?;
                    new
                }
                (new, Some(item)) => {
                    b = old.next()?;
                    if new == Some(item) {
                        a = next_added()?;
                    }
                    item
                }
                (Some(new), None) => {
                    a = next_added()?;
                    new
                }
                (None, None) => break,
            };
            encoder.push(item)?;
        }
        self.at += encoder.finish()?;
        Ok(())
    }
}

/// Changes segments of a leaf (`ginRedoRecompress`). `data`: number of changes; each has the number of its segment on
/// the old page (8 bits), an action (8 bits) and what belongs to it. An inserted segment goes before its number.
pub(super) fn recompress(page: &mut PageBytes, data: &[u8]) -> Result<(), Fault> {
    if flags(page) & flag::COMPRESSED == 0 {
        compress(page)?;
    }
    let before = *page;
    let old = before
        .get(CONTENT..page::lower(&before))
        .ok_or("the page's header is damaged")?;
    let mut old = Reader::new(old);
    let mut output = Output {
        content: &mut page[CONTENT..OPAQUE],
        at: 0,
    };
    let mut changes = Reader::new(data);
    let mut number = 0;
    for _ in 0..changes.u16()? {
        let (target, action) = (changes.u8()?, changes.u8()?);
        while number < u32::from(target) {
            output.put(posting_list::take(&mut old)?)?;
            number += 1;
        }
        if number != u32::from(target) {
            return Err("its changes of posting lists are not in order");
        }
        if action == action::INSERT {
            output.put(posting_list::take(&mut changes)?)?;
            continue;
        }
        let segment = posting_list::take(&mut old)?;
        number += 1;
        match action {
            action::DELETE => {}
            action::REPLACE => output.put(posting_list::take(&mut changes)?)?,
            action::ADD_ITEMS => {
                let count = usize::from(changes.u16()?);
                output.put_merged(segment, changes.take(count * TID)?)?;
            }
            _ => return Err("an unknown change of a posting list"),
        }
    }
    if !changes.is_empty() {
        return Err("bytes are left after its changes of posting lists");
    }
    output.put(old.rest())?;
    let bytes = output.at;
    set_content_bytes(page, bytes);
    Ok(())
}

/// Makes one segment of a leaf that has plain TIDs, as Postgres before 9.4 wrote it.
fn compress(page: &mut PageBytes) -> Result<(), Fault> {
    let before = *page;
    let count = usize::from(get_u16(page, COUNT));
    let items = before[CONTENT..OPAQUE]
        .get(..count * TID)
        .ok_or("the page's number of items is damaged")?;
    let mut bytes = 0;
    if count > 0 {
        let mut encoder = Encoder::new(&mut page[CONTENT..OPAQUE]);
        for item in items.as_chunks::<TID>().0 {
            encoder.push(posting_list::pack(item)?)?;
        }
        bytes = encoder.finish()?;
    }
    set_content_bytes(page, bytes);
    put_u16(page, FLAGS, flags(page) | flag::COMPRESSED);
    put_u16(page, COUNT, 0);
    Ok(())
}

/// The number of links of an inner page, all of which lie on it.
fn link_count(page: &PageBytes) -> Result<usize, Fault> {
    let count = usize::from(get_u16(page, COUNT));
    if CONTENT + count * LINK <= OPAQUE {
        Ok(count)
    } else {
        Err("the page's number of items is damaged")
    }
}

fn link_at(count: usize, number: u16) -> Result<usize, Fault> {
    let number = usize::from(number);
    if (1..=count).contains(&number) {
        Ok(CONTENT + (number - 1) * LINK)
    } else {
        Err("it names a link that the page does not have")
    }
}

fn set_link_count(page: &mut PageBytes, count: usize) {
    put_u16(page, COUNT, count as u16);
    set_content_bytes(page, count * LINK);
}

/// Adds a link to an inner page, before the one that from now on leads to the right child. Block data: its number,
/// then the link.
pub(super) fn insert_link(page: &mut PageBytes, data: &[u8], right_child: u32) -> Result<(), Fault> {
    let mut data = Reader::new(data);
    let (number, link) = (data.u16()?, data.take(LINK)?);
    let count = link_count(page)?;
    let at = link_at(count, number)?;
    let end = CONTENT + count * LINK;
    if end + LINK > OPAQUE {
        return Err("the page has no room for the new link");
    }
    page[at..at + 4].copy_from_slice(block_id(right_child).as_flattened());
    page.copy_within(at..end, at + LINK);
    page[at..at + LINK].copy_from_slice(link);
    set_link_count(page, count + 1);
    Ok(())
}

/// Main data: number of the link in the parent, padding, the deleted page's right neighbour, the transaction after
/// which nobody can be on its way to the page.
pub(super) fn delete_page(
    mut main: Reader<'_>,
    block: &BlockView<'_>,
    page: &mut PageBytes,
) -> Result<(), Fault> {
    let (number, _padding) = (main.u16()?, main.u16()?);
    let (right, xid) = (main.u32()?, main.u32()?);
    check(page)?;
    if flags(page) & flag::DATA == 0 {
        return Err("the page does not belong to a posting tree");
    }
    match block.id {
        0 => {
            put_u16(page, FLAGS, flags(page) | flag::DELETED);
            put_u32(page, 20, xid); // pd_prune_xid
        }
        1 => {
            check_data(page, false)?;
            let count = link_count(page)?;
            let at = link_at(count, number)?;
            page.copy_within(at + LINK..CONTENT + count * LINK, at);
            set_link_count(page, count - 1);
        }
        2 => put_u32(page, RIGHT, right),
        _ => return Err(NOT_THIS_PAGE),
    }
    Ok(())
}
