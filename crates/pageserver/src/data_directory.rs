//! Reading a Postgres data directory, as an import does. What a file is, its name says
//! ([`lakebed_types::data_directory`]).

use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use lakebed_types::data_directory::{FileKind, RELATION_SEGMENT_BLOCKS, SLRU_SEGMENT_PAGES, classify};
use lakebed_types::{PAGE_SIZE, PageKey, RelTag};

/// Pages of a file that are in memory at a time.
const PIECE_PAGES: usize = 128;

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
///
/// # Errors
/// What cannot be read, or what the visitor says.
pub fn visit<E: From<DataDirectoryError>>(
    root: &Path,
    visitor: &mut impl FnMut(Item<'_>) -> Result<(), E>,
) -> Result<(), E> {
    visit_below(root, "", visitor)
}

fn visit_below<E: From<DataDirectoryError>>(
    root: &Path,
    prefix: &str,
    visitor: &mut impl FnMut(Item<'_>) -> Result<(), E>,
) -> Result<(), E> {
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
            return Err(DataDirectoryError::Unexpected { path: full, reason }.into());
        }
    }
    Ok(())
}

fn visit_file<E: From<DataDirectoryError>>(
    full: &Path,
    path: &str,
    visitor: &mut impl FnMut(Item<'_>) -> Result<(), E>,
) -> Result<(), E> {
    match classify(path) {
        FileKind::Wal | FileKind::Transient => Ok(()),
        FileKind::Relation { rel, segment } => {
            let pages = Pages::open(full)?;
            let first = u64::from(segment) * u64::from(RELATION_SEGMENT_BLOCKS);
            let blocks = u32::try_from(first + pages.count).map_err(|_| pages.torn())?;
            visitor(Item::Fork { rel, blocks })?;
            pages.visit(&mut |page, bytes| {
                // `blocks` fits, so each block does.
                let block = (first + page) as u32;
                visitor(Item::Page(PageKey::Rel { rel, block }, bytes))
            })
        }
        FileKind::Slru { kind, segment } => Pages::open(full)?.visit(&mut |page, bytes| {
            let page = segment * SLRU_SEGMENT_PAGES + page;
            visitor(Item::Page(PageKey::Slru { kind, page }, bytes))
        }),
        FileKind::Control | FileKind::Carried => {
            let content = fs::read(full).map_err(|source| DataDirectoryError::Io {
                path: full.to_owned(),
                source,
            })?;
            visitor(Item::File(path, &content))
        }
    }
}

/// A file of pages, read in pieces: a segment of a relation has a gibibyte.
struct Pages<'a> {
    path: &'a Path,
    file: fs::File,
    bytes: u64,
    count: u64,
}

impl Pages<'_> {
    fn open(path: &Path) -> Result<Pages<'_>, DataDirectoryError> {
        let failed = |source| DataDirectoryError::Io {
            path: path.to_owned(),
            source,
        };
        let file = fs::File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let count = bytes / PAGE_SIZE as u64;
        let pages = Pages {
            path,
            file,
            bytes,
            count,
        };
        match bytes.is_multiple_of(PAGE_SIZE as u64) {
            true => Ok(pages),
            false => Err(pages.torn()),
        }
    }

    fn torn(&self) -> DataDirectoryError {
        DataDirectoryError::TornFile {
            path: self.path.to_owned(),
            bytes: self.bytes,
        }
    }

    fn visit<E: From<DataDirectoryError>>(
        mut self,
        visitor: &mut impl FnMut(u64, &[u8; PAGE_SIZE]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; PIECE_PAGES * PAGE_SIZE];
        let mut page = 0;
        while page < self.count {
            let pages = (self.count - page).min(PIECE_PAGES as u64) as usize;
            let piece = &mut buffer[..pages * PAGE_SIZE];
            let read = self.file.read_exact(piece);
            read.map_err(|source| DataDirectoryError::Io {
                path: self.path.to_owned(),
                source,
            })?;
            for bytes in piece.as_chunks::<PAGE_SIZE>().0 {
                visitor(page, bytes)?;
                page += 1;
            }
        }
        Ok(())
    }
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
        visit::<DataDirectoryError>(dir.path(), &mut |item| {
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
        let error = visit::<DataDirectoryError>(dir.path(), &mut |_| Ok(())).unwrap_err();
        assert!(
            matches!(error, DataDirectoryError::TornFile { bytes: 8193, .. }),
            "{error}"
        );
    }
}
