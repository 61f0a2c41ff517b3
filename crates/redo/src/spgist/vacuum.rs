//! Vacuum of leaf pages, of a root that is a leaf, and of redirects and placeholders.

use lakebed_types::PgVersion;

use super::spgist_page::{self, PLACEHOLDERS, REDIRECTS, Remains};
use super::{FOREIGN_PAGE, State, tuple};
use crate::page;
use crate::page_record::{BlockView, PageRecord};
use crate::reader::Reader;
use crate::{Fault, PageBytes};

fn only_page(block: &BlockView<'_>, page: &PageBytes) -> Result<(), Fault> {
    if block.id != 0 {
        return Err(FOREIGN_PAGE);
    }
    spgist_page::existing(block, page)
}

/// Some tuples die, some become placeholders, some move into the place of a dead chain head, and chains are linked
/// anew.
pub(super) fn leaf(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (dead, placeholders, moves, links) = (main.u16()?, main.u16()?, main.u16()?, main.u16()?);
    let state = State::read(&mut main)?;
    let dead = main.numbers(dead)?;
    let placeholders = main.numbers(placeholders)?;
    let from = main.numbers(moves)?;
    let to = main.numbers(moves)?;
    let tuples = main.numbers(links)?;
    let nexts = main.numbers(links)?;
    only_page(&record.own, page)?;
    spgist_page::delete(page, dead, Remains::Dead, state)?;
    spgist_page::delete(page, placeholders, Remains::Placeholders, state)?;
    for (from, to) in from.iter().zip(to.iter()) {
        let (one, other) = (page::item_id(page, from)?, page::item_id(page, to)?);
        page::set_item_id(page, from, other)?;
        page::set_item_id(page, to, one)?;
    }
    spgist_page::delete(page, from, Remains::Placeholders, state)?;
    for (number, next) in tuples.iter().zip(nexts.iter()) {
        let item = page::item_mut(page, number)?;
        if tuple::state(item)? != tuple::LIVE {
            return Err("it links a tuple that is not alive");
        }
        tuple::set_next(item, next)?;
    }
    Ok(())
}

/// Tuples of a root that is a leaf are in no chain and simply go.
pub(super) fn root(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let count = main.u16()?;
    main.take(2)?;
    State::read(&mut main)?;
    let gone = main.numbers(count)?;
    only_page(&record.own, page)?;
    page::index_multi_delete(page, gone.iter())
}

/// Redirects that no scan needs any more become placeholders; placeholders at the end go.
pub(super) fn redirect(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (count, first) = (main.u16()?, main.u16()?);
    let _newest_xid = main.u32()?;
    if record.version >= PgVersion::V16 {
        main.u16()?; // whether the table is a catalogue, and padding
    }
    let redirects = main.numbers(count)?;
    only_page(&record.own, page)?;
    for number in redirects.iter() {
        tuple::make_placeholder(page::item_mut(page, number)?)?;
        spgist_page::count(page, REDIRECTS, -1);
        spgist_page::count(page, PLACEHOLDERS, 1);
    }
    if first != 0 {
        let gone = first..=page::item_count(page);
        page::index_multi_delete(page, gone.clone())?;
        for _ in gone {
            spgist_page::count(page, PLACEHOLDERS, -1);
        }
    }
    Ok(())
}
