//! When a transaction was committed, as its record tells (`xl_xact_commit.xact_time` of `access/xact.h`).
//!
//! It is the clock of the server at the moment before the record was put into WAL, in microseconds; so the records of a
//! running server also tell when its sessions came to commit.

use crate::stream::{RawRecord, StreamError};

/// The transaction resource manager (`access/rmgrlist.h`).
const TRANSACTION: u8 = 1;
/// `XLOG_XACT_OPMASK`.
const OPERATION: u8 = 0x70;
/// `XLOG_XACT_COMMIT` and `XLOG_XACT_COMMIT_PREPARED`.
const COMMITS: [u8; 2] = [0x00, 0x30];
/// Where a record's header has `xl_info` and `xl_rmid`.
const INFO_AT: usize = 16;
/// Microseconds from 1970 to 2000, Postgres's zero.
pub const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Postgres time (microseconds since 2000) as microseconds since 1970. Infinite times stay at the ends.
pub fn unix_micros(pg_micros: i64) -> i64 {
    pg_micros.saturating_add(EPOCH_MICROS)
}

/// Microseconds since 1970 at which a commit was logged; `None` for every other record, which costs two bytes of its header.
///
/// # Errors
/// A record that should tell cannot be taken apart.
pub fn told(record: &RawRecord) -> Result<Option<i64>, StreamError> {
    match record.bytes.get(INFO_AT..INFO_AT + 2) {
        Some([info, TRANSACTION]) if COMMITS.contains(&(info & OPERATION)) => {}
        _ => return Ok(None),
    }
    let record = record.decode()?;
    let time = record.main_data.first_chunk::<8>();
    Ok(time.map(|time| unix_micros(i64::from_le_bytes(*time))))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lakebed_types::{Lsn, PgVersion};

    use super::*;

    /// A record without block references: its header, the header of its data, the data.
    fn record(rmid: u8, info: u8, data: &[u8]) -> RawRecord {
        let mut bytes = vec![0; 24];
        bytes.extend([255, data.len() as u8]);
        bytes.extend(data);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        (bytes[16], bytes[17]) = (info, rmid);
        RawRecord {
            version: PgVersion::V15,
            start: Lsn(0x100),
            end: Lsn(0x200),
            bytes: Bytes::from(bytes),
        }
    }

    #[test]
    fn commits_tell_their_time_and_nothing_else_does() {
        let time = 5_i64.to_le_bytes();
        let at = Some(EPOCH_MICROS + 5);
        // Resource manager, info, what is told: commit, with more data, prepared; prepare, abort, another manager.
        for (rmid, info, expected) in [
            (1, 0x00, at),
            (1, 0x80, at),
            (1, 0x30, at),
            (1, 0x10, None),
            (1, 0x20, None),
            (10, 0x00, None),
        ] {
            let told = told(&record(rmid, info, &time)).expect("a record");
            assert_eq!(told, expected, "{rmid} {info:#x}");
        }
        assert_eq!(told(&record(1, 0, &[1, 2])).expect("a record"), None);
        assert!(told(&record(1, 0, &time).cut()).is_err());
        assert_eq!((unix_micros(i64::MAX), unix_micros(-EPOCH_MICROS)), (i64::MAX, 0));
    }

    impl RawRecord {
        fn cut(mut self) -> RawRecord {
            self.bytes.truncate(30);
            self
        }
    }
}
