//! The codec on WAL of real Postgres.

mod golden;
mod round_trip;
mod written;
