//! Damaged WAL replaced by the same bytes from elsewhere.
//!
//! Committed WAL is the same everywhere, so any source will do: a member of the timeline first, then object storage.
//! What arrives is decoded from the last good boundary on, with its link to the record before, and written only as far
//! as whole records go. A source whose own copy is damaged cannot pass that.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;

use lakebed_types::{Lsn, NodeId};
use lakebed_wal::stream::WalDecoder;

use super::check::whole;
use crate::backup::archive::Reader;
use crate::recovery::Boundary;
use crate::server::Safekeeper;
use crate::timeline::{Timeline, Working};
use crate::wal_files::WalFiles;
use crate::wal_store::segment_path;

/// WAL that is fetched to heal one place, at most. A record that is longer is not healed.
const HEAL_BYTES: u64 = 16 << 20;

/// Replaces the WAL behind the boundary `after`, which lies below `commit`; says who had it.
///
/// # Errors
/// Why nobody could help, in words.
pub(crate) async fn heal(
    safekeeper: &Safekeeper,
    timeline: &Timeline,
    working: &Working,
    after: Boundary,
    commit: Lsn,
) -> Result<String, String> {
    let mut reasons = Vec::new();
    let end = Lsn(commit.0.min(after.lsn.0.saturating_add(HEAL_BYTES)));
    for node in others(safekeeper, timeline) {
        let asked = safekeeper
            .peers()
            .read_committed(node, timeline.name, (after.lsn, end));
        match asked.await {
            Ok(wal) => match replace(working, after, wal).await {
                Ok(()) => return Ok(format!("safekeeper {node}")),
                Err(why) => reasons.push(format!("safekeeper {node}: {why}")),
            },
            Err(why) => reasons.push(format!("safekeeper {node}: {why}")),
        }
    }
    match from_archive(safekeeper, timeline, after.lsn, end).await {
        Ok(wal) => match replace(working, after, wal).await {
            Ok(()) => return Ok("object storage".to_owned()),
            Err(why) => reasons.push(format!("object storage: {why}")),
        },
        Err(why) => reasons.push(format!("object storage: {why}")),
    }
    Err(reasons.join("; "))
}

/// Every other member of either set.
fn others(safekeeper: &Safekeeper, timeline: &Timeline) -> Vec<NodeId> {
    let own = NodeId(safekeeper.config().node_id);
    let view = timeline.view().borrow().clone();
    let mut members = std::collections::BTreeSet::new();
    if let Some(state) = &view.state {
        members.extend(state.membership.old.iter().copied());
        members.extend(state.membership.new.iter().flatten().copied());
    }
    members.remove(&own);
    members.into_iter().collect()
}

async fn from_archive(
    safekeeper: &Safekeeper,
    timeline: &Timeline,
    begin: Lsn,
    end: Lsn,
) -> Result<Vec<u8>, String> {
    let archive = safekeeper.archive(timeline.name).ok_or("none is configured")?;
    let (mut reader, mut wal) = (Reader::default(), Vec::new());
    while (wal.len() as u64) < end.0 - begin.0 {
        match archive.read(&mut reader, Lsn(begin.0 + wal.len() as u64)).await {
            Ok(bytes) => wal.extend_from_slice(&bytes),
            // Its end may lie below the commit position.
            Err(_) if !wal.is_empty() => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    wal.truncate((end.0 - begin.0) as usize);
    Ok(wal)
}

async fn replace(working: &Working, after: Boundary, wal: Vec<u8>) -> Result<(), String> {
    let files = working.files.clone();
    let done = tokio::task::spawn_blocking(move || write(&files, after, &wal)).await;
    done.map_err(|error| error.to_string())?
}

/// Writes whole records over what is there, durably. Blocks.
fn write(files: &WalFiles, after: Boundary, wal: &[u8]) -> Result<(), String> {
    let mut decoder = WalDecoder::new(files.format(), after.lsn, after.record_start);
    decoder.feed(wal);
    let last = match whole(&mut decoder, after) {
        Ok(last) | Err((last, _)) => last,
    };
    let good = wal.get(..(last.lsn.0 - after.lsn.0) as usize).unwrap_or_default();
    if good.is_empty() {
        return Err("it sent no whole record".to_owned());
    }
    let segment_bytes = u64::from(files.format().segment_bytes);
    let (mut at, mut rest) = (after.lsn, good);
    while !rest.is_empty() {
        let offset = at.segment_offset(segment_bytes);
        let room = usize::try_from(segment_bytes - offset).unwrap_or(usize::MAX);
        let (now, later) = rest.split_at(room.min(rest.len()));
        let path = segment_path(files.directory(), segment_bytes, at.segment_number(segment_bytes));
        // Not created: a segment that is not there was removed, or is lost as a whole and somebody must look at it.
        let written = OpenOptions::new().write(true).open(&path).and_then(|file| {
            file.write_all_at(now, offset)?;
            file.sync_data()
        });
        written.map_err(|error: io::Error| format!("{}: {error}", path.display()))?;
        at = Lsn(at.0 + now.len() as u64);
        rest = later;
    }
    Ok(())
}
