//! The tier as its users rely on it: real processes, real Postgres, real disks.

mod durability;
mod state;
