//! Headers of WAL pages.
//!
//! WAL is written in pages of 8192 bytes (`XLOG_BLCKSZ`). Each begins with a header (`access/xlog_internal.h`):
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | magic, one per major version |
//! | 2..4 | flags: 1 the page begins inside a record, 2 long header, 8 the record before was abandoned |
//! | 4..8 | Postgres timeline |
//! | 8..16 | LSN of the page |
//! | 16..20 | bytes left of the record that continues here |
//! | 20..24 | padding |
//! | 24..32 | long header only: system identifier |
//! | 32..36 | long header only: bytes of a segment |
//! | 36..40 | long header only: bytes of a WAL page |
//!
//! The first page of a segment has the long form.

use lakebed_types::{Lsn, PgVersion};

use crate::segment::file_name;

/// Bytes of a WAL page.
pub const WAL_PAGE_BYTES: u64 = 8192;
/// Bytes of the header of most pages.
pub const SHORT_HEADER_BYTES: usize = 24;
/// Bytes of the header of a segment's first page.
pub const LONG_HEADER_BYTES: usize = 40;

/// The page begins inside a record.
pub const FLAG_CONTINUATION: u16 = 1;
/// The header has the long form.
pub const FLAG_LONG: u16 = 2;
/// The record that the page before left unfinished was abandoned (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
pub const FLAG_OVERWRITE: u16 = 8;

/// What identifies the WAL of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalFormat {
    /// Major version, which every page header tells by its magic.
    pub version: PgVersion,
    /// Postgres timeline; 1 in all WAL that Lakebed writes.
    pub timeline: u32,
    /// System identifier of the cluster.
    pub system_identifier: u64,
    /// Bytes of a segment, a power of two.
    pub segment_bytes: u32,
}

/// A checked page header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// `FLAG_*`.
    pub flags: u16,
    /// Bytes left of the record that continues on this page; 0 when none does.
    pub remaining: u32,
}

/// Why a page header was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageHeaderError {
    /// The header's bytes are all zeros: nothing was written here yet.
    #[error("the page is empty")]
    Empty,
    /// A field has another value than this WAL has.
    #[error("{field} is {found:#x}, expected {expected:#x}")]
    Field {
        /// Name in Postgres's source.
        field: &'static str,
        /// What the page holds.
        found: u64,
        /// What it should hold.
        expected: u64,
    },
}

/// Bytes of the header of the page at `page`.
pub fn header_bytes(page: Lsn, segment_bytes: u32) -> usize {
    if page.segment_offset(u64::from(segment_bytes)) == 0 {
        LONG_HEADER_BYTES
    } else {
        SHORT_HEADER_BYTES
    }
}

impl WalFormat {
    /// Name of the file of segment `number`.
    pub fn segment_file_name(&self, number: u64) -> String {
        file_name(self.timeline, number, u64::from(self.segment_bytes))
    }

    /// Builds the header of the page at `page`: `remaining` bytes of a record continue on it.
    pub fn encode_header(&self, page: Lsn, remaining: u32) -> Vec<u8> {
        let long = header_bytes(page, self.segment_bytes) == LONG_HEADER_BYTES;
        let flags = if remaining > 0 { FLAG_CONTINUATION } else { 0 } | if long { FLAG_LONG } else { 0 };
        let mut out = Vec::with_capacity(LONG_HEADER_BYTES);
        out.extend(self.version.wal_magic().to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(self.timeline.to_le_bytes());
        out.extend(page.0.to_le_bytes());
        out.extend(remaining.to_le_bytes());
        out.extend([0; 4]);
        if long {
            out.extend(self.system_identifier.to_le_bytes());
            out.extend(self.segment_bytes.to_le_bytes());
            out.extend((WAL_PAGE_BYTES as u32).to_le_bytes());
        }
        out
    }

    /// Checks the header of the page at `page`. `bytes` has [`header_bytes`] bytes.
    pub fn check_header(&self, page: Lsn, bytes: &[u8]) -> Result<PageHeader, PageHeaderError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(PageHeaderError::Empty);
        }
        let field = |at: usize, width: usize| {
            let part = bytes.get(at..at + width).unwrap_or_default();
            part.iter()
                .rev()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let long = header_bytes(page, self.segment_bytes) == LONG_HEADER_BYTES;
        let flags = field(2, 2) as u16;
        let mut checks = vec![
            ("xlp_magic", field(0, 2), u64::from(self.version.wal_magic())),
            (
                "xlp_info (long header)",
                u64::from(flags & FLAG_LONG),
                u64::from(FLAG_LONG) * u64::from(long),
            ),
            ("xlp_tli", field(4, 4), u64::from(self.timeline)),
            ("xlp_pageaddr", field(8, 8), page.0),
        ];
        if long {
            checks.push(("xlp_sysid", field(24, 8), self.system_identifier));
            checks.push(("xlp_seg_size", field(32, 4), u64::from(self.segment_bytes)));
            checks.push(("xlp_xlog_blcksz", field(36, 4), WAL_PAGE_BYTES));
        }
        for (field, found, expected) in checks {
            if found != expected {
                return Err(PageHeaderError::Field {
                    field,
                    found,
                    expected,
                });
            }
        }
        Ok(PageHeader {
            flags,
            remaining: field(16, 4) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_any_changed_field_is_named() {
        let format = WalFormat {
            version: PgVersion::V15,
            timeline: 1,
            system_identifier: 0x1234_5678_9abc,
            segment_bytes: 1 << 24,
        };
        for (page, flags) in [(Lsn(1 << 24), FLAG_LONG), (Lsn((1 << 24) + 8192), 0)] {
            let bytes = format.encode_header(page, 0);
            assert_eq!(bytes.len(), header_bytes(page, 1 << 24));
            assert_eq!(
                format.check_header(page, &bytes),
                Ok(PageHeader { flags, remaining: 0 })
            );
            let continued = format.encode_header(page, 77);
            let header = PageHeader {
                flags: flags | FLAG_CONTINUATION,
                remaining: 77,
            };
            assert_eq!(format.check_header(page, &continued), Ok(header));
            for at in (0..2).chain(4..16).chain(24..bytes.len()) {
                let mut bad = bytes.clone();
                bad[at] ^= 0x40;
                assert!(
                    matches!(
                        format.check_header(page, &bad),
                        Err(PageHeaderError::Field { .. })
                    ),
                    "byte {at}"
                );
            }
            assert_eq!(
                format.check_header(page, &vec![0; bytes.len()]),
                Err(PageHeaderError::Empty)
            );
        }
    }
}
