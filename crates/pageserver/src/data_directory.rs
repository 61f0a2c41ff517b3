//! Reading a Postgres data directory, as an import does. What a file is, its name says
//! ([`lakebed_types::data_directory`]).

use std::path::{Path, PathBuf};
use std::{fs, io};

use lakebed_types::data_directory::{FileKind, RELATION_SEGMENT_BLOCKS, SLRU_SEGMENT_PAGES, classify};
use lakebed_types::{PAGE_SIZE, PageKey, RelTag};

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
    /// A page whose checksum is wrong.
    #[error("the checksum of {key} is wrong: the cluster is damaged; restore it from a backup")]
    Checksum {
        /// The page.
        key: PageKey,
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
