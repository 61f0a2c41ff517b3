//! Why a record cannot be replayed.

use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::record::DecodedRecord;

use crate::rmgr;

/// A record that this version cannot replay. Every kind means the same to the caller: the timeline stops in front of
/// this record, and nothing after it is looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// A resource manager that Postgres does not have, and whose number no extension can have.
    #[error("record at {lsn}: there is no resource manager {rmid} (info {info:#04x})")]
    UnknownResourceManager {
        /// Start of the record.
        lsn: Lsn,
        /// Its resource manager.
        rmid: u8,
        /// Its info bits.
        info: u8,
    },
    /// A record type that its resource manager does not have in the version that wrote it.
    #[error("record at {lsn}: resource manager {} of Postgres {version} has no record type {info:#04x}", rmgr::name(*.rmid))]
    UnknownType {
        /// Start of the record.
        lsn: Lsn,
        /// Version of Postgres that wrote it.
        version: PgVersion,
        /// Its resource manager.
        rmid: u8,
        /// Its info bits.
        info: u8,
    },
    /// The record's type is known and its bytes are not what Postgres writes for it.
    #[error("record at {lsn} (resource manager {}, info {info:#04x}): {rule}", rmgr::name(*.rmid))]
    Malformed {
        /// Start of the record.
        lsn: Lsn,
        /// Its resource manager.
        rmid: u8,
        /// Its info bits.
        info: u8,
        /// The rule that it violates.
        rule: &'static str,
    },
}

/// The rule that a parser found violated; [`malformed`] adds which record.
pub(crate) type Rule = &'static str;

pub(crate) fn malformed(record: &DecodedRecord, rule: Rule) -> IngestError {
    IngestError::Malformed {
        lsn: record.start,
        rmid: record.rmid,
        info: record.info,
        rule,
    }
}

pub(crate) fn unknown_type(record: &DecodedRecord) -> IngestError {
    IngestError::UnknownType {
        lsn: record.start,
        version: record.version,
        rmid: record.rmid,
        info: record.info,
    }
}
