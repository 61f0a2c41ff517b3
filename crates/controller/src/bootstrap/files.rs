//! The data directory that is sent: which of its files, and in which pieces.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lakebed_placement::ClusterIdentity;
use lakebed_proto::v1::FileChunk;
use lakebed_types::Lsn;
use lakebed_types::data_directory::{FileKind, classify};
use lakebed_wal::control::ControlFile;
use lakebed_wal::segment::file_name;

use super::error::BootstrapError;
use super::upload::Gone;

const CONTROL_FILE: &str = "global/pg_control";
/// Bytes of a file in one message.
const CHUNK_BYTES: usize = 1 << 20;
/// Directories below directories: Postgres has three.
const MAX_DEPTH: usize = 8;

/// A data directory of a server that was shut down.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    root: PathBuf,
    control: ControlFile,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BootstrapError {
    let path = path.to_owned();
    move |source| BootstrapError::Io { path, source }
}

impl DataDirectory {
    /// Looks at the control file. The pageserver checks more.
    pub fn open(root: &Path) -> Result<DataDirectory, BootstrapError> {
        let path = root.join(CONTROL_FILE);
        let bytes = fs::read(&path).map_err(failed(&path))?;
        let unsuitable = |reason: String| BootstrapError::Unsuitable {
            path: root.to_owned(),
            reason,
        };
        let control = ControlFile::decode(&bytes).map_err(|error| unsuitable(error.to_string()))?;
        if !control.is_shut_down() {
            return Err(unsuitable("its server was not shut down cleanly".to_owned()));
        }
        Ok(DataDirectory {
            root: root.to_owned(),
            control,
        })
    }

    /// Whose WAL it is.
    pub fn cluster(&self) -> ClusterIdentity {
        ClusterIdentity {
            system_identifier: self.control.system_identifier(),
            postgres_major: self.control.version(),
            wal_segment_bytes: self.control.segment_bytes(),
            data_checksums: self.control.has_data_checksums(),
        }
    }

    /// Start of the shutdown checkpoint, the last record.
    pub fn checkpoint(&self) -> u64 {
        self.control.checkpoint_lsn().0
    }

    /// Hands every file that an import needs to `send`, in pieces; stops when `send` fails.
    pub fn visit(&self, send: &mut impl FnMut(FileChunk) -> Result<(), Gone>) -> Result<(), BootstrapError> {
        self.visit_below("", 0, send)
    }

    fn visit_below(
        &self,
        prefix: &str,
        depth: usize,
        send: &mut impl FnMut(FileChunk) -> Result<(), Gone>,
    ) -> Result<(), BootstrapError> {
        let directory = self.root.join(prefix);
        for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
            let entry = entry.map_err(failed(&directory))?;
            let full = entry.path();
            let unsuitable = |reason: &str| BootstrapError::Unsuitable {
                path: full.clone(),
                reason: reason.to_owned(),
            };
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| unsuitable("its name is not UTF-8"))?;
            let path = if prefix.is_empty() {
                name.to_owned()
            } else {
                format!("{prefix}/{name}")
            };
            // Links are not followed: what they point to is not part of a fresh cluster.
            let kind = entry.file_type().map_err(failed(&full))?;
            if kind.is_dir() {
                if depth >= MAX_DEPTH {
                    return Err(unsuitable("directories are nested too deeply"));
                }
                if send(directory_chunk(&path)).is_err() {
                    return Ok(());
                }
                self.visit_below(&path, depth + 1, send)?;
            } else if kind.is_file() {
                if self.is_needed(&path) && send_file(&full, &path, send)?.is_err() {
                    return Ok(());
                }
            } else {
                let reason = "it is neither a file nor a directory; tablespaces and links cannot be imported";
                return Err(unsuitable(reason));
            }
        }
        Ok(())
    }

    fn is_needed(&self, path: &str) -> bool {
        match classify(path) {
            FileKind::Transient => false,
            FileKind::Wal => self.holds_checkpoint(path),
            FileKind::Relation { .. } | FileKind::Slru { .. } | FileKind::Control | FileKind::Carried => true,
        }
    }

    /// Whether it is the WAL segment in which the checkpoint record starts, or the next one, where it may end.
    fn holds_checkpoint(&self, path: &str) -> bool {
        let segment_bytes = u64::from(self.control.segment_bytes()).max(1);
        let first = Lsn(self.checkpoint()).segment_number(segment_bytes);
        let timeline = self.control.checkpoint().timeline;
        path.strip_prefix("pg_wal/").is_some_and(|name| {
            [first, first + 1]
                .iter()
                .any(|&number| file_name(timeline, number, segment_bytes) == name)
        })
    }
}

fn directory_chunk(path: &str) -> FileChunk {
    FileChunk {
        path: format!("{path}/"),
        last: true,
        ..FileChunk::default()
    }
}

/// Sends one file without its pieces of zeros: its final size says how many there are.
fn send_file(
    full: &Path,
    path: &str,
    send: &mut impl FnMut(FileChunk) -> Result<(), Gone>,
) -> Result<Result<(), Gone>, BootstrapError> {
    let mut file = File::open(full).map_err(failed(full))?;
    let mut offset = 0;
    loop {
        let mut data = Vec::new();
        let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut data);
        read.map_err(failed(full))?;
        let last = data.len() < CHUNK_BYTES;
        let length = data.len() as u64;
        if data.iter().all(|byte| *byte == 0) {
            data = Vec::new();
        }
        let chunk = FileChunk {
            path: path.to_owned(),
            offset,
            data: Bytes::from(data),
            file_bytes: if last { offset + length } else { 0 },
            last,
            ..FileChunk::default()
        };
        offset += length;
        if (last || !chunk.data.is_empty()) && send(chunk).is_err() {
            return Ok(Err(Gone));
        }
        if last {
            return Ok(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_sent_in_pieces_without_its_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        type Piece = (u64, usize, u64, bool);
        let rows: [(usize, usize, &[Piece]); 4] = [
            // (ones, then zeros) -> (offset, bytes sent, final size, last)
            (0, 0, &[(0, 0, 0, true)]),
            (10, 0, &[(0, 10, 10, true)]),
            (
                CHUNK_BYTES,
                2 * CHUNK_BYTES + 5,
                &[
                    (0, CHUNK_BYTES, 0, false),
                    (3 * CHUNK_BYTES as u64, 0, 3 * CHUNK_BYTES as u64 + 5, true),
                ],
            ),
            (
                CHUNK_BYTES,
                0,
                &[
                    (0, CHUNK_BYTES, 0, false),
                    (CHUNK_BYTES as u64, 0, CHUNK_BYTES as u64, true),
                ],
            ),
        ];
        for (ones, zeros, expected) in rows {
            fs::write(&path, [vec![1; ones], vec![0; zeros]].concat()).unwrap();
            let mut sent = Vec::new();
            let done = send_file(&path, "f", &mut |chunk| {
                sent.push((chunk.offset, chunk.data.len(), chunk.file_bytes, chunk.last));
                Ok(())
            });
            done.unwrap().unwrap();
            assert_eq!(sent, expected, "{ones} ones and {zeros} zeros");
        }
    }
}
