//! Postgres WAL: format, decoding and encoding, per major version. No IO, no clock.
#![forbid(unsafe_code)]

pub mod record;
