//! The layout of a Postgres data directory, by names.
//!
//! Every file is one of five things, and a file that fits none is an error rather than left behind:
//! a segment of a relation fork, a segment of an SLRU, the control file, WAL, or a *carried* file, which is kept as
//! it is (configuration, relation maps, version files). Names are from `common/relpath.c` and `access/slru.c`.

use crate::key::{ForkNumber, RelTag, SlruKind};
use crate::version::PgVersion;

/// Blocks of a relation segment file: 1 GiB (`RELSEG_SIZE`).
pub const RELATION_SEGMENT_BLOCKS: u32 = 131_072;
/// Pages of an SLRU segment file (`SLRU_PAGES_PER_SEGMENT`).
pub const SLRU_SEGMENT_PAGES: u64 = 32;
/// Oid of tablespace `pg_default`, which lives in `base/`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// Oid of tablespace `pg_global`, which lives in `global/`.
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// What a file of a data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A segment of a relation fork.
    Relation {
        /// The fork.
        rel: RelTag,
        /// Number of the segment; its first block is this times [`RELATION_SEGMENT_BLOCKS`].
        segment: u32,
    },
    /// A segment of an SLRU.
    Slru {
        /// Which SLRU.
        kind: SlruKind,
        /// Number of the segment; its first page is this times [`SLRU_SEGMENT_PAGES`].
        segment: u64,
    },
    /// `global/pg_control`.
    Control,
    /// A file below `pg_wal`.
    Wal,
    /// A file that the running server makes anew: never stored.
    Transient,
    /// Anything else: kept byte for byte.
    Carried,
}

/// Link of a tablespace, relative to the data directory.
pub fn tablespace_directory(oid: u32) -> String {
    format!("pg_tblspc/{oid}")
}

/// The oid of the tablespace whose link this path is, relative to the data directory.
pub fn tablespace_of(path: &str) -> Option<u32> {
    path.strip_prefix("pg_tblspc/").and_then(number)
}

/// Directory of a database in a tablespace, relative to the data directory (`GetDatabasePath`).
pub fn database_directory(version: PgVersion, tablespace: u32, database: u32) -> String {
    match tablespace {
        DEFAULT_TABLESPACE => format!("base/{database}"),
        GLOBAL_TABLESPACE => "global".to_owned(),
        _ => format!(
            "{}/{}/{database}",
            tablespace_directory(tablespace),
            version.tablespace_directory()
        ),
    }
}

/// Whether a relative path, as it came from outside, leads to something inside the data directory: no part of it is
/// empty, `.` or `..`, and nothing in it ends a path early.
pub fn is_inside(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Name of the file of a prepared transaction, relative to the data directory (`TwoPhaseFilePath`, `access/transam/
/// twophase.c`): its transaction id; from version 17 on with the epoch before it.
pub fn two_phase_file(version: PgVersion, full_xid: u64) -> String {
    if version < PgVersion::V17 {
        format!("pg_twophase/{:08X}", full_xid & 0xFFFF_FFFF)
    } else {
        format!("pg_twophase/{full_xid:016X}")
    }
}

/// Says what the file at this path (relative to the data directory, separated by `/`) is.
pub fn classify(path: &str) -> FileKind {
    let parts: Vec<&str> = path.split('/').collect();
    let relation = |tablespace, database, name: &str| {
        relation_name(name).map(|(relnode, fork, segment)| FileKind::Relation {
            rel: RelTag {
                spcnode: tablespace,
                dbnode: database,
                relnode,
                fork,
            },
            segment,
        })
    };
    let slru = |kind, name: &str| slru_name(name).map(|segment| FileKind::Slru { kind, segment });
    let known = match parts.as_slice() {
        // Rebuilt at each start (xlog.c StartupSUBTRANS, async.c, predicate.c, dsm.c) or private to one process.
        [
            "pg_subtrans" | "pg_notify" | "pg_serial" | "pg_dynshmem" | "pg_stat_tmp" | "pg_snapshots",
            ..,
        ]
        | ["postmaster.pid" | "postmaster.opts"]
        | [.., "pg_internal.init"]
        | [.., "pgsql_tmp", _] => Some(FileKind::Transient),
        ["base", _, name] | ["pg_tblspc", _, _, _, name] if is_temporary(name) => Some(FileKind::Transient),
        ["global", "pg_control"] => Some(FileKind::Control),
        ["global", name] => relation(GLOBAL_TABLESPACE, 0, name),
        ["base", database, name] => number(database).and_then(|db| relation(DEFAULT_TABLESPACE, db, name)),
        ["pg_tblspc", tablespace, version, database, name] if version.starts_with("PG_") => {
            number(tablespace)
                .zip(number(database))
                .and_then(|(spc, db)| relation(spc, db, name))
        }
        ["pg_xact", name] => slru(SlruKind::Clog, name),
        ["pg_multixact", "offsets", name] => slru(SlruKind::MultiXactOffsets, name),
        ["pg_multixact", "members", name] => slru(SlruKind::MultiXactMembers, name),
        ["pg_commit_ts", name] => slru(SlruKind::CommitTs, name),
        ["pg_wal", ..] => Some(FileKind::Wal),
        _ => None,
    };
    known.unwrap_or(FileKind::Carried)
}

/// `16384`, `16384.1`, `16384_vm`, `16384_fsm.2`: relfilenode, fork and segment.
fn relation_name(name: &str) -> Option<(u32, ForkNumber, u32)> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, number(segment).filter(|&n| n > 0)?),
        None => (name, 0),
    };
    let (relnode, fork) = match stem.split_once('_') {
        None => (stem, ForkNumber::Main),
        Some((relnode, "fsm")) => (relnode, ForkNumber::Fsm),
        Some((relnode, "vm")) => (relnode, ForkNumber::Vm),
        Some((relnode, "init")) => (relnode, ForkNumber::Init),
        Some(_) => return None,
    };
    Some((number(relnode)?, fork, segment))
}

/// `t3_16384`: a temporary relation of session 3, which ended with the server.
fn is_temporary(name: &str) -> bool {
    let session_and_name = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    session_and_name.is_some_and(|(session, name)| number(session).is_some() && relation_name(name).is_some())
}

/// Four to six hexadecimal digits in capitals.
fn slru_name(name: &str) -> Option<u64> {
    let plain = (4..=6).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if plain {
        u64::from_str_radix(name, 16).ok()
    } else {
        None
    }
}

/// A decimal number as Postgres writes an oid: no sign, no leading zero.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_data_directory() {
        let table = [
            ("PG_VERSION", true),
            ("base/5/1259", true),
            ("pg_tblspc/..x/a.b", true),
            ("", false),
            ("/etc/passwd", false),
            ("base/", false),
            ("base//5", false),
            (".", false),
            ("base/./5", false),
            ("..", false),
            ("base/../../x", false),
            ("base\0/5", false),
        ];
        for (path, inside) in table {
            assert_eq!(is_inside(path), inside, "{path:?}");
        }
    }

    #[test]
    fn names_depend_on_the_version() {
        let table = [
            (
                PgVersion::V15,
                "pg_tblspc/16400/PG_15_202209061/5",
                "pg_twophase/000002E6",
            ),
            (
                PgVersion::V16,
                "pg_tblspc/16400/PG_16_202307071/5",
                "pg_twophase/000002E6",
            ),
            (
                PgVersion::V17,
                "pg_tblspc/16400/PG_17_202406281/5",
                "pg_twophase/00000003000002E6",
            ),
            (
                PgVersion::V18,
                "pg_tblspc/16400/PG_18_202506291/5",
                "pg_twophase/00000003000002E6",
            ),
        ];
        for (version, directory, two_phase) in table {
            assert_eq!(database_directory(version, 16400, 5), directory);
            assert_eq!(database_directory(version, DEFAULT_TABLESPACE, 5), "base/5");
            assert_eq!(database_directory(version, GLOBAL_TABLESPACE, 0), "global");
            assert_eq!(two_phase_file(version, 0x0003_0000_02E6), two_phase);
        }
    }

    #[test]
    fn every_name_of_a_data_directory_has_its_kind() {
        let rel = |spcnode, dbnode, relnode, fork, segment| FileKind::Relation {
            rel: RelTag {
                spcnode,
                dbnode,
                relnode,
                fork,
            },
            segment,
        };
        let table = [
            ("base/5/1259", rel(1663, 5, 1259, ForkNumber::Main, 0)),
            ("base/5/1259_vm", rel(1663, 5, 1259, ForkNumber::Vm, 0)),
            ("base/5/16384_fsm.12", rel(1663, 5, 16384, ForkNumber::Fsm, 12)),
            ("base/5/16384_init", rel(1663, 5, 16384, ForkNumber::Init, 0)),
            ("global/1262", rel(1664, 0, 1262, ForkNumber::Main, 0)),
            (
                "pg_tblspc/16400/PG_15_202209061/5/16401",
                rel(16400, 5, 16401, ForkNumber::Main, 0),
            ),
            ("global/pg_control", FileKind::Control),
            ("global/pg_filenode.map", FileKind::Carried),
            ("base/5/PG_VERSION", FileKind::Carried),
            ("base/5/pg_internal.init", FileKind::Transient),
            ("base/5/t3_16384", FileKind::Transient),
            ("base/pgsql_tmp/pgsql_tmp12.0", FileKind::Transient),
            ("base/5/0012", FileKind::Carried),
            ("base/5/16384.0", FileKind::Carried),
            ("base/5/16384_vmx", FileKind::Carried),
            ("base/x/16384", FileKind::Carried),
            (
                "pg_xact/0000",
                FileKind::Slru {
                    kind: SlruKind::Clog,
                    segment: 0,
                },
            ),
            (
                "pg_multixact/members/00FF",
                FileKind::Slru {
                    kind: SlruKind::MultiXactMembers,
                    segment: 255,
                },
            ),
            (
                "pg_multixact/offsets/12345",
                FileKind::Slru {
                    kind: SlruKind::MultiXactOffsets,
                    segment: 0x12345,
                },
            ),
            ("pg_xact/00ff", FileKind::Carried),
            ("pg_wal/000000010000000000000001", FileKind::Wal),
            ("pg_subtrans/0000", FileKind::Transient),
            ("postmaster.pid", FileKind::Transient),
            ("postgresql.conf", FileKind::Carried),
        ];
        for (path, kind) in table {
            assert_eq!(classify(path), kind, "{path}");
        }
    }
}
