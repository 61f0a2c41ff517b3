//! The WAL that a stock Postgres has written, out of its data directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use lakebed_types::Lsn;
use lakebed_wal::control::ControlFile;
use lakebed_wal::page::WalFormat;
use lakebed_wal::segment::file_name;
use lakebed_wal::stream::{RawRecord, WalDecoder};

/// Gives every record from `start`, a record boundary, to the last checkpoint. Returns where the last one ends.
///
/// # Errors
/// The WAL is not readable, or what `each` says.
pub fn records(
    data: &Path,
    control: &ControlFile,
    start: Lsn,
    mut each: impl FnMut(RawRecord) -> anyhow::Result<()>,
) -> anyhow::Result<Lsn> {
    let size = u64::from(control.segment_bytes());
    let format = WalFormat {
        version: control.version(),
        timeline: 1,
        system_identifier: control.system_identifier(),
        segment_bytes: control.segment_bytes(),
    };
    let end = control.checkpoint_lsn();
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    for segment in start.0 / size.. {
        let name = file_name(format.timeline, segment, size);
        let bytes = fs::read(data.join("pg_wal").join(&name)).with_context(|| format!("reading {name}"))?;
        let skip = start.0.saturating_sub(segment * size) as usize;
        decoder.feed(bytes.get(skip..).context("a WAL segment is cut")?);
        while decoder.position() < end {
            let Some(record) = decoder.next_raw()? else {
                break;
            };
            each(record)?;
        }
        if decoder.position() >= end {
            return Ok(decoder.position());
        }
    }
    bail!("the WAL ends before the last checkpoint")
}
