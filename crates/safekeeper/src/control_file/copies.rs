//! The two copies of a control file, and why two are enough.
//!
//! Each write goes to both, and counts as done when both are durable. So whatever an acceptor said (a term, a vote, a
//! history, a generation) is in either copy alone, and one that rots takes nothing back. Two slots that are written in turn
//! would not do: the older one has an older term, and an acceptor that woke up with it could promise a term twice.
//!
//! | first | second | state |
//! |---|---|---|
//! | intact | intact | the newer: after a crash between the two renames nobody was told of it, and it may be believed |
//! | intact | damaged, missing or unreadable | the intact one |
//! | damaged | damaged or missing | none: what was promised is forgotten, as with a lost disk |
//!
//! Whoever is to act on the state gets it from [`ControlFile::open`], which makes both copies equal first: what is said on
//! the strength of one copy must not be in that one alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lakebed_quorum::acceptor::Durable;

use super::{ControlFileError, FILE_NAMES, FORMAT_VERSION, decode, encode};
use crate::durable_file::{self, DurableFileError, sync_directory};

/// The control file of a timeline in the hands of its one writer.
#[derive(Debug)]
pub struct ControlFile {
    directory: PathBuf,
    /// Number of the last write.
    written: u64,
    /// What it wrote.
    state: Durable,
}

impl ControlFile {
    /// The first state of a timeline; durable when this returns.
    ///
    /// # Errors
    /// It could not be written.
    pub fn create(directory: &Path, state: &Durable) -> Result<ControlFile, ControlFileError> {
        let mut control = ControlFile {
            directory: directory.to_owned(),
            written: 0,
            state: state.clone(),
        };
        control.rewrite()?;
        Ok(control)
    }

    /// What [`ControlFile::create`] made, where it is now.
    pub(crate) fn just_created(directory: &Path, state: &Durable) -> ControlFile {
        ControlFile {
            directory: directory.to_owned(),
            written: 1,
            state: state.clone(),
        }
    }

    /// Reads the state, and makes both copies equal and durable if they were not.
    ///
    /// # Errors
    /// See [`ControlFileError`]. Without room for a copy one is left, which is intact.
    pub fn open(directory: &Path) -> Result<ControlFile, ControlFileError> {
        let (written, state) = newest(directory)?;
        let mut control = ControlFile {
            directory: directory.to_owned(),
            written,
            state,
        };
        let equal =
            |copy: &Result<Read, ControlFileError>| matches!(copy, Ok(Some((found, _))) if *found == written);
        let copies = FILE_NAMES.map(|name| (directory.join(name), read(&directory.join(name))));
        if copies.iter().all(|(_, copy)| equal(copy)) {
            // A process that ended may have left what it wrote in the kernel's hands alone.
            for (path, _) in &copies {
                let synced = fs::File::open(path).and_then(|file| file.sync_all());
                synced.map_err(DurableFileError::io(path))?;
            }
            sync_directory(directory)?;
            return Ok(control);
        }
        for (path, copy) in &copies {
            if !equal(copy) {
                tracing::warn!(path = %path.display(), "a copy of the control file is old, damaged or missing");
                remove(path)?;
            }
        }
        sync_directory(directory)?;
        match control.rewrite() {
            // The disk is full, and an old copy can mislead nobody any more.
            Err(ControlFileError::File(DurableFileError::Full { .. })) => {}
            written => written?,
        }
        Ok(control)
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What was written last.
    pub fn state(&self) -> &Durable {
        &self.state
    }

    /// Writes the state to both copies; durable when this returns.
    ///
    /// # Errors
    /// It could not be written. Without room nothing has changed.
    pub fn store(&mut self, state: &Durable) -> Result<(), ControlFileError> {
        self.written += 1;
        let payload = [self.written.to_le_bytes().as_slice(), &encode(state)].concat();
        let [first, second] = FILE_NAMES.map(|name| self.directory.join(name));
        durable_file::replace_all(&[&first, &second], FORMAT_VERSION, &payload)?;
        self.state = state.clone();
        Ok(())
    }

    /// Writes what was written last once more: a copy of it has rotted.
    ///
    /// # Errors
    /// As [`ControlFile::store`].
    pub fn rewrite(&mut self) -> Result<(), ControlFileError> {
        let state = self.state.clone();
        self.store(&state)
    }
}

fn remove(path: &Path) -> Result<(), DurableFileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DurableFileError::io(path)(error)),
        _ => Ok(()),
    }
}

/// A copy that is there: the number of its write, and the state.
type Read = Option<(u64, Durable)>;

fn read(path: &Path) -> Result<Read, ControlFileError> {
    let damaged = || ControlFileError::Damaged("a field is missing or out of range");
    let Some((version, payload)) = durable_file::read(path)? else {
        return Ok(None);
    };
    let (written, state) = match version {
        0 => return Err(ControlFileError::Damaged("its format version is 0")),
        1 => (0, payload.as_slice()),
        FORMAT_VERSION => {
            let (number, state) = payload.split_first_chunk().ok_or_else(damaged)?;
            (u64::from_le_bytes(*number), state)
        }
        found => return Err(ControlFileError::Newer { found }),
    };
    Ok(Some((written, decode(state).ok_or_else(damaged)?)))
}

/// The newest state and the number of its write.
pub(super) fn newest(directory: &Path) -> Result<(u64, Durable), ControlFileError> {
    let mut best: Read = None;
    let mut first_error = None;
    for name in FILE_NAMES {
        match read(&directory.join(name)) {
            Ok(Some(found)) if best.as_ref().is_none_or(|best| best.0 < found.0) => best = Some(found),
            Ok(_) => {}
            // What a newer version wrote may be the newer state.
            Err(error @ ControlFileError::Newer { .. }) => return Err(error),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let missing = || ControlFileError::Missing(directory.display().to_string());
    best.ok_or_else(|| first_error.unwrap_or_else(missing))
}

/// Copies that are not intact, in words. Beside a writer an old one is none of them: it is about to be replaced.
pub fn damage(directory: &Path) -> Vec<String> {
    let look = |name| match read(&directory.join(name)) {
        Ok(Some(_)) => None,
        Ok(None) => Some(format!("{name} is missing")),
        Err(error) => Some(error.to_string()),
    };
    FILE_NAMES.into_iter().filter_map(look).collect()
}
