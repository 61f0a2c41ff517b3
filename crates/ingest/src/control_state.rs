//! The values that the next checkpoint of a history would hold, kept current record by record.
//!
//! A stateless compute starts on a synthesized checkpoint; its counters must be at least what crash recovery would
//! arrive at, or ids are used twice. So this follows `StartupXLOG`, `ApplyWalRecord`, `xlog_redo`, `xact_redo`,
//! `multixact_redo`, `clog_redo` and `commit_ts_redo`, with two additions that only move values further:
//!
//! * truncation of `pg_xact` raises the oldest transaction id at once. Recovery raises a variable of its own and
//!   leaves the checkpoint's to the next checkpoint; here there is no other variable, and the server that wrote the
//!   record raised both.
//! * subtransactions named by assignment records count as seen.
//!
//! Stored form, little-endian: version u8 (1), flags u8 (bit 0 commit timestamps), then the 88 bytes of a checkpoint
//! as [`Checkpoint::encode`] lays them out.

use lakebed_types::{Lsn, PgVersion, SlruKind};
use lakebed_wal::control::{CHECKPOINT_BYTES, Checkpoint};
use lakebed_wal::full_page_writes;
use lakebed_wal::record::DecodedRecord;

use crate::error::{IngestError, Rule, malformed};
use crate::interpret::known_type;
use crate::slru::{wrapped_precedes, xid_precedes};
use crate::{checkpoints, multixact, rmgr, slru_records, twophase, xact};

const VERSION: u8 = 1;
const FLAG_COMMIT_TS: u8 = 1;
const ENCODED_BYTES: usize = 2 + CHECKPOINT_BYTES;
const FIRST_NORMAL_XID: u32 = 3;

/// See the module header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlState {
    checkpoint: Checkpoint,
    commit_ts_active: bool,
}

/// Stored bytes that are no control state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes} bytes of version {version} are not a control state: expected {ENCODED_BYTES} of version {VERSION}"
)]
pub struct ControlStateError {
    bytes: usize,
    version: u8,
}

impl ControlState {
    /// Bytes of the stored form.
    pub const ENCODED_BYTES: usize = ENCODED_BYTES;

    /// The state at a checkpoint. Commit timestamps are on exactly when a checkpoint has an oldest one.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> ControlState {
        ControlState {
            checkpoint: *checkpoint,
            commit_ts_active: checkpoint.oldest_commit_ts_xid != 0,
        }
    }

    /// The checkpoint to start a server on. Its `redo` and `time` are those of the last checkpoint that was seen, for
    /// the caller to replace.
    pub fn to_checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Whether commits store their time in `pg_commit_ts`.
    pub fn commit_ts_active(&self) -> bool {
        self.commit_ts_active
    }

    /// The next transaction id, epoch in the high half.
    pub fn next_xid(&self) -> u64 {
        self.checkpoint.next_xid
    }

    /// The stored form.
    pub fn encode(&self) -> [u8; ENCODED_BYTES] {
        let mut out = [0; ENCODED_BYTES];
        out[0] = VERSION;
        out[1] = if self.commit_ts_active { FLAG_COMMIT_TS } else { 0 };
        out[2..].copy_from_slice(&self.checkpoint.encode());
        out
    }

    /// Reads the stored form; refuses every byte sequence that [`ControlState::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<ControlState, ControlStateError> {
        let error = ControlStateError {
            bytes: bytes.len(),
            version: bytes.first().copied().unwrap_or(0),
        };
        let stored: &[u8; ENCODED_BYTES] = bytes.try_into().map_err(|_| error)?;
        let checkpoint: &[u8; CHECKPOINT_BYTES] = stored.last_chunk().ok_or(error)?;
        let state = ControlState {
            // The newest layout has every field; those that the server's version lacks are 0.
            checkpoint: Checkpoint::decode(checkpoint, PgVersion::V18),
            commit_ts_active: stored[1] & FLAG_COMMIT_TS != 0,
        };
        if state.encode() == *stored {
            Ok(state)
        } else {
            Err(error)
        }
    }

    /// Takes note of a record; returns whether anything changed. Records are applied in order, each once.
    pub fn apply(&mut self, record: &DecodedRecord) -> Result<bool, IngestError> {
        let record_type = known_type(record)?;
        // Of nearly all records this is all, and it costs no copy.
        if !changes_more_than_xid(record) {
            return Ok(self.see_xid(record.xid));
        }
        let before = *self;
        self.see_xid(record.xid);
        let result = self.apply_typed(record, record_type);
        if let Err(rule) = result {
            *self = before;
            return Err(malformed(record, rule));
        }
        Ok(*self != before)
    }

    /// Takes note of a transaction id that is in use (`AdvanceNextFullTransactionIdPastXid`); returns whether that
    /// moved the next id. The epoch rises when the id wraps around.
    pub fn see_xid(&mut self, xid: u32) -> bool {
        let next = self.checkpoint.next_xid as u32;
        if xid < FIRST_NORMAL_XID || xid_precedes(xid, next) {
            return false;
        }
        let following = xid.wrapping_add(1).max(FIRST_NORMAL_XID);
        let mut epoch = self.checkpoint.next_xid >> 32;
        if following < next {
            epoch = epoch.wrapping_add(1) & 0xffff_ffff;
        }
        self.checkpoint.next_xid = epoch << 32 | u64::from(following);
        true
    }

    fn see_all(&mut self, xids: impl IntoIterator<Item = u32>) {
        for xid in xids {
            self.see_xid(xid);
        }
    }

    fn apply_typed(&mut self, record: &DecodedRecord, record_type: u8) -> Result<(), Rule> {
        match record.rmid {
            rmgr::XLOG => self.apply_xlog(record, record_type),
            rmgr::TRANSACTION => self.apply_transaction(record, record_type),
            rmgr::CLOG if record_type == slru_records::TRUNCATE => {
                let truncated = slru_records::parse_truncate(record, SlruKind::Clog)?;
                if let Some(db) = truncated.oldest_xid_db {
                    self.raise_oldest_xid(truncated.oldest_xid, db);
                }
                Ok(())
            }
            rmgr::COMMIT_TS if record_type == slru_records::TRUNCATE => {
                let oldest = slru_records::parse_truncate(record, SlruKind::CommitTs)?.oldest_xid;
                let known = &mut self.checkpoint.oldest_commit_ts_xid;
                if *known != 0 && xid_precedes(*known, oldest) {
                    *known = oldest;
                }
                Ok(())
            }
            rmgr::MULTIXACT if record_type == multixact::CREATE_ID => {
                let created = multixact::parse_create(record)?;
                self.raise_next_multi(created.multi.wrapping_add(1), created.end_offset());
                self.see_all(created.members.iter().map(|&(xid, _)| xid));
                Ok(())
            }
            rmgr::MULTIXACT if record_type == multixact::TRUNCATE_ID => {
                let truncated = multixact::parse_truncate(record)?;
                self.checkpoint.oldest_multi = truncated.oldest_multi;
                self.checkpoint.oldest_multi_db = truncated.oldest_multi_db;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn apply_xlog(&mut self, record: &DecodedRecord, record_type: u8) -> Result<(), Rule> {
        match record_type {
            checkpoints::CHECKPOINT_SHUTDOWN => {
                let told = checkpoints::parse_checkpoint(record)?;
                let own = &mut self.checkpoint;
                own.next_xid = told.next_xid;
                own.next_oid = told.next_oid;
                own.next_multi = told.next_multi;
                own.next_multi_offset = told.next_multi_offset;
                own.oldest_xid = told.oldest_xid;
                own.oldest_xid_db = told.oldest_xid_db;
                self.note_checkpoint(&told);
            }
            checkpoints::CHECKPOINT_ONLINE => {
                // Its oid counter is from the checkpoint's beginning and may be older than the last NEXT_OID record.
                let told = checkpoints::parse_checkpoint(record)?;
                self.checkpoint.next_xid = self.checkpoint.next_xid.max(told.next_xid);
                self.raise_next_multi(told.next_multi, told.next_multi_offset);
                self.raise_oldest_xid(told.oldest_xid, told.oldest_xid_db);
                self.note_checkpoint(&told);
            }
            checkpoints::NEXT_OID => self.checkpoint.next_oid = checkpoints::parse_next_oid(record)?,
            full_page_writes::CHANGE => {
                self.checkpoint.full_page_writes = checkpoints::parse_full_page_writes(record)?;
            }
            checkpoints::END_OF_RECOVERY => {
                let told = checkpoints::parse_end_of_recovery(record)?;
                self.checkpoint.timeline = told.timeline;
                self.checkpoint.previous_timeline = told.previous_timeline;
                if let Some(level) = told.wal_level {
                    self.checkpoint.wal_level = level;
                }
            }
            checkpoints::CHECKPOINT_REDO => {
                self.checkpoint.wal_level = checkpoints::parse_checkpoint_redo(record)?;
            }
            checkpoints::PARAMETER_CHANGE => {
                let told = checkpoints::parse_parameters(record)?;
                if record.version >= PgVersion::V17 {
                    self.checkpoint.wal_level = told.wal_level;
                }
                let on = told.track_commit_timestamp;
                if on != self.commit_ts_active {
                    // On: every commit from here on has a time. Off: what there was is removed.
                    let first = if on { self.checkpoint.next_xid as u32 } else { 0 };
                    self.checkpoint.oldest_commit_ts_xid = first;
                    self.checkpoint.newest_commit_ts_xid = first;
                    self.commit_ts_active = on;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn apply_transaction(&mut self, record: &DecodedRecord, record_type: u8) -> Result<(), Rule> {
        match record_type {
            xact::COMMIT | xact::ABORT | xact::COMMIT_PREPARED | xact::ABORT_PREPARED => {
                let ended = xact::parse(record, record_type)?;
                self.see_xid(ended.xid);
                self.see_all(ended.subxids.iter().copied());
                let newest = ended.subxids.last().copied().unwrap_or(ended.xid);
                if ended.committed
                    && self.commit_ts_active
                    && xid_precedes(self.checkpoint.newest_commit_ts_xid, newest)
                {
                    self.checkpoint.newest_commit_ts_xid = newest;
                }
            }
            xact::PREPARE => {
                let prepared = twophase::parse(record)?;
                self.see_xid(prepared.xid);
                self.see_all(prepared.subxids);
            }
            xact::ASSIGNMENT => self.see_all(xact::assigned(record)?),
            _ => {}
        }
        Ok(())
    }

    /// What both kinds of checkpoint do alike.
    fn note_checkpoint(&mut self, told: &Checkpoint) {
        let own = &mut self.checkpoint;
        if wrapped_precedes(own.oldest_multi, told.oldest_multi) {
            own.oldest_multi = told.oldest_multi;
            own.oldest_multi_db = told.oldest_multi_db;
        }
        own.redo = told.redo;
        own.time = told.time;
        own.timeline = told.timeline;
        own.previous_timeline = told.previous_timeline;
        own.full_page_writes = told.full_page_writes;
        own.wal_level = told.wal_level;
        own.oldest_active_xid = told.oldest_active_xid;
    }

    fn raise_oldest_xid(&mut self, xid: u32, db: u32) {
        if xid_precedes(self.checkpoint.oldest_xid, xid) {
            self.checkpoint.oldest_xid = xid;
            self.checkpoint.oldest_xid_db = db;
        }
    }

    fn raise_next_multi(&mut self, multi: u32, offset: u32) {
        if wrapped_precedes(self.checkpoint.next_multi, multi) {
            self.checkpoint.next_multi = multi;
        }
        if wrapped_precedes(self.checkpoint.next_multi_offset, offset) {
            self.checkpoint.next_multi_offset = offset;
        }
    }

    /// Position where replay from the last checkpoint begins.
    pub fn last_checkpoint_redo(&self) -> Lsn {
        self.checkpoint.redo
    }
}

/// Whether a record's type can change the control state in ways that its transaction id does not tell. Such a record
/// reaches shard 0.
pub(crate) fn changes_more_than_xid(record: &DecodedRecord) -> bool {
    match record.rmid {
        rmgr::XLOG => matches!(
            record.info & rmgr::INFO_MASK,
            checkpoints::CHECKPOINT_SHUTDOWN
                | checkpoints::CHECKPOINT_ONLINE
                | checkpoints::NEXT_OID
                | checkpoints::PARAMETER_CHANGE
                | full_page_writes::CHANGE
                | checkpoints::END_OF_RECOVERY
                | checkpoints::CHECKPOINT_REDO
        ),
        rmgr::TRANSACTION | rmgr::CLOG | rmgr::COMMIT_TS | rmgr::MULTIXACT => true,
        _ => false,
    }
}

#[cfg(test)]
#[path = "control_state_tests.rs"]
mod tests;
