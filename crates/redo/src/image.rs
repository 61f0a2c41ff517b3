//! Page images in records: putting the hole back, and the three compressions.
//!
//! The hole is the free space between `pd_lower` and `pd_upper`, left out when the image was made
//! (`RestoreBlockImage` in `access/transam/xlogreader.c`).

use std::cell::RefCell;
use std::io;

use lakebed_types::PAGE_SIZE;
use lakebed_wal::record::{BlockImage, ImageCompression};

use zstd::bulk::Decompressor;

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
        if self.compression == ImageCompression::None {
            let bytes = self.bytes.get(..length).ok_or("the image is too short")?;
            let (before, after) = bytes
                .split_at_checked(hole_start)
                .ok_or("the image is too short")?;
            page[..hole_start].copy_from_slice(before);
            page[hole_start + hole..].copy_from_slice(after);
        } else {
            self.decompress(&mut page[..length])?;
            page.copy_within(hole_start..length, hole_start + hole);
        }
        page[hole_start..hole_start + hole].fill(0);
        Ok(())
    }

    fn decompress(&self, plain: &mut [u8]) -> Result<(), Fault> {
        let length = plain.len();
        match self.compression {
            ImageCompression::None => Err("the image is not compressed"),
            ImageCompression::Pglz => pglz_decompress(self.bytes, plain),
            ImageCompression::Lz4 => match lz4_flex::block::decompress_into(self.bytes, plain) {
                Ok(got) if got == length => Ok(()),
                Ok(_) => Err("the LZ4 image has the wrong length"),
                Err(_) => Err("the LZ4 image is damaged"),
            },
            ImageCompression::Zstd => match zstd_decompress(self.bytes, plain) {
                Ok(got) if got == length => Ok(()),
                Ok(_) => Err("the Zstandard image has the wrong length"),
                Err(_) => Err("the Zstandard image is damaged"),
            },
        }
    }
}

thread_local! {
    /// A context is some 100 KiB, too much to make for each image.
    static ZSTD: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn zstd_decompress(source: &[u8], plain: &mut [u8]) -> io::Result<usize> {
    ZSTD.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(Decompressor::new()?),
        };
        context.decompress_to_buffer(source, plain)
    })
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
                // Source and target may overlap, which is how runs are coded.
                let end = at + length.min(out.len() - at);
                while at < end {
                    let size = distance.min(end - at);
                    out.copy_within(at - distance..at - distance + size, at);
                    at += size;
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
