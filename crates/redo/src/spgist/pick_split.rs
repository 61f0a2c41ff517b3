//! A chain that has outgrown its page becomes an inner tuple with several chains, on the old leaf page and a new one.

use super::spgist_page::{self, Kind, Remains};
use super::{Downlink, FOREIGN_PAGE, Place, State, tuple};
use crate::page_record::PageRecord;
use crate::reader::{Numbers, Reader};
use crate::{Fault, PageBytes};

/// `spgxlogPickSplit` with what follows it, up to the leaf tuples.
struct PickSplit<'a> {
    root: bool,
    init_source: bool,
    init_destination: bool,
    init_inner: bool,
    nulls: bool,
    inner_is_parent: bool,
    downlink: Downlink,
    state: State,
    /// Where the new inner tuple goes.
    target: Place,
    deleted: Numbers<'a>,
    inserted: Numbers<'a>,
    /// For each inserted tuple: 0 for the source page, else the destination page.
    pages: &'a [u8],
    inner: &'a [u8],
    leaves: Reader<'a>,
}

impl<'a> PickSplit<'a> {
    fn read(record: &PageRecord<'a>) -> Result<PickSplit<'a>, Fault> {
        let mut main = Reader::new(record.main);
        let root = main.u8()? != 0;
        main.take(1)?;
        let (deleted, inserted) = (main.u16()?, main.u16()?);
        let (init_source, init_destination) = (main.u8()? != 0, main.u8()? != 0);
        let number = main.u16()?;
        let (init_inner, nulls, inner_is_parent) = (main.u8()? != 0, main.u8()? != 0, main.u8()? != 0);
        main.take(1)?;
        let downlink = Downlink::read(&mut main)?;
        main.take(2)?;
        let state = State::read(&mut main)?;
        let deleted = main.numbers(deleted)?;
        let inserted = main.numbers(inserted)?;
        let pages = main.take(inserted.len())?;
        let inner = tuple::take_inner(&mut main)?;
        Ok(PickSplit {
            root,
            init_source,
            init_destination,
            init_inner,
            nulls,
            inner_is_parent,
            downlink,
            state,
            target: Place {
                block: record.needed_block(2)?,
                number,
            },
            deleted,
            inserted,
            pages,
            inner,
            leaves: main,
        })
    }

    /// Inserts the leaf tuples that belong on this page.
    fn insert_leaves(&mut self, page: &mut PageBytes, on_destination: bool) -> Result<(), Fault> {
        for (number, &select) in self.inserted.iter().zip(self.pages) {
            let leaf = tuple::take_leaf(&mut self.leaves)?;
            if (select != 0) == on_destination {
                spgist_page::add_or_replace(page, leaf, number)?;
            }
        }
        Ok(())
    }
}

/// Bytes of `spgxlogPickSplit`.
const HEADER: usize = 28;

/// The same main data as far as the page with this reference is concerned: a leaf page's without the tuples of the
/// other leaf page, any other page's without leaf tuples.
pub(super) fn for_page(main: &[u8], id: u8) -> Result<Vec<u8>, Fault> {
    let header = main.get(..HEADER).ok_or("its data ends too early")?;
    let mut rest = Reader::new(&main[HEADER..]);
    let mut counts = Reader::new(&header[2..6]);
    let (deleted, inserted) = (usize::from(counts.u16()?), usize::from(counts.u16()?));
    let deleted = rest.take(deleted * 2)?;
    let numbers = rest.take(inserted * 2)?;
    let pages = rest.take(inserted)?;
    let inner = tuple::take_inner(&mut rest)?;
    let (mut own_numbers, mut own_pages, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    for (number, &select) in numbers.chunks_exact(2).zip(pages) {
        let leaf = tuple::take_leaf(&mut rest)?;
        if id == u8::from(select != 0) {
            own_numbers.extend_from_slice(number);
            own_pages.push(select);
            leaves.extend_from_slice(leaf);
        }
    }
    let deleted = if id == 0 { deleted } else { &[] };
    let mut cut = header.to_vec();
    cut[2..4].copy_from_slice(&((deleted.len() / 2) as u16).to_le_bytes());
    cut[4..6].copy_from_slice(&(own_pages.len() as u16).to_le_bytes());
    for part in [deleted, &own_numbers, &own_pages, inner, &leaves] {
        cut.extend_from_slice(part);
    }
    Ok(cut)
}

pub(super) fn pick_split(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut split = PickSplit::read(record)?;
    let leaf = Kind::Leaf { nulls: split.nulls };
    match record.own.id {
        // The root is touched only as the new inner tuple's page.
        0 if !split.root => {
            spgist_page::begin(&record.own, page, split.init_source, leaf)?;
            if !split.init_source {
                let remains = if split.state.building {
                    Remains::Placeholders
                } else {
                    Remains::Redirect(split.target)
                };
                spgist_page::delete(page, split.deleted, remains, split.state)?;
            }
            split.insert_leaves(page, false)
        }
        1 => {
            spgist_page::begin(&record.own, page, split.init_destination, leaf)?;
            split.insert_leaves(page, true)
        }
        2 => {
            let inner = Kind::Inner { nulls: split.nulls };
            spgist_page::begin(&record.own, page, split.init_inner, inner)?;
            spgist_page::add_or_replace(page, split.inner, split.target.number)?;
            if split.inner_is_parent {
                split.downlink.update(page, split.target)?;
            }
            Ok(())
        }
        3 => {
            spgist_page::existing(&record.own, page)?;
            split.downlink.update(page, split.target)
        }
        _ => Err(FOREIGN_PAGE),
    }
}
