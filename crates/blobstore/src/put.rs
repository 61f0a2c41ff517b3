//! Creating an object exactly once.
//!
//! The request says "only if there is none" (`If-None-Match: *`). Its answer may be lost after it took effect, and some
//! stores answer 409 to a request that lost nothing. So each call draws an id, which every attempt of it leaves in
//! the object's metadata (`lakebed-put-id`); whenever an answer is not a plain success the object is looked at:
//!
//! | the object | means |
//! |---|---|
//! | carries this call's id | an earlier attempt took effect: done |
//! | has the same content | the same writer, before a restart, or one that agrees with it: done |
//! | has other content | another writer won |
//! | is not there | nothing took effect: try again |
//!
//! A directory keeps no metadata; there the content alone decides.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Attribute, AttributeValue, Attributes, GetOptions, ObjectStoreExt, PutMode, PutOptions};
use tokio::time::Instant;

use crate::{Attempt, BlobError, BlobStore};

const PUT_ID: &str = "lakebed-put-id";

/// Whose an object is.
enum Holder {
    Own,
    Other,
    Nobody,
}

impl BlobStore {
    /// Creates an object unless it exists. Succeeds too when it exists with the same bytes.
    ///
    /// # Errors
    /// [`BlobError::Exists`]: another writer won. Timeout or failure: unknown, repeat it with the same bytes.
    pub async fn put_if_absent(&self, path: &str, bytes: Bytes) -> Result<(), BlobError> {
        const OPERATION: &str = "put_if_absent";
        let place = Path::from(path);
        let id = format!("{:032x}", rand::random::<u128>());
        let deadline = Instant::now() + self.limits.deadline;
        for number in 1.. {
            let options = PutOptions {
                mode: PutMode::Create,
                attributes: self.stamp(&id),
                ..PutOptions::default()
            };
            let put = self.store.put_opts(&place, bytes.clone().into(), options);
            let attempt = match self.attempt(OPERATION, deadline, put).await {
                Attempt::Done(_) => break,
                Attempt::Final(error @ object_store::Error::AlreadyExists { .. }) => Attempt::Unclear(error),
                Attempt::Final(error) => return Err(self.final_error(OPERATION, path, error)),
                unclear => unclear,
            };
            self.metrics.ambiguous.inc();
            match self.holder(path, &id, &bytes).await? {
                Holder::Own => break,
                Holder::Other => return Err(BlobError::Exists(path.to_owned())),
                Holder::Nobody => {
                    self.before_next(OPERATION, path, deadline, number, attempt)
                        .await?;
                }
            }
        }
        self.metrics.written.inc_by(bytes.len() as u64);
        Ok(())
    }

    fn stamp(&self, id: &str) -> Attributes {
        let mut attributes = Attributes::new();
        if self.keeps_attributes {
            attributes.insert(put_id(), AttributeValue::from(id.to_owned()));
        }
        attributes
    }

    async fn holder(&self, path: &str, id: &str, bytes: &Bytes) -> Result<Holder, BlobError> {
        let place = Path::from(path);
        let looked = self.run("head", path, || {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            self.store.get_opts(&place, options)
        });
        let found = match looked.await {
            Ok(found) => found,
            Err(BlobError::NotFound(_)) => return Ok(Holder::Nobody),
            Err(error) => return Err(error),
        };
        if found
            .attributes
            .get(&put_id())
            .is_some_and(|value| value.as_ref() == id)
        {
            return Ok(Holder::Own);
        }
        if found.meta.size != bytes.len() as u64 {
            return Ok(Holder::Other);
        }
        let there = self.run("get", path, || async {
            self.store.get(&place).await?.bytes().await
        });
        match there.await {
            Ok(there) if there == bytes => Ok(Holder::Own),
            Ok(_) => Ok(Holder::Other),
            Err(BlobError::NotFound(_)) => Ok(Holder::Nobody),
            Err(error) => Err(error),
        }
    }
}

fn put_id() -> Attribute {
    Attribute::Metadata(PUT_ID.into())
}
