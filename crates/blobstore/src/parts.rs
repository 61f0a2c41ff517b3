//! Large objects, read and written in parts, so that memory is bounded whatever their size.
//!
//! A part is an attempt of its own, with its own time limit and retries, and [`AHEAD`] of them are under way for one object: it
//! takes [`AHEAD`] times [`PART_BYTES`] of memory.
//!
//! **Writing.** Up to [`PART_BYTES`] an object is written with one request. A larger one is begun, gets its parts in any order, and
//! appears, whole, when it is completed. An answer to that which was lost is unknown, so the object is looked at: one of the
//! right size is this writer's own, since nobody else uses its name. What fails before is aborted; if that fails too, or the
//! process dies, the parts lie in the store unseen, in no listing, until the bucket's rule for unfinished uploads removes them.
//! A directory has no such parts: the file is written beside, fsynced and renamed.
//!
//! **Reading.** Ranges, in order. An object that is shorter than it should be is said to be.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{GetOptions, MultipartId, MultipartUpload, ObjectStoreExt};
use tokio::time::Instant;

use crate::{Attempt, BlobError, BlobStore};

/// Bytes of one part. S3 wants at least 5 MiB and at most 10,000 parts of an object.
pub const PART_BYTES: u64 = 8 << 20;
/// Parts of one object under way.
const AHEAD: usize = 3;
/// Most parts of an object.
const MOST_PARTS: u64 = 9_000;

/// Of stores that have it.
#[derive(Clone)]
pub(crate) struct Multipart(pub(crate) Option<Arc<dyn MultipartStore>>);

impl std::fmt::Debug for Multipart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Multipart" } else { "None" })
    }
}

/// Ranges of at most `length` that make up `bytes`.
fn ranges(bytes: u64, length: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (0..bytes).step_by(usize::try_from(length).unwrap_or(usize::MAX));
    starts.map(move |start| start..bytes.min(start.saturating_add(length)))
}

impl BlobStore {
    /// The first `bytes` bytes of an object, in order, in parts.
    pub fn parts<'a>(
        &'a self,
        path: &'a str,
        bytes: u64,
    ) -> impl Stream<Item = Result<Bytes, BlobError>> + Send + 'a {
        let part = move |range: Range<u64>| async move {
            let (end, length) = (range.end, range.end - range.start);
            match self.get_range(path, range).await? {
                part if part.len() as u64 == length => Ok(part),
                _ => Err(BlobError::Short {
                    path: path.to_owned(),
                    end,
                }),
            }
        };
        futures::stream::iter(ranges(bytes, PART_BYTES))
            .map(part)
            .buffered(AHEAD)
    }

    /// Writes an object of `bytes` bytes, replacing it. Only for names that no other writer uses, and always with the same
    /// content. `read` gives a range of it, and may take its time.
    ///
    /// # Errors
    /// [`BlobError::Content`], timeout or failure of the store; repeat it.
    pub async fn put_large(
        &self,
        path: &str,
        bytes: u64,
        read: impl Fn(Range<u64>) -> io::Result<Bytes> + Send + Sync + 'static,
    ) -> Result<(), BlobError> {
        let read = Arc::new(read);
        let content = |range: Range<u64>| {
            let read = read.clone();
            async move {
                let done = tokio::task::spawn_blocking(move || read(range)).await;
                let bytes = done.map_err(io::Error::other).and_then(|read| read);
                bytes.map_err(|source| BlobError::Content {
                    path: path.to_owned(),
                    source,
                })
            }
        };
        if bytes <= PART_BYTES {
            return self.put(path, content(0..bytes).await?).await;
        }
        let length = PART_BYTES.max(bytes.div_ceil(MOST_PARTS));
        match &self.multipart.0 {
            Some(store) => {
                let place = Path::from(path);
                let id = self
                    .run("create_multipart", path, || store.create_multipart(&place))
                    .await?;
                let put = (0..).zip(ranges(bytes, length)).map(|(index, range)| {
                    let (content, id, place) = (&content, &id, &place);
                    async move {
                        let part = content(range).await?;
                        let put = || store.put_part(place, id, index, part.clone().into());
                        self.run("put_part", path, put).await
                    }
                });
                let parts: Result<Vec<PartId>, BlobError> =
                    futures::stream::iter(put).buffered(AHEAD).try_collect().await;
                let done = match parts {
                    Ok(parts) => self.complete(path, &id, parts, bytes).await,
                    Err(error) => Err(error),
                };
                if done.is_err() {
                    // The failure above is what counts.
                    let deadline = Instant::now() + self.limits.attempt;
                    let abort = store.abort_multipart(&place, &id);
                    self.attempt("abort_multipart", deadline, abort).await;
                }
                done?;
            }
            None => self.put_beside(path, ranges(bytes, length), content).await?,
        }
        self.metrics.written.inc_by(bytes);
        Ok(())
    }

    /// Makes parts an object.
    async fn complete(
        &self,
        path: &str,
        id: &MultipartId,
        parts: Vec<PartId>,
        bytes: u64,
    ) -> Result<(), BlobError> {
        const OPERATION: &str = "complete_multipart";
        let Some(store) = &self.multipart.0 else {
            return Ok(());
        };
        let (place, deadline) = (Path::from(path), Instant::now() + self.limits.deadline);
        for number in 1.. {
            let completing = store.complete_multipart(&place, id, parts.clone());
            let attempt = match self.attempt(OPERATION, deadline, completing).await {
                Attempt::Done(_) => break,
                unclear => unclear,
            };
            self.metrics.ambiguous.inc();
            if self.size(path).await? == Some(bytes) {
                break;
            }
            self.before_next(OPERATION, path, deadline, number, attempt)
                .await?;
        }
        Ok(())
    }

    /// The size of an object, if it exists.
    ///
    /// # Errors
    /// Timeout or failure of the store.
    pub async fn size(&self, path: &str) -> Result<Option<u64>, BlobError> {
        let place = Path::from(path);
        let looked = self.run("head", path, || {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            self.store.get_opts(&place, options)
        });
        match looked.await {
            Ok(found) => Ok(Some(found.meta.size)),
            Err(BlobError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file of a directory. A part that fails is not repeated: what a disk says is final.
    async fn put_beside<F: Future<Output = Result<Bytes, BlobError>>>(
        &self,
        path: &str,
        ranges: impl Iterator<Item = Range<u64>>,
        content: impl Fn(Range<u64>) -> F,
    ) -> Result<(), BlobError> {
        let place = Path::from(path);
        let mut upload = self
            .run("create_multipart", path, || self.store.put_multipart(&place))
            .await?;
        let done = async {
            for range in ranges {
                let part = content(range).await?;
                self.once("put_part", path, upload.put_part(part.into())).await?;
            }
            self.once("complete_multipart", path, upload.complete()).await
        };
        let done = done.await;
        if done.is_err() {
            // The failure above is what counts.
            let _ = upload.abort().await;
        }
        done.map(drop)
    }

    async fn once<T>(
        &self,
        operation: &'static str,
        path: &str,
        doing: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, BlobError> {
        let deadline = Instant::now() + self.limits.deadline;
        match self.attempt(operation, deadline, doing).await {
            Attempt::Done(value) => Ok(value),
            Attempt::Final(error) | Attempt::Unclear(error) => Err(self.final_error(operation, path, error)),
            Attempt::Silent => Err(self.timeout(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_everything_once() {
        for bytes in [0, 1, 7, 8, 9, 16, 17] {
            let all: Vec<u64> = ranges(bytes, 8).flatten().collect();
            assert_eq!(all, (0..bytes).collect::<Vec<_>>());
        }
    }
}
