//! The layout of a Postgres data directory, as an import sees it.
//!
//! Every file is one of five things, and a file that fits none is an error rather than left behind:
//! a segment of a relation fork, a segment of an SLRU, the control file, WAL, or a *carried* file, which is kept as
//! it is (configuration, relation maps, version files). Names are from `common/relpath.c` and `access/slru.c`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use lakebed_types::{ForkNumber, PAGE_SIZE, PageKey, RelTag, SlruKind};

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

/// Name of the directory of this major version inside a tablespace (`TABLESPACE_VERSION_DIRECTORY`).
pub const TABLESPACE_VERSION_DIRECTORY: &str = "PG_15_202209061";

/// Link of a tablespace, relative to the data directory.
pub fn tablespace_directory(oid: u32) -> String {
    format!("pg_tblspc/{oid}")
}

/// Directory of a database in a tablespace, relative to the data directory (`GetDatabasePath`).
pub fn database_directory(tablespace: u32, database: u32) -> String {
    match tablespace {
        DEFAULT_TABLESPACE => format!("base/{database}"),
        GLOBAL_TABLESPACE => "global".to_owned(),
        _ => format!(
            "{}/{TABLESPACE_VERSION_DIRECTORY}/{database}",
            tablespace_directory(tablespace)
        ),
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

/// Why a data directory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file that must consist of whole pages does not.
    #[error("{path} has {bytes} bytes, which is not a whole number of {PAGE_SIZE}-byte pages")]
    TornFile {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A name that is not text, or an entry that is neither file nor directory nor a tablespace link.
    #[error("{path} does not belong in a Postgres data directory: {reason}")]
    Unexpected {
        /// The entry.
        path: PathBuf,
        /// What is odd about it.
        reason: &'static str,
    },
}

/// What a visitor of a data directory is given, in directory order.
#[derive(Debug)]
pub enum Item<'a> {
    /// One page of a relation or an SLRU.
    Page(PageKey, &'a [u8; PAGE_SIZE]),
    /// A relation segment's existence and size: an empty fork has no page, and exists all the same.
    Fork {
        /// The fork.
        rel: RelTag,
        /// Blocks up to the end of this segment.
        blocks: u32,
    },
    /// The control file, or a carried file, whole.
    File(&'a str, &'a [u8]),
    /// A directory.
    Directory(&'a str),
}

/// Visits everything below `root` that an import stores. WAL and transient files are left out.
pub fn visit(
    root: &Path,
    visitor: &mut impl FnMut(Item<'_>) -> Result<(), DataDirectoryError>,
) -> Result<(), DataDirectoryError> {
    visit_below(root, "", visitor)
}

fn visit_below(
    root: &Path,
    prefix: &str,
    visitor: &mut impl FnMut(Item<'_>) -> Result<(), DataDirectoryError>,
) -> Result<(), DataDirectoryError> {
    let directory = root.join(prefix);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DataDirectoryError::Io { path, source }
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
        let entry = entry.map_err(failed(&directory))?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| DataDirectoryError::Unexpected {
                path: entry.path(),
                reason: "its name is not UTF-8",
            })?;
        names.push(name);
    }
    names.sort();
    for name in names {
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let full = root.join(&path);
        // Follows links: a tablespace is one.
        let kind = fs::metadata(&full).map_err(failed(&full))?.file_type();
        if kind.is_dir() {
            visitor(Item::Directory(&path))?;
            visit_below(root, &path, visitor)?;
        } else if kind.is_file() {
            visit_file(&full, &path, visitor)?;
        } else {
            let reason = "it is neither a file nor a directory";
            return Err(DataDirectoryError::Unexpected { path: full, reason });
        }
    }
    Ok(())
}

fn visit_file(
    full: &Path,
    path: &str,
    visitor: &mut impl FnMut(Item<'_>) -> Result<(), DataDirectoryError>,
) -> Result<(), DataDirectoryError> {
    let kind = classify(path);
    if matches!(kind, FileKind::Wal | FileKind::Transient) {
        return Ok(());
    }
    let content = fs::read(full).map_err(|source| DataDirectoryError::Io {
        path: full.to_owned(),
        source,
    })?;
    let torn = || DataDirectoryError::TornFile {
        path: full.to_owned(),
        bytes: content.len() as u64,
    };
    let (pages, rest) = content.as_chunks::<PAGE_SIZE>();
    match kind {
        FileKind::Relation { rel, segment } => {
            let first = u64::from(segment) * u64::from(RELATION_SEGMENT_BLOCKS);
            let blocks = u32::try_from(first + pages.len() as u64).map_err(|_| torn())?;
            if !rest.is_empty() {
                return Err(torn());
            }
            visitor(Item::Fork { rel, blocks })?;
            for (block, page) in (first..).zip(pages) {
                // `blocks` fits, so each block does.
                visitor(Item::Page(
                    PageKey::Rel {
                        rel,
                        block: block as u32,
                    },
                    page,
                ))?;
            }
        }
        FileKind::Slru { kind, segment } => {
            if !rest.is_empty() {
                return Err(torn());
            }
            for (page, bytes) in (segment * SLRU_SEGMENT_PAGES..).zip(pages) {
                visitor(Item::Page(PageKey::Slru { kind, page }, bytes))?;
            }
        }
        FileKind::Control | FileKind::Carried | FileKind::Wal | FileKind::Transient => {
            visitor(Item::File(path, &content))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_visit_yields_each_page_and_refuses_a_torn_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let full = dir.path().join(path);
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, bytes).unwrap();
        };
        write("base/5/100", &[7; 2 * PAGE_SIZE]);
        write("base/5/101", &[]);
        write("pg_xact/0001", &[0; PAGE_SIZE]);
        write("pg_wal/junk", b"x");
        write("PG_VERSION", b"15\n");
        let mut seen = Vec::new();
        visit(dir.path(), &mut |item| {
            seen.push(match item {
                Item::Page(key, page) => format!("page {key} {}", page[0]),
                Item::Fork { rel, blocks } => format!("fork {rel} {blocks}"),
                Item::File(path, bytes) => format!("file {path} {}", bytes.len()),
                Item::Directory(path) => format!("directory {path}"),
            });
            Ok(())
        })
        .unwrap();
        let expected = [
            "file PG_VERSION 3",
            "directory base",
            "directory base/5",
            "fork 1663/5/100 2",
            "page 1663/5/100 block 0 7",
            "page 1663/5/100 block 1 7",
            "fork 1663/5/101 0",
            "directory pg_wal",
            "directory pg_xact",
            "page pg_xact page 32 0",
        ];
        assert_eq!(seen, expected);

        write("base/5/102", &[0; PAGE_SIZE + 1]);
        let error = visit(dir.path(), &mut |_| Ok(())).unwrap_err();
        assert!(
            matches!(error, DataDirectoryError::TornFile { bytes: 8193, .. }),
            "{error}"
        );
    }
}
