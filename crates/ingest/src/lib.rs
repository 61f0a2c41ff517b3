//! What one decoded WAL record of Postgres 15 changes outside of the bytes of relation pages.
#![forbid(unsafe_code)]
