//! Records of `pg_xact` and `pg_commit_ts` themselves (`access/transam/{clog,commit_ts}.c`): a new page, and the
//! removal of old ones. The statuses come in commit and abort records.

use lakebed_types::{PageKey, PgVersion, SlruKind};
use lakebed_wal::record::DecodedRecord;

use crate::delta::SlruDelta;
use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;
use crate::slru::SlruCut;

pub(crate) const ZERO_PAGE: u8 = 0x00;
pub(crate) const TRUNCATE: u8 = 0x10;

/// Truncation of `pg_xact` or `pg_commit_ts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncated {
    page: u64,
    /// The oldest transaction that stays.
    pub(crate) oldest_xid: u32,
    /// The database that needs it; `pg_xact` alone tells.
    pub(crate) oldest_xid_db: Option<u32>,
}

pub(crate) fn parse_truncate(record: &DecodedRecord, kind: SlruKind) -> Result<Truncated, Rule> {
    let mut data = Reader::new(&record.main_data);
    let page = page_number(&mut data, record.version)?;
    let oldest_xid = data.u32()?;
    let oldest_xid_db = if kind == SlruKind::Clog {
        Some(data.u32()?)
    } else {
        None
    };
    data.end()?;
    if oldest_xid == 0 {
        return Err("a transaction id is zero");
    }
    Ok(Truncated {
        page,
        oldest_xid,
        oldest_xid_db,
    })
}

/// The page that a record of nothing but a page number zeroes.
pub(crate) fn zeroed_page(record: &DecodedRecord, kind: SlruKind) -> Result<PageKey, Rule> {
    let mut data = Reader::new(&record.main_data);
    let page = page_number(&mut data, record.version)?;
    data.end()?;
    Ok(PageKey::Slru { kind, page })
}

pub(crate) fn effects(
    record: &DecodedRecord,
    record_type: u8,
    kind: SlruKind,
    effects: &mut Effects,
) -> Result<(), Rule> {
    if record_type == ZERO_PAGE {
        let page = zeroed_page(record, kind)?;
        let changes = match kind {
            SlruKind::CommitTs => &mut effects.commit_ts,
            _ => &mut effects.slru,
        };
        changes.push((page, SlruDelta::ZeroPage));
    } else {
        let cut = SlruCut::Before {
            page: parse_truncate(record, kind)?.page,
        };
        effects
            .catalogue
            .push(CatalogueChange::SlruTruncated { kind, cut });
    }
    Ok(())
}

/// A page number is a signed integer, never negative: of 32 bits, and since Postgres 17 of 64.
fn page_number(data: &mut Reader, version: PgVersion) -> Result<u64, Rule> {
    let number = match version {
        PgVersion::V15 | PgVersion::V16 => i64::from(data.u32()? as i32),
        PgVersion::V17 | PgVersion::V18 => data.i64()?,
    };
    u64::try_from(number).map_err(|_| "an SLRU page number is negative")
}
