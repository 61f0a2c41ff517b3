//! The model of records: what comes next, given what came before.
//!
//! A record goes through in this order: its transaction (mostly one of the last few), its [`Shape`] (mostly the one that followed
//! last time in such a transaction), its fields, its data. Data is expected to be what the last record of the same
//! shape had in the same place, eight bytes at a time: a transaction like the one before costs a bit or two for each
//! word that is equal, and about as many bytes as differ. Words that held the transaction id are expected to hold that of this
//! record. Data that is long ([`BLOB_BYTES`]) or a page image goes aside, to be compressed by zstd: modelled bit by bit it
//! would cost more time than it saves.
//!
//! All state is bounded: [`MAX_SHAPES`] shapes, [`MAX_TEMPLATES`] earlier records of each, [`MAX_TRANSACTIONS`] transactions.

use std::collections::BTreeMap;

use crate::coder::Coder;
use crate::image::Form;
use crate::model::{Bits, Context};
use crate::shape::{PartKind, Shape};

/// Data from this length on is not modelled.
pub(crate) const BLOB_BYTES: usize = 1024;
/// Shapes that are remembered.
const MAX_SHAPES: usize = 256;
/// Longest shape that is accepted: 33 block references.
const MAX_SHAPE_BYTES: usize = 1024;
/// Lengths of data that are remembered for one part of a shape.
const MAX_TEMPLATES: usize = 4;
/// Transactions that are remembered.
const MAX_TRANSACTIONS: usize = 24;

/// What is coded.
mod kind {
    pub(super) const NO_XID: u32 = 1;
    pub(super) const XID_RECENT: u32 = 2;
    pub(super) const XID_KNOWN: u32 = 18;
    pub(super) const XID_NEXT: u32 = 3;
    pub(super) const XID: u32 = 4;
    pub(super) const SHAPE_LIKELY: u32 = 5;
    pub(super) const SHAPE_SECOND: u32 = 6;
    pub(super) const SHAPE_KNOWN: u32 = 7;
    pub(super) const SHAPE_NUMBER: u32 = 8;
    pub(super) const SHAPE_LENGTH: u32 = 9;
    pub(super) const SHAPE_BYTE: u32 = 10;
    pub(super) const FIELD_SAME: u32 = 11;
    pub(super) const PART: u32 = 12;
    pub(super) const FIELD_BYTE: u32 = 13;
    pub(super) const WORD: u32 = 14;
    pub(super) const BYTE: u32 = 15;
    pub(super) const TEXT: u32 = 16;
    pub(super) const FORM: u32 = 17;
}

/// What is wrong with coded records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ModelError {
    #[error("a record's shape is not one")]
    Shape,
    #[error("a record is longer than its batch")]
    Length,
    #[error("a page image has a form that does not exist, or does not have its form")]
    Form,
    #[error("there is less data than the records need")]
    Blob,
}

/// A record to encode; empty when decoding.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given<'a> {
    pub(crate) xid: u32,
    pub(crate) shape: &'a [u8],
    pub(crate) fields: &'a [u32],
    /// The record's bytes; `parts` are ranges of it.
    pub(crate) bytes: &'a [u8],
    pub(crate) parts: &'a [std::ops::Range<usize>],
}

/// Data that goes aside: written by the encoder, taken by the decoder.
pub(crate) trait Aside {
    /// Encoder: how to write this page image; `last` is how the one before was written.
    fn form(&mut self, image: &[u8], hole: u32, last: Form) -> Form;
    /// Encoder: keeps `data`. Decoder: appends `length` bytes to `out`.
    fn data(&mut self, piece: Piece, data: &[u8], out: &mut Vec<u8>) -> Result<(), ModelError>;
}

/// What goes aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) form: Form,
    pub(crate) length: usize,
    /// Where the hole of an image begins.
    pub(crate) hole: usize,
}

#[derive(Clone, Debug, Default)]
struct Template {
    bytes: Vec<u8>,
    /// Where the transaction id was.
    xid_at: Vec<u16>,
}

#[derive(Debug)]
struct Entry {
    shape: std::sync::Arc<Shape>,
    fields: Vec<u32>,
    /// How the last page image of it was written.
    form: u8,
    /// For each part the last ones, of different lengths, the newest first.
    templates: Vec<Vec<Template>>,
}

#[derive(Clone, Copy, Debug)]
struct Transaction {
    xid: u32,
    shapes: [u8; 2],
}

/// See the module header.
#[derive(Debug)]
pub(crate) struct Model {
    bits: Bits,
    entries: Vec<Entry>,
    by_shape: BTreeMap<Vec<u8>, usize>,
    next_replaced: usize,
    transactions: Vec<Transaction>,
    /// Of records without transaction.
    idle: [u8; 2],
    newest_xid: u32,
    last_shape: u8,
    /// What followed two shapes of a transaction, and one.
    after_two: Box<[u8]>,
    after_one: Box<[u8]>,
}

fn known_or(value: Option<&u8>) -> u8 {
    value.copied().unwrap_or_default()
}

impl Model {
    pub(crate) fn new() -> Model {
        Model {
            bits: Bits::new(),
            entries: Vec::new(),
            by_shape: BTreeMap::new(),
            next_replaced: 0,
            transactions: Vec::new(),
            idle: [0; 2],
            newest_xid: 0,
            last_shape: 0,
            after_two: vec![0; 1 << 16].into_boxed_slice(),
            after_one: vec![0; 1 << 8].into_boxed_slice(),
        }
    }

    /// A number that only has to be the same on both sides.
    pub(crate) fn small<C: Coder>(&mut self, coder: &mut C, which: u32, expected: u8, value: u8) -> u8 {
        self.bits.byte(coder, Context::new(100 + which), expected, value)
    }

    /// Codes one record, and appends it to `out` without `xl_prev` and `xl_crc`. It has at most `most` bytes.
    pub(crate) fn record<C: Coder>(
        &mut self,
        coder: &mut C,
        given: Given<'_>,
        aside: &mut impl Aside,
        most: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let (xid, slot) = self.xid(coder, given.xid);
        let history = match slot {
            Some(slot) => self.transactions.get(slot).map_or([0; 2], |known| known.shapes),
            None => self.idle,
        };
        let number = self.shape(coder, history, given.shape)?;
        let shape = self.entries.get(number).ok_or(ModelError::Shape)?.shape.clone();
        let fields = self.fields(coder, number, &shape, given.fields);
        if shape.record_bytes(&fields) > most {
            return Err(ModelError::Length);
        }
        shape.write_headers(xid, &fields, out);
        for (at, part) in shape.parts.iter().enumerate() {
            let length = fields.get(part.length).copied().unwrap_or_default();
            let range = given.parts.get(at).cloned().unwrap_or_default();
            let data = given.bytes.get(range).unwrap_or_default();
            if part.kind == PartKind::Image || length as usize >= BLOB_BYTES {
                let hole = part
                    .hole
                    .and_then(|hole| fields.get(hole))
                    .copied()
                    .unwrap_or_default();
                let form = match part.kind {
                    PartKind::Image => self.form(coder, number, data, hole, aside)?,
                    PartKind::Data => Form::Raw,
                };
                let (length, hole) = (length as usize, hole as usize);
                aside.data(Piece { form, length, hole }, data, out)?;
            } else {
                self.part(coder, (number, at), xid, data, length as usize, out);
            }
        }
        let shapes = [number as u8, history[0]];
        match slot.and_then(|slot| self.transactions.get_mut(slot)) {
            Some(known) => known.shapes = shapes,
            None => self.idle = shapes,
        }
        self.last_shape = number as u8;
        Ok(())
    }

    fn form<C: Coder>(
        &mut self,
        coder: &mut C,
        number: usize,
        image: &[u8],
        hole: u32,
        aside: &mut impl Aside,
    ) -> Result<Form, ModelError> {
        let last = self.entries.get(number).map_or(0, |entry| entry.form);
        let told = aside.form(image, hole, Form::from_number(last).unwrap_or(Form::Raw)) as u8;
        let form = self.bits.byte(coder, Context::new(kind::FORM), last, told);
        if let Some(entry) = self.entries.get_mut(number) {
            entry.form = form;
        }
        Form::from_number(form).ok_or(ModelError::Form)
    }

    /// The transaction: its id, and where it is in the list, which is at the front now.
    fn xid<C: Coder>(&mut self, coder: &mut C, xid: u32) -> (u32, Option<usize>) {
        let last = u32::from(self.last_shape);
        if self
            .bits
            .flag(coder, Context::new(kind::NO_XID).with(last), xid == 0)
        {
            return (0, None);
        }
        let place = self.transactions.iter().position(|known| known.xid == xid);
        let context = Context::new(kind::XID_KNOWN).with(last);
        let is_known = self.bits.flag(coder, context, place.is_some());
        let mut found = None;
        for at in (0..self.transactions.len()).take_while(|_| is_known) {
            let known = self.transactions.get(at).map_or(0, |known| known.xid);
            let shape = self.transactions.get(at).map_or(0, |known| known.shapes[0]);
            let context =
                Context::new(kind::XID_RECENT).with((at as u32) << 16 | u32::from(shape) << 8 | last);
            if self.bits.flag(coder, context, xid == known) {
                found = Some(at);
                break;
            }
        }
        let transaction = match found {
            Some(at) => self.transactions.remove(at),
            None => {
                let next = self.newest_xid.wrapping_add(1);
                let is_next = self.bits.flag(coder, Context::new(kind::XID_NEXT), xid == next);
                let xid = if is_next {
                    next
                } else {
                    self.number(coder, Context::new(kind::XID), 32, next, xid)
                };
                self.newest_xid = xid;
                self.transactions.truncate(MAX_TRANSACTIONS - 1);
                Transaction { xid, shapes: [0; 2] }
            }
        };
        self.transactions.insert(0, transaction);
        (transaction.xid, Some(0))
    }

    fn shape<C: Coder>(
        &mut self,
        coder: &mut C,
        history: [u8; 2],
        bytes: &[u8],
    ) -> Result<usize, ModelError> {
        let told = if C::DECODES {
            None
        } else {
            self.by_shape.get(bytes).copied()
        };
        let one = usize::from(history[0]);
        let two = one << 8 | usize::from(history[1]);
        let is = |number: u8| told == Some(usize::from(number));
        let likely = known_or(self.after_two.get(two));
        let second = known_or(self.after_one.get(one));
        let (one_context, two_context) = (one as u32, two as u32);
        let number = if self.bits.flag(
            coder,
            Context::new(kind::SHAPE_LIKELY).with(two_context),
            is(likely),
        ) {
            usize::from(likely)
        } else if likely != second
            && self.bits.flag(
                coder,
                Context::new(kind::SHAPE_SECOND).with(one_context),
                is(second),
            )
        {
            usize::from(second)
        } else if self
            .bits
            .flag(coder, Context::new(kind::SHAPE_KNOWN), told.is_some())
        {
            let context = Context::new(kind::SHAPE_NUMBER).with(one_context);
            self.bits.bits(coder, context, 8, told.unwrap_or_default() as u32) as usize
        } else {
            self.new_shape(coder, bytes)?
        };
        let number = number.min(self.entries.len().saturating_sub(1));
        for (table, at) in [(&mut self.after_two, two), (&mut self.after_one, one)] {
            if let Some(follower) = table.get_mut(at) {
                *follower = number as u8;
            }
        }
        Ok(number)
    }

    /// Learns a shape, in the place of the one that came in first if there are too many.
    fn new_shape<C: Coder>(&mut self, coder: &mut C, bytes: &[u8]) -> Result<usize, ModelError> {
        let length =
            self.bits
                .bits(coder, Context::new(kind::SHAPE_LENGTH), 16, bytes.len() as u32) as usize;
        if length > MAX_SHAPE_BYTES {
            return Err(ModelError::Shape);
        }
        let mut shape = Vec::with_capacity(length);
        let before = self
            .entries
            .get(usize::from(self.last_shape))
            .map(|entry| entry.shape.clone());
        for at in 0..length {
            let expected = before
                .as_ref()
                .and_then(|shape| shape.bytes.get(at))
                .copied()
                .unwrap_or_default();
            let byte = bytes.get(at).copied().unwrap_or_default();
            let context = Context::new(kind::SHAPE_BYTE).with(at as u32);
            shape.push(self.bits.byte(coder, context, expected, byte));
        }
        let parsed = Shape::parse(&shape).ok_or(ModelError::Shape)?;
        let entry = Entry {
            fields: vec![0; parsed.fields.len()],
            form: 0,
            templates: vec![Vec::new(); parsed.parts.len()],
            shape: parsed.into(),
        };
        if self.entries.len() < MAX_SHAPES {
            self.entries.push(entry);
            self.by_shape.insert(shape, self.entries.len() - 1);
            return Ok(self.entries.len() - 1);
        }
        let number = self.next_replaced;
        self.next_replaced = (number + 1) % MAX_SHAPES;
        if let Some(replaced) = self.entries.get_mut(number) {
            self.by_shape.remove(&replaced.shape.bytes);
            *replaced = entry;
        }
        self.by_shape.insert(shape, number);
        Ok(number)
    }

    fn fields<C: Coder>(&mut self, coder: &mut C, number: usize, shape: &Shape, given: &[u32]) -> Vec<u32> {
        let mut fields = Vec::with_capacity(shape.fields.len());
        for (at, field) in shape.fields.iter().enumerate() {
            let entry = self.entries.get(number);
            let last = entry
                .and_then(|entry| entry.fields.get(at))
                .copied()
                .unwrap_or_default();
            let value = given.get(at).copied().unwrap_or_default();
            let here = (number as u32) << 8 | at as u32;
            let context = Context::new(kind::FIELD_SAME).with(here);
            let value = if self.bits.flag(coder, context, value == last) {
                last
            } else {
                self.number(
                    coder,
                    Context::new(kind::FIELD_BYTE).with(here),
                    field.bits(),
                    last,
                    value,
                )
            };
            fields.push(value);
            if let Some(kept) = self
                .entries
                .get_mut(number)
                .and_then(|entry| entry.fields.get_mut(at))
            {
                *kept = value;
            }
        }
        fields
    }

    /// A number whose upper bytes are likely those of another.
    fn number<C: Coder>(&mut self, coder: &mut C, context: Context, bits: u32, near: u32, value: u32) -> u32 {
        let mut result = 0;
        let mut alike = true;
        for at in (0..bits / 8).rev() {
            let (expected, byte) = ((near >> (8 * at)) as u8, (value >> (8 * at)) as u8);
            let byte = if alike {
                self.bits.byte(coder, context.with(at), expected, byte)
            } else {
                self.bits.bits(coder, context.with(16 + at), 8, byte.into()) as u8
            };
            alike &= byte == expected;
            result = result << 8 | u32::from(byte);
        }
        result
    }

    fn part<C: Coder>(
        &mut self,
        coder: &mut C,
        (number, at): (usize, usize),
        xid: u32,
        data: &[u8],
        length: usize,
        out: &mut Vec<u8>,
    ) {
        let entry = self.entries.get_mut(number);
        let templates = entry.and_then(|entry| entry.templates.get_mut(at));
        let mut templates = templates.map(std::mem::take).unwrap_or_default();
        let same = templates
            .iter()
            .position(|template| template.bytes.len() == length);
        let mut kept = match same {
            Some(same) => templates.remove(same),
            None => {
                // Of another length; it stays, if there is room.
                let nearest = templates.first().cloned().unwrap_or_default();
                templates.truncate(MAX_TEMPLATES - 1);
                nearest
            }
        };
        for &place in &kept.xid_at {
            if let Some(word) = kept.bytes.get_mut(usize::from(place)..usize::from(place) + 4) {
                word.copy_from_slice(&xid.to_le_bytes());
            }
        }
        let begin = out.len();
        let here = (number as u32) << 6 | at as u32;
        self.data(coder, here, &kept.bytes, data, length, out);
        let coded = out.get(begin..).unwrap_or_default();
        kept.bytes.clear();
        kept.bytes.extend_from_slice(coded);
        kept.xid_at.clear();
        if xid > 0xff {
            let id = xid.to_le_bytes();
            let places = coded.windows(4).enumerate().filter(|(_, word)| *word == id);
            kept.xid_at.extend(places.map(|(place, _)| place as u16));
        }
        templates.insert(0, kept);
        let entry = self.entries.get_mut(number);
        if let Some(place) = entry.and_then(|entry| entry.templates.get_mut(at)) {
            *place = templates;
        }
    }

    /// Bytes of which those at the front are expected.
    fn data<C: Coder>(
        &mut self,
        coder: &mut C,
        here: u32,
        expected: &[u8],
        data: &[u8],
        length: usize,
        out: &mut Vec<u8>,
    ) {
        if expected.len() == length && length > 0 {
            let context = Context::new(kind::PART).with(here);
            if self.bits.flag(coder, context, data == expected) {
                return out.extend_from_slice(expected);
            }
        }
        let known = expected.len().min(length);
        let words = expected.get(..known).unwrap_or_default();
        for (place, word) in words.chunks(8).enumerate() {
            let given = data.get(place * 8..place * 8 + word.len()).unwrap_or_default();
            let context = Context::new(kind::WORD).with(here << 8 | place as u32);
            if self.bits.flag(coder, context, given == word) {
                out.extend_from_slice(word);
                continue;
            }
            for (offset, &expected) in word.iter().enumerate() {
                let context = Context::new(kind::BYTE).with(here << 10 | (place * 8 + offset) as u32);
                let byte = given.get(offset).copied().unwrap_or_default();
                out.push(self.bits.byte(coder, context, expected, byte));
            }
        }
        for place in known..length {
            let last = out.last().copied().filter(|_| place > 0).unwrap_or_default();
            let context = Context::new(kind::TEXT).with(u32::from(last) | (place.min(16) as u32) << 8);
            let byte = data.get(place).copied().unwrap_or_default();
            out.push(self.bits.bits(coder, context, 8, byte.into()) as u8);
        }
    }
}
