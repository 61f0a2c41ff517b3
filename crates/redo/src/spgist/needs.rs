//! What redo of one page reads of a record whose main data has the data for all of its pages; see [`crate::needs`].

use std::borrow::Cow;

use super::{insert, pick_split};
use crate::needs::{ALL, Needs, Others, needs};
use crate::page_record::PageRecord;

pub(crate) fn of<'a>(record: &PageRecord<'a>) -> Needs<'a> {
    let (others, main) = match (record.info & 0xF0, record.own.id) {
        // The parent gets the block of the leaf.
        (0x10, 1) => (Others::one(0), insert::ADD_LEAF),
        (0x20, 0 | 2) => (
            Others::one(1),
            insert::move_leafs_bytes(record.main).unwrap_or(ALL),
        ),
        (0x30, 0 | 2) if record.block(1).is_some() => (Others::one(1), insert::ADD_NODE),
        (0x30, _) => (Others::one(1), ALL),
        (0x40, 0) => (Others::NONE, insert::prefix_bytes(record.main).unwrap_or(ALL)),
        (0x50, _) => {
            let main = pick_split::for_page(record.main, record.own.id);
            return Needs {
                xid: false,
                others: Others::one(2),
                // What cannot be cut is stored as it is: redo tells what is wrong with it.
                main: main.map_or(Cow::Borrowed(record.main), Cow::Owned),
            };
        }
        _ => (Others::NONE, ALL),
    };
    needs(record, false, others, main)
}
