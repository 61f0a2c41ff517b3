//! Redo of SP-GiST indexes (`access/spgist/spgxlog.c`).
//!
//! All data is in the record's main data, whichever of its pages it is for; block references carry none.
//!
//! | record | block 0 | block 1 | block 2 | block 3 |
//! |---|---|---|---|---|
//! | add leaf 0x10 | leaf | parent | | |
//! | move leafs 0x20 | source leaf | destination leaf | parent | |
//! | add node 0x30 | the inner tuple's page | its new page | parent, if on neither | |
//! | split tuple 0x40 | prefix tuple's page | postfix tuple's page | | |
//! | pick split 0x50 | source leaf | destination leaf | the new inner tuple's page | parent, if elsewhere |
//! | vacuum leaf 0x60, root 0x70, redirect 0x80 | the page | | | |

mod insert;
mod needs;
mod pick_split;
mod spgist_page;
mod tuple;
mod vacuum;

pub(crate) use needs::of as needs;

use crate::page_record::PageRecord;
use crate::reader::Reader;
use crate::{Fault, PageBytes, page};

pub(crate) fn redo(record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
    match record.info & 0xF0 {
        0x10 => insert::add_leaf(record, page)?,
        0x20 => insert::move_leafs(record, page)?,
        0x30 => insert::add_node(record, page)?,
        0x40 => insert::split_tuple(record, page)?,
        0x50 => pick_split::pick_split(record, page)?,
        0x60 => vacuum::leaf(record, page)?,
        0x70 => vacuum::root(record, page)?,
        0x80 => vacuum::redirect(record, page)?,
        _ => return Err("a record of this type names no page"),
    }
    page::set_lsn(page, record.end);
    Ok(())
}

const FOREIGN_PAGE: Fault = "a record of this type does not name this page";

/// A place in the index: block and item number.
#[derive(Clone, Copy)]
struct Place {
    block: u32,
    number: u16,
}

/// What a redirect tuple needs from the primary's state (`spgxlogState`).
#[derive(Clone, Copy)]
struct State {
    xid: u32,
    building: bool,
}

impl State {
    fn read(main: &mut Reader<'_>) -> Result<State, Fault> {
        let (xid, building) = (main.u32()?, main.u8()? != 0);
        main.take(3)?;
        Ok(State { xid, building })
    }
}

/// A parent's downlink: item number of the inner tuple and the node's index in it.
#[derive(Clone, Copy)]
struct Downlink {
    number: u16,
    node: u16,
}

impl Downlink {
    fn read(main: &mut Reader<'_>) -> Result<Downlink, Fault> {
        Ok(Downlink {
            number: main.u16()?,
            node: main.u16()?,
        })
    }

    /// Lets the node lead to `target`.
    fn update(self, page: &mut PageBytes, target: Place) -> Result<(), Fault> {
        spgist_page::check(page)?;
        tuple::set_node_link(page::item_mut(page, self.number)?, self.node, target)
    }
}

#[cfg(test)]
mod tests;
