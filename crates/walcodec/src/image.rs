//! Page images as columns, so that zstd finds what items have in common.
//!
//! A page holds items behind one another; what is alike in them, the same field of each, lies a tuple apart, and sorted keys
//! differ in their low bits only. Here the bytes of a page change places: line pointers first, as differences, then the first
//! byte of every item, the second, and so on, keys as differences to the item before. It takes no knowledge of the access
//! method: what a page is made of is guessed ([`Form`]), every guess can be undone, and zstd is asked which one pays.
//!
//! | a page in columns, without its hole | |
//! |---|---|
//! | 24 | page header |
//! | 4 n | line pointers, each less the one before, all first bytes, then all second ones, … |
//! | | the heads of the items (8 bytes, or as long as they are), in columns |
//! | | the bodies of the items, as the form says |
//! | | bytes between `pd_upper` and the end of the page that belong to no item, in order |
//!
//! Items are what normal line pointers show, in their order, if they lie behind `pd_upper` and do not overlap an earlier one.
//! Words are little-endian, and less those of the item before in the same place, wrapping.

use std::ops::Range;

const PAGE_BYTES: usize = 8192;
const HEADER_BYTES: usize = 24;
const POINTER_BYTES: usize = 4;
/// An index tuple's header, or the front of a heap tuple's.
const HEAD_BYTES: usize = 8;
const LP_NORMAL: u32 = 1;
/// `t_info`: `t_tid` is something else; and in its offset: a list of TIDs (`access/nbtree.h`).
const ALT_TID: u16 = 0x2000;
const POSTING: u16 = 0x2000;
const POSTING_COUNT: u16 = 0x0fff;
const TID_BYTES: usize = 6;

/// How the bodies of items are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Not in columns at all: the image as it is.
    Raw = 0,
    /// Words of 8 bytes, as differences, in columns.
    Words8 = 1,
    /// Words of 4 bytes, as differences, in columns.
    Words4 = 2,
    /// How many bytes are equal to the item before, for each; then the other bytes.
    Prefix = 3,
    /// As `Words4`, and lists of TIDs (B-tree deduplication) as differences of their blocks and as offsets.
    Postings = 4,
}

impl Form {
    /// Those that are worth a trial.
    pub(crate) const COLUMNS: [Form; 4] = [Form::Words8, Form::Words4, Form::Prefix, Form::Postings];

    pub(crate) fn from_number(number: u8) -> Option<Form> {
        [
            Form::Raw,
            Form::Words8,
            Form::Words4,
            Form::Prefix,
            Form::Postings,
        ]
        .into_iter()
        .find(|form| *form as u8 == number)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Where things are on a page whose image has `length` bytes and a hole at `hole`.
struct Layout {
    lower: usize,
    upper: usize,
}

impl Layout {
    fn new(header: &[u8], length: usize, hole: usize) -> Option<Layout> {
        let (lower, upper) = (usize::from(u16_at(header, 12)?), usize::from(u16_at(header, 14)?));
        let missing = PAGE_BYTES.checked_sub(length)?;
        let fits = lower >= HEADER_BYTES && (lower - HEADER_BYTES).is_multiple_of(POINTER_BYTES);
        // What is between the two is the hole.
        let whole = upper == lower + missing && upper <= PAGE_BYTES && (missing == 0 || lower == hole);
        (fits && whole).then_some(Layout { lower, upper })
    }

    /// Places in the image, not on the page.
    fn items(&self, pointers: impl Iterator<Item = u32>) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
        let mut items = Vec::new();
        let mut used = [0u64; PAGE_BYTES / 64];
        for pointer in pointers {
            let (offset, flags, length) = (
                (pointer & 0x7fff) as usize,
                pointer >> 15 & 3,
                (pointer >> 17) as usize,
            );
            if flags != LP_NORMAL || length == 0 || offset < self.upper || offset + length > PAGE_BYTES {
                continue;
            }
            let taken =
                |used: &[u64], at: usize| used.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1);
            if (offset..offset + length).any(|at| taken(&used, at)) {
                continue;
            }
            for at in offset..offset + length {
                if let Some(word) = used.get_mut(at / 64) {
                    *word |= 1 << (at % 64);
                }
            }
            let begin = offset - self.upper + self.lower;
            items.push(begin..begin + length);
        }
        let mut rest = Vec::new();
        let mut at = self.lower;
        let mut sorted = items.clone();
        sorted.sort_unstable_by_key(|item| item.start);
        for item in sorted {
            if at < item.start {
                rest.push(at..item.start);
            }
            at = item.end;
        }
        let end = PAGE_BYTES - self.upper + self.lower;
        if at < end {
            rest.push(at..end);
        }
        (items, rest)
    }
}

/// Walks a page in the order of its columns; both directions walk the same way.
trait Mover {
    /// The next bytes of the other side: `place` in the image becomes, or is made from, `image - before`.
    fn byte(&mut self, place: usize) -> Option<()>;
    /// `bytes` columns of a word that starts at these places, each less the one before.
    fn words(&mut self, places: &[(usize, Option<usize>)], bytes: usize) -> Option<()>;
    /// Bytes of one item after another that are equal to those before.
    fn prefixes(&mut self, bodies: &[Range<usize>]) -> Option<()>;
    /// The image as far as it is known.
    fn image(&self) -> &[u8];
}

fn word(image: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let bytes = image.get(at..at + bytes)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte)),
    )
}

struct Forward<'a> {
    image: &'a [u8],
    out: Vec<u8>,
}

impl Mover for Forward<'_> {
    fn byte(&mut self, place: usize) -> Option<()> {
        self.out.push(*self.image.get(place)?);
        Some(())
    }

    fn words(&mut self, places: &[(usize, Option<usize>)], bytes: usize) -> Option<()> {
        let begin = self.out.len();
        self.out.resize(begin + places.len() * bytes, 0);
        let out = self.out.get_mut(begin..)?;
        for (row, &(at, before)) in places.iter().enumerate() {
            let before = before.map_or(Some(0), |before| word(self.image, before, bytes))?;
            let less = word(self.image, at, bytes)?.wrapping_sub(before);
            for (column, byte) in less.to_le_bytes().iter().take(bytes).enumerate() {
                *out.get_mut(column * places.len() + row)? = *byte;
            }
        }
        Some(())
    }

    fn prefixes(&mut self, bodies: &[Range<usize>]) -> Option<()> {
        let mut last: &[u8] = &[];
        let mut others = Vec::new();
        for body in bodies {
            let body = self.image.get(body.clone())?;
            let alike = body
                .iter()
                .zip(last)
                .take(255)
                .take_while(|(a, b)| a == b)
                .count();
            self.out.push(alike as u8);
            others.extend_from_slice(body.get(alike..)?);
            last = body;
        }
        self.out.extend(others);
        Some(())
    }

    fn image(&self) -> &[u8] {
        self.image
    }
}

struct Backward<'a> {
    input: &'a [u8],
    image: Vec<u8>,
}

impl<'a> Backward<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.input.split_at_checked(count)?;
        self.input = rest;
        Some(taken)
    }
}

impl Mover for Backward<'_> {
    fn byte(&mut self, place: usize) -> Option<()> {
        let byte = *self.take(1)?.first()?;
        *self.image.get_mut(place)? = byte;
        Some(())
    }

    fn words(&mut self, places: &[(usize, Option<usize>)], bytes: usize) -> Option<()> {
        let columns = self.take(places.len() * bytes)?;
        for (row, &(at, before)) in places.iter().enumerate() {
            let mut less = 0;
            for column in (0..bytes).rev() {
                less = less << 8 | u64::from(*columns.get(column * places.len() + row)?);
            }
            let before = before.map_or(Some(0), |before| word(&self.image, before, bytes))?;
            let now = before.wrapping_add(less).to_le_bytes();
            self.image
                .get_mut(at..at + bytes)?
                .copy_from_slice(now.get(..bytes)?);
        }
        Some(())
    }

    fn prefixes(&mut self, bodies: &[Range<usize>]) -> Option<()> {
        let counts = self.take(bodies.len())?;
        let mut last = 0..0;
        for (body, &alike) in bodies.iter().zip(counts) {
            let alike = usize::from(alike);
            if alike > body.len() || alike > last.len() {
                return None;
            }
            self.image.copy_within(last.start..last.start + alike, body.start);
            let other = self.take(body.len() - alike)?;
            self.image
                .get_mut(body.start + alike..body.end)?
                .copy_from_slice(other);
            last = body.clone();
        }
        Some(())
    }

    fn image(&self) -> &[u8] {
        &self.image
    }
}

/// Columns of words over ranges of different lengths, each less that in the range before which has it; then what is left of
/// each, byte by byte.
fn word_columns(mover: &mut impl Mover, ranges: &[Range<usize>], bytes: usize, differ: bool) -> Option<()> {
    let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
    for at in (0..longest).step_by(bytes) {
        let mut places = Vec::with_capacity(ranges.len());
        let mut before = None;
        for range in ranges.iter().filter(|range| range.len() >= at + bytes) {
            places.push((range.start + at, before.filter(|_| differ)));
            before = Some(range.start + at);
        }
        mover.words(&places, bytes)?;
    }
    for range in ranges {
        let whole = range.len() / bytes * bytes;
        (range.start + whole..range.end).try_for_each(|place| mover.byte(place))?;
    }
    Some(())
}

/// The list of TIDs in an item, if it has one.
fn posting(image: &[u8], item: &Range<usize>) -> Option<Range<usize>> {
    let (info, count) = (u16_at(image, item.start + 6)?, u16_at(image, item.start + 4)?);
    if info & ALT_TID == 0 || count & POSTING == 0 {
        return None;
    }
    let offset = usize::from(u16_at(image, item.start)?) << 16 | usize::from(u16_at(image, item.start + 2)?);
    let end = offset.checked_add(usize::from(count & POSTING_COUNT) * TID_BYTES)?;
    (offset >= HEAD_BYTES && end <= item.len()).then_some(item.start + offset..item.start + end)
}

fn postings(mover: &mut impl Mover, items: &[Range<usize>]) -> Option<()> {
    let lists: Vec<_> = items.iter().map(|item| posting(mover.image(), item)).collect();
    let before = |(item, list): (&Range<usize>, &Option<Range<usize>>)| {
        let end = list.as_ref().map_or(item.end, |list| list.start);
        item.start + HEAD_BYTES.min(item.len())..end
    };
    let keys: Vec<_> = items.iter().zip(&lists).map(before).collect();
    word_columns(mover, &keys, 4, true)?;
    for list in lists.iter().flatten() {
        let tids: Vec<_> = list
            .clone()
            .step_by(TID_BYTES)
            .map(|at| at..at + TID_BYTES)
            .collect();
        word_columns(mover, &tids, 2, true)?;
    }
    for (item, list) in items.iter().zip(&lists) {
        if let Some(list) = list {
            (list.end..item.end).try_for_each(|place| mover.byte(place))?;
        }
    }
    Some(())
}

fn walk(mover: &mut impl Mover, length: usize, hole: usize, form: Form) -> Option<()> {
    (0..HEADER_BYTES).try_for_each(|place| mover.byte(place))?;
    let layout = Layout::new(mover.image(), length, hole)?;
    let pointers: Vec<_> = (HEADER_BYTES..layout.lower)
        .step_by(POINTER_BYTES)
        .map(|at| at..at + POINTER_BYTES)
        .collect();
    let first: Vec<_> = pointers.iter().map(|at| at.start).collect();
    let less: Vec<_> = first
        .iter()
        .enumerate()
        .map(|(row, at)| (*at, row.checked_sub(1).and_then(|row| first.get(row)).copied()))
        .collect();
    mover.words(&less, POINTER_BYTES)?;
    let image = mover.image();
    let values: Vec<u32> = first.iter().filter_map(|at| u32_at(image, *at)).collect();
    let (items, rest) = layout.items(values.into_iter());
    let head = |item: &Range<usize>| item.start..item.start + HEAD_BYTES.min(item.len());
    let body = |item: &Range<usize>| item.start + HEAD_BYTES.min(item.len())..item.end;
    let heads: Vec<_> = items.iter().map(head).collect();
    let bodies: Vec<_> = items.iter().map(body).collect();
    word_columns(mover, &heads, 2, false)?;
    match form {
        Form::Raw => return None,
        Form::Words8 => word_columns(mover, &bodies, 8, true)?,
        Form::Words4 => word_columns(mover, &bodies, 4, true)?,
        Form::Prefix => mover.prefixes(&bodies)?,
        Form::Postings => postings(mover, &items)?,
    }
    rest.into_iter().flatten().try_for_each(|place| mover.byte(place))
}

/// An image in columns; `None` if it is not a page with items, or does not come out again.
pub(crate) fn to_columns(image: &[u8], hole: usize, form: Form) -> Option<Vec<u8>> {
    let mut forward = Forward {
        image,
        out: Vec::with_capacity(image.len() + 512),
    };
    walk(&mut forward, image.len(), hole, form)?;
    Some(forward.out)
}

/// The image of `length` bytes at the front of `input`, which is moved behind it.
pub(crate) fn from_columns(input: &mut &[u8], length: usize, hole: usize, form: Form) -> Option<Vec<u8>> {
    if length > PAGE_BYTES {
        return None;
    }
    let mut backward = Backward {
        input,
        image: vec![0; length],
    };
    walk(&mut backward, length, hole, form)?;
    let (rest, image) = (backward.input, backward.image);
    *input = rest;
    Some(image)
}
