//! The layer file, version 2: an immutable, sorted run of page versions.
//!
//! ```text
//! header     32 bytes   what the file is, and which layer
//! data and index blocks, as they fill up: an index block follows the data blocks that it names
//! top        one block  an index of the index blocks
//! filter     one block  which pages are here
//! sections   blocks     opaque to this crate: entries of a timeline's catalogue
//! footer     144 bytes  where the parts are, which pages and LSNs; see `footer`
//! ```
//!
//! | part | bytes | content |
//! |---|---|---|
//! | header | 0..8 | magic `LKBDLAYR` |
//! | | 8..10 | version u16 |
//! | | 10..12 | kind of layer u8, zero |
//! | | 12..28 | the layer's id: generation u64, number u64 |
//! | | 28..32 | CRC32C of bytes 0..28 |
//! | block | 0..4 | kind of block u8, codec u8 (0 none, 1 LZ4, 2 zstd), zeros |
//! | | 4..12 | bytes stored u32, bytes decoded u32 |
//! | | 12..28 | key id u32, nonce 12 bytes: zero, room for encryption |
//! | | 28..32 | CRC32C of bytes 0..28, what follows, the block's offset u64, the layer's id |
//! | | 32.. | the bytes |
//! | data | per page | key 18 bytes, values u32, bytes of them u32; each value: LSN u64, kind u8, length u32, body |
//! | index, top | 39 each | key 18 bytes, LSN u64 *big-endian*, offset u64, length u32 of the block, flags u8 |
//! | filter | 32 each | see `filter` |
//!
//! Numbers are little-endian but for those that are compared as bytes. The values of a page lie one after the other, in
//! LSN order: a page's part of one data block is a *piece*, and an index entry names its key and its first value's LSN,
//! so that one search for the greatest entry not above (page, LSN) finds the piece to read. A block ends where a page
//! or a value that stands alone begins, once it has [`BLOCK_BYTES`], so that a chain of usual length is one piece.
//!
//! A block's checksum covers its place and its layer: bytes of another file, or of elsewhere in this one, are noticed.
//! Top and filter stay in memory (about a byte and a half per page); index blocks go through an [`IndexCache`].
//! Version 1, which had no blocks, is refused: nobody has data of it.

mod block;
mod cursor;
mod damage;
mod filter;
mod footer;
mod index;
mod index_cache;
mod piece;
mod reader;
mod sought;
mod verify;
mod writer;

pub use block::{Codec, MAX_VALUE_BYTES};
pub use cursor::Cursor;
pub use damage::{Damage, ReadError};
pub use index_cache::IndexCache;
pub use piece::Piece;
pub use reader::{LayerReader, ReadAt, ReadCount};
pub use sought::Sought;
pub use writer::{BLOCK_BYTES, LayerWriter, WriteError};

#[cfg(test)]
mod tests;
