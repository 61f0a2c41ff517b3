//! What only the WAL at a base backup's start can tell: the checkpoint that it replays from, and the record before.
//!
//! The control file in the backup is copied last and may hold a later checkpoint. Replay begins with the state of the one
//! that `backup_label` names, as Postgres's does: a later state would be set back by the records in between.

use anyhow::{Context, bail};
use bytes::Bytes;
use lakebed_pgwire::backup::BackupLabel;
use lakebed_pgwire::replication::{self, Walsender};
use lakebed_pgwire::{Backend, Target};
use lakebed_types::Lsn;
use lakebed_wal::boot::first_record_position;
use lakebed_wal::control::{CHECKPOINT_BYTES, Checkpoint};
use lakebed_wal::page::{WAL_PAGE_BYTES, WalFormat};
use lakebed_wal::stream::WalDecoder;

use crate::connection::Connection;

const RMGR_XLOG: u8 = 0;
const INFO_MASK: u8 = 0xF0;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;

/// Where a timeline that is made of a base backup begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Record boundary at which replay begins.
    pub start: Lsn,
    /// Start of the record that ends there.
    pub last_record_start: Lsn,
    /// State as of then.
    pub checkpoint: Checkpoint,
}

/// The boundary that a record which starts at `redo` follows: behind a page header it is the page's start.
fn boundary_before(redo: Lsn, segment_bytes: u32) -> Lsn {
    let page = Lsn(redo.0 - redo.0 % WAL_PAGE_BYTES);
    match first_record_position(page, segment_bytes) == redo {
        true => page,
        false => redo,
    }
}

/// Reads the WAL from the backup's redo LSN to its checkpoint record, which the server has written before it sends the
/// first file. The slot keeps it.
///
/// # Errors
/// The server does not send it, or what it sends is not the WAL that the label speaks of.
pub async fn find(
    target: &Target,
    name: &str,
    format: WalFormat,
    label: &BackupLabel,
) -> anyhow::Result<Begin> {
    let start = boundary_before(label.redo, format.segment_bytes);
    let mut connection = Connection::open(target, name).await?;
    let command = format!("START_REPLICATION PHYSICAL {start} TIMELINE {}", format.timeline);
    connection.stream(&command).await?;
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    let mut last_record_start = None;
    loop {
        let Backend::CopyData(data) = connection.receive_soon("WAL at the backup's start").await? else {
            bail!("the server ended the stream of WAL at {}", decoder.fed_to());
        };
        let Walsender::Wal { begin, bytes, .. } = replication::parse(data)? else {
            continue;
        };
        if begin != decoder.fed_to() {
            bail!(
                "the server sent WAL at {begin} where {} was due",
                decoder.fed_to()
            );
        }
        decoder.feed(&bytes);
        while let Some(raw) = decoder.next_raw().context("WAL at the backup's start")? {
            let record = raw.decode()?;
            let before = *last_record_start.get_or_insert(record.prev);
            if record.start == label.checkpoint {
                let kind = record.info & INFO_MASK;
                let is_checkpoint =
                    record.rmid == RMGR_XLOG && matches!(kind, CHECKPOINT_ONLINE | CHECKPOINT_SHUTDOWN);
                let checkpoint = is_checkpoint.then(|| decode(&record.main_data, format)).flatten();
                let checkpoint = checkpoint.filter(|checkpoint| checkpoint.redo == label.redo);
                let checkpoint = checkpoint.with_context(|| {
                    format!(
                        "the record at {} is not the checkpoint that backup_label names",
                        label.checkpoint
                    )
                })?;
                connection.close().await;
                return Ok(Begin {
                    start,
                    last_record_start: before,
                    checkpoint,
                });
            }
            if record.start > label.checkpoint {
                bail!(
                    "no record starts at {}, which backup_label names",
                    label.checkpoint
                );
            }
        }
    }
}

fn decode(main_data: &Bytes, format: WalFormat) -> Option<Checkpoint> {
    let bytes: &[u8; CHECKPOINT_BYTES] = main_data.first_chunk()?;
    Some(Checkpoint::decode(bytes, format.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_header_belongs_to_no_record() {
        let table = [
            (0x200_0028, 0x200_0000),
            (0x200_2018, 0x200_2000),
            (0x200_0060, 0x200_0060),
            (0x200_2028, 0x200_2028),
        ];
        for (redo, expected) in table {
            assert_eq!(boundary_before(Lsn(redo), 1 << 24), Lsn(expected), "{redo:#x}");
        }
    }
}
