//! Versions of pages: how they are kept in memory and in files, and put together for a read.
//!
//! ```text
//! ingest ─► Memtable ──flush──► level-0 layer ──merge──► current layer + history, per partition
//!              ▲ newest              ▲                        ▲ oldest
//!              └───────────── a read fills a Chain this way ──┘
//! ```
//!
//! - A [`Value`] is one version of one page: a whole image, or what redo needs of one WAL record (a delta).
//! - [`Memtable`] takes values as they are ingested; [`ImagePolicy`] says when a page's chain has become long.
//! - A layer *file* holds values sorted by page and LSN; [`mod@format`] writes, reads and checks it.
//! - [`LayerMap`] is which layers there are and which of them a read asks; [`read()`] asks them.
//! - [`plan()`] decides what to merge, [`Merge`] does it, a page at a time, keeping what [`ReadPoints`] still need.
//! - [`durable_steps`] says in which order a change becomes durable.
//! - A [`Chain`] collects values, newest first, until one that stands for itself.
//!
//! The crate is pure: it sees bytes and places in files, never a file. What a value does to a page is the business of
//! `redo` and `ingest`, what is stored when and where that of the pageserver.
//!
//! What is missing: small partitions side by side are never joined, an edit copies the whole map, what a page was before it
//! was dropped is kept as its newest version, and the random operations of the tests have no drops and truncations.
#![forbid(unsafe_code)]

mod chain;
mod change;
mod desc;
pub mod format;
mod image;
pub mod key_text;
mod map;
mod memtable;
mod merge;
mod plan;
mod read;
mod retention;
mod segments;
mod superseded;
mod value;
mod waste;

pub use chain::Chain;
pub use change::{Durable, durable_steps};
pub use desc::{BadLayerId, LayerDesc, LayerId, LayerKind};
pub use image::{ImagePolicy, SinceImage};
pub use map::{Base, Edit, LayerMap, MapChange, MapError, Merged, PageRange, Partition};
pub use memtable::{Memtable, MemtableError, Stored};
pub use merge::{Finished, Merge, MergeCount, MergeError, MergeRules, NewLayers, Step};
pub use plan::{Job, Plan, PlanPolicy, Reclaimed, is_late, plan};
pub use read::{read, read_watched};
pub use retention::ReadPoints;
pub use segments::MakeImage;
pub use superseded::Superseded;
pub use value::{Value, ValueKind};
pub use waste::DeadBytes;

#[cfg(test)]
mod tests;
