//! WAL at rest in object storage: one object holds a stretch of one timeline's WAL as independently readable frames.
//!
//! ```text
//! header   64 bytes      what the WAL is of
//! frames                 each: header of 64 bytes, stored bytes ([`frame`])
//! index    24 bytes each one entry per frame, in LSN order
//! state    opaque        what its writer knew about the timeline
//! footer   64 bytes      where index and state are
//! ```
//!
//! Header:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `LKBDWALO` |
//! | 8..10 | format version, 1 |
//! | 10..12 | Postgres major version |
//! | 12..16 | bytes of a WAL segment |
//! | 16..24 | Postgres system identifier |
//! | 24..32, 32..40 | begin and end LSN |
//! | 40..60 | zeros |
//! | 60..64 | CRC32C of bytes 0..60 |
//!
//! Index entry: begin LSN (8), offset of the frame in the object (8), bytes of the frame with its header (4), zeros (4).
//!
//! Footer:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | offset of the index |
//! | 8..12 | number of frames |
//! | 12..16 | bytes of the state |
//! | 16..24, 24..32 | begin and end LSN, as in the header |
//! | 32..36, 36..40 | CRC32C of the index, and of the state |
//! | 40..52 | zeros |
//! | 52..56 | CRC32C of bytes 0..52 |
//! | 56..64 | magic `LKBDWALF` |
//!
//! Numbers are little-endian. Frames follow each other without a gap, from the begin to the end LSN, both of which are
//! record boundaries. A reader of a whole object checks all of it ([`Object::open`]); a reader of a few records fetches
//! the footer, the index and the frames that it needs ([`Footer`], [`Index`], [`frame::decode`]). Frames carry all that
//! it takes to read them, so a damaged index loses nothing. Zeros are checked: they are room for later versions.
//!
//! zstd's window is the frame: what one record repeats of those before it in the frame costs a few bytes, and nothing
//! outside of the frame is needed to read it. The writer chooses how much that is ([`TARGET_FRAME_BYTES`] by default) and
//! tells where records end; a frame ends with a record, so a reader that has the index reads from any record on:
//!
//! ```
//! use lakebed_types::{Lsn, PgVersion};
//! use lakebed_walframe::build::cuts;
//! use lakebed_walframe::{Header, Object, ObjectBuilder, TARGET_FRAME_BYTES};
//!
//! # fn main() -> Result<(), lakebed_walframe::FrameError> {
//! // A thousand records of 1 KiB, alike as those of one workload are.
//! let wal: Vec<u8> = (0..1000u32).flat_map(|n| [n.to_le_bytes().repeat(2), vec![7; 1016]].concat()).collect();
//! let begin = Lsn(0x100_0000);
//! let ends: Vec<Lsn> = (1..=1000).map(|n| Lsn(begin.0 + n * 1024)).collect();
//! let end = ends[999];
//! let (pg_version, segment_bytes, system_id) = (PgVersion::V17, 16 << 20, 42);
//! let mut object = ObjectBuilder::new(Header { pg_version, segment_bytes, system_id, begin, end });
//! for cut in cuts(begin, &ends, TARGET_FRAME_BYTES) {
//!     let at = |lsn: Lsn| (lsn.0 - begin.0) as usize;
//!     object.frame(&cut, &wal[at(cut.range.start)..at(cut.range.end)]);
//! }
//! let stored = object.finish(b"");
//! assert!(stored.len() < wal.len() / 20);
//!
//! let object = Object::open(stored.into())?;
//! // From the 700th record on: the frame that holds it, alone.
//! let from = ends[699];
//! let entry = object.index.frames(from, end)[0];
//! let frame = object.frame(&entry)?;
//! let skip = (from.0 - frame.header.begin.0) as usize;
//! assert_eq!(frame.wal[skip..skip + 4], 700u32.to_le_bytes());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod build;
mod bytes_at;
pub mod frame;
mod object;

pub use build::ObjectBuilder;
pub use object::{
    FOOTER_BYTES, Footer, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, Index, IndexEntry, Object, read_frame,
};

/// Version of objects and frames that this code writes, and the newest that it reads.
pub const VERSION: u16 = 1;
/// Uncompressed WAL in a frame that is worth cutting it.
pub const TARGET_FRAME_BYTES: usize = 128 << 10;
/// Most uncompressed WAL in a frame; a longer record goes in pieces.
pub const MAX_FRAME_BYTES: usize = 16 << 20;
/// Most frames in an object.
pub const MAX_FRAMES: usize = 1 << 20;
/// Most bytes of state.
pub const MAX_STATE_BYTES: usize = 1 << 20;

/// Bytes that are not what they should be, or that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// They are damaged: fetch them again; if object storage has no others, this stretch of WAL is lost here.
    #[error("WAL object is damaged: {0}")]
    Damaged(&'static str),
    /// A newer version wrote them: use a newer one to read them.
    #[error("WAL object has format {found}, this version reads up to {VERSION}")]
    Newer {
        /// Their version.
        found: u16,
    },
    /// A codec that this version does not have.
    #[error("WAL frame has codec {0}, which this version does not know")]
    Codec(u8),
    /// The frame is encrypted.
    #[error("WAL frame is encrypted with key {0}, and this version has no keys")]
    Encrypted(u32),
}
