//! Memory of values: segments of pages, cut from chunks.
//!
//! A segment belongs to one page. It begins with the place of the page's segment before it (chunk, start, end: u32 each), and
//! its values follow, oldest first: LSN u64, kind u8, length u32, body.

use std::ops::{Deref, DerefMut};

use lakebed_types::Lsn;
use memmap2::{Advice, MmapMut};

use super::Stored;
use crate::ValueKind;

/// Bytes of a chunk. A longer segment has one of its own.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of a chunk of a table that has as many already. Values go to pages at random, so nearly each of them is on a page of
/// memory that the processor has to look up, and to get it from the kernel first: large pages, where there are, cost a quarter
/// less for all of ingest. A small table would not fill one.
const LARGE_CHUNK_BYTES: usize = 4 << 20;
/// Bytes of a page's first segment. Each later one is twice as long as the one before it, up to [`LONGEST_BYTES`], so that a
/// page of few values takes little, and one of many lies together.
const SHORTEST_BYTES: usize = 128;
const LONGEST_BYTES: usize = 2 << 10;
/// Segments are multiples of a line of the processor's caches.
const LINE_BYTES: usize = 64;
const LINK_BYTES: usize = 12;
const HEADER_BYTES: usize = 13;
const NONE: u32 = u32::MAX;

/// The filled part of a segment, or a part of that which begins where the segment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    chunk: u32,
    start: u32,
    /// Where its next value goes.
    end: u32,
}

#[derive(Debug)]
enum Chunk {
    Small(Vec<u8>),
    Large(MmapMut),
}

impl Chunk {
    /// Zeros.
    fn new(bytes: usize) -> Chunk {
        if bytes < LARGE_CHUNK_BYTES {
            return Chunk::Small(vec![0; bytes]);
        }
        match MmapMut::map_anon(bytes) {
            Ok(memory) => {
                // Kernels without large pages refuse, and it is memory all the same.
                let _ = memory.advise(Advice::HugePage);
                Chunk::Large(memory)
            }
            // The allocator may have it yet.
            Err(_) => Chunk::Small(vec![0; bytes]),
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Chunk::Small(bytes) => bytes,
            Chunk::Large(bytes) => bytes,
        }
    }
}

impl DerefMut for Chunk {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Chunk::Small(bytes) => bytes,
            Chunk::Large(bytes) => bytes,
        }
    }
}

/// See the module header.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: Vec<Chunk>,
    /// Bytes of the last chunk that are given away.
    given: usize,
    /// Bytes of the chunks.
    bytes: usize,
}

impl Arena {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the segment that follows one of `before` bytes and begins with values of so many.
    pub(super) fn next_length(before: usize, values: usize) -> usize {
        let length = (before * 2).clamp(SHORTEST_BYTES, LONGEST_BYTES);
        length
            .max(LINK_BYTES.saturating_add(values))
            .checked_next_multiple_of(LINE_BYTES)
            .unwrap_or(usize::MAX)
    }

    /// Bytes for values in a new segment of this length.
    pub(super) fn free(length: usize) -> usize {
        length - LINK_BYTES
    }

    /// Bytes that a value takes.
    pub(super) fn value_bytes(body: usize) -> usize {
        body.saturating_add(HEADER_BYTES)
    }

    /// Bytes to allocate before there is a segment of this length.
    pub(super) fn allocation(&self, length: usize) -> usize {
        let free = self.chunks.last().map_or(0, |chunk| chunk.len() - self.given);
        match length <= free {
            true => 0,
            false if self.bytes < LARGE_CHUNK_BYTES => length.max(CHUNK_BYTES),
            false => length.max(LARGE_CHUNK_BYTES),
        }
    }

    /// A new segment of this length, after `before`.
    pub(super) fn add(&mut self, length: usize, before: Option<Segment>) -> Segment {
        let allocation = self.allocation(length);
        if allocation > 0 {
            self.chunks.push(Chunk::new(allocation));
            self.bytes += allocation;
            self.given = 0;
        }
        let start = self.given;
        self.given += length;
        let before = before.unwrap_or(Segment {
            chunk: NONE,
            start: 0,
            end: 0,
        });
        let segment = Segment {
            chunk: (self.chunks.len() - 1) as u32,
            start: start as u32,
            end: (start + LINK_BYTES) as u32,
        };
        let mut link = [0; LINK_BYTES];
        link[..4].copy_from_slice(&before.chunk.to_le_bytes());
        link[4..8].copy_from_slice(&before.start.to_le_bytes());
        link[8..].copy_from_slice(&before.end.to_le_bytes());
        self.chunks[segment.chunk as usize][start..start + LINK_BYTES].copy_from_slice(&link);
        segment
    }

    /// Adds a value to a segment that has room for it.
    #[inline]
    pub(super) fn push(&mut self, segment: &mut Segment, lsn: Lsn, kind: ValueKind, body: &[u8]) {
        let end = segment.end as usize;
        let whole = &mut self.chunks[segment.chunk as usize][end..end + HEADER_BYTES + body.len()];
        let (header, rest) = whole.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(&lsn.0.to_le_bytes());
        header[8] = kind as u8;
        header[9..].copy_from_slice(&(body.len() as u32).to_le_bytes());
        rest.copy_from_slice(body);
        segment.end = (end + HEADER_BYTES + body.len()) as u32;
    }

    /// The byte where the segment's next value goes.
    #[inline]
    pub(super) fn fetch(&self, segment: Segment) -> u8 {
        let chunk = self.chunks.get(segment.chunk as usize);
        let byte = chunk.and_then(|chunk| chunk.get(segment.end as usize));
        byte.copied().unwrap_or_default()
    }

    /// Values, oldest first.
    pub(super) fn values(&self, segment: Segment) -> Values<'_> {
        let chunk = self.chunks.get(segment.chunk as usize);
        let (start, end) = (segment.start as usize + LINK_BYTES, segment.end as usize);
        Values(chunk.and_then(|chunk| chunk.get(start..end)).unwrap_or_default())
    }

    /// The page's segment before this one.
    pub(super) fn before(&self, segment: Segment) -> Option<Segment> {
        let chunk = self.chunks.get(segment.chunk as usize)?;
        let (words, _) = chunk.get(segment.start as usize..)?.as_chunks::<4>();
        let [chunk, start, end, ..] = words else {
            return None;
        };
        let [chunk, start, end] = [chunk, start, end].map(|word| u32::from_le_bytes(*word));
        (chunk != NONE).then_some(Segment { chunk, start, end })
    }

    /// The segment up to its last value that is not after `lsn`; `None` if all are.
    pub(super) fn up_to(&self, segment: Segment, lsn: Lsn) -> Option<Segment> {
        let values = self.values(segment).take_while(|value| value.lsn <= lsn);
        let bytes: usize = values.map(|value| HEADER_BYTES + value.body.len()).sum();
        let end = segment.start + (LINK_BYTES + bytes) as u32;
        (bytes > 0).then_some(Segment { end, ..segment })
    }
}

/// Values of one segment.
#[derive(Clone, Debug)]
pub(super) struct Values<'a>(&'a [u8]);

impl<'a> Iterator for Values<'a> {
    type Item = Stored<'a>;

    #[inline]
    fn next(&mut self) -> Option<Stored<'a>> {
        let (lsn, rest) = self.0.split_first_chunk()?;
        let (kind, rest) = rest.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (body, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.0 = rest;
        Some(Stored {
            lsn: Lsn(u64::from_le_bytes(*lsn)),
            kind: ValueKind::from_number(*kind)?,
            body,
        })
    }
}
