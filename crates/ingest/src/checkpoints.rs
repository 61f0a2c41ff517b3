//! Records of the XLOG resource manager that are not about pages (`access/transam/xlog.c`): checkpoints, the oid
//! counter, settings, restore points. Their effect on counters is in [`crate::ControlState`].

use lakebed_types::SlruKind;
use lakebed_wal::control::{CHECKPOINT_BYTES, Checkpoint};
use lakebed_wal::record::DecodedRecord;

use crate::effects::{CatalogueChange, Effects, Parameters};
use crate::error::Rule;
use crate::reader::Reader;
use crate::slru::SlruCut;
use crate::xact::unix_micros;

pub(crate) const CHECKPOINT_SHUTDOWN: u8 = 0x00;
pub(crate) const CHECKPOINT_ONLINE: u8 = 0x10;
pub(crate) const NEXT_OID: u8 = 0x30;
pub(crate) const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
pub(crate) const FULL_PAGE_WRITES_CHANGE: u8 = 0x80;
pub(crate) const END_OF_RECOVERY: u8 = 0x90;

const FIRST_NORMAL_XID: u32 = 3;
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

/// The new timeline and the one before.
pub(crate) fn parse_end_of_recovery(record: &DecodedRecord) -> Result<(u32, u32), Rule> {
    let mut data = Reader::new(&record.main_data);
    data.i64()?; // time
    let timelines = (data.u32()?, data.u32()?);
    data.end()?;
    Ok(timelines)
}

pub(crate) fn parse_parameters(record: &DecodedRecord) -> Result<Parameters, Rule> {
    let mut data = Reader::new(&record.main_data);
    let parameters = Parameters {
        max_connections: data.u32()? as i32,
        max_worker_processes: data.u32()? as i32,
        max_wal_senders: data.u32()? as i32,
        max_prepared_transactions: data.u32()? as i32,
        max_locks_per_transaction: data.u32()? as i32,
        wal_level: data.u32()? as i32,
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
        FULL_PAGE_WRITES_CHANGE => CatalogueChange::FullPageWrites {
            on: parse_full_page_writes(record)?,
        },
        RESTORE_POINT => restore_point(record)?,
        CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE => return parse_checkpoint(record).map(drop),
        NEXT_OID => return parse_next_oid(record).map(drop),
        END_OF_RECOVERY => return parse_end_of_recovery(record).map(drop),
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
