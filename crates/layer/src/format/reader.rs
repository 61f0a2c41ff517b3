//! Reading a layer by page and LSN.

use std::io;

use bytes::Bytes;
use lakebed_types::{Lsn, PageKey};

use super::block::{self, BlockKind, BlockPlace, HEADER_BYTES as BLOCK_HEADER_BYTES};
use super::damage::{Damage, ReadError};
use super::filter::{self, Filter};
use super::footer::{FOOTER_BYTES, Footer, HEADER_BYTES, check_header};
use super::index::{Entries, Entry};
use super::index_cache::IndexCache;
use super::piece::{Piece, Pieces};
use super::sought::Sought;
use crate::{Chain, LayerDesc, LayerId, PageRange};

/// Where a layer's bytes come from: a local file, an object, memory.
pub trait ReadAt {
    /// Exactly `length` bytes from `offset` on.
    ///
    /// # Errors
    /// What the operating system said; `UnexpectedEof` when there are fewer bytes.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;

    /// Has `look` see these bytes, which saves an allocation where they are not in memory.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    fn with_bytes<T>(&self, offset: u64, length: usize, look: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        self.read_at(offset, length).map(|bytes| look(&bytes))
    }
}

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        match range.filter(|range| range.end <= self.len()) {
            Some(range) => Ok(self.slice(range)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What reads cost. A caller adds up one for each page and exports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCount {
    /// Layers that were asked.
    pub layers: u32,
    /// Of those, layers whose filter said no.
    pub filtered: u32,
    /// Layers that had values of the page.
    pub found: u32,
    /// Index blocks that were not in the cache.
    pub index_blocks: u32,
    /// Data blocks read.
    pub data_blocks: u32,
    /// Bytes of both.
    pub bytes: u64,
}

/// An open layer: footer, top of the index and filter are in memory.
#[derive(Debug)]
pub struct LayerReader<R> {
    source: R,
    footer: Footer,
    top: Entries,
    filter: Filter,
}

impl<R: ReadAt> LayerReader<R> {
    /// Opens the layer `id`, a file of `bytes` bytes.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(source: R, id: LayerId, bytes: u64) -> Result<LayerReader<R>, ReadError> {
        let damaged = |offset, part, what| Damage {
            layer: id,
            offset,
            part,
            page: None,
            what,
        };
        let read = |offset, length| {
            source
                .read_at(offset, length)
                .map_err(|source| ReadError::Io { layer: id, source })
        };
        let Some(end) = bytes.checked_sub((HEADER_BYTES + FOOTER_BYTES) as u64) else {
            return Err(damaged(0, "file", "it is shorter than a layer can be").into());
        };
        check_header(id, &read(0, HEADER_BYTES)?).map_err(|what| damaged(0, "header", what))?;
        let end = end + HEADER_BYTES as u64;
        let footer = Footer::decode(id, &read(end, FOOTER_BYTES)?, bytes);
        let footer = footer.map_err(|what| damaged(end, "footer", what))?;
        let part = |kind: BlockKind, place: BlockPlace| {
            let bytes = read(place.offset, place.length as usize)?;
            let decoded = block::decode(kind, (id, place.offset), &bytes);
            decoded.map_err(|what| ReadError::from(damaged(place.offset, kind.name(), what)))
        };
        let top = part(BlockKind::Top, footer.top)?;
        let top =
            Entries::new(top).map_err(|what| damaged(footer.top.offset, BlockKind::Top.name(), what))?;
        let filter = Filter::new(part(BlockKind::Filter, footer.filter)?);
        let filter = filter.ok_or_else(|| {
            damaged(
                footer.filter.offset,
                BlockKind::Filter.name(),
                "it is not whole blocks",
            )
        })?;
        Ok(LayerReader {
            source,
            footer,
            top,
            filter,
        })
    }

    /// What the layer is.
    pub fn desc(&self) -> &LayerDesc {
        &self.footer.desc
    }

    /// Bytes of data blocks before compression.
    pub fn raw_bytes(&self) -> u64 {
        self.footer.raw_bytes
    }

    /// Bytes that the open layer takes in memory.
    pub fn resident_bytes(&self) -> usize {
        self.top.size() + self.filter.size() + std::mem::size_of::<Self>()
    }

    /// Offers `chain` the page's values that it still needs: the piece that holds `chain.upto()` or what comes before
    /// it, and pieces before that one until the chain is complete.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(
        &self,
        page: &Sought,
        chain: &mut Chain,
        cache: &IndexCache,
        count: &mut ReadCount,
    ) -> Result<(), ReadError> {
        if chain.is_complete() {
            return Ok(());
        }
        count.layers += 1;
        if !self.filter.may_have(page.hash) {
            count.filtered += 1;
            return Ok(());
        }
        let (asked, mut found) = ((page.key, chain.upto()), false);
        let upto = page.upto(asked.1);
        let mut leaf = self.top.upto(upto);
        while let Some(entry) = leaf.checked_sub(1).and_then(|leaf| self.top.get(leaf)) {
            let entries = self.index(&entry, asked, cache, count)?;
            let mut at = entries.upto(upto);
            while let Some(entry) = at.checked_sub(1).and_then(|at| entries.get(at)) {
                if entry.key != page.key || chain.is_complete() {
                    return Ok(());
                }
                count.found += u32::from(!std::mem::replace(&mut found, true));
                let values = self.data(entry.place, asked, count)?.find(&page.bytes);
                let values = values.map_err(|what| self.damage(BlockKind::Data, entry.place, asked, what))?;
                chain.offer(values);
                at -= 1;
            }
            leaf -= 1;
        }
        Ok(())
    }

    /// Bytes of the blocks that have these pages; what other pages have of the first and last one counts too. Reads the index
    /// alone.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn bytes_of(&self, pages: &PageRange, cache: &IndexCache) -> Result<u64, ReadError> {
        let (mut bytes, mut last, mut count) = (0, None, ReadCount::default());
        let before = |entries: &Entries| pages.to.map_or(entries.len(), |to| entries.before(&to));
        // The block before the first one that begins at or after the page may have it.
        let first = self.top.before(&pages.from).saturating_sub(1);
        for leaf in (first..before(&self.top)).filter_map(|leaf| self.top.get(leaf)) {
            let entries = self.index(&leaf, (pages.from, Lsn(0)), cache, &mut count)?;
            let inside = entries.before(&pages.from)..before(&entries);
            for entry in inside.filter_map(|at| entries.get(at)) {
                if last.replace(entry.place.offset) != Some(entry.place.offset) {
                    bytes += u64::from(entry.place.length);
                }
            }
        }
        Ok(bytes)
    }

    /// The index block that an entry of the top names.
    pub(super) fn index(
        &self,
        top: &Entry,
        asked: (PageKey, Lsn),
        cache: &IndexCache,
        count: &mut ReadCount,
    ) -> Result<Entries, ReadError> {
        let (id, place) = (self.desc().id, top.place);
        if let Some(entries) = cache.get(id, place.offset) {
            return Ok(entries);
        }
        count.index_blocks += 1;
        let decoded = self.block(BlockKind::Index, place, Some(asked), count)?;
        let entries = Entries::new(decoded);
        let entries = entries.map_err(|what| self.damage(BlockKind::Index, place, asked, what))?;
        cache.put(id, place.offset, entries.clone());
        Ok(entries)
    }

    /// The pieces of a data block.
    pub(super) fn data(
        &self,
        place: BlockPlace,
        asked: (PageKey, Lsn),
        count: &mut ReadCount,
    ) -> Result<Pieces, ReadError> {
        count.data_blocks += 1;
        Ok(Pieces::new(self.block(
            BlockKind::Data,
            place,
            Some(asked),
            count,
        )?))
    }

    pub(super) fn damage(
        &self,
        kind: BlockKind,
        place: BlockPlace,
        page: (PageKey, Lsn),
        what: &'static str,
    ) -> ReadError {
        ReadError::Damaged(Damage {
            layer: self.desc().id,
            offset: place.offset,
            part: kind.name(),
            page: Some(page),
            what,
        })
    }

    fn block(
        &self,
        kind: BlockKind,
        place: BlockPlace,
        page: Option<(PageKey, Lsn)>,
        count: &mut ReadCount,
    ) -> Result<Bytes, ReadError> {
        let layer = self.desc().id;
        let damaged = |what| Damage {
            layer,
            offset: place.offset,
            part: kind.name(),
            page,
            what,
        };
        if place.end() > self.desc().bytes {
            return Err(damaged("it lies beyond the end of the file").into());
        }
        count.bytes += u64::from(place.length);
        let decode = |bytes: &[u8]| block::decode(kind, (layer, place.offset), bytes);
        let decoded = self
            .source
            .with_bytes(place.offset, place.length as usize, decode);
        let decoded = decoded.map_err(|source| ReadError::Io { layer, source })?;
        Ok(decoded.map_err(damaged)?)
    }

    /// The sections, in the order in which they were given.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn sections(&self) -> Result<Vec<Bytes>, ReadError> {
        let (mut sections, mut offset) = (Vec::new(), self.footer.sections_offset);
        let mut count = ReadCount::default();
        for _ in 0..self.footer.sections {
            let header = BlockPlace {
                offset,
                length: BLOCK_HEADER_BYTES as u32,
            };
            // Which sections are damaged is not known by page.
            let place = self.section_place(header)?;
            sections.push(self.block(BlockKind::Section, place, None, &mut count)?);
            offset = place.end();
        }
        if offset + FOOTER_BYTES as u64 == self.desc().bytes || self.footer.sections == 0 {
            return Ok(sections);
        }
        Err(self.section_damage(offset, "there is more than the sections"))
    }

    fn section_place(&self, header: BlockPlace) -> Result<BlockPlace, ReadError> {
        let layer = self.desc().id;
        let bytes = self.source.read_at(header.offset, header.length as usize);
        let bytes = bytes.map_err(|source| ReadError::Io { layer, source })?;
        let stored = bytes.get(4..8).and_then(|bytes| bytes.try_into().ok());
        let length = stored.and_then(|stored| header.length.checked_add(u32::from_le_bytes(stored)));
        let place = length.map(|length| BlockPlace { length, ..header });
        place
            .filter(|place| place.end() + FOOTER_BYTES as u64 <= self.desc().bytes)
            .ok_or_else(|| self.section_damage(header.offset, "its length cannot be"))
    }

    fn section_damage(&self, offset: u64, what: &'static str) -> ReadError {
        ReadError::Damaged(Damage {
            layer: self.desc().id,
            offset,
            part: BlockKind::Section.name(),
            page: None,
            what,
        })
    }

    pub(super) fn top(&self) -> &Entries {
        &self.top
    }

    pub(super) fn footer(&self) -> &Footer {
        &self.footer
    }

    pub(super) fn may_have(&self, key: &PageKey) -> bool {
        self.filter.may_have(filter::hash(&key.encode()))
    }
}

/// Kept out of [`Piece`] so that it stays plain data.
impl Piece {
    /// LSN of the first value.
    pub(super) fn first(&self) -> Option<Lsn> {
        self.values.first().map(|(lsn, _)| *lsn)
    }
}
