//! The vocabulary that every other crate shares: positions, identities, page keys and shards.
//!
//! Nothing here does IO, reads a clock or draws a random number. A value of one of these types is valid by
//! construction; conversion from bytes or text that came from outside is checked and returns an error.
//!
//! * [`lsn`]: a byte position in a timeline's WAL, and the geometry of segments and pages.
//! * [`id`]: tenant and timeline identifiers, terms and generations.
//! * [`key`]: which page: a relation block, an SLRU page, or the control state.
//! * [`shard`]: which shard owns a page.
//! * [`version`]: which major version of Postgres.
#![forbid(unsafe_code)]

pub mod data_directory;
pub mod id;
pub mod key;
pub mod lsn;
pub mod shard;
pub mod version;

pub use id::{Generation, NodeId, TenantId, Term, TimelineId};
pub use key::{ForkNumber, PageKey, RelTag, SlruKind};
pub use lsn::Lsn;
pub use shard::{ShardCount, ShardIdentity, ShardIndex};
pub use version::{PgVersion, UnsupportedVersion};

/// Size of a Postgres page in bytes (`BLCKSZ`, the default of every distribution build).
pub const PAGE_SIZE: usize = 8192;
