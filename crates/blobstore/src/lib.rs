//! Object storage: what is durable beyond any one node.
//!
//! A wrapper around `object_store` with the few operations that the tier needs:
//! - [`BlobStore::put`] writes an object whose name is its writer's alone,
//! - [`BlobStore::put_if_absent`] decides between writers: the first one wins, and a repeated attempt of the same
//!   writer counts as the same attempt, because the answer to the first may have been lost,
//! - reads, of ranges too, listing and deletion,
//! - [`BlobStore::put_large`] and [`BlobStore::parts`] do the same with objects that are not to be in memory whole.
//!
//! Every call has a deadline, a bounded number of attempts and a bounded number of others beside it ([`Limits`]).
//! Retries are made here and not in the client library: it takes a timed-out write for failed, but it is *unknown*.
//! [`address`] says which stores there are, [`paths`] what is stored where.

pub mod address;
mod attempts;
mod metrics;
mod parts;
pub mod paths;
mod put;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use attempts::Limits;
use attempts::{Budget, pause};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
pub use metrics::Metrics;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutOptions};
pub use parts::PART_BYTES;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Why an operation on object storage did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such object.
    #[error("object {0} does not exist")]
    NotFound(String),
    /// Another writer created the object first.
    #[error("object {0} exists already with other content: another owner wrote it")]
    Exists(String),
    /// No answer in time; for a write it is unknown whether it happened.
    #[error("object storage did not answer within {within:?} for {path}")]
    Timeout {
        /// Object or prefix.
        path: String,
        /// The deadline.
        within: Duration,
    },
    /// The store or the way to it failed. For a write it is unknown whether it happened.
    #[error("object storage failed for {path}: {source}")]
    Store {
        /// Object or prefix.
        path: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// What was to be written could not be read.
    #[error("{path} was not written, for its content could not be read: {source}")]
    Content {
        /// Object.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The object ends before it should.
    #[error("object {path} is damaged: it ends before byte {end}")]
    Short {
        /// Object.
        path: String,
        /// What was asked for ends here.
        end: u64,
    },
    /// The configured address is not one.
    #[error("`{address}` is no object store: {reason}")]
    Address {
        /// As configured.
        address: String,
        /// Why not.
        reason: String,
    },
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its whole path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the store's clock, in seconds since 1970.
    pub written_unix_s: i64,
}

impl Listed {
    fn of(meta: ObjectMeta) -> Listed {
        Listed {
            path: meta.location.to_string(),
            bytes: meta.size,
            written_unix_s: meta.last_modified.timestamp(),
        }
    }
}

/// A handle to object storage. Cheap to clone; clones share limits and counters.
#[derive(Clone, Debug)]
pub struct BlobStore {
    store: Arc<dyn ObjectStore>,
    multipart: parts::Multipart,
    keeps_attributes: bool,
    limits: Limits,
    turns: Arc<Semaphore>,
    budget: Arc<Budget>,
    metrics: Metrics,
}

/// What one attempt came to.
enum Attempt<T> {
    Done(T),
    /// A clear answer, which another attempt would only get again.
    Final(object_store::Error),
    /// No answer, or one that says nothing about what happened.
    Unclear(object_store::Error),
    /// Not even that, within the time of an attempt.
    Silent,
}

impl BlobStore {
    /// Opens the store at an [`address`].
    ///
    /// # Errors
    /// [`BlobError::Address`].
    pub fn open(address: &str) -> Result<BlobStore, BlobError> {
        BlobStore::open_with(address, Limits::default())
    }

    /// As [`BlobStore::open`], with other limits.
    ///
    /// # Errors
    /// [`BlobError::Address`].
    pub fn open_with(address: &str, limits: Limits) -> Result<BlobStore, BlobError> {
        BlobStore::open_as(address, limits, std::env::vars())
    }

    /// As [`BlobStore::open_with`], with what an S3 client finds in its environment (`AWS_…`) given here.
    ///
    /// # Errors
    /// [`BlobError::Address`].
    pub fn open_as(
        address: &str,
        limits: Limits,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<BlobStore, BlobError> {
        let environment: Vec<_> = environment.into_iter().collect();
        Ok(BlobStore::of(
            address::open(address, &limits, &environment)?,
            limits,
        ))
    }

    /// Over a store that the caller made, which keeps attributes of objects and writes large ones whole.
    pub fn over(store: Arc<dyn ObjectStore>, limits: Limits) -> BlobStore {
        let opened = address::Opened {
            store,
            multipart: None,
            keeps_attributes: true,
        };
        BlobStore::of(opened, limits)
    }

    fn of(opened: address::Opened, limits: Limits) -> BlobStore {
        BlobStore {
            store: opened.store,
            multipart: parts::Multipart(opened.multipart),
            keeps_attributes: opened.keeps_attributes,
            limits,
            turns: Arc::new(Semaphore::new(limits.concurrency)),
            budget: Arc::default(),
            metrics: Metrics::default(),
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes an object, replacing it. Only for names that no other writer uses.
    ///
    /// # Errors
    /// Timeout or failure of the store; repeat it.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), BlobError> {
        let place = Path::from(path);
        self.run("put", path, || {
            self.store
                .put_opts(&place, bytes.clone().into(), PutOptions::default())
        })
        .await?;
        self.metrics.written.inc_by(bytes.len() as u64);
        Ok(())
    }

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], timeout or failure of the store.
    pub async fn get(&self, path: &str) -> Result<Bytes, BlobError> {
        let place = Path::from(path);
        let bytes = self
            .run("get", path, || async {
                self.store.get(&place).await?.bytes().await
            })
            .await?;
        self.metrics.read.inc_by(bytes.len() as u64);
        Ok(bytes)
    }

    /// Reads bytes of an object. What lies past its end is not returned; the caller checks the length.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], timeout or failure of the store, also when the range begins past the end.
    pub async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, BlobError> {
        let place = Path::from(path);
        let bytes = self
            .run("get_range", path, || self.store.get_range(&place, range.clone()))
            .await?;
        self.metrics.read.inc_by(bytes.len() as u64);
        Ok(bytes)
    }

    /// Copies an object inside the store, whose bytes do not pass through here. What is there under the new name is replaced,
    /// so only for names under which nothing else is ever written.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], timeout or failure of the store; repeat it.
    pub async fn copy(&self, from: &str, to: &str) -> Result<(), BlobError> {
        let (source, target) = (Path::from(from), Path::from(to));
        self.run("copy", from, || self.store.copy(&source, &target)).await
    }

    /// Names of all objects whose path begins with this directory.
    ///
    /// # Errors
    /// Timeout or failure of the store.
    pub async fn list(&self, directory: &str) -> Result<Vec<String>, BlobError> {
        let listed = self.list_objects(directory).await?;
        Ok(listed.into_iter().map(|object| object.path).collect())
    }

    /// All objects whose path begins with this directory, in no order.
    ///
    /// # Errors
    /// Timeout or failure of the store.
    pub async fn list_objects(&self, directory: &str) -> Result<Vec<Listed>, BlobError> {
        let prefix = Path::from(directory);
        self.run("list", directory, || {
            let objects = self.store.list(Some(&prefix));
            objects.map_ok(Listed::of).try_collect()
        })
        .await
    }

    /// Objects of a directory whose paths sort behind `after`, in no order. Where the store can begin there, the others cost
    /// nothing.
    ///
    /// # Errors
    /// Timeout or failure of the store.
    pub async fn list_after(&self, directory: &str, after: &str) -> Result<Vec<Listed>, BlobError> {
        let (prefix, after) = (Path::from(directory), Path::from(after));
        self.run("list", directory, || {
            let objects = self.store.list_with_offset(Some(&prefix), &after);
            objects.map_ok(Listed::of).try_collect()
        })
        .await
    }

    /// Deletes an object; one that does not exist counts as deleted.
    ///
    /// # Errors
    /// Timeout or failure of the store.
    pub async fn delete(&self, path: &str) -> Result<(), BlobError> {
        self.delete_all(vec![path.to_owned()]).await
    }

    /// Deletes objects, many with one request where the store can do that. Those that do not exist count as deleted.
    ///
    /// # Errors
    /// Timeout or failure of the store: some may be deleted. Repeat it.
    pub async fn delete_all(&self, paths: Vec<String>) -> Result<(), BlobError> {
        let name = paths.first().cloned().unwrap_or_default();
        self.run("delete", &name, || {
            let places: Vec<_> = paths.iter().map(|path| Ok(Path::from(path.as_str()))).collect();
            let mut deleting = self.store.delete_stream(futures::stream::iter(places).boxed());
            async move {
                while let Some(deleted) = deleting.next().await {
                    match deleted {
                        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        })
        .await
    }

    /// Makes attempts until one has a clear answer. Only for what may be done twice.
    async fn run<T, F>(
        &self,
        operation: &'static str,
        path: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, BlobError>
    where
        F: Future<Output = Result<T, object_store::Error>>,
    {
        let deadline = Instant::now() + self.limits.deadline;
        for number in 1.. {
            match self.attempt(operation, deadline, attempt()).await {
                Attempt::Done(value) => return Ok(value),
                Attempt::Final(error) => return Err(self.final_error(operation, path, error)),
                unclear => {
                    self.before_next(operation, path, deadline, number, unclear)
                        .await?
                }
            }
        }
        Err(self.timeout(path))
    }

    /// One attempt, once it is its turn.
    async fn attempt<T>(
        &self,
        operation: &'static str,
        deadline: Instant,
        attempt: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Attempt<T> {
        let Ok(Ok(_turn)) = tokio::time::timeout_at(deadline, self.turns.acquire()).await else {
            return Attempt::Silent;
        };
        let begin = Instant::now();
        let until = deadline.min(begin + self.limits.attempt);
        let done = tokio::time::timeout_at(until, attempt).await;
        self.metrics.attempt(operation, begin.elapsed());
        match done {
            Ok(Ok(value)) => {
                self.budget.earn();
                Attempt::Done(value)
            }
            Ok(Err(error)) if is_final(&error) => Attempt::Final(error),
            Ok(Err(error)) => Attempt::Unclear(error),
            Err(_) => Attempt::Silent,
        }
    }

    /// Waits before the next attempt, or says why there is none.
    async fn before_next<T>(
        &self,
        operation: &'static str,
        path: &str,
        deadline: Instant,
        number: u32,
        attempt: Attempt<T>,
    ) -> Result<(), BlobError> {
        let wait = pause(number, rand::random());
        let may = number < self.limits.attempts && Instant::now() + wait < deadline && self.budget.take();
        if !may {
            self.metrics.failure(operation);
            return Err(match attempt {
                Attempt::Final(source) | Attempt::Unclear(source) => BlobError::Store {
                    path: path.to_owned(),
                    source,
                },
                Attempt::Done(_) | Attempt::Silent => self.timeout(path),
            });
        }
        if let Attempt::Unclear(error) = &attempt {
            tracing::debug!(operation, path, number, %error, "object storage failed; trying again");
        }
        self.metrics.retry(operation);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn timeout(&self, path: &str) -> BlobError {
        BlobError::Timeout {
            path: path.to_owned(),
            within: self.limits.deadline,
        }
    }

    fn final_error(&self, operation: &'static str, path: &str, source: object_store::Error) -> BlobError {
        let path = path.to_owned();
        match source {
            object_store::Error::NotFound { .. } => BlobError::NotFound(path),
            object_store::Error::AlreadyExists { .. } => BlobError::Exists(path),
            source => {
                self.metrics.failure(operation);
                BlobError::Store { path, source }
            }
        }
    }
}

/// Whether another attempt would get the same answer. All else may be a store that is overloaded or out of reach.
fn is_final(error: &object_store::Error) -> bool {
    use object_store::Error;
    matches!(
        error,
        Error::NotFound { .. }
            | Error::AlreadyExists { .. }
            | Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::Precondition { .. }
            | Error::NotModified { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::UnknownConfigurationKey { .. }
    )
}

#[cfg(test)]
mod tests;
