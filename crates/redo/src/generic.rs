//! Redo of generic records (`access/transam/generic_xlog.c`), which extensions use for their pages: bytes to overwrite.
//!
//! A block's data is a list of fragments: offset (16 bits), length (16 bits), bytes.

use crate::page;
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes};

#[cfg(test)]
mod tests;

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    if page::is_new(page) {
        return Err("the page has no content before this record");
    }
    let mut data = Reader::new(record.own.any_data());
    while !data.is_empty() {
        let (offset, length) = (usize::from(data.u16()?), usize::from(data.u16()?));
        page.get_mut(offset..offset + length)
            .ok_or("a fragment ends outside the page")?
            .copy_from_slice(data.take(length)?);
    }
    // Fragments say nothing about the free space: it becomes zeros, as on the primary.
    let hole = page::lower(page)..page::upper(page);
    page.get_mut(hole).ok_or("the page's header is damaged")?.fill(0);
    page::set_lsn(page, record.end);
    Ok(())
}
