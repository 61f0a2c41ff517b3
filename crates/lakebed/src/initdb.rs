//! `initdb`: where every timeline begins.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, bail};
use lakebed_compute::data_dir::Owner;

/// Refuses a directory without the programs of Postgres.
pub fn check_programs(pg_bin: &Path) -> anyhow::Result<()> {
    for program in ["postgres", "initdb"] {
        let path = pg_bin.join(program);
        if !path.exists() {
            bail!(
                "there is no {}: install Postgres 15 (on Debian 12: apt-get install postgresql-15), or give the \
                 directory of its programs with --pg-bin",
                path.display()
            );
        }
    }
    Ok(())
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
    /// It fails; what it said.
    pub fn make(pg_bin: &Path, home: PathBuf, owner: Owner) -> anyhow::Result<Initial> {
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
        // Its output is imported and then removed: nothing has to be synced. Data checksums would make hint bits cost
        // page images; the tier checks what it stores by itself.
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
        initdb
            .arg(initial.data())
            .current_dir(&initial.home)
            .env("TZ", "UTC");
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
