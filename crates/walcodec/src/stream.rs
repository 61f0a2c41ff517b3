//! Batches of one stream: each can be decoded once those before it were.
//!
//! | bytes of a batch | |
//! |---|---|
//! | 1 | bits 0..2 method: 0 plain, 1 zstd, 2 records, 3 records with data aside; bit 3: the position of the record before is told; bit 4: begins anew, nothing before is needed; bits 5..8 version, 1 |
//! | varint | bytes of WAL; at most [`MAX_BATCH_BYTES`] |
//! | 4 | CRC32C of the WAL |
//! | varint, if bit 3 | first position of the WAL less the start of the record before |
//! | method 0 | the WAL |
//! | method 1 | the WAL, compressed by zstd: the stream's frame goes on from batch to batch and is flushed at the end of each |
//! | method 2 | records, coded by the model, to the end |
//! | method 3 | varint: bytes of coded records; these; varint: bytes of data aside before compression; then that, in the stream's zstd frame |
//!
//! A varint has seven bits a byte, the lowest first, and bit 7 set in all but its last.

use lakebed_types::Lsn;
use lakebed_wal::page::{FLAG_CONTINUATION, FLAG_LONG, WAL_PAGE_BYTES, WalFormat};
use lakebed_wal::stream::{RawRecord, WalDecoder};
use zstd::stream::raw::{CParameter, DParameter, InBuffer, Operation, OutBuffer};

use crate::coder;
use crate::image::{Form, from_columns, to_columns};
use crate::pages::PageWriter;
use crate::records::{Aside, Given, Model, ModelError, Piece};
use crate::shape::take_apart;
use crate::trial::Trial;

/// WAL in one batch.
pub const MAX_BATCH_BYTES: usize = 4 << 20;
/// Version of the layout.
pub const VERSION: u8 = 1;

const METHOD: u8 = 7;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
const RECORDS: u8 = 2;
const RECORDS_ASIDE: u8 = 3;
const TELLS_PREVIOUS: u8 = 8;
const ANEW: u8 = 16;
const VERSION_SHIFT: u32 = 5;
/// History that zstd looks back to, as a power of two.
const WINDOW_LOG: u32 = 20;

/// How a batch is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As it is.
    Plain,
    /// As bytes, by zstd.
    Zstd,
    /// As records; by zstd if it is not made of whole records that follow from what is sent.
    Records,
}

/// Why a batch cannot be decoded. The stream is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// It ends too early, or has an impossible number.
    #[error("the batch is malformed: {0}")]
    Malformed(&'static str),
    /// Another version of the layout.
    #[error("the batch has version {0}, known is {VERSION}")]
    Version(u8),
    /// It needs batches that were not seen.
    #[error("the batch goes on from one that was not seen here")]
    OutOfStep,
    /// zstd refuses it.
    #[error("zstd: {0}")]
    Zstd(String),
    /// What comes out is not what went in.
    #[error("the WAL has the CRC {found:08x}, the batch tells {told:08x}")]
    Crc {
        /// Of what came out.
        found: u32,
        /// Of what went in.
        told: u32,
    },
}

impl From<ModelError> for CodecError {
    fn from(error: ModelError) -> CodecError {
        CodecError::Malformed(match error {
            ModelError::Shape => "a record's shape is not one",
            ModelError::Length => "a record is longer than its batch",
            ModelError::Form => "a page image does not have the form that it should have",
            ModelError::Blob => "there is less data than the records need",
        })
    }
}

/// What both sides know of the stream besides the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// End of the last batch.
    end: Lsn,
    /// Start of the record that ends there; invalid if not known.
    previous: Lsn,
    page_flags: u8,
}

/// Encodes.
pub struct Encoder {
    format: WalFormat,
    model: Model,
    zstd: zstd::stream::raw::Encoder<'static>,
    trial: Trial,
    place: Option<Place>,
}

/// Decodes.
pub struct Decoder {
    format: WalFormat,
    model: Model,
    zstd: zstd::stream::raw::Decoder<'static>,
    place: Option<Place>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn take_varint(input: &mut &[u8]) -> Result<u64, CodecError> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = take_byte(input)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(CodecError::Malformed("a number is too long"))
}

fn take_byte(input: &mut &[u8]) -> Result<u8, CodecError> {
    let (&byte, rest) = input
        .split_first()
        .ok_or(CodecError::Malformed("it ends too early"))?;
    *input = rest;
    Ok(byte)
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], CodecError> {
    let (taken, rest) = input
        .split_at_checked(count)
        .ok_or(CodecError::Malformed("it ends too early"))?;
    *input = rest;
    Ok(taken)
}

/// Far from the end of the address space, so that no position overflows.
fn check_begin(begin: Lsn) -> Result<(), CodecError> {
    if begin.0 > u64::MAX / 2 {
        return Err(CodecError::Malformed("no WAL begins there"));
    }
    Ok(())
}

/// Data that goes to zstd.
struct Collect<'a> {
    data: Vec<u8>,
    trial: &'a mut Trial,
}

impl Aside for Collect<'_> {
    fn form(&mut self, image: &[u8], hole: u32, last: Form) -> Form {
        self.trial.form(image, hole as usize, last)
    }

    fn data(&mut self, piece: Piece, data: &[u8], out: &mut Vec<u8>) -> Result<(), ModelError> {
        match to_columns(data, piece.hole, piece.form) {
            Some(columns) => self.data.extend(columns),
            None => self.data.extend_from_slice(data),
        }
        out.extend_from_slice(data);
        Ok(())
    }
}

/// Data that came from zstd.
struct Hand<'a>(&'a [u8]);

impl Aside for Hand<'_> {
    fn form(&mut self, _: &[u8], _: u32, last: Form) -> Form {
        last
    }

    fn data(&mut self, piece: Piece, _: &[u8], out: &mut Vec<u8>) -> Result<(), ModelError> {
        if piece.form == Form::Raw {
            let (data, rest) = self.0.split_at_checked(piece.length).ok_or(ModelError::Blob)?;
            self.0 = rest;
            out.extend_from_slice(data);
        } else {
            let image = from_columns(&mut self.0, piece.length, piece.hole, piece.form);
            out.extend(image.ok_or(ModelError::Form)?);
        }
        Ok(())
    }
}

/// The records of a batch, if it is made of whole ones that can be laid out again from them.
struct Whole {
    records: Vec<RawRecord>,
    previous: Lsn,
    page_flags: u8,
    last: Lsn,
}

impl Encoder {
    /// Of a new stream; `level` is that of zstd.
    ///
    /// # Errors
    /// zstd has no memory.
    pub fn new(format: WalFormat, level: i32) -> Result<Encoder, CodecError> {
        let zstd_error = |error: std::io::Error| CodecError::Zstd(error.to_string());
        let mut zstd = zstd::stream::raw::Encoder::new(level).map_err(zstd_error)?;
        zstd.set_parameter(CParameter::WindowLog(WINDOW_LOG))
            .map_err(zstd_error)?;
        Ok(Encoder {
            format,
            trial: Trial::new()?,
            model: Model::new(),
            zstd,
            place: None,
        })
    }

    /// Encodes the WAL from `begin` on, at most [`MAX_BATCH_BYTES`]; what comes out is to be decoded right after
    /// what came out of the call before.
    ///
    /// # Errors
    /// It is too long, or zstd fails: make a new encoder.
    pub fn encode(&mut self, begin: Lsn, wal: &[u8], method: Method) -> Result<Vec<u8>, CodecError> {
        check_begin(begin)?;
        if wal.len() > MAX_BATCH_BYTES {
            return Err(CodecError::Malformed("it is too long"));
        }
        let anew = self.place.is_none();
        let mut place = self.place.unwrap_or_default();
        let whole = match method {
            Method::Records => whole(self.format, begin, wal),
            _ => None,
        };
        let known = place.end == begin && place.previous.is_valid();
        let mut tells_previous = false;
        let mut aside = Vec::new();
        let mut coded = Vec::new();
        let method = match &whole {
            Some(whole) => {
                tells_previous = !known || place.previous != whole.previous;
                (coded, aside) = self.records(whole, place.page_flags, wal.len())?;
                place.page_flags = whole.page_flags;
                if aside.is_empty() { RECORDS } else { RECORDS_ASIDE }
            }
            None if method == Method::Plain => PLAIN,
            None => ZSTD,
        };
        let mut out = Vec::with_capacity(coded.len() + 32);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(method | flag(tells_previous, TELLS_PREVIOUS) | flag(anew, ANEW) | VERSION << VERSION_SHIFT);
        put_varint(&mut out, wal.len() as u64);
        out.extend(crc32c::crc32c(wal).to_le_bytes());
        place.previous = Lsn::INVALID;
        place.end = Lsn(begin.0 + wal.len() as u64);
        if let Some(whole) = &whole {
            if tells_previous {
                put_varint(&mut out, begin.0 - whole.previous.0);
            }
            place.previous = whole.last;
        }
        match method {
            PLAIN => out.extend_from_slice(wal),
            ZSTD => self.compress(wal, &mut out)?,
            RECORDS => out.extend(coded),
            _ => {
                put_varint(&mut out, coded.len() as u64);
                out.extend(coded);
                put_varint(&mut out, aside.len() as u64);
                self.compress(&aside, &mut out)?;
            }
        }
        self.place = Some(place);
        Ok(out)
    }

    /// Coded records, and data aside.
    fn records(&mut self, whole: &Whole, flags: u8, length: usize) -> Result<(Vec<u8>, Vec<u8>), CodecError> {
        let mut coder = coder::Encoder::new();
        let mut aside = Collect {
            data: Vec::new(),
            trial: &mut self.trial,
        };
        self.model.small(&mut coder, 0, flags, whole.page_flags);
        let mut scratch = Vec::new();
        for record in &whole.records {
            let (shape, filled) = take_apart(&record.bytes).ok_or(CodecError::Malformed("no record"))?;
            let given = Given {
                xid: filled.xid,
                shape: &shape.bytes,
                fields: &filled.fields,
                bytes: &record.bytes,
                parts: &filled.parts,
            };
            scratch.clear();
            self.model
                .record(&mut coder, given, &mut aside, length as u64, &mut scratch)?;
        }
        Ok((coder.finish(), aside.data))
    }

    fn compress(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        let error = |error: std::io::Error| CodecError::Zstd(error.to_string());
        let mut input = InBuffer::around(data);
        let mut piece = vec![0; zstd::zstd_safe::CCtx::out_size().min(data.len() + 1024)];
        while input.pos() < data.len() {
            let mut output = OutBuffer::around(piece.as_mut_slice());
            self.zstd.run(&mut input, &mut output).map_err(error)?;
            out.extend_from_slice(output.as_slice());
        }
        loop {
            let mut output = OutBuffer::around(piece.as_mut_slice());
            let left = self.zstd.flush(&mut output).map_err(error)?;
            out.extend_from_slice(output.as_slice());
            if left == 0 {
                return Ok(());
            }
        }
    }
}

/// Takes WAL apart, and puts it together again to see that nothing is lost.
fn whole(format: WalFormat, begin: Lsn, wal: &[u8]) -> Option<Whole> {
    let mut decoder = WalDecoder::new(format, begin, Lsn::INVALID);
    decoder.feed(wal);
    let mut records = Vec::new();
    while let Some(record) = decoder.next_raw().ok()? {
        records.push(record);
    }
    let (first, last) = (records.first()?, records.last()?.start);
    if decoder.position().0 != begin.0 + wal.len() as u64 {
        return None;
    }
    let previous = first.bytes.get(8..16)?.try_into().ok()?;
    let previous = Lsn(u64::from_le_bytes(previous));
    if previous > begin {
        return None;
    }
    let page = (begin.0.next_multiple_of(WAL_PAGE_BYTES) - begin.0) as usize;
    let page_flags = wal
        .get(page + 2)
        .map_or(0, |flags| flags & !(FLAG_CONTINUATION | FLAG_LONG) as u8);
    let mut writer = PageWriter::new(format, begin, previous, Vec::with_capacity(wal.len()));
    for record in &records {
        let mut bytes = record.bytes.to_vec();
        if !writer.record(&mut bytes, wal.len(), page_flags.into()) {
            return None;
        }
    }
    let (again, _) = writer.finish();
    (again == wal).then_some(Whole {
        records,
        previous,
        page_flags,
        last,
    })
}

impl Decoder {
    /// Of a new stream.
    ///
    /// # Errors
    /// zstd has no memory.
    pub fn new(format: WalFormat) -> Result<Decoder, CodecError> {
        let zstd_error = |error: std::io::Error| CodecError::Zstd(error.to_string());
        let mut zstd = zstd::stream::raw::Decoder::new().map_err(zstd_error)?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))
            .map_err(zstd_error)?;
        Ok(Decoder {
            format,
            model: Model::new(),
            zstd,
            place: None,
        })
    }

    /// Decodes a batch whose WAL begins at `begin`.
    ///
    /// # Errors
    /// It is damaged, hostile, or out of step. Nothing after it can be decoded.
    pub fn decode(&mut self, begin: Lsn, batch: &[u8]) -> Result<Vec<u8>, CodecError> {
        check_begin(begin)?;
        let input = &mut &*batch;
        let head = take_byte(input)?;
        if head >> VERSION_SHIFT != VERSION {
            return Err(CodecError::Version(head >> VERSION_SHIFT));
        }
        if head & ANEW != 0 {
            *self = Decoder::new(self.format)?;
            self.place = Some(Place::default());
        }
        let mut place = self.place.take().ok_or(CodecError::OutOfStep)?;
        let length = usize::try_from(take_varint(input)?).unwrap_or(usize::MAX);
        if length > MAX_BATCH_BYTES {
            return Err(CodecError::Malformed("it is too long"));
        }
        let told = take(input, 4)?
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | u32::from(byte));
        if head & TELLS_PREVIOUS != 0 {
            let back = take_varint(input)?;
            place.previous = Lsn(begin
                .0
                .checked_sub(back)
                .ok_or(CodecError::Malformed("the record before"))?);
        } else if place.end != begin {
            place.previous = Lsn::INVALID;
        }
        let wal = match head & METHOD {
            PLAIN => input.to_vec(),
            ZSTD => self.decompress(input, length)?,
            method @ (RECORDS | RECORDS_ASIDE) => {
                let (coded, data) = if method == RECORDS {
                    (*input, Vec::new())
                } else {
                    let coded = usize::try_from(take_varint(input)?).unwrap_or(usize::MAX);
                    let coded = take(input, coded)?;
                    let bytes = usize::try_from(take_varint(input)?).unwrap_or(usize::MAX);
                    // A page in columns may be longer than it is.
                    if bytes > 2 * length {
                        return Err(CodecError::Malformed("it has more data than WAL"));
                    }
                    (coded, self.decompress(input, bytes)?)
                };
                self.records(begin, coded, &data, length, &mut place)?
            }
            _ => return Err(CodecError::Malformed("its method is not known")),
        };
        let found = crc32c::crc32c(&wal);
        if wal.len() != length || found != told {
            return Err(CodecError::Crc { found, told });
        }
        if head & METHOD < RECORDS {
            place.previous = Lsn::INVALID;
        }
        place.end = Lsn(begin.0 + wal.len() as u64);
        self.place = Some(place);
        Ok(wal)
    }

    fn records(
        &mut self,
        begin: Lsn,
        coded: &[u8],
        data: &[u8],
        length: usize,
        place: &mut Place,
    ) -> Result<Vec<u8>, CodecError> {
        let mut coder = coder::Decoder::new(coded);
        place.page_flags = self.model.small(&mut coder, 0, place.page_flags, 0);
        let mut data = Hand(data);
        let mut writer = PageWriter::new(self.format, begin, place.previous, Vec::with_capacity(length));
        let mut record = Vec::new();
        while writer.written() < length {
            record.clear();
            let most = (length - writer.written()) as u64;
            self.model
                .record(&mut coder, Given::default(), &mut data, most, &mut record)?;
            if !writer.record(&mut record, length, place.page_flags.into()) {
                return Err(CodecError::Malformed("a record is longer than its batch"));
            }
        }
        if !coder.is_used_up() || !data.0.is_empty() {
            return Err(CodecError::Malformed("there is something behind its end"));
        }
        let (wal, last) = writer.finish();
        place.previous = last;
        Ok(wal)
    }

    fn decompress(&mut self, data: &[u8], length: usize) -> Result<Vec<u8>, CodecError> {
        let error = |error: std::io::Error| CodecError::Zstd(error.to_string());
        let mut input = InBuffer::around(data);
        let mut out = vec![0; length];
        let mut at = 0;
        while input.pos() < data.len() {
            let (before, rest) = (input.pos(), out.get_mut(at..).unwrap_or_default());
            let mut output = OutBuffer::around(rest);
            self.zstd.run(&mut input, &mut output).map_err(error)?;
            let written = output.pos();
            at += written;
            if written == 0 && input.pos() == before {
                return Err(CodecError::Malformed("zstd has more than was told"));
            }
        }
        if at != length {
            return Err(CodecError::Malformed("zstd has less than was told"));
        }
        Ok(out)
    }
}
