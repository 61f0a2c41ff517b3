//! The configuration file that the sidecar owns ([`OWN_CONFIG`]), included by `postgresql.conf`.
//!
//! It holds what may change while Postgres runs, lasts until the compute ends, and is written anew at each start. What
//! must not change is on the command line ([`crate::postgres`]). ALTER SYSTEM and the command line override it.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fmt, fs};

use crate::data_dir::{OWN_CONFIG, Owner, give};
use crate::postgres::Postgres;

/// What it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSettings {
    /// `full_page_writes`; see [`crate::full_page_writes`].
    pub full_page_writes: bool,
    /// `commit_delay`, in microseconds; see [`crate::group_commit`].
    pub commit_delay_us: u32,
}

impl fmt::Display for OwnSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Written by the sidecar, at each start and whenever it changes."
        )?;
        let on = if self.full_page_writes { "on" } else { "off" };
        writeln!(f, "full_page_writes = {on}")?;
        writeln!(f, "commit_delay = {}", self.commit_delay_us)?;
        if self.commit_delay_us > 0 {
            // One other open transaction is enough to wait for: whether they come back in time was measured.
            writeln!(f, "commit_siblings = 1")?;
        }
        Ok(())
    }
}

/// The file of a running Postgres.
#[derive(Debug)]
pub struct OwnConfig {
    data: PathBuf,
    owner: Owner,
    postgres: Postgres,
    /// What the file says. Held while it is written.
    settings: Mutex<OwnSettings>,
}

impl OwnConfig {
    /// The file says what a start writes.
    pub(crate) fn new(data: PathBuf, owner: Owner, postgres: Postgres) -> OwnConfig {
        OwnConfig {
            data,
            owner,
            postgres,
            settings: Mutex::default(),
        }
    }

    /// The data directory that it is in.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Changes it, and has Postgres read it.
    ///
    /// # Errors
    /// The disk is full, or the directory is gone; the settings are as before then.
    pub fn change(&self, change: impl FnOnce(&mut OwnSettings)) -> io::Result<()> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = *settings;
        change(&mut changed);
        write(&self.data, self.owner, &changed)?;
        *settings = changed;
        self.postgres.reload();
        Ok(())
    }
}

/// Writes the file, at once or not at all: Postgres may be reading it.
///
/// # Errors
/// The disk is full, or the directory is gone.
pub(crate) fn write(data: &Path, owner: Owner, settings: &OwnSettings) -> io::Result<()> {
    let path = data.join(OWN_CONFIG);
    let beside = data.join(format!("{OWN_CONFIG}.new"));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::File::create(&beside)?;
    write!(file, "{settings}")?;
    give(&beside, owner)?;
    fs::rename(beside, path)
}
