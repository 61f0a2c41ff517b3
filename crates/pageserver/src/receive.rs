//! Writing a directory that arrives as file chunks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lakebed_proto::v1::{self, import_message};
use lakebed_types::Lsn;
use lakebed_types::data_directory::{is_inside, tablespace_of};
use tonic::{Status, Streaming};

use crate::import::{Circumstances, Running};

/// Begins names of directories of imports, inside of a pageserver's.
const PREFIX: &str = "import-";
/// Most tablespaces of a cluster.
const MAX_TABLESPACES: usize = 10_000;
/// Longest path of a tablespace, in bytes (`MAXPGPATH`).
const MAX_PLACE_BYTES: usize = 1024;

/// Where an import's files wait until they are layers: gone when this is dropped, also when the client that sends them
/// is gone.
#[derive(Debug)]
pub struct Spool(PathBuf);

impl Spool {
    /// A new, empty one of this name, in this directory.
    ///
    /// # Errors
    /// The disk's.
    pub fn new(data_dir: &Path, name: &str) -> Result<Spool, Status> {
        let spool = Spool(data_dir.join(format!("{PREFIX}{name}")));
        let _ = fs::remove_dir_all(&spool.0);
        let made = fs::create_dir_all(&spool.0);
        made.map_err(|error| Status::internal(format!("{}: {error}", spool.0.display())))?;
        Ok(spool)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what imports left that ended with their process.
///
/// # Errors
/// The disk's.
pub fn remove_spools(data_dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(data_dir)? {
        let entry = entry?;
        let is_spool = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_spool && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Writes all chunks of an import into `spool`. Returns what else was said of them.
///
/// # Errors
/// A path that leads outside, or a failure of disk or stream.
pub async fn receive_directory(
    spool: &Spool,
    mut messages: Streaming<v1::ImportMessage>,
) -> Result<Circumstances, Status> {
    let mut told = Circumstances::default();
    while let Some(message) = messages.message().await? {
        match message.message {
            Some(import_message::Message::Chunk(chunk)) if told.running.is_none() => {
                if chunk.link_target.is_empty() {
                    write(spool.path(), &chunk)?;
                } else {
                    let (oid, place) = tablespace(chunk)?;
                    if told.tablespaces.len() >= MAX_TABLESPACES {
                        return Err(Status::invalid_argument("it has too many tablespaces"));
                    }
                    told.tablespaces.insert(oid, place);
                }
            }
            Some(import_message::Message::Running(wire)) if told.running.is_none() => {
                told.running = Some(Running {
                    start: Lsn(wire.start_lsn),
                    last_record_start: Lsn(wire.last_record_start),
                    consistent: Lsn(wire.consistent_lsn),
                });
            }
            _ => {
                return Err(Status::invalid_argument(
                    "an import consists of one start message, chunks, and perhaps what a running server needs",
                ));
            }
        }
    }
    Ok(told)
}

/// Oid and place of a tablespace. Its files come as those of a directory of the link's name. A place that is relative is
/// inside of the data directory.
fn tablespace(chunk: v1::FileChunk) -> Result<(u32, Bytes), Status> {
    let refused = |what: &str| Status::invalid_argument(format!("the link `{}` {what}", chunk.path));
    let oid = tablespace_of(&chunk.path).ok_or_else(|| refused("is not one of a tablespace"))?;
    let place = match chunk.link_target.first() {
        Some(b'/') => chunk.link_target.clone(),
        _ => Bytes::new(),
    };
    match place.len() <= MAX_PLACE_BYTES && !place.contains(&0) {
        true => Ok((oid, place)),
        false => Err(refused("leads to no valid path")),
    }
}

/// Refuses a path that leads out of the data directory.
pub fn outside(path: &str) -> Status {
    Status::invalid_argument(format!("`{path}` is no path inside a data directory"))
}

fn write(root: &Path, chunk: &v1::FileChunk) -> Result<(), Status> {
    let relative = chunk.path.trim_end_matches('/');
    if !is_inside(relative) {
        return Err(outside(&chunk.path));
    }
    let path = root.join(relative);
    let failed = |error: std::io::Error| Status::internal(format!("{}: {error}", path.display()));
    if chunk.path.ends_with('/') {
        return fs::create_dir_all(&path).map_err(failed);
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    file.write_all_at(&chunk.data, chunk.offset).map_err(failed)?;
    if chunk.last && chunk.file_bytes > 0 {
        file.set_len(chunk.file_bytes).map_err(failed)?;
    }
    Ok(())
}
