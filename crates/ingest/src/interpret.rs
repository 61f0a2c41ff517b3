//! From a record to its [`Effects`].

use lakebed_types::SlruKind;
use lakebed_wal::record::DecodedRecord;

use crate::effects::Effects;
use crate::error::{IngestError, Rule, malformed, unknown_type};
use crate::rmgr::{self, Known};
use crate::{
    checkpoints, dbase, heap_vm, multixact, origin, relmap, slru_records, smgr, tablespace, twophase, xact,
};

/// Reads what a record changes outside of the bytes of the pages that it names.
///
/// A record of an extension's resource manager changes nothing but its pages; whoever replays these needs a plug-in for
/// them and refuses the record without one (`Managers` in the crate `redo`). No plug-in is needed to say where it goes.
///
/// An error means that this record cannot be replayed, and hence nothing after it.
pub fn interpret(record: &DecodedRecord) -> Result<Effects, IngestError> {
    let mut effects = Effects::default();
    interpret_into(record, &mut effects)?;
    Ok(effects)
}

/// As [`interpret`], in the place of effects that are not needed any more and whose memory is used again.
///
/// # Errors
/// As [`interpret`]; `effects` are of no use then.
pub fn interpret_into(record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestError> {
    let record_type = known_type(record)?;
    effects.clear();
    effects
        .touched
        .extend(record.blocks.iter().map(|block| (block.rel, block.block)));
    collect(record, record_type, effects).map_err(|rule| malformed(record, rule))
}

/// The bits of `xl_info` that name the record's type.
pub(crate) fn known_type(record: &DecodedRecord) -> Result<u8, IngestError> {
    match rmgr::known(record.version, record.rmid, record.info) {
        Known::Type(record_type) => Ok(record_type),
        Known::NoSuchType => Err(unknown_type(record)),
        Known::NoSuchManager => Err(IngestError::UnknownResourceManager {
            lsn: record.start,
            rmid: record.rmid,
            info: record.info,
        }),
    }
}

fn collect(record: &DecodedRecord, record_type: u8, effects: &mut Effects) -> Result<(), Rule> {
    match record.rmid {
        rmgr::XLOG => checkpoints::effects(record, record_type, effects),
        rmgr::TRANSACTION => match record_type {
            xact::COMMIT | xact::ABORT | xact::COMMIT_PREPARED | xact::ABORT_PREPARED => {
                xact::effects(record, record_type, effects)
            }
            xact::PREPARE => twophase::effects(record, effects),
            xact::ASSIGNMENT => xact::assigned(record).map(drop),
            _ => Ok(()),
        },
        rmgr::STORAGE => smgr::effects(record, record_type, effects),
        rmgr::CLOG => slru_records::effects(record, record_type, SlruKind::Clog, effects),
        rmgr::DATABASE => dbase::effects(record, record_type, effects),
        rmgr::TABLESPACE => tablespace::effects(record, record_type, effects),
        rmgr::MULTIXACT => multixact::effects(record, record_type, effects),
        rmgr::RELMAP => relmap::effects(record, effects),
        rmgr::HEAP2 => heap_vm::heap2_effects(record, record_type, effects),
        rmgr::HEAP => heap_vm::heap_effects(record, record_type, effects),
        rmgr::COMMIT_TS => slru_records::effects(record, record_type, SlruKind::CommitTs, effects),
        rmgr::REPLICATION_ORIGIN => origin::effects(record, record_type, effects),
        // Index access methods, sequences, generic records and extensions' managers change their pages alone; standby
        // and logical message records change nothing.
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "interpret_tests.rs"]
mod tests;
