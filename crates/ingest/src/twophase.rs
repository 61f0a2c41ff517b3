//! Prepare records (`access/transam/twophase.c`).
//!
//! The record's main data is the file of the prepared transaction without its CRC, so the file is the main data and
//! its CRC32C. The header of that file:
//!
//! | bytes | field | | bytes | field |
//! |---|---|---|---|---|
//! | 0..4 | magic | | 36..40 | relations to drop at abort |
//! | 4..8 | length of the file, CRC included | | 40..44 | statistics to drop at commit |
//! | 8..12 | transaction id | | 44..48 | statistics to drop at abort |
//! | 12..16 | database | | 48..52 | invalidation messages |
//! | 16..24 | time | | 52 | relation cache file is invalid |
//! | 24..28 | owner | | 54..56 | length of the name, its zero included |
//! | 28..32 | subtransactions | | 56..64 | position at the replication origin |
//! | 32..36 | relations to drop at commit | | 64..72 | time at the replication origin |
//!
//! Then the name, the subtransactions and the other lists, each padded to 8 bytes, and the resource managers' parts.

use bytes::{BufMut, Bytes, BytesMut};
use lakebed_types::data_directory::two_phase_file;
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects};
use crate::error::Rule;
use crate::reader::Reader;
use crate::xact::{advance_origin, stats_item_bytes};

const MAGIC: u32 = 0x57f9_4534;
const CRC_BYTES: usize = 4;

/// What the tier needs to know of a prepare record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) xid: u32,
    pub(crate) subxids: Vec<u32>,
    origin_lsn: Lsn,
}

pub(crate) fn parse(record: &DecodedRecord) -> Result<Prepared, Rule> {
    let mut data = Reader::new(&record.main_data);
    if data.u32()? != MAGIC {
        return Err("a two-phase file does not begin with its magic number");
    }
    if usize::try_from(data.u32()?) != Ok(record.main_data.len() + CRC_BYTES) {
        return Err("a two-phase file's length differs from what its header tells");
    }
    let xid = data.u32()?;
    if xid == 0 {
        return Err("a transaction id is zero");
    }
    data.skip(16)?; // database, time, owner
    let subxid_count = data.count(4)?;
    // Relations twice, statistics twice, invalidations: length of an element, and of the list.
    let stats = stats_item_bytes(record.version);
    let mut lists = [(12, 0), (12, 0), (stats, 0), (stats, 0), (16, 0)];
    for (element, count) in &mut lists {
        *count = data.count(*element)?;
    }
    data.bool()?;
    data.skip(1)?;
    let name_bytes = usize::from(data.u16()?);
    let origin_lsn = Lsn(data.u64()?);
    data.skip(8)?; // origin's time
    let name = data.take(name_bytes.next_multiple_of(8))?;
    if name_bytes == 0 || name.iter().position(|&byte| byte == 0) != Some(name_bytes - 1) {
        return Err("a prepared transaction's name does not have the length that is told");
    }
    let subxids = data.u32s(subxid_count)?;
    data.skip((subxid_count * 4).next_multiple_of(8) - subxid_count * 4)?;
    if subxids.contains(&0) {
        return Err("a transaction id is zero");
    }
    for (element, count) in lists {
        data.skip((element * count).next_multiple_of(8))?;
    }
    Ok(Prepared {
        xid,
        subxids,
        origin_lsn,
    })
}

pub(crate) fn effects(record: &DecodedRecord, effects: &mut Effects) -> Result<(), Rule> {
    let prepared = parse(record)?;
    effects.catalogue.push(CatalogueChange::TwoPhasePrepared {
        xid: prepared.xid,
        file: file(&record.main_data),
    });
    if let Some(origin) = record.origin.filter(|&origin| origin != 0) {
        advance_origin(&mut effects.catalogue, origin, prepared.origin_lsn, record.end);
    }
    Ok(())
}

/// Where the file of a prepared transaction is in the data directory, which from Postgres 17 on depends on its epoch
/// too. That follows from the next transaction id at any time while the transaction is prepared.
pub fn two_phase_path(version: PgVersion, xid: u32, next_xid: u64) -> String {
    // An id that is not below the next one is of the epoch before (`FullTransactionIdFromAllowableAt`).
    let back = u64::from(xid > next_xid as u32);
    let epoch = (next_xid >> 32).saturating_sub(back);
    two_phase_file(version, epoch << 32 | u64::from(xid))
}

/// `RecreateTwoPhaseFile`.
fn file(main_data: &Bytes) -> Bytes {
    let mut file = BytesMut::with_capacity(main_data.len() + CRC_BYTES);
    file.extend_from_slice(main_data);
    file.put_u32_le(crc32c::crc32c(main_data));
    file.freeze()
}

#[cfg(test)]
#[path = "twophase_tests.rs"]
mod tests;
