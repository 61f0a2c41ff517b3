//! `initdb`: where every timeline begins.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, bail};
use lakebed_compute::data_dir::Owner;
use lakebed_compute::programs::{ProgramsError, version_of};
use lakebed_types::PgVersion;

/// Refuses a directory without the programs that `initdb` needs; else tells their version.
///
/// # Errors
/// See [`ProgramsError`].
pub fn check_programs(pg_bin: &Path) -> Result<PgVersion, ProgramsError> {
    let version = version_of(pg_bin)?;
    let path = pg_bin.join("initdb");
    if !path.exists() {
        return Err(ProgramsError::Missing { path });
    }
    Ok(version)
}

/// The output of `initdb`, removed when dropped.
#[derive(Debug)]
pub struct Initial {
    home: PathBuf,
}

impl Initial {
    /// Runs `initdb` below `home`, which is emptied.
    ///
    /// # Errors
    /// The programs are not those of a known Postgres, or it fails; what it said.
    pub fn make(pg_bin: &Path, home: PathBuf, owner: Owner) -> anyhow::Result<Initial> {
        let version = check_programs(pg_bin)?;
        match fs::remove_dir_all(&home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        let initial = Initial { home };
        if let Some((uid, gid)) = owner {
            chown(&initial.home, Some(uid), Some(gid))?;
        }
        let mut initdb = Command::new(pg_bin.join("initdb"));
        // Its output is imported and then removed: nothing has to be synced.
        initdb.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "-D",
        ]);
        initdb.arg(initial.data());
        // Data checksums make hint bits cost page images, and the tier checks what it stores and sends by itself.
        if version >= PgVersion::V18 {
            initdb.arg("--no-data-checksums");
        }
        initdb.current_dir(&initial.home).env("TZ", "UTC");
        if let Some((uid, gid)) = owner {
            initdb.uid(uid).gid(gid);
        }
        let output = initdb.output().context("running initdb")?;
        if !output.status.success() {
            bail!(
                "initdb failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(initial)
    }

    /// The directory that goes with this.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }
}

impl Drop for Initial {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}
