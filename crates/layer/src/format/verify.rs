//! Looking at every byte of a layer: for a scrubber, and after a download.

use lakebed_types::{Lsn, PageKey};

use super::block::{BlockKind, BlockPlace};
use super::cursor::Cursor;
use super::damage::{Damage, ReadError};
use super::footer::{FOOTER_BYTES, HEADER_BYTES};
use super::reader::{LayerReader, ReadAt};

impl<R: ReadAt> LayerReader<R> {
    /// Reads all of the layer and checks that its parts agree: each byte belongs to a checked block, pages are in order
    /// and known to the filter, LSNs are in range, and there are as many pages and values as the footer says, so that
    /// the index names every one.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn verify(&self) -> Result<(), ReadError> {
        let (mut pages, mut values, mut last) = (0, 0, None::<(PageKey, Lsn)>);
        let mut cursor = Cursor::new(self, PageKey::LOWEST);
        while let Some(piece) = cursor.next(self)? {
            let place = cursor.block_place().unwrap_or(self.footer().top);
            let first = (piece.key, piece.first().unwrap_or_default());
            let wrong = |what| Err(self.damage(BlockKind::Data, place, first, what));
            if last.is_some_and(|last| last > first) {
                return wrong("pages are out of order");
            }
            if !self.may_have(&piece.key) {
                return wrong("the filter does not know the page");
            }
            let desc = self.desc();
            if piece
                .values
                .iter()
                .any(|(lsn, _)| *lsn > desc.last || *lsn < desc.first)
            {
                return wrong("a value lies outside the layer's range");
            }
            pages += u64::from(last.is_none_or(|(key, _)| key != piece.key));
            values += piece.values.len() as u64;
            last = piece.values.last().map(|(lsn, _)| (piece.key, *lsn));
        }
        self.sections()?;
        let desc = self.desc();
        let high = desc.pages_span.map(|span| span.1);
        let footer = BlockPlace {
            offset: desc.bytes.saturating_sub(FOOTER_BYTES as u64),
            length: FOOTER_BYTES as u32,
        };
        if (pages, values, last.map(|(key, _)| key)) != (desc.pages, desc.values, high) {
            return Err(self.disagreement(footer, "footer", "its numbers are not those of the pages"));
        }
        let top = self.footer().top;
        if HEADER_BYTES as u64 + cursor.count.bytes != top.offset {
            return Err(self.disagreement(top, BlockKind::Top.name(), "it does not lead to every block"));
        }
        Ok(())
    }

    fn disagreement(&self, place: BlockPlace, part: &'static str, what: &'static str) -> ReadError {
        ReadError::Damaged(Damage {
            layer: self.desc().id,
            offset: place.offset,
            part,
            page: None,
            what,
        })
    }
}
