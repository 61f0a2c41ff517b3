//! What a pageserver keeps of one WAL record for one page: what [`PageRecord::redo`] of that page reads, and no more.
//!
//! The page's key (relation, block number), the record's end and the version of Postgres are kept beside it, so they
//! are not in here. Which parts are read is in [`crate::needs`]. Layout, little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 1 | format version, 2 |
//! | 1 | `rmid` |
//! | 1 | `xl_info` |
//! | 1 | bits 0..6 id of the page's reference, bit 6 `will_init`, bit 7 an xid follows |
//! | 1 | bits 0..6 number of other references, bit 6 block data, bit 7 image to apply |
//! | 4, if there is one | xid |
//! | 5 each | other references: id (1), block (4) |
//! | 1 to 5 | length of the main data: 7 bits a byte from the lowest on, bit 7 set in all but the last |
//! | that many | main data |
//! | the rest | block data or image, of which there is at most one |
//!
//! An image is: compression (1; 0 none, 1 pglz, 2 LZ4, 3 Zstandard), hole offset, hole length (2 each), then its bytes.
//!
//! Fields are fixed in size, but for the one length that is nearly always below 128: decoding is a few loads, and the
//! five bytes in front are less than what a denser code would save.

use lakebed_types::{Lsn, PgVersion, RelTag};
use lakebed_wal::record::ImageCompression;

use crate::needs;
use crate::page_record::{BlockView, ImageView, PageRecord, References};
use crate::reader::Reader;

const FORMAT: u8 = 2;
/// Room for an id, or a number of references: at most 33.
const SIX_BITS: u8 = 0x3F;
const WILL_INIT: u8 = 0x40;
const HAS_XID: u8 = 0x80;
const HAS_DATA: u8 = 0x40;
const HAS_IMAGE: u8 = 0x80;
/// Bytes of another reference.
pub(crate) const REFERENCE: usize = 5;
const COMPRESSIONS: [ImageCompression; 4] = [
    ImageCompression::None,
    ImageCompression::Pglz,
    ImageCompression::Lz4,
    ImageCompression::Zstd,
];

/// Stored bytes that are not a stored record. They passed a checksum, so this is a bug or a newer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored record is damaged or of a newer format: {0}")]
pub struct StoredError(&'static str);

/// What is known of a stored record without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPlace {
    /// Major version of Postgres that wrote the record.
    pub version: PgVersion,
    /// End of the record.
    pub end: Lsn,
    /// Relation fork of the page.
    pub rel: RelTag,
    /// Block number of the page.
    pub block: u32,
}

impl<'a> PageRecord<'a> {
    /// Appends the stored form to `out`; see the module header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let needs = needs::of(self);
        let own = &self.own;
        let has_xid = needs.xid && self.xid != 0;
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let first = own.id & SIX_BITS | flag(own.will_init, WILL_INIT) | flag(has_xid, HAS_XID);
        let content = match (own.image, own.data) {
            (Some(_), _) => HAS_IMAGE,
            (None, Some(_)) => HAS_DATA,
            (None, None) => 0,
        };
        out.extend_from_slice(&[FORMAT, self.rmid, self.info, first, content]);
        let counted = out.len() - 1;
        if has_xid {
            out.extend_from_slice(&self.xid.to_le_bytes());
        }
        for (id, block) in self.references.iter() {
            if id != own.id && needs.others.contain(id) {
                out.push(id);
                out.extend_from_slice(&block.to_le_bytes());
                out[counted] += 1;
            }
        }
        let mut length = needs.main.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(&needs.main);
        match (own.image, own.data) {
            (Some(image), _) => {
                let compression = COMPRESSIONS.iter().position(|known| *known == image.compression);
                out.push(compression.unwrap_or_default() as u8);
                out.extend_from_slice(&image.hole_offset.to_le_bytes());
                out.extend_from_slice(&image.hole_length.to_le_bytes());
                out.extend_from_slice(image.bytes);
            }
            (None, Some(data)) => out.extend_from_slice(data),
            (None, None) => {}
        }
    }

    /// Reads the stored form, without copying. Redo of the result is redo of the record that was stored.
    ///
    /// # Errors
    /// See [`StoredError`].
    pub fn decode(bytes: &'a [u8], place: StoredPlace) -> Result<PageRecord<'a>, StoredError> {
        decode(bytes, place).map_err(StoredError)
    }
}

fn decode<'a>(bytes: &'a [u8], place: StoredPlace) -> Result<PageRecord<'a>, &'static str> {
    let input = &mut Reader::new(bytes);
    let [format, rmid, info, first, second] = input.array()?;
    if format != FORMAT {
        return Err("unknown version");
    }
    let id = first & SIX_BITS;
    let xid = if first & HAS_XID != 0 { input.u32()? } else { 0 };
    let references = input.take(usize::from(second & SIX_BITS) * REFERENCE)?;
    let main_length = length(input)?;
    let main = input.take(main_length)?;
    let (image, data) = match (second & HAS_IMAGE != 0, second & HAS_DATA != 0) {
        (true, false) => (Some(image(input)?), None),
        (false, true) => (None, Some(input.rest())),
        (false, false) if input.is_empty() => (None, None),
        (false, false) => return Err("bytes are left over"),
        (true, true) => return Err("it has both an image and data"),
    };
    Ok(PageRecord {
        version: place.version,
        end: place.end,
        xid,
        rmid,
        info,
        main,
        own: BlockView {
            id,
            rel: place.rel,
            block: place.block,
            will_init: first & WILL_INIT != 0,
            image,
            data,
        },
        references: References::Stored(references.as_chunks().0),
        data_checksums: false,
    })
}

fn length(input: &mut Reader<'_>) -> Result<usize, &'static str> {
    let mut length = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = input.u8()?;
        length |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(length).map_err(|_| "a length is too long");
        }
    }
    Err("a length is too long")
}

fn image<'a>(input: &mut Reader<'a>) -> Result<ImageView<'a>, &'static str> {
    let compression = *COMPRESSIONS
        .get(usize::from(input.u8()?))
        .ok_or("unknown compression")?;
    Ok(ImageView {
        compression,
        hole_offset: input.u16()?,
        hole_length: input.u16()?,
        bytes: input.rest(),
    })
}

#[cfg(test)]
mod tests;
