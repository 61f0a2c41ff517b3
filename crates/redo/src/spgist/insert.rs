//! Insertion without a new inner tuple for a leaf page: adding and moving leaf tuples, adding nodes to an inner tuple,
//! splitting an inner tuple in two.

use super::spgist_page::{self, Kind, Remains};
use super::{Downlink, FOREIGN_PAGE, Place, State, tuple};
use crate::page;
use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes};

/// Bytes of main data before the leaf tuple (`spgxlogAddLeaf`).
pub(super) const ADD_LEAF: usize = 10;
/// Bytes of main data before the inner tuple (`spgxlogAddNode`).
pub(super) const ADD_NODE: usize = 20;
/// Bytes of `spgxlogMoveLeafs`.
const MOVE_LEAFS: usize = 20;

/// Bytes of main data before the leaf tuples that move.
pub(super) fn move_leafs_bytes(main: &[u8]) -> Result<usize, Fault> {
    let mut main = Reader::new(main);
    let (moved, _new_page, replace_dead) = (usize::from(main.u16()?), main.u8()?, main.u8()? != 0);
    let inserted = if replace_dead { 1 } else { moved + 1 };
    Ok(MOVE_LEAFS + (moved + inserted) * 2)
}

/// Bytes of main data that redo of the prefix tuple's page reads: without the postfix tuple if that is elsewhere.
pub(super) fn prefix_bytes(main: &[u8]) -> Result<usize, Fault> {
    let mut rest = Reader::new(main);
    let (_numbers, _new_page, same_page) = (rest.u32()?, rest.u8()?, rest.u8()? != 0);
    if same_page {
        return Ok(main.len());
    }
    tuple::take_inner(&mut rest)?;
    Ok(main.len() - rest.rest().len())
}

/// A leaf tuple: a new chain (then the parent's downlink leads to it), the second of a chain, or in place of a chain's
/// only, dead tuple.
pub(super) fn add_leaf(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (new_page, nulls) = (main.u8()? != 0, main.u8()? != 0);
    let (number, head) = (main.u16()?, main.u16()?);
    let downlink = Downlink::read(&mut main)?;
    match record.own.id {
        0 => {
            let leaf = tuple::take_leaf(&mut main)?;
            spgist_page::begin(&record.own, page, new_page, Kind::Leaf { nulls })?;
            if number == head {
                return spgist_page::replace(page, leaf, number);
            }
            spgist_page::add_or_replace(page, leaf, number)?;
            if head != 0 {
                tuple::set_next(page::item_mut(page, head)?, number)?;
            }
            Ok(())
        }
        1 if downlink.number != 0 => {
            spgist_page::existing(&record.own, page)?;
            let block = record.needed_block(0)?;
            downlink.update(page, Place { block, number })
        }
        _ => Err(FOREIGN_PAGE),
    }
}

/// A chain moves to another page together with a new leaf tuple, and leaves a redirect behind.
pub(super) fn move_leafs(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let moved = main.u16()?;
    let (new_page, replace_dead, nulls) = (main.u8()? != 0, main.u8()? != 0, main.u8()? != 0);
    main.take(1)?;
    let downlink = Downlink::read(&mut main)?;
    main.take(2)?;
    let state = State::read(&mut main)?;
    let from = main.numbers(moved)?;
    let inserted = if replace_dead {
        1
    } else {
        moved.checked_add(1).ok_or("it moves too many tuples")?
    };
    let to = main.numbers(inserted)?;
    let target = Place {
        block: record.needed_block(1)?,
        number: to.last().ok_or("it moves no tuple")?,
    };
    match record.own.id {
        0 => {
            spgist_page::existing(&record.own, page)?;
            let remains = if state.building {
                Remains::Placeholders
            } else {
                Remains::Redirect(target)
            };
            spgist_page::delete(page, from, remains, state)
        }
        1 => {
            spgist_page::begin(&record.own, page, new_page, Kind::Leaf { nulls })?;
            for number in to.iter() {
                spgist_page::add_or_replace(page, tuple::take_leaf(&mut main)?, number)?;
            }
            Ok(())
        }
        2 => {
            spgist_page::existing(&record.own, page)?;
            downlink.update(page, target)
        }
        _ => Err(FOREIGN_PAGE),
    }
}

/// An inner tuple gets one more node: in its place, or on another page with a redirect left behind.
pub(super) fn add_node(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (number, new_number) = (main.u16()?, main.u16()?);
    // The parent's block reference, 0xFF if its downlink stays as it is.
    let (new_page, parent) = (main.u8()? != 0, main.u8()?);
    let downlink = Downlink::read(&mut main)?;
    main.take(2)?;
    let state = State::read(&mut main)?;
    if record.block(1).is_none() {
        if record.own.id != 0 {
            return Err(FOREIGN_PAGE);
        }
        spgist_page::existing(&record.own, page)?;
        return spgist_page::replace(page, tuple::take_inner(&mut main)?, number);
    }
    let target = Place {
        block: record.needed_block(1)?,
        number: new_number,
    };
    match record.own.id {
        0 => {
            spgist_page::existing(&record.own, page)?;
            let (kind, counter) = if state.building {
                (tuple::PLACEHOLDER, spgist_page::PLACEHOLDERS)
            } else {
                (tuple::REDIRECT, spgist_page::REDIRECTS)
            };
            spgist_page::replace(page, &tuple::dead(kind, target, state.xid)?, number)?;
            spgist_page::count(page, counter, 1);
        }
        1 => {
            spgist_page::begin(&record.own, page, new_page, Kind::Inner { nulls: false })?;
            spgist_page::add_or_replace(page, tuple::take_inner(&mut main)?, new_number)?;
        }
        2 if parent == 2 => spgist_page::existing(&record.own, page)?,
        _ => return Err(FOREIGN_PAGE),
    }
    if parent == record.own.id {
        downlink.update(page, target)?;
    }
    Ok(())
}

/// An inner tuple is split into one with a shorter prefix, in its place, and one below it.
pub(super) fn split_tuple(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    let mut main = Reader::new(record.main);
    let (prefix_number, postfix_number) = (main.u16()?, main.u16()?);
    let (new_page, same_page) = (main.u8()? != 0, main.u8()? != 0);
    let prefix = tuple::take_inner(&mut main)?;
    match record.own.id {
        0 => {
            spgist_page::existing(&record.own, page)?;
            spgist_page::replace(page, prefix, prefix_number)?;
            if same_page {
                let postfix = tuple::take_inner(&mut main)?;
                spgist_page::add_or_replace(page, postfix, postfix_number)?;
            }
            Ok(())
        }
        1 if !same_page => {
            spgist_page::begin(&record.own, page, new_page, Kind::Inner { nulls: false })?;
            let postfix = tuple::take_inner(&mut main)?;
            spgist_page::add_or_replace(page, postfix, postfix_number)
        }
        _ => Err(FOREIGN_PAGE),
    }
}
