//! A timeline from object storage alone.
//!
//! The objects' WAL is decoded, record by record, and written to segment files: byte for byte what the safekeepers had,
//! from the first record that is still in object storage. The last object carries its writer's control state; with it
//! the result is a timeline that a safekeeper can go on with. Membership and terms are those of the time of the upload:
//! a term that was won later wrote nothing that is left.

use std::path::Path;

use bytes::Bytes;
use lakebed_quorum::acceptor::Durable;
use lakebed_quorum::history::TermHistory;
use lakebed_types::Lsn;

use super::BackupError;
use super::archive::{Archive, reach};
use super::objects::{WalObject, chain, covered};
use crate::control_file::{self, ControlFile};
use crate::intake::Intake;
use crate::recovery::{self, Boundary};
use crate::timeline::wal_format;
use crate::wal_store::WalStore;

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The control state: its truncate position is where the WAL starts, its commit position where it ends.
    pub state: Durable,
    /// Objects that were read.
    pub objects: usize,
    /// Bytes that were read.
    pub stored_bytes: u64,
}

/// Fills an empty directory with the segment files and the control file of a timeline, durably, up to the last record
/// that ends at or below `until`.
///
/// # Errors
/// [`BackupError::Gap`] when nothing is there, or nothing that reaches to `until`. Others: see [`BackupError`].
pub async fn restore(
    archive: &Archive,
    directory: &Path,
    until: Option<Lsn>,
) -> Result<Restored, BackupError> {
    let listed = archive.list().await?;
    let objects: Vec<WalObject> = listed.into_iter().map(|(object, _)| object).collect();
    let way = way(&objects).ok_or_else(|| BackupError::Gap {
        at: until.unwrap_or(Lsn::INVALID),
        why: format!("it has {}", reach(&objects)),
    })?;
    let start = way.first().map_or(Lsn::INVALID, |object| object.begin);
    if let Some(until) = until
        && until < start
    {
        return Err(BackupError::Gap {
            at: until,
            why: format!("what is left begins at {start}"),
        });
    }
    let until = until.unwrap_or(Lsn::MAX);
    let mut writing: Option<Writing> = None;
    let mut restored = None;
    let (mut read, mut stored_bytes) = (0, 0);
    for object in way {
        let opened = archive.fetch(&object).await?;
        let path = archive.path(&object);
        let state = control_file::decode(&opened.index.state).ok_or(
            control_file::ControlFileError::Damaged("the state that came with an object"),
        )?;
        let mut at = match writing {
            Some(writing) => writing,
            None => Writing::create(directory, &state, start)?,
        };
        (read, stored_bytes) = (read + 1, stored_bytes + opened.bytes());
        for frame in opened.frames() {
            let frame = frame.map_err(|source| BackupError::Frame {
                path: path.clone(),
                source,
            })?;
            at.take(frame.header.begin, &frame.wal, until)?;
        }
        at.store.flush()?;
        at.store.after_flush()?;
        let done = at.done(until);
        restored = Some(state);
        writing = Some(at);
        if done {
            break;
        }
    }
    let (Some(writing), Some(state)) = (writing, restored) else {
        return Err(BackupError::NotWal("no object".to_owned()));
    };
    let state = at_end(state, start, writing.store.write_lsn())?;
    ControlFile::create(directory, &state)?;
    Ok(Restored {
        state,
        objects: read,
        stored_bytes,
    })
}

/// The objects that reach furthest, without a gap, from as far back as possible.
fn way(objects: &[WalObject]) -> Option<Vec<WalObject>> {
    let begins = objects.iter().map(|object| object.begin);
    let best = begins.max_by_key(|begin| (covered(*begin, objects.iter()), std::cmp::Reverse(*begin)))?;
    let way = chain(best, objects.iter());
    if way.is_empty() {
        // A timeline without a record of its own yet.
        return objects
            .iter()
            .find(|object| object.begin == best)
            .map(|object| vec![*object]);
    }
    Some(way)
}

/// The control state of WAL that starts and ends here.
fn at_end(state: Durable, start: Lsn, end: Lsn) -> Result<Durable, BackupError> {
    let entries = state.term_history.entries().iter().copied();
    let written: Vec<_> = entries.filter(|(_, begin)| *begin <= end).collect();
    let term_history = TermHistory::new(written).map_err(|error| BackupError::NotWal(error.to_string()))?;
    Ok(Durable {
        term_history,
        commit: end,
        backup: end,
        truncate: start,
        ..state
    })
}

/// WAL on its way into segment files.
struct Writing {
    store: WalStore,
    intake: Intake,
}

impl Writing {
    fn create(directory: &Path, state: &Durable, start: Lsn) -> Result<Writing, BackupError> {
        let format = wal_format(state);
        Ok(Writing {
            store: recovery::create(directory, format, start)?,
            intake: Intake::new(
                format,
                Boundary {
                    lsn: start,
                    record_start: Lsn::INVALID,
                },
            ),
        })
    }

    /// Takes the WAL at `begin` that is not there yet, as far as its records end at or below `until`.
    fn take(&mut self, begin: Lsn, wal: &[u8], until: Lsn) -> Result<(), BackupError> {
        if self.done(until) {
            return Ok(());
        }
        let expected = self.intake.expected();
        let known = expected.checked_sub(begin).ok_or_else(|| BackupError::Gap {
            at: expected,
            why: format!("the next frame begins at {begin}"),
        })?;
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let Some(new) = wal.get(known..) else {
            return Ok(());
        };
        let before = self.intake.boundary().lsn;
        let whole = self.intake.accept(Bytes::copy_from_slice(new))?;
        let end = self.intake.round_down(until).max(before);
        let length = usize::try_from(end.0 - before.0)
            .unwrap_or(usize::MAX)
            .min(whole.len());
        self.store
            .append(before, whole.get(..length).unwrap_or_default())?;
        self.intake.forget_below(end);
        Ok(())
    }

    /// Whether a record that ends beyond `until` was seen.
    fn done(&self, until: Lsn) -> bool {
        self.intake.boundary().lsn > self.store.write_lsn() || self.intake.boundary().lsn >= until
    }
}
