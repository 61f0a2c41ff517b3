//! The major versions of Postgres that are served, and the constants that tell their files and WAL apart.
//!
//! | version | `XLOG_PAGE_MAGIC` | `PG_CONTROL_VERSION` | `CATALOG_VERSION_NO` |
//! |---|---|---|---|
//! | 15 | D110 | 1300 | 202209061 |
//! | 16 | D113 | 1300 | 202307071 |
//! | 17 | D116 | 1700 | 202406281 |
//! | 18 | D118 | 1800 | 202506291 |
//!
//! Sources: `access/xlog_internal.h`, `catalog/pg_control.h`, `catalog/catversion.h` of each version. None of these
//! changes within a major version.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A major version of Postgres. Ordered: a later version is greater. Stored and sent as its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
#[repr(u8)]
pub enum PgVersion {
    /// Postgres 15.
    V15 = 15,
    /// Postgres 16.
    V16 = 16,
    /// Postgres 17.
    V17 = 17,
    /// Postgres 18.
    V18 = 18,
}

/// A major version that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Postgres {0} is not supported, only 15 to 18")]
pub struct UnsupportedVersion(pub u32);

impl TryFrom<u32> for PgVersion {
    type Error = UnsupportedVersion;

    fn try_from(major: u32) -> Result<PgVersion, UnsupportedVersion> {
        PgVersion::ALL
            .into_iter()
            .find(|version| version.major() == major)
            .ok_or(UnsupportedVersion(major))
    }
}

impl From<PgVersion> for u32 {
    fn from(version: PgVersion) -> u32 {
        version.major()
    }
}

impl PgVersion {
    /// Every version, oldest first.
    pub const ALL: [PgVersion; 4] = [PgVersion::V15, PgVersion::V16, PgVersion::V17, PgVersion::V18];

    /// The version whose WAL pages begin with this; `None` when it is not served.
    pub fn from_wal_magic(magic: u16) -> Option<PgVersion> {
        PgVersion::ALL
            .into_iter()
            .find(|version| version.wal_magic() == magic)
    }

    /// The version whose catalogues have this number, as its control file tells; `None` when it is not served.
    pub fn from_catalog_version(number: u32) -> Option<PgVersion> {
        PgVersion::ALL
            .into_iter()
            .find(|version| version.catalog_version() == number)
    }

    /// The major number, 15 to 18.
    pub const fn major(self) -> u32 {
        self as u32
    }

    /// `XLOG_PAGE_MAGIC`: the first two bytes of every WAL page.
    pub const fn wal_magic(self) -> u16 {
        match self {
            PgVersion::V15 => 0xD110,
            PgVersion::V16 => 0xD113,
            PgVersion::V17 => 0xD116,
            PgVersion::V18 => 0xD118,
        }
    }

    /// `PG_CONTROL_VERSION`: layout of the control file.
    pub const fn control_version(self) -> u32 {
        match self {
            PgVersion::V15 | PgVersion::V16 => 1300,
            PgVersion::V17 => 1700,
            PgVersion::V18 => 1800,
        }
    }

    /// `CATALOG_VERSION_NO`: layout of the system catalogues.
    pub const fn catalog_version(self) -> u32 {
        match self {
            PgVersion::V15 => 202_209_061,
            PgVersion::V16 => 202_307_071,
            PgVersion::V17 => 202_406_281,
            PgVersion::V18 => 202_506_291,
        }
    }
}

impl PgVersion {
    /// Name of this version's directory inside a tablespace (`TABLESPACE_VERSION_DIRECTORY`, `common/relpath.h`).
    pub fn tablespace_directory(self) -> String {
        format!("PG_{self}_{}", self.catalog_version())
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.major())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_finds_its_version_and_no_other_does() {
        for version in PgVersion::ALL {
            assert_eq!(PgVersion::try_from(version.major()), Ok(version));
            assert_eq!(PgVersion::from_wal_magic(version.wal_magic()), Some(version));
            assert_eq!(
                PgVersion::from_catalog_version(version.catalog_version()),
                Some(version)
            );
        }
        assert_eq!(PgVersion::try_from(14), Err(UnsupportedVersion(14)));
        assert_eq!(PgVersion::try_from(19), Err(UnsupportedVersion(19)));
        assert_eq!(PgVersion::from_wal_magic(0xD10D), None);
        assert_eq!(PgVersion::from_catalog_version(0), None);
    }
}
