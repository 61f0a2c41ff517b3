//! Pages of SP-GiST indexes and the changes to them that several record types share.
//!
//! The special area (`SpGistPageOpaqueData`, 8 bytes) is: flags, number of redirects, number of placeholders, page
//! kind, 16 bits each.

use super::{Place, State, tuple};
use crate::page::{self, get_u16, put_u16};
use crate::page_record::BlockView;
use crate::reader::Numbers;
use crate::{Fault, PageBytes};

/// Offset of the special area in the page, which begins with the flags.
const OPAQUE: usize = lakebed_types::PAGE_SIZE - 8;
const FLAGS: usize = OPAQUE;
pub(super) const REDIRECTS: usize = OPAQUE + 2;
pub(super) const PLACEHOLDERS: usize = OPAQUE + 4;
const KIND: usize = OPAQUE + 6;
/// `SPGIST_PAGE_ID`.
const PAGE_KIND: u16 = 0xFF82;

const LEAF: u16 = 1 << 2;
const NULLS: u16 = 1 << 3;

/// What a page holds, for pages that a record begins anew.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Leaf { nulls: bool },
    Inner { nulls: bool },
}

impl Kind {
    fn flags(self) -> u16 {
        let (leaf, nulls) = match self {
            Kind::Leaf { nulls } => (LEAF, nulls),
            Kind::Inner { nulls } => (0, nulls),
        };
        leaf | if nulls { NULLS } else { 0 }
    }
}

/// Checks that the page has content and an SP-GiST page's special area.
pub(super) fn check(page: &PageBytes) -> Result<(), Fault> {
    page::check(page)?;
    if page::special(page) == OPAQUE {
        Ok(())
    } else {
        Err("the page is not an SP-GiST page")
    }
}

/// Begins the page anew if the record says so in its data, which must agree with the block reference; else checks it.
pub(super) fn begin(
    block: &BlockView<'_>,
    page: &mut PageBytes,
    anew: bool,
    kind: Kind,
) -> Result<(), Fault> {
    if anew != block.will_init {
        return Err("its data and its block reference disagree on whether the page begins anew");
    }
    if anew {
        page::init(page, 8);
        put_u16(page, FLAGS, kind.flags());
        put_u16(page, KIND, PAGE_KIND);
    }
    check(page)
}

/// Checks a page that a record of this type never begins anew.
pub(super) fn existing(block: &BlockView<'_>, page: &PageBytes) -> Result<(), Fault> {
    if block.will_init {
        return Err("it begins a page anew that its type only changes");
    }
    check(page)
}

/// Changes one of the counters in the special area. A wrong count may come from the primary and is only a hint for its
/// search of free space, so it wraps like there.
pub(super) fn count(page: &mut PageBytes, counter: usize, by: i16) {
    put_u16(page, counter, get_u16(page, counter).wrapping_add_signed(by));
}

fn insert(page: &mut PageBytes, bytes: &[u8], number: u16) -> Result<(), Fault> {
    page::add_item(page, bytes, number, page::Place::Insert)
}

/// Puts a tuple in the place of whatever has this item number.
pub(super) fn replace(page: &mut PageBytes, bytes: &[u8], number: u16) -> Result<(), Fault> {
    page::index_replace(page, number, bytes)
}

/// Adds a tuple as the next item, or in the place of a placeholder.
pub(super) fn add_or_replace(page: &mut PageBytes, bytes: &[u8], number: u16) -> Result<(), Fault> {
    if number > page::item_count(page) {
        return insert(page, bytes, number);
    }
    if tuple::state(page::item(page, number)?)? != tuple::PLACEHOLDER {
        return Err("the tuple to be replaced is not a placeholder");
    }
    count(page, PLACEHOLDERS, -1);
    replace(page, bytes, number)
}

/// What becomes of the items that [`delete`] takes away.
#[derive(Clone, Copy)]
pub(super) enum Remains {
    /// The first listed item leads to where its chain went, the others are placeholders.
    Redirect(Place),
    /// Placeholders.
    Placeholders,
    /// Dead tuples.
    Dead,
}

/// `spgPageIndexMultiDelete`: replaces items by dead tuples; all other item numbers stay.
pub(super) fn delete(
    page: &mut PageBytes,
    numbers: Numbers<'_>,
    remains: Remains,
    state: State,
) -> Result<(), Fault> {
    let Some(first) = numbers.first() else {
        return Ok(());
    };
    let mut sorted = [0; page::MAX_ITEMS];
    let sorted = sorted
        .get_mut(..numbers.len())
        .ok_or("it deletes items that the page does not have")?;
    sorted
        .iter_mut()
        .zip(numbers.iter())
        .for_each(|(to, from)| *to = from);
    sorted.sort_unstable();
    let nowhere = Place { block: 0, number: 0 };
    let (head, other) = match remains {
        Remains::Redirect(target) => (
            tuple::dead(tuple::REDIRECT, target, state.xid)?,
            tuple::dead(tuple::PLACEHOLDER, nowhere, 0)?,
        ),
        Remains::Placeholders => [tuple::dead(tuple::PLACEHOLDER, nowhere, 0)?; 2].into(),
        Remains::Dead => [tuple::dead(tuple::DEAD, nowhere, 0)?; 2].into(),
    };
    let tuple_of = |number: u16| if number == first { &head[..] } else { &other };
    match *sorted {
        [one] => page::index_replace(page, one, &head)?,
        // Postgres does two deletions one by one from the end, which leaves another physical order than packing.
        [one, two] => {
            page::index_delete(page, two)?;
            page::index_delete(page, one)?;
            insert(page, tuple_of(one), one)?;
            insert(page, tuple_of(two), two)?;
        }
        _ => page::index_multi_replace(page, sorted, tuple_of)?,
    }
    let redirects = match remains {
        Remains::Dead => return Ok(()),
        Remains::Redirect(_) => sorted.iter().filter(|&&number| number == first).count() as i16,
        Remains::Placeholders => 0,
    };
    count(page, REDIRECTS, redirects);
    count(page, PLACEHOLDERS, sorted.len() as i16 - redirects);
    Ok(())
}
