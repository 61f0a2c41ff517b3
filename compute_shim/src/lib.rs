//! The library that the sidecar preloads into an unmodified Postgres, so that the storage tier is its disk.
//!
//! It replaces the file calls of libc. What a call means is decided once, when a descriptor is opened:
//!
//! * *Managed* files, the segments of relations and SLRUs ([`files`], [`blocks`]): local sparse files whose blocks
//!   the sidecar fills on demand. A present block costs one load more than a plain `pread`.
//! * *WAL* segments ([`wal`]): each write is published to the sidecar; `fdatasync` returns when a quorum has it. Every
//!   other sync is a no-op, for the tier is the disk.
//! * *Carried* files: a rename waits until the tier has the file.
//! * Everything else goes through untouched, and without `LAKEBED_SHM` in the environment everything does.
//!
//! Stages of a process: [`start`] in the constructor maps the shared region and cleans the environment; [`death`]
//! ties it to the sidecar, now and after each fork; then [`exports`] is entered from Postgres.
//!
//! The host is a forking program without threads but with signal handlers, hence: no threads, no allocation, no
//! locks that a fork could leave held, `errno` kept, and everything process-wide is an atomic. Handlers of Postgres
//! call `write` and `close` on pipes; those take the untouched path.

mod blocks;
mod death;
mod errno;
mod exports;
mod fds;
mod files;
mod iov;
mod log;
mod real;
mod socket;
mod start;
mod wal;
