//! A small file that is replaced as a whole and checked when it is read.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `LKBDFILE` |
//! | 8..12 | format version of the payload, little-endian |
//! | 12..16 | CRC32C of bytes 0..12, 16..20 and the payload |
//! | 16..20 | payload length in bytes |
//! | 20.. | payload |
//!
//! [`replace`] writes beside the file, syncs, renames and syncs the directory: after a crash either the old or the
//! new content is there, never a mixture. [`replace_all`] does it for copies of one content, which share the last step:
//! a crash may leave the new content in the first of them only. This is the one place where that ritual is done.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LKBDFILE";
const HEADER_BYTES: usize = 20;

/// The largest payload that is written or read.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// Why a durable file could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum DurableFileError {
    /// The operating system refused. After a failed [`replace`] it is unknown which content is durable: stop and
    /// read the file again.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no room for the new content; the old one is still there, untouched. Try again when there is room.
    #[error("{path}: no room: {source}")]
    Full {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The content fails its check: the disk returned other bytes than were written.
    #[error("{path} is damaged: {reason}; restore it from a copy or rebuild this node")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// The payload is larger than [`MAX_PAYLOAD_BYTES`].
    #[error("{path}: a payload of {bytes} bytes is larger than the bound of {MAX_PAYLOAD_BYTES}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Size of the payload.
        bytes: usize,
    },
}

impl DurableFileError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> DurableFileError {
        let path = path.to_owned();
        move |source| DurableFileError::Io { path, source }
    }
}

/// Whether an error says that the disk, or what may be used of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Makes names in a directory (files created, renamed or removed) durable.
pub fn sync_directory(directory: &Path) -> Result<(), DurableFileError> {
    let synced = File::open(directory).and_then(|handle| handle.sync_all());
    synced.map_err(DurableFileError::io(directory))
}

/// Replaces the file's content; durable when this returns.
pub fn replace(path: &Path, version: u32, payload: &[u8]) -> Result<(), DurableFileError> {
    replace_all(&[path], version, payload)
}

/// Replaces the content of all these files, which are in one directory; durable in all when this returns. Without room no
/// file was touched.
pub fn replace_all(paths: &[&Path], version: u32, payload: &[u8]) -> Result<(), DurableFileError> {
    for path in paths {
        write_beside(path, version, payload)?;
    }
    for path in paths {
        fs::rename(path.with_extension("new"), path).map_err(DurableFileError::io(path))?;
    }
    let directory = paths.first().and_then(|path| path.parent());
    sync_directory(directory.unwrap_or(Path::new(".")))
}

fn write_beside(path: &Path, version: u32, payload: &[u8]) -> Result<(), DurableFileError> {
    let length = match u32::try_from(payload.len()) {
        Ok(length) if payload.len() <= MAX_PAYLOAD_BYTES => length,
        _ => {
            return Err(DurableFileError::TooLarge {
                path: path.to_owned(),
                bytes: payload.len(),
            });
        }
    };
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    header[16..20].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(&header, payload);
    header[12..16].copy_from_slice(&crc.to_le_bytes());

    let beside = path.with_extension("new");
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(&header)?;
        file.write_all(payload)?;
        file.sync_all()
    });
    // Whatever failed, the file itself was not touched, and a next try begins with another file.
    written.map_err(|source| match is_full(&source) {
        true => DurableFileError::Full {
            path: beside.clone(),
            source,
        },
        false => DurableFileError::io(&beside)(source),
    })
}

/// Reads version and payload, or `None` when there is no such file.
pub fn read(path: &Path) -> Result<Option<(u32, Vec<u8>)>, DurableFileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DurableFileError::io(path)(error)),
    };
    let mut content = Vec::new();
    let bound = (HEADER_BYTES + MAX_PAYLOAD_BYTES + 1) as u64;
    Read::by_ref(&mut file)
        .take(bound)
        .read_to_end(&mut content)
        .map_err(DurableFileError::io(path))?;

    let damaged = |reason: String| DurableFileError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let Some((header, payload)) = content.split_first_chunk::<HEADER_BYTES>() else {
        return Err(damaged(format!(
            "{} bytes are shorter than its header",
            content.len()
        )));
    };
    if &header[..8] != MAGIC {
        return Err(damaged("it does not begin with the magic LKBDFILE".to_owned()));
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if usize::try_from(word(16)) != Ok(payload.len()) {
        return Err(damaged(format!(
            "its header tells {} bytes of payload, it holds {}",
            word(16),
            payload.len()
        )));
    }
    let (told, found) = (word(12), checksum(header, payload));
    if told != found {
        return Err(damaged(format!(
            "its checksum is {found:08x}, its header tells {told:08x}"
        )));
    }
    Ok(Some((word(8), payload.to_vec())))
}

fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
    crc32c::crc32c_append(crc, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_as_a_whole_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        assert!(read(&path).unwrap().is_none());
        replace(&path, 1, b"first").unwrap();
        // What a crash between write and rename leaves behind.
        fs::write(path.with_extension("new"), b"half").unwrap();
        assert_eq!(read(&path).unwrap(), Some((1, b"first".to_vec())));
        replace(&path, 2, b"").unwrap();
        assert_eq!(read(&path).unwrap(), Some((2, vec![])));
        let large = vec![0; MAX_PAYLOAD_BYTES + 1];
        assert!(matches!(
            replace(&path, 3, &large),
            Err(DurableFileError::TooLarge { .. })
        ));
        assert_eq!(read(&path).unwrap(), Some((2, vec![])));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        replace(&path, 7, b"term 12").unwrap();
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bad).unwrap();
            assert!(
                matches!(read(&path), Err(DurableFileError::Damaged { .. })),
                "bit {bit}"
            );
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(
                matches!(read(&path), Err(DurableFileError::Damaged { .. })),
                "length {length}"
            );
        }
    }
}
