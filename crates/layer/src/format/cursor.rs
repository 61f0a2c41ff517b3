//! All of a layer in order, a block at a time.

use lakebed_types::PageKey;

use super::block::{BlockKind, BlockPlace};
use super::damage::ReadError;
use super::index::{Entries, Entry};
use super::index_cache::IndexCache;
use super::piece::{Piece, Pieces};
use super::reader::{LayerReader, ReadAt, ReadCount};

/// Gives the pieces of a layer from some page on, in order. Holds one index block and one data block.
#[derive(Debug)]
pub struct Cursor {
    /// Next entry of the top.
    leaf: usize,
    entries: Option<Entries>,
    /// Next entry of the index block.
    at: usize,
    block: Option<(BlockPlace, Pieces)>,
    from: PageKey,
    peeked: Option<Piece>,
    /// What was read so far.
    pub count: ReadCount,
}

impl<R: ReadAt> LayerReader<R> {
    /// Calls `visit` for the page of each piece, in order; a page of many pieces comes often. Reads the index alone.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn for_each_page(&self, mut visit: impl FnMut(PageKey)) -> Result<(), ReadError> {
        let mut cursor = Cursor::new(self, PageKey::LOWEST);
        while let Some(entry) = cursor.next_entry(self)? {
            visit(entry.key);
        }
        Ok(())
    }
}

impl Cursor {
    /// Begins at the first page that is not below `from`.
    pub fn new<R: ReadAt>(reader: &LayerReader<R>, from: PageKey) -> Cursor {
        Cursor {
            // The block before the first one that begins at or after the page may still have it.
            leaf: reader.top().before(&from).saturating_sub(1),
            entries: None,
            at: 0,
            block: None,
            from,
            peeked: None,
            count: ReadCount::default(),
        }
    }

    /// The page of the next piece.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn peek<R: ReadAt>(&mut self, reader: &LayerReader<R>) -> Result<Option<PageKey>, ReadError> {
        if self.peeked.is_none() {
            self.peeked = self.advance(reader)?;
        }
        Ok(self.peeked.as_ref().map(|piece| piece.key))
    }

    /// The next piece.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn next<R: ReadAt>(&mut self, reader: &LayerReader<R>) -> Result<Option<Piece>, ReadError> {
        match self.peeked.take() {
            Some(piece) => Ok(Some(piece)),
            None => self.advance(reader),
        }
    }

    fn advance<R: ReadAt>(&mut self, reader: &LayerReader<R>) -> Result<Option<Piece>, ReadError> {
        while let Some(entry) = self.next_entry(reader)? {
            if entry.key < self.from {
                continue;
            }
            return self.piece(reader, &entry).map(Some);
        }
        Ok(None)
    }

    fn next_entry<R: ReadAt>(&mut self, reader: &LayerReader<R>) -> Result<Option<Entry>, ReadError> {
        loop {
            if let Some(entry) = self.entries.as_ref().and_then(|entries| entries.get(self.at)) {
                self.at += 1;
                return Ok(Some(entry));
            }
            let Some(top) = reader.top().get(self.leaf) else {
                return Ok(None);
            };
            // A scan must not push out what reads need.
            let nothing = IndexCache::new(0);
            self.entries = Some(reader.index(&top, (top.key, top.lsn), &nothing, &mut self.count)?);
            (self.leaf, self.at) = (self.leaf + 1, 0);
        }
    }

    /// The entry's piece. Entries of one block follow each other in the order of its pieces.
    fn piece<R: ReadAt>(&mut self, reader: &LayerReader<R>, entry: &Entry) -> Result<Piece, ReadError> {
        let asked = (entry.key, entry.lsn);
        let damaged = |what| reader.damage(BlockKind::Data, entry.place, asked, what);
        let pieces = match &mut self.block {
            Some((place, pieces)) if *place == entry.place => pieces,
            _ => {
                let pieces = reader.data(entry.place, asked, &mut self.count)?;
                &mut self.block.insert((entry.place, pieces)).1
            }
        };
        while let Some(piece) = pieces.next().map_err(damaged)? {
            if piece.key == entry.key && piece.first() == Some(entry.lsn) {
                return Ok(piece);
            }
            // Before the page that the cursor began at.
            if piece.key >= self.from {
                break;
            }
        }
        Err(damaged("it does not have the page that the index says"))
    }

    /// The block that was read last.
    pub(super) fn block_place(&self) -> Option<BlockPlace> {
        self.block.as_ref().map(|(place, _)| *place)
    }
}
