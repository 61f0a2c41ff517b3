//! Whether the server writes full page images, as its WAL tells.
//!
//! `full_page_writes` can be switched while a server runs; it says so in a record of its own (`XLOG_FPW_CHANGE`, one byte,
//! `UpdateFullPageWrites` of `access/transam/xlog.c`) and in every checkpoint. Records before the one that tells are of
//! the mode before. A change to *on* is told once the mode is in force, one to *off* before it is: there may be more images
//! than the mode that was told promises, never fewer.

use crate::control::{CHECKPOINT_BYTES, Checkpoint};
use crate::stream::{RawRecord, StreamError};

/// `XLOG_FPW_CHANGE`, among the records of the XLOG resource manager (`catalog/pg_control.h`).
pub const CHANGE: u8 = 0x80;
/// `XLOG_CHECKPOINT_SHUTDOWN` and `XLOG_CHECKPOINT_ONLINE`.
const CHECKPOINTS: [u8; 2] = [0x00, 0x10];
/// The XLOG resource manager (`access/rmgrlist.h`).
const XLOG: u8 = 0;
/// Where a record's header has `xl_info` and `xl_rmid`.
const INFO_AT: usize = 16;

/// The mode that a record tells; `None` for the records that tell none, which costs two bytes of their header.
///
/// # Errors
/// A record that should tell cannot be taken apart.
pub fn told(record: &RawRecord) -> Result<Option<bool>, StreamError> {
    let kind = match record.bytes.get(INFO_AT..INFO_AT + 2) {
        Some([info, XLOG]) => info & 0xf0,
        _ => return Ok(None),
    };
    if kind != CHANGE && !CHECKPOINTS.contains(&kind) {
        return Ok(None);
    }
    let record = record.decode()?;
    if kind == CHANGE {
        return Ok(record.main_data.first().map(|on| *on != 0));
    }
    let checkpoint: Result<&[u8; CHECKPOINT_BYTES], _> = record.main_data.as_ref().try_into();
    Ok(checkpoint
        .ok()
        .map(|bytes| Checkpoint::decode(bytes, record.version).full_page_writes))
}
