//! What the shim inside Postgres and the sidecar beside it must agree on.
//!
//! The shim (`compute_shim`) is loaded into every process of an unmodified Postgres; the sidecar owns the connection
//! to the storage tier. They share
//!
//! * [`region`]: one mapped file with the state of both, the ring of WAL writes ([`ring`]) and one state word
//!   ([`word`]) for each block of each relation file that is open anywhere;
//! * [`message`]: questions over a unix stream socket, one connection per process, one question at a time;
//! * [`path`]: which file names mean what.
//!
//! Both sides come from one build, so a version that differs is refused, never translated. Nothing here allocates
//! in a decode that the shim does, and nothing calls the operating system: futexes, sockets and mappings belong to
//! the callers.
//!
//! **Environment.** The sidecar starts Postgres with [`ENV_SHM`], [`ENV_SOCKET`] and [`ENV_DATA`] (all absolute
//! paths); the shim copies them and removes them, with `LD_PRELOAD`, before Postgres or a child can see them.
//! Without [`ENV_SHM`] the shim does nothing at all.

pub mod frame;
pub mod message;
pub mod path;
pub mod region;
pub mod ring;
pub mod word;

/// First eight bytes of the shared region and of each connection.
pub const MAGIC: u64 = u64::from_le_bytes(*b"lakebed\x01");
/// Raised with every change of layout or message.
pub const VERSION: u32 = 1;

/// Path of the shared region's file.
pub const ENV_SHM: &str = "LAKEBED_SHM";
/// Path of the sidecar's unix socket.
pub const ENV_SOCKET: &str = "LAKEBED_SOCKET";
/// The data directory as Postgres gets it in `-D`: absolute paths below it are made relative.
pub const ENV_DATA: &str = "LAKEBED_DATA";

/// Bytes of a page.
pub const PAGE_SIZE: usize = 8192;
/// Blocks of a relation segment file (1 GiB), hence words of a slot.
pub const SEGMENT_BLOCKS: u32 = 131_072;
