//! The programs of Postgres: which major version they are of.
//!
//! A branch can be served by the major version alone that made it: catalogues, WAL and the control file differ. This is
//! looked at before anything else, so that a wrong directory does not fence the compute that the branch has.

use std::path::{Path, PathBuf};
use std::process::Command;

use lakebed_types::{PgVersion, UnsupportedVersion};

use crate::branch::Branch;

/// Why the programs in a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// There is no such program, or it cannot be executed.
    #[error(
        "there is no {path}: install Postgres (on Debian 12: apt-get install postgresql-15), or name the directory of \
         its programs (--pg-bin)"
    )]
    Missing {
        /// The program.
        path: PathBuf,
    },
    /// It does not tell its version as Postgres does.
    #[error(
        "{path} --version says `{told}`, which is no version of Postgres; name another directory (--pg-bin)"
    )]
    Odd {
        /// The program.
        path: PathBuf,
        /// What it printed.
        told: String,
    },
    /// A version that the tier does not know.
    #[error("{path}: {version}; name the programs of another (--pg-bin)")]
    Unsupported {
        /// The program.
        path: PathBuf,
        /// Which.
        version: UnsupportedVersion,
    },
    /// Another version than the branch's.
    #[error(
        "branch {branch} was made by Postgres {branch_version} and runs on no other version, but {path} is Postgres \
         {program_version}: name the directory of the programs of Postgres {branch_version} (--pg-bin)"
    )]
    OtherVersion {
        /// Tenant and branch.
        branch: String,
        /// What made it.
        branch_version: PgVersion,
        /// The program.
        path: PathBuf,
        /// Its version.
        program_version: PgVersion,
    },
}

/// Major version of the server in a directory of programs, as it tells itself.
///
/// # Errors
/// See [`ProgramsError`].
pub fn version_of(pg_bin: &Path) -> Result<PgVersion, ProgramsError> {
    let path = pg_bin.join("postgres");
    let output = Command::new(&path).arg("--version").output();
    let Ok(output) = output else {
        return Err(ProgramsError::Missing { path });
    };
    let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Some(major) = major_of(&told) else {
        return Err(ProgramsError::Odd { path, told });
    };
    PgVersion::try_from(major).map_err(|version| ProgramsError::Unsupported { path, version })
}

/// Refuses programs that cannot serve a branch.
///
/// # Errors
/// See [`ProgramsError`].
pub fn check(pg_bin: &Path, branch: &Branch) -> Result<(), ProgramsError> {
    let program_version = version_of(pg_bin)?;
    if program_version != branch.version {
        return Err(ProgramsError::OtherVersion {
            branch: branch.name.clone(),
            branch_version: branch.version,
            path: pg_bin.join("postgres"),
            program_version,
        });
    }
    Ok(())
}

/// The number after `postgres (PostgreSQL) `, up to what is not a digit: `15.18 (Debian …)`, `18beta1`.
fn major_of(told: &str) -> Option<u32> {
    let version = told.strip_prefix("postgres (PostgreSQL) ")?;
    let end = version.find(|c: char| !c.is_ascii_digit());
    version[..end.unwrap_or(version.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_a_server_tells() {
        let table = [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some(15)),
            ("postgres (PostgreSQL) 17.11", Some(17)),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("postgres (PostgreSQL) 19devel", Some(19)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres (PostgreSQL) ", None),
            ("postgres (EnterpriseDB) 15.1", None),
            ("psql (PostgreSQL) 15.18", None),
            ("", None),
        ];
        for (told, major) in table {
            assert_eq!(major_of(told), major, "{told}");
        }
    }

    #[test]
    fn what_is_no_postgres_is_refused() {
        let none = version_of(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(none, ProgramsError::Missing { .. }), "{none}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postgres");
        let says = |text: &str| {
            std::fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            version_of(dir.path())
        };
        assert_eq!(says("postgres (PostgreSQL) 16.14").unwrap(), PgVersion::V16);
        assert!(matches!(says("hello"), Err(ProgramsError::Odd { .. })));
        let new = says("postgres (PostgreSQL) 19.1").unwrap_err();
        assert!(matches!(new, ProgramsError::Unsupported { .. }), "{new}");
    }
}
