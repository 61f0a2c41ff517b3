//! A record as its *shape* and what fills it.
//!
//! Records of one kind on one relation look alike: same resource manager, same block references. All that
//! is alike is the shape, a byte string that is sent once and then named by its number; what differs are a few numbers
//! (*fields*: block numbers and lengths) and the data (*parts*).
//!
//! | shape | |
//! |---|---|
//! | 0 | resource manager |
//! | 1 | info |
//! | then, for each header in the order of the record | |
//! | block reference | id 0..=32, flags (`fork_flags`); with an image: its `bimg_info`; without SAME_REL: 12 bytes relation |
//! | origin | 253, 2 bytes |
//! | top-level transaction | 252 |
//! | main data | 255 or 254, last |
//! | a record that none of this fits | 251: all behind the fixed header is one part |
//!
//! Fields, in the order of the headers: data length, image length, hole offset and hole length of a block reference as far
//! as it has them, its block number; the id of the top-level transaction; the length of main data. Parts: image and data
//! of each block, main data. `xl_tot_len` follows from the fields; `xl_prev` and `xl_crc` are no part of a record here.

use std::ops::Range;

use lakebed_wal::parse::{MAX_BLOCK_ID, RECORD_HEADER_BYTES};

const OPAQUE: u8 = 251;
const TOPLEVEL_XID: u8 = 252;
const ORIGIN: u8 = 253;
const MAIN_LONG: u8 = 254;
const MAIN_SHORT: u8 = 255;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const SAME_REL: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;
const IMAGE_COMPRESSED: u8 = 0x1c;

/// What a number in a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    DataLength,
    ImageLength,
    HoleOffset,
    HoleLength,
    Block,
    TopXid,
    MainShort,
    MainLong,
    /// Of the one part of a record that is not understood.
    Rest,
}

impl Field {
    /// Bytes in the record.
    fn width(self) -> usize {
        match self {
            Field::MainShort => 1,
            Field::DataLength | Field::ImageLength | Field::HoleOffset | Field::HoleLength => 2,
            Field::Block | Field::TopXid | Field::MainLong => 4,
            Field::Rest => 0,
        }
    }

    /// Bits of its value.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Field::Rest => 32,
            other => other.width() as u32 * 8,
        }
    }
}

/// What the data of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartKind {
    /// A page image that nobody compressed: bytes of the page in front of the hole, and how long the hole is, are fields.
    Image,
    /// Anything else.
    Data,
}

/// A part in the order of the record, and the field that is its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) kind: PartKind,
    pub(crate) length: usize,
    /// The field of an image's hole offset.
    pub(crate) hole: Option<usize>,
}

/// See the module header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fields: Vec<Field>,
    pub(crate) parts: Vec<Part>,
}

/// One record taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    /// `xl_xid`.
    pub(crate) xid: u32,
    pub(crate) fields: Vec<u32>,
    /// Where the parts are in the bytes they came with.
    pub(crate) parts: Vec<Range<usize>>,
}

/// Walks headers: in a record, where fields have bytes, or in a shape, where they have none.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    in_record: bool,
    shape: Shape,
    values: Vec<u32>,
}

impl Walk<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        self.shape.bytes.push(byte);
        Some(byte)
    }

    fn copy(&mut self, count: usize) -> Option<()> {
        (0..count).try_for_each(|_| self.byte().map(|_| ()))
    }

    /// A field; its number.
    fn field(&mut self, field: Field) -> Option<usize> {
        if self.in_record {
            let bytes = self.bytes.get(self.at..self.at + field.width())?;
            let value = bytes
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u32::from(byte));
            self.values.push(value);
            self.at += field.width();
        }
        self.shape.fields.push(field);
        Some(self.shape.fields.len() - 1)
    }

    /// Bytes of the parts so far.
    fn parts_bytes(&self) -> usize {
        let lengths = self
            .shape
            .parts
            .iter()
            .filter_map(|part| self.values.get(part.length));
        lengths.fold(0, |sum, &length| sum.saturating_add(length as usize))
    }

    /// Whether there is another header.
    fn has_more(&self) -> bool {
        let rest = self.bytes.len() - self.at;
        if self.in_record {
            rest > self.parts_bytes()
        } else {
            rest > 0
        }
    }

    fn headers(&mut self) -> Option<()> {
        while self.has_more() {
            match self.byte()? {
                MAIN_SHORT => return self.main(Field::MainShort),
                MAIN_LONG => return self.main(Field::MainLong),
                ORIGIN => self.copy(2)?,
                TOPLEVEL_XID => {
                    self.field(Field::TopXid)?;
                }
                0..=MAX_BLOCK_ID => self.block()?,
                _ => return None,
            }
            if self.shape.parts.len() > 2 * usize::from(MAX_BLOCK_ID) + 2 {
                return None;
            }
        }
        Some(())
    }

    fn main(&mut self, field: Field) -> Option<()> {
        let length = self.field(field)?;
        self.part(PartKind::Data, length, None);
        Some(())
    }

    fn part(&mut self, kind: PartKind, length: usize, hole: Option<usize>) {
        self.shape.parts.push(Part { kind, length, hole });
    }

    fn block(&mut self) -> Option<()> {
        let flags = self.byte()?;
        let data = self.field(Field::DataLength)?;
        if flags & HAS_IMAGE != 0 {
            let length = self.field(Field::ImageLength)?;
            let hole = self.field(Field::HoleOffset)?;
            let info = self.byte()?;
            let compressed = info & IMAGE_COMPRESSED != 0;
            if compressed && info & IMAGE_HAS_HOLE != 0 {
                self.field(Field::HoleLength)?;
            }
            let kind = if compressed {
                PartKind::Data
            } else {
                PartKind::Image
            };
            self.part(kind, length, Some(hole));
        }
        if flags & HAS_DATA != 0 {
            self.part(PartKind::Data, data, None);
        }
        if flags & SAME_REL == 0 {
            self.copy(12)?;
        }
        self.field(Field::Block)?;
        Some(())
    }
}

fn walk(bytes: &[u8], at: usize, rmid: u8, info: u8, in_record: bool) -> Walk<'_> {
    let shape = Shape {
        bytes: vec![rmid, info],
        fields: Vec::new(),
        parts: Vec::new(),
    };
    Walk {
        bytes,
        at,
        in_record,
        shape,
        values: Vec::new(),
    }
}

/// Takes a record apart, of at least [`RECORD_HEADER_BYTES`] bytes.
pub(crate) fn take_apart(record: &[u8]) -> Option<(Shape, Filled)> {
    let header = record.get(..RECORD_HEADER_BYTES)?;
    let xid = u32::from_le_bytes(header.get(4..8)?.try_into().ok()?);
    let (info, rmid) = (*header.get(16)?, *header.get(17)?);
    let mut walk = walk(record, RECORD_HEADER_BYTES, rmid, info, true);
    let understood = walk.headers().is_some() && record.len() - walk.at == walk.parts_bytes();
    if !understood {
        let rest = record.len() - RECORD_HEADER_BYTES;
        let shape = Shape::parse(&[rmid, info, OPAQUE])?;
        let filled = Filled {
            xid,
            fields: vec![u32::try_from(rest).ok()?],
            parts: std::iter::once(RECORD_HEADER_BYTES..record.len()).collect(),
        };
        return Some((shape, filled));
    }
    let mut at = walk.at;
    let mut filled = Filled {
        xid,
        fields: walk.values,
        parts: Vec::with_capacity(walk.shape.parts.len()),
    };
    for part in &walk.shape.parts {
        let length = *filled.fields.get(part.length)? as usize;
        filled.parts.push(at..at + length);
        at += length;
    }
    Some((walk.shape, filled))
}

impl Shape {
    /// A shape from its bytes; `None` if they are none.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Shape> {
        let (&rmid, &info) = (bytes.first()?, bytes.get(1)?);
        let mut walk = walk(bytes, 2, rmid, info, false);
        if bytes.get(2) == Some(&OPAQUE) {
            walk.copy(1)?;
            let length = walk.field(Field::Rest)?;
            walk.part(PartKind::Data, length, None);
        } else {
            walk.headers()?;
        }
        (walk.at == bytes.len()).then_some(walk.shape)
    }

    /// Bytes of a record of this shape with these fields; its parts included.
    pub(crate) fn record_bytes(&self, fields: &[u32]) -> u64 {
        let headers: usize = self.fields.iter().map(|field| field.width()).sum();
        // The first two bytes of the shape are in the fixed header, and an unknown one has no headers.
        let shape = if self.bytes.get(2) == Some(&OPAQUE) {
            0
        } else {
            self.bytes.len() - 2
        };
        let parts = self.parts.iter().filter_map(|part| fields.get(part.length));
        let parts: u64 = parts.map(|&length| u64::from(length)).sum();
        (RECORD_HEADER_BYTES + headers + shape) as u64 + parts
    }

    /// Writes the record without its parts, `xl_prev` and `xl_crc`, which are zeros.
    pub(crate) fn write_headers(&self, xid: u32, fields: &[u32], out: &mut Vec<u8>) {
        let total = u32::try_from(self.record_bytes(fields)).unwrap_or(u32::MAX);
        out.extend(total.to_le_bytes());
        out.extend(xid.to_le_bytes());
        out.extend([0; 8]);
        let mut rest = self.bytes.iter().copied();
        let rmid = rest.next().unwrap_or_default();
        out.extend([rest.next().unwrap_or_default(), rmid]);
        out.extend([0; 6]);
        if self.bytes.get(2) == Some(&OPAQUE) {
            return;
        }
        let mut fields = self.fields.iter().zip(fields);
        let mut field = |out: &mut Vec<u8>| {
            if let Some((field, value)) = fields.next() {
                out.extend(value.to_le_bytes().iter().take(field.width()));
            }
        };
        while let Some(id) = rest.next() {
            out.push(id);
            match id {
                ORIGIN => out.extend(rest.by_ref().take(2)),
                0..=MAX_BLOCK_ID => {
                    let flags = rest.next().unwrap_or_default();
                    out.push(flags);
                    field(out);
                    if flags & HAS_IMAGE != 0 {
                        field(out);
                        field(out);
                        let info = rest.next().unwrap_or_default();
                        out.push(info);
                        if info & IMAGE_COMPRESSED != 0 && info & IMAGE_HAS_HOLE != 0 {
                            field(out);
                        }
                    }
                    if flags & SAME_REL == 0 {
                        out.extend(rest.by_ref().take(12));
                    }
                    field(out);
                }
                _ => field(out),
            }
        }
    }
}
