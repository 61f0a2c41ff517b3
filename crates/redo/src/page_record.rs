//! What redo of one page sees of a record: borrowed, so that neither a decoded record nor stored bytes are copied.
//!
//! A [`PageRecord`] is made from a decoded record and one of its block references ([`PageRecord::new`]) or from the
//! bytes that a pageserver stored for that page ([`PageRecord::decode`]). Redo cannot tell the two apart.
//!
//! Of the record's other pages redo may ask only for their block numbers, by id: no redo of a page looks at another
//! page, but many write a link to one.

use lakebed_types::{Lsn, PgVersion, RelTag};
use lakebed_wal::record::{BlockImage, BlockRef, DecodedRecord, ImageCompression};

use crate::Fault;
use crate::stored::REFERENCE;

/// A record, as far as one of its pages is concerned.
#[derive(Clone, Copy, Debug)]
pub struct PageRecord<'a> {
    /// Major version of Postgres that wrote the record: the meaning of the data depends on it.
    pub version: PgVersion,
    /// End of the record, which becomes the page's LSN.
    pub end: Lsn,
    /// `xl_xid`; 0 when the record belongs to no transaction.
    pub xid: u32,
    /// `xl_rmid`: resource manager.
    pub rmid: u8,
    /// `xl_info`.
    pub info: u8,
    /// Main data.
    pub main: &'a [u8],
    /// The reference to the page itself.
    pub own: BlockView<'a>,
    /// The record's references, or those that redo of this page needs.
    pub(crate) references: References<'a>,
    /// See [`PageRecord::with_data_checksums`].
    pub(crate) data_checksums: bool,
}

/// Block numbers by id.
#[derive(Clone, Copy, Debug)]
pub(crate) enum References<'a> {
    /// All references of a decoded record.
    Decoded(&'a [BlockRef]),
    /// Of a stored record: id, block number.
    Stored(&'a [[u8; REFERENCE]]),
}

impl References<'_> {
    /// Ids and block numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, u32)> {
        let (decoded, stored): (&[BlockRef], &[[u8; REFERENCE]]) = match self {
            References::Decoded(blocks) => (blocks, &[]),
            References::Stored(stored) => (&[], stored),
        };
        let decoded = decoded.iter().map(|block| (block.id, block.block));
        let stored = stored
            .iter()
            .map(|&[id, a, b, c, d]| (id, u32::from_le_bytes([a, b, c, d])));
        decoded.chain(stored)
    }
}

/// The reference of a record to the page that is replayed.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    /// Id inside the record, 0 to 32: the page's role.
    pub id: u8,
    /// Relation fork.
    pub rel: RelTag,
    /// Block number.
    pub block: u32,
    /// `BKPBLOCK_WILL_INIT`: redo builds the page from nothing.
    pub will_init: bool,
    /// Page image to restore instead of redo. Images for checking are not here.
    pub image: Option<ImageView<'a>>,
    /// Data of this block; `None` when `BKPBLOCK_HAS_DATA` is not set.
    pub data: Option<&'a [u8]>,
}

/// A page image without the hole between `pd_lower` and `pd_upper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageView<'a> {
    /// Stored bytes: compressed, hole left out.
    pub bytes: &'a [u8],
    /// Compression of `bytes`.
    pub compression: ImageCompression,
    /// Where the hole begins; 0 without a hole.
    pub hole_offset: u16,
    /// Bytes of the hole; 0 without one.
    pub hole_length: u16,
}

impl<'a> PageRecord<'a> {
    /// The same record in a cluster whose pages have checksums, or have none, which is what a new one says. With them
    /// a change of hint bits alone gets an LSN too (`XLogHintBitIsNeeded`), which the record itself does not tell.
    pub fn with_data_checksums(mut self, data_checksums: bool) -> PageRecord<'a> {
        self.data_checksums = data_checksums;
        self
    }

    /// What `record` means for the page that `block`, one of its references, names.
    pub fn new(record: &'a DecodedRecord, block: &'a BlockRef) -> PageRecord<'a> {
        PageRecord {
            version: record.version,
            end: record.end,
            xid: record.xid,
            rmid: record.rmid,
            info: record.info,
            main: &record.main_data,
            own: BlockView {
                id: block.id,
                rel: block.rel,
                block: block.block,
                will_init: block.will_init,
                image: block
                    .image
                    .as_ref()
                    .filter(|image| image.apply)
                    .map(ImageView::from),
                data: block.data.as_deref(),
            },
            references: References::Decoded(&record.blocks),
            data_checksums: false,
        }
    }

    /// Whether the page's earlier content does not matter: a chain may start here.
    pub fn starts_page(&self) -> bool {
        self.own.will_init || self.own.image.is_some()
    }

    /// Block number of the reference with this id; `None` if the record has no such reference.
    #[inline]
    pub fn block(&self, id: u8) -> Option<u32> {
        if id == self.own.id {
            return Some(self.own.block);
        }
        let mut references = self.references.iter();
        references.find(|(other, _)| *other == id).map(|(_, block)| block)
    }

    /// Block number of a reference that records of this type have.
    #[inline]
    pub(crate) fn needed_block(&self, id: u8) -> Result<u32, Fault> {
        self.block(id).ok_or("it does not name a page that it needs")
    }
}

impl<'a> BlockView<'a> {
    /// The block's data, which records of this type have.
    #[inline]
    pub(crate) fn needed_data(&self) -> Result<&'a [u8], Fault> {
        self.data.ok_or("it has no data for this block")
    }

    /// The block's data; none is the same as an empty one.
    #[inline]
    pub(crate) fn any_data(&self) -> &'a [u8] {
        self.data.unwrap_or_default()
    }
}

impl<'a> From<&'a BlockImage> for ImageView<'a> {
    fn from(image: &'a BlockImage) -> ImageView<'a> {
        ImageView {
            bytes: &image.bytes,
            compression: image.compression,
            hole_offset: image.hole_offset,
            hole_length: image.hole_length,
        }
    }
}
