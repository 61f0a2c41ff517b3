//! WAL in few bytes: batches of whole records into a compact form and back, byte for byte. No IO, no clock.
//!
//! ```text
//! WAL ─► records, page headers left out ─► shape, fields, data ─► model + range coder ─► batch
//!              (pages)                         (shape)              (records, model)
//!                                              images ─► columns ─► zstd ─► aside
//! ```
//!
//! Page headers, padding, `xl_prev` and `xl_crc` follow from the rest and are put in again by the decoder. The encoder does the same
//! first, and what does not come out equal to the last byte goes as plain bytes, through zstd. Whatever comes out is checked
//! against a CRC32C of the whole batch.
//!
//! zstd alone needs a few kilobytes before it finds anything in a stream of small transactions, and starts each flush with
//! new tables. The model knows where the fields of a record are and needs about 50 bytes for a transaction of pgbench where
//! zstd with a context needs 180 to 240, in about the same time. Long data and page images are zstd's.
//!
//! [`stream`] has the layout of a batch; [`choice`] decides how a batch goes.
#![forbid(unsafe_code)]

pub mod choice;
mod coder;
mod image;
mod model;
mod pages;
mod records;
mod shape;
pub mod stream;
mod trial;
