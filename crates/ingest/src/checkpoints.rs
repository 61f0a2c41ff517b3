//! Records of the XLOG resource manager that are not about pages (`access/transam/xlog.c`): checkpoints, the oid
//! counter, settings, restore points. Their effect on counters is in [`crate::ControlState`].

use lakebed_types::{PgVersion, SlruKind};
use lakebed_wal::commit_time::unix_micros;
use lakebed_wal::control::{CHECKPOINT_BYTES, Checkpoint};
use lakebed_wal::full_page_writes;
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects, Parameters};
use crate::error::Rule;
use crate::reader::Reader;
use crate::slru::SlruCut;

pub(crate) const CHECKPOINT_SHUTDOWN: u8 = 0x00;
pub(crate) const CHECKPOINT_ONLINE: u8 = 0x10;
pub(crate) const NEXT_OID: u8 = 0x30;
pub(crate) const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
pub(crate) const END_OF_RECOVERY: u8 = 0x90;
/// Since Postgres 17: marks where the next checkpoint's redo begins.
pub(crate) const CHECKPOINT_REDO: u8 = 0xe0;

const FIRST_NORMAL_XID: u32 = 3;
/// `WAL_LEVEL_LOGICAL`.
const MAX_WAL_LEVEL: u32 = 2;
const RESTORE_POINT_NAME_BYTES: usize = 64;

pub(crate) fn parse_checkpoint(record: &DecodedRecord) -> Result<Checkpoint, Rule> {
    let bytes: &[u8; CHECKPOINT_BYTES] = record
        .main_data
        .as_ref()
        .try_into()
        .map_err(|_| "a checkpoint does not have 88 bytes")?;
    let checkpoint = Checkpoint::decode(bytes, record.version);
    if (checkpoint.next_xid as u32) < FIRST_NORMAL_XID || checkpoint.oldest_multi == 0 {
        return Err("a counter of a checkpoint is one that is never used");
    }
    wal_level(checkpoint.wal_level)?;
    Ok(checkpoint)
}

pub(crate) fn parse_next_oid(record: &DecodedRecord) -> Result<u32, Rule> {
    let mut data = Reader::new(&record.main_data);
    let oid = data.u32()?;
    data.end()?;
    Ok(oid)
}

pub(crate) fn parse_full_page_writes(record: &DecodedRecord) -> Result<bool, Rule> {
    let mut data = Reader::new(&record.main_data);
    let on = data.bool()?;
    data.end()?;
    Ok(on)
}

/// What an end-of-recovery record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndOfRecovery {
    pub(crate) timeline: u32,
    pub(crate) previous_timeline: u32,
    /// Since Postgres 17.
    pub(crate) wal_level: Option<u32>,
}

pub(crate) fn parse_end_of_recovery(record: &DecodedRecord) -> Result<EndOfRecovery, Rule> {
    let mut data = Reader::new(&record.main_data);
    data.i64()?; // time
    let (timeline, previous_timeline) = (data.u32()?, data.u32()?);
    let wal_level = if record.version >= PgVersion::V17 {
        let level = wal_level(data.u32()?)?;
        data.skip(4)?; // padding of the C structure
        Some(level)
    } else {
        None
    };
    data.end()?;
    Ok(EndOfRecovery {
        timeline,
        previous_timeline,
        wal_level,
    })
}

/// The `wal_level` in force, which is all that the record holds.
pub(crate) fn parse_checkpoint_redo(record: &DecodedRecord) -> Result<u32, Rule> {
    let mut data = Reader::new(&record.main_data);
    let level = wal_level(data.u32()?)?;
    data.end()?;
    Ok(level)
}

fn wal_level(level: u32) -> Result<u32, Rule> {
    if level <= MAX_WAL_LEVEL {
        Ok(level)
    } else {
        Err("it tells a wal_level that does not exist")
    }
}

pub(crate) fn parse_parameters(record: &DecodedRecord) -> Result<Parameters, Rule> {
    let mut data = Reader::new(&record.main_data);
    let parameters = Parameters {
        max_connections: data.u32()? as i32,
        max_worker_processes: data.u32()? as i32,
        max_wal_senders: data.u32()? as i32,
        max_prepared_transactions: data.u32()? as i32,
        max_locks_per_transaction: data.u32()? as i32,
        wal_level: wal_level(data.u32()?)?,
        wal_log_hints: data.bool()?,
        track_commit_timestamp: data.bool()?,
    };
    data.skip(2)?; // padding of the C structure
    data.end()?;
    Ok(parameters)
}

pub(crate) fn effects(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    let change = match record_type {
        PARAMETER_CHANGE => {
            let parameters = parse_parameters(record)?;
            if !parameters.track_commit_timestamp {
                effects.catalogue.push(CatalogueChange::SlruTruncated {
                    kind: SlruKind::CommitTs,
                    cut: SlruCut::All,
                });
            }
            CatalogueChange::ParametersChanged(parameters)
        }
        full_page_writes::CHANGE => CatalogueChange::FullPageWrites {
            on: parse_full_page_writes(record)?,
        },
        RESTORE_POINT => restore_point(record)?,
        CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE => return parse_checkpoint(record).map(drop),
        NEXT_OID => return parse_next_oid(record).map(drop),
        END_OF_RECOVERY => return parse_end_of_recovery(record).map(drop),
        CHECKPOINT_REDO => return parse_checkpoint_redo(record).map(drop),
        _ => return Ok(()),
    };
    effects.catalogue.push(change);
    Ok(())
}

fn restore_point(record: &DecodedRecord) -> Result<CatalogueChange, Rule> {
    let mut data = Reader::new(&record.main_data);
    let time_micros = unix_micros(data.i64()?);
    let field = data.take(RESTORE_POINT_NAME_BYTES)?;
    data.end()?;
    let length = field.iter().position(|&byte| byte == 0);
    let name = field.slice(..length.ok_or("a string in its main data has no end")?);
    Ok(CatalogueChange::RestorePoint { name, time_micros })
}
