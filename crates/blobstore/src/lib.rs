//! Object storage: what is durable beyond any one node.
//!
//! A thin wrapper around `object_store` with the few operations that the tier needs:
//! - [`BlobStore::put`] writes an object whose name is its writer's alone,
//! - [`BlobStore::put_if_absent`] decides between writers: the first one wins, and a repeated attempt of the same
//!   writer (same bytes) counts as the same attempt, because the answer to the first may have been lost,
//! - reads, listing and deletion.
//!
//! Every call has a deadline. [`paths`] says what is stored where.

pub mod paths;

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

/// How long one operation may take, retries of the client library included.
pub const DEADLINE: Duration = Duration::from_secs(60);

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
    #[error("object storage did not answer within {DEADLINE:?} for {0}")]
    Timeout(String),
    /// The store or the way to it failed.
    #[error("object storage failed for {path}: {source}")]
    Store {
        /// Object or prefix.
        path: String,
        /// What the store said.
        source: object_store::Error,
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

/// A handle to object storage. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobStore {
    store: std::sync::Arc<dyn ObjectStore>,
}

impl BlobStore {
    /// Opens the store at an address: `file:///absolute/directory` (created when missing) or `memory:` (tests).
    ///
    /// # Errors
    /// [`BlobError::Address`].
    pub fn open(address: &str) -> Result<BlobStore, BlobError> {
        let failed = |reason: String| BlobError::Address {
            address: address.to_owned(),
            reason,
        };
        if address == "memory:" {
            return Ok(BlobStore {
                store: std::sync::Arc::new(InMemory::new()),
            });
        }
        let url = url::Url::parse(address).map_err(|error| failed(error.to_string()))?;
        if url.scheme() != "file" {
            return Err(failed("only file:///directory is supported so far".to_owned()));
        }
        let directory = url
            .to_file_path()
            .map_err(|()| failed("the path is not absolute".to_owned()))?;
        std::fs::create_dir_all(&directory).map_err(|error| failed(error.to_string()))?;
        let store =
            LocalFileSystem::new_with_prefix(&directory).map_err(|error| failed(error.to_string()))?;
        Ok(BlobStore {
            store: std::sync::Arc::new(store.with_fsync(true)),
        })
    }

    /// Writes an object, replacing it. Only for names that no other writer uses.
    ///
    /// # Errors
    /// Timeout or failure of the store; repeat it.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), BlobError> {
        self.run(path, self.store.put(&Path::from(path), bytes.into()))
            .await
            .map(|_| ())
    }

    /// Creates an object unless it exists. Succeeds too when it exists with the same bytes.
    ///
    /// # Errors
    /// [`BlobError::Exists`]: another writer won. Timeout: unknown, repeat it with the same bytes.
    pub async fn put_if_absent(&self, path: &str, bytes: Bytes) -> Result<(), BlobError> {
        let options = PutOptions::from(PutMode::Create);
        let place = Path::from(path);
        match self
            .run(path, self.store.put_opts(&place, bytes.clone().into(), options))
            .await
        {
            Err(BlobError::Store {
                source: object_store::Error::AlreadyExists { .. },
                ..
            }) => {
                if self.get(path).await? == bytes {
                    Ok(())
                } else {
                    Err(BlobError::Exists(path.to_owned()))
                }
            }
            other => other.map(|_| ()),
        }
    }

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], timeout or failure of the store.
    pub async fn get(&self, path: &str) -> Result<Bytes, BlobError> {
        let place = Path::from(path);
        self.run(path, async { self.store.get(&place).await?.bytes().await })
            .await
    }

    /// Names of all objects whose path begins with this directory.
    ///
    /// # Errors
    /// Timeout or failure of the store.
    pub async fn list(&self, directory: &str) -> Result<Vec<String>, BlobError> {
        let prefix = Path::from(directory);
        let listing = self
            .store
            .list(Some(&prefix))
            .map_ok(|meta| meta.location.to_string());
        self.run(directory, listing.try_collect()).await
    }

    /// Deletes an object; one that does not exist counts as deleted.
    ///
    /// # Errors
    /// Timeout or failure of the store.
    pub async fn delete(&self, path: &str) -> Result<(), BlobError> {
        match self.run(path, self.store.delete(&Path::from(path))).await {
            Err(BlobError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    async fn run<T>(
        &self,
        path: &str,
        operation: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, BlobError> {
        match tokio::time::timeout(DEADLINE, operation).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(object_store::Error::NotFound { .. })) => Err(BlobError::NotFound(path.to_owned())),
            Ok(Err(source)) => Err(BlobError::Store {
                path: path.to_owned(),
                source,
            }),
            Err(_) => Err(BlobError::Timeout(path.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_writer_wins_and_may_repeat_itself() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&format!("file://{}", dir.path().display())).unwrap();
        store
            .put_if_absent("a/b/1", Bytes::from_static(b"one"))
            .await
            .unwrap();
        store
            .put_if_absent("a/b/1", Bytes::from_static(b"one"))
            .await
            .unwrap();
        let other = store.put_if_absent("a/b/1", Bytes::from_static(b"two")).await;
        assert!(matches!(other, Err(BlobError::Exists(_))));
        assert_eq!(store.get("a/b/1").await.unwrap(), "one");
        assert_eq!(store.list("a").await.unwrap(), ["a/b/1"]);
        store.delete("a/b/1").await.unwrap();
        store.delete("a/b/1").await.unwrap();
        assert!(matches!(store.get("a/b/1").await, Err(BlobError::NotFound(_))));
    }

    #[test]
    fn a_wrong_address_is_said_clearly() {
        let error = BlobStore::open("s4://bucket").unwrap_err().to_string();
        assert_eq!(
            error,
            "`s4://bucket` is no object store: only file:///directory is supported so far"
        );
    }
}
