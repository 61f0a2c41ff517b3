//! Writing a directory that arrives as file chunks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lakebed_proto::v1::{self, import_message};
use lakebed_types::Lsn;
use lakebed_types::data_directory::is_inside;
use tonic::{Status, Streaming};

use crate::import::Running;

/// Writes all chunks of an import below `root`, which is emptied first. Returns which WAL makes them consistent, if they
/// are a base backup of a running server.
///
/// # Errors
/// A path that leads outside, or a failure of disk or stream.
pub async fn receive_directory(
    root: &Path,
    mut messages: Streaming<v1::ImportMessage>,
) -> Result<Option<Running>, Status> {
    let failed = |error: std::io::Error| Status::internal(format!("{}: {error}", root.display()));
    let _ = fs::remove_dir_all(root);
    fs::create_dir_all(root).map_err(failed)?;
    let mut running = None;
    while let Some(message) = messages.message().await? {
        match message.message {
            Some(import_message::Message::Chunk(chunk)) if running.is_none() => write(root, &chunk)?,
            Some(import_message::Message::Running(wire)) if running.is_none() => {
                running = Some(Running {
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
    Ok(running)
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
