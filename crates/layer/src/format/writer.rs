//! Writing a layer from values in order, in bounded memory.

use std::io::{self, Write};

use bytes::Bytes;
use lakebed_types::{Lsn, PageKey};

use super::block::{BlockKind, BlockPlace, Codec, Encoder, MAX_VALUE_BYTES};
use super::filter;
use super::footer::{Footer, encode_header};
use super::index::{ENTRY_BYTES, Entry};
use super::piece::{self, VALUE_HEADER_BYTES};
use crate::{LayerDesc, LayerId, LayerKind, Value, ValueKind};

/// A data block that has so many bytes ends where the next page or the next value that stands alone begins: a page's
/// image with its deltas is a block of its own, small chains share one.
pub const BLOCK_BYTES: usize = 8 << 10;
/// The same in level 0, where nearly every page has a few deltas and no image: a read wants one of those chains, and decodes
/// all that is in the block.
const LEVEL0_BLOCK_BYTES: usize = 2 << 10;
/// A data block that has so many ends in any case.
const LONG_BLOCK_BYTES: usize = 64 << 10;
/// Entries of an index block.
const INDEX_ENTRIES: usize = 256;

fn block_bytes(kind: LayerKind) -> usize {
    match kind {
        LayerKind::Level0 => LEVEL0_BLOCK_BYTES,
        LayerKind::Current | LayerKind::History | LayerKind::Catalogue => BLOCK_BYTES,
    }
}

/// Why a layer could not be written. What was written so far is of no use.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink refused.
    #[error("writing layer {layer}: {source}")]
    Io {
        /// The layer.
        layer: LayerId,
        /// What the operating system said.
        source: io::Error,
    },
    /// A value is longer than [`MAX_VALUE_BYTES`]: no record of Postgres makes such a value.
    #[error(
        "a value of page {key} at {lsn} has {bytes} bytes; layer {layer} takes {MAX_VALUE_BYTES} at most"
    )]
    TooLong {
        /// The layer.
        layer: LayerId,
        /// The page.
        key: PageKey,
        /// The value's LSN.
        lsn: Lsn,
        /// Its length.
        bytes: usize,
    },
    /// Values came out of order: a bug of the caller.
    #[error("internal: page {key} at {lsn} came out of order into layer {layer}")]
    Order {
        /// The layer.
        layer: LayerId,
        /// The page.
        key: PageKey,
        /// The value's LSN.
        lsn: Lsn,
    },
}

/// Writes one layer. Memory: a data block, an index block, 39 bytes for each 256 pieces and 8 for each page.
#[derive(Debug)]
pub struct LayerWriter<W> {
    sink: W,
    id: LayerId,
    kind: LayerKind,
    encoder: Encoder,
    offset: u64,
    /// The open data block, decoded.
    data: Vec<u8>,
    /// Its pieces; the last one is open. Their place is known when the block ends.
    pieces: Vec<OpenPiece>,
    index: Vec<u8>,
    index_first: Option<Entry>,
    top: Vec<u8>,
    hashes: Vec<u64>,
    lowest: Option<PageKey>,
    newest: Option<(PageKey, Lsn)>,
    values: u64,
    raw_bytes: u64,
    encoded: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct OpenPiece {
    key: PageKey,
    lsn: Lsn,
    stands_alone: bool,
    start: usize,
    values: u32,
}

impl<W: Write> LayerWriter<W> {
    /// Begins the layer `id`.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn new(sink: W, id: LayerId, kind: LayerKind, codec: Codec) -> Result<LayerWriter<W>, WriteError> {
        let encoder = Encoder::new(id, codec).map_err(|source| WriteError::Io { layer: id, source })?;
        let mut writer = LayerWriter {
            sink,
            id,
            kind,
            encoder,
            offset: 0,
            data: Vec::new(),
            pieces: Vec::new(),
            index: Vec::new(),
            index_first: None,
            top: Vec::new(),
            hashes: Vec::new(),
            lowest: None,
            newest: None,
            values: 0,
            raw_bytes: 0,
            encoded: encode_header(id, kind),
        };
        writer.write_encoded()?;
        Ok(writer)
    }

    /// Bytes of the file so far, about.
    pub fn bytes(&self) -> u64 {
        self.offset + (self.data.len() + self.index.len() + self.top.len()) as u64
    }

    /// Pages so far.
    pub fn pages(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// Adds the next value: pages ascend, and the LSNs of each.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn value(&mut self, key: &PageKey, lsn: Lsn, value: &Value) -> Result<(), WriteError> {
        self.body(key, lsn, value.kind, &value.body)
    }

    /// As [`LayerWriter::value`], of plain bytes.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn body(&mut self, key: &PageKey, lsn: Lsn, kind: ValueKind, body: &[u8]) -> Result<(), WriteError> {
        if self.newest.is_some_and(|newest| newest > (*key, lsn)) {
            return Err(WriteError::Order {
                layer: self.id,
                key: *key,
                lsn,
            });
        }
        if body.len() > MAX_VALUE_BYTES {
            return Err(WriteError::TooLong {
                layer: self.id,
                key: *key,
                lsn,
                bytes: body.len(),
            });
        }
        let new_page = self.newest.is_none_or(|(newest, _)| newest != *key);
        let stands_alone = kind.stands_alone();
        let full = self.data.len() >= block_bytes(self.kind) && (new_page || stands_alone);
        if full || self.data.len() >= LONG_BLOCK_BYTES {
            self.end_block()?;
        }
        if new_page {
            self.hashes.push(filter::hash(&key.encode()));
            self.lowest.get_or_insert(*key);
        }
        if new_page || self.pieces.is_empty() {
            self.open_piece(*key, lsn, stands_alone);
        }
        self.newest = Some((*key, lsn));
        self.values += 1;
        self.raw_bytes += (VALUE_HEADER_BYTES + body.len()) as u64;
        piece::put(lsn, (kind, body), &mut self.data);
        if let Some(open) = self.pieces.last_mut() {
            open.values += 1;
        }
        Ok(())
    }

    fn open_piece(&mut self, key: PageKey, lsn: Lsn, stands_alone: bool) {
        self.close_piece();
        self.pieces.push(OpenPiece {
            key,
            lsn,
            stands_alone,
            start: self.data.len(),
            values: 0,
        });
        piece::open(&key, &mut self.data);
    }

    fn close_piece(&mut self) {
        if let Some(open) = self.pieces.last() {
            piece::close(open.start, open.values, &mut self.data);
        }
    }

    fn end_block(&mut self) -> Result<(), WriteError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        self.close_piece();
        let data = std::mem::take(&mut self.data);
        let place = self.block(BlockKind::Data, &data)?;
        self.data = data;
        self.data.clear();
        for piece in std::mem::take(&mut self.pieces) {
            let entry = Entry {
                key: piece.key,
                lsn: piece.lsn,
                place,
                stands_alone: piece.stands_alone,
            };
            self.index_first.get_or_insert(entry);
            entry.encode(&mut self.index);
            if self.index.len() >= INDEX_ENTRIES * ENTRY_BYTES {
                self.end_index()?;
            }
        }
        Ok(())
    }

    fn end_index(&mut self) -> Result<(), WriteError> {
        let Some(first) = self.index_first.take() else {
            return Ok(());
        };
        let index = std::mem::take(&mut self.index);
        let place = self.block(BlockKind::Index, &index)?;
        Entry { place, ..first }.encode(&mut self.top);
        Ok(())
    }

    fn block(&mut self, kind: BlockKind, decoded: &[u8]) -> Result<BlockPlace, WriteError> {
        let offset = self.offset;
        self.encoder.encode(kind, offset, decoded, &mut self.encoded);
        let length = self.encoded.len() as u32;
        self.write_encoded()?;
        Ok(BlockPlace { offset, length })
    }

    fn write_encoded(&mut self) -> Result<(), WriteError> {
        self.offset += self.encoded.len() as u64;
        let written = self.sink.write_all(&self.encoded);
        self.encoded.clear();
        written.map_err(|source| WriteError::Io {
            layer: self.id,
            source,
        })
    }

    /// Ends the layer of `(first, last]` with these sections; gives the sink back.
    ///
    /// # Errors
    /// See [`WriteError`]; a section must not be longer than a value may be.
    pub fn finish(mut self, first: Lsn, last: Lsn, sections: &[Bytes]) -> Result<(W, LayerDesc), WriteError> {
        self.end_block()?;
        self.end_index()?;
        let top = std::mem::take(&mut self.top);
        let top = self.block(BlockKind::Top, &top)?;
        let filter = filter::build(&self.hashes);
        let filter = self.block(BlockKind::Filter, &filter)?;
        let sections_offset = self.offset;
        for section in sections {
            if section.len() > MAX_VALUE_BYTES {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "a section is too long");
                return Err(WriteError::Io {
                    layer: self.id,
                    source,
                });
            }
            self.block(BlockKind::Section, section)?;
        }
        let mut footer = Footer {
            desc: LayerDesc {
                id: self.id,
                kind: self.kind,
                first,
                last,
                pages_span: self.lowest.zip(self.newest.map(|(key, _)| key)),
                pages: self.hashes.len() as u64,
                values: self.values,
                bytes: 0,
            },
            raw_bytes: self.raw_bytes,
            top,
            filter,
            sections_offset,
            sections: sections.len() as u32,
        };
        self.encoded = footer.encode();
        self.write_encoded()?;
        footer.desc.bytes = self.offset;
        Ok((self.sink, footer.desc))
    }
}
