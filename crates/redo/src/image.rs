//! Page images in records: putting the hole back, and the three compressions.
//!
//! The hole is the free space between `pd_lower` and `pd_upper`, left out when the image was made
//! (`RestoreBlockImage` in `access/transam/xlogreader.c`).

use lakebed_types::PAGE_SIZE;
use lakebed_wal::record::{BlockImage, ImageCompression};

use crate::{Fault, ImageView, PageBytes};

impl ImageView<'_> {
    /// Writes the page that an image stands for.
    ///
    /// # Errors
    /// The hole does not fit the page, or the bytes do not decompress to exactly the rest of the page.
    pub fn restore(&self, page: &mut PageBytes) -> Result<(), &'static str> {
        let hole_start = usize::from(self.hole_offset);
        let hole = usize::from(self.hole_length);
        if hole_start + hole > PAGE_SIZE {
            return Err("the image's hole is outside the page");
        }
        let length = PAGE_SIZE - hole;
        let mut plain = [0u8; PAGE_SIZE];
        let plain = &mut plain[..length];
        match self.compression {
            ImageCompression::None => {
                let bytes = self.bytes.get(..length).ok_or("the image is too short")?;
                plain.copy_from_slice(bytes);
            }
            ImageCompression::Pglz => pglz_decompress(self.bytes, plain)?,
            ImageCompression::Lz4 => {
                let got = lz4_flex::block::decompress_into(self.bytes, plain)
                    .map_err(|_| "the LZ4 image is damaged")?;
                if got != length {
                    return Err("the LZ4 image has the wrong length");
                }
            }
            ImageCompression::Zstd => {
                let got = zstd::bulk::decompress_to_buffer(self.bytes, plain)
                    .map_err(|_| "the Zstandard image is damaged")?;
                if got != length {
                    return Err("the Zstandard image has the wrong length");
                }
            }
        }
        page[..hole_start].copy_from_slice(&plain[..hole_start]);
        page[hole_start..hole_start + hole].fill(0);
        page[hole_start + hole..].copy_from_slice(&plain[hole_start..]);
        Ok(())
    }
}

/// Writes the page that an image stands for, also one that is there for checking only; see [`ImageView::restore`].
///
/// # Errors
/// See [`ImageView::restore`].
pub fn restore_image(image: &BlockImage, page: &mut PageBytes) -> Result<(), &'static str> {
    ImageView::from(image).restore(page)
}

/// Postgres's own compression (`common/pg_lzcompress.c`): a control byte tells, from its lowest bit on, whether each
/// of the next eight items is a literal byte (0) or a match (1). A match has a length of 3 and more in the low nibble
/// of its first byte, 12 bits of distance, and a third byte of length if the nibble is full.
fn pglz_decompress(source: &[u8], out: &mut [u8]) -> Result<(), Fault> {
    const DAMAGED: Fault = "the pglz image is damaged";
    let mut input = source.iter().copied();
    let mut at = 0;
    'source: while at < out.len() {
        let Some(mut control) = input.next() else { break };
        for _ in 0..8 {
            if at >= out.len() {
                break 'source;
            }
            let Some(first) = input.next() else { break 'source };
            if control & 1 == 0 {
                out[at] = first;
                at += 1;
            } else {
                let second = input.next().ok_or(DAMAGED)?;
                let distance = usize::from(first & 0xF0) << 4 | usize::from(second);
                let mut length = usize::from(first & 0x0F) + 3;
                if length == 18 {
                    length += usize::from(input.next().ok_or(DAMAGED)?);
                }
                if distance == 0 || distance > at {
                    return Err(DAMAGED);
                }
                // Byte by byte: source and target may overlap, which is how runs are coded.
                for _ in 0..length.min(out.len() - at) {
                    out[at] = out[at - distance];
                    at += 1;
                }
            }
            control >>= 1;
        }
    }
    if at == out.len() && input.next().is_none() {
        Ok(())
    } else {
        Err(DAMAGED)
    }
}
