//! The WAL that a stateless compute boots on: a shutdown checkpoint that nobody wrote.
//!
//! Stock Postgres whose control file says "shut down, checkpoint at L" starts without redo and appends its own WAL
//! behind that record. The record is made here, at L, the end of the last complete record of the timeline; it is the
//! first thing that the new term ships, so the chain of records has no hole.

use lakebed_types::Lsn;

use crate::control::Checkpoint;
use crate::page::{WAL_PAGE_BYTES, WalFormat, header_bytes};
use crate::parse::RECORD_HEADER_BYTES;

/// A synthesized checkpoint, laid out as WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootWal {
    /// WAL bytes from the boot position on, page headers included.
    pub bytes: Vec<u8>,
    /// Start of the record, behind a page header when the boot position lies on a page border.
    pub record_start: Lsn,
    /// Aligned end of the record: Postgres's first own record begins there, or behind the page header there.
    pub end: Lsn,
    /// The checkpoint as it stands in the record, its `redo` set.
    pub checkpoint: Checkpoint,
}

/// Position of a record that is to be written at `at`: behind the page header on a page border.
pub fn first_record_position(at: Lsn, segment_bytes: u32) -> Lsn {
    let on_border = at.0.is_multiple_of(WAL_PAGE_BYTES);
    Lsn(at.0
        + if on_border {
            header_bytes(at, segment_bytes) as u64
        } else {
            0
        })
}

/// Lays out a shutdown checkpoint at `boot`, a record boundary. `previous` is the start of the record that ends there
/// (its `xl_prev`). `redo`, `oldest_active_xid` and the timelines of the checkpoint are set here.
pub fn shutdown_checkpoint(format: WalFormat, boot: Lsn, previous: Lsn, state: Checkpoint) -> BootWal {
    let record_start = first_record_position(boot, format.segment_bytes);
    let checkpoint = Checkpoint {
        redo: record_start,
        timeline: format.timeline,
        previous_timeline: format.timeline,
        oldest_active_xid: 0,
        ..state
    };
    let data = checkpoint.encode();
    let mut body = vec![255, data.len() as u8]; // XLR_BLOCK_ID_DATA_SHORT
    body.extend(data);
    let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + body.len());
    record.extend(((RECORD_HEADER_BYTES + body.len()) as u32).to_le_bytes());
    record.extend([0; 4]); // no transaction
    record.extend(previous.0.to_le_bytes());
    record.extend([0; 4]); // XLOG_CHECKPOINT_SHUTDOWN, RM_XLOG_ID, padding
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
    record.extend(crc.to_le_bytes());
    record.extend(body);
    let (bytes, end) = lay_out(format, boot, &record);
    BootWal {
        bytes,
        record_start,
        end,
        checkpoint,
    }
}

/// The pieces, with their position, of the WAL segment files that a compute starts with. What is not in a piece is
/// zeros: the WAL before `boot` stays in the tier.
pub fn boot_segment_pieces(format: WalFormat, boot: Lsn, wal: &BootWal) -> Vec<(Lsn, Vec<u8>)> {
    let mut pieces = preamble(format, boot);
    pieces.push((boot, wal.bytes.clone()));
    pieces
}

/// The page headers, with their position, that make a segment readable whose WAL begins in the middle, at `start`.
///
/// A reader that looks for the first record at or after a position begins at its page. Told that the space up to
/// `start` is the rest of a record that began earlier, it goes straight to `start`. A start on a page border has the
/// page's header in the stream itself.
pub fn preamble(format: WalFormat, start: Lsn) -> Vec<(Lsn, Vec<u8>)> {
    let segment = Lsn(start.0 - start.segment_offset(u64::from(format.segment_bytes)));
    let page = Lsn(start.0 - start.0 % WAL_PAGE_BYTES);
    let mut pieces = Vec::new();
    if segment < page {
        pieces.push((segment, format.encode_header(segment, 0)));
    }
    if page < start {
        let header = header_bytes(page, format.segment_bytes) as u64;
        let before = u32::try_from((start.0 - page.0).saturating_sub(header)).unwrap_or(0);
        pieces.push((page, format.encode_header(page, before)));
    }
    pieces
}

/// Puts page headers between the bytes of one record that begins at `at`, and pads it to 8 bytes.
fn lay_out(format: WalFormat, at: Lsn, record: &[u8]) -> (Vec<u8>, Lsn) {
    let (mut out, mut position, mut rest) = (Vec::new(), at, record);
    while !rest.is_empty() {
        if position.0.is_multiple_of(WAL_PAGE_BYTES) {
            let continued = if rest.len() == record.len() {
                0
            } else {
                rest.len() as u32
            };
            let header = format.encode_header(position, continued);
            position = Lsn(position.0 + header.len() as u64);
            out.extend(header);
        }
        let room = (WAL_PAGE_BYTES - position.0 % WAL_PAGE_BYTES) as usize;
        let (now, later) = rest.split_at(room.min(rest.len()));
        out.extend(now);
        position = Lsn(position.0 + now.len() as u64);
        rest = later;
    }
    let end = Lsn(position.0.next_multiple_of(8));
    out.resize(out.len() + (end.0 - position.0) as usize, 0);
    (out, end)
}
