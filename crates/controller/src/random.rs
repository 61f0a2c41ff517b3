//! Random numbers of the operating system, for ids that must never collide.

use std::io;

use rand::TryRngCore;
use rand::rngs::OsRng;

/// Sixteen random bytes: a tenant or timeline id.
pub fn id() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// A random number.
pub fn number() -> io::Result<u64> {
    OsRng.try_next_u64().map_err(io::Error::other)
}
