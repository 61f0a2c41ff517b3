//! Every byte of a layer is read and checked.
//!
//! A layer goes into a temporary file, in parts, so that memory is bounded whatever its size.

use std::io::Write;

use futures::StreamExt;
use lakebed_blobstore::{BlobError, BlobStore};
use lakebed_layer::LayerId;
use lakebed_layer::format::{LayerReader, ReadError};
use lakebed_pageserver::local_file::LocalFile;

use crate::ScrubError;
use crate::names::Directory;
use crate::report::{Finding, Kind, Report};
use crate::stored::Stored;

/// Looks at all layers that a manifest names and that are there with the right size.
pub(crate) async fn layers(
    store: &BlobStore,
    directory: &Directory,
    stored: &Stored,
    report: &mut Report,
    findings: &mut Vec<Finding>,
) -> Result<(), ScrubError> {
    for (id, bytes) in stored.named() {
        let path = directory.layer(id);
        if stored.layers.get(&id).is_none_or(|listed| listed.bytes != bytes) {
            continue;
        }
        let what = match layer(store, &path, (id, bytes)).await {
            Ok(()) => {
                report.checked_bytes += bytes;
                continue;
            }
            Err(Failed::Damaged(what)) => what,
            // It was there when it was listed: an owner deletes it with the manifests that name it.
            Err(Failed::Gone) => continue,
            Err(Failed::Scrub(error)) => return Err(error),
        };
        findings.push(Finding {
            kind: Kind::Damaged,
            path,
            what,
        });
    }
    Ok(())
}

enum Failed {
    Damaged(String),
    Gone,
    Scrub(ScrubError),
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Failed {
        Failed::Scrub(error.into())
    }
}

async fn layer(store: &BlobStore, path: &str, (id, bytes): (LayerId, u64)) -> Result<(), Failed> {
    let mut file = tempfile::tempfile()?;
    let mut parts = std::pin::pin!(store.parts(path, bytes));
    while let Some(part) = parts.next().await {
        match part {
            Ok(part) => file.write_all(&part)?,
            Err(BlobError::NotFound(_)) => return Err(Failed::Gone),
            Err(error @ BlobError::Short { .. }) => return Err(Failed::Damaged(error.to_string())),
            Err(error) => return Err(Failed::Scrub(error.into())),
        }
    }
    let verify = move || LayerReader::open(LocalFile::from(file), id, bytes)?.verify();
    let verified = tokio::task::spawn_blocking(verify).await;
    match verified.map_err(std::io::Error::other)? {
        Ok(()) => Ok(()),
        Err(ReadError::Damaged(damage)) => Err(Failed::Damaged(damage.to_string())),
        Err(ReadError::Io { source, .. }) => Err(source.into()),
    }
}
