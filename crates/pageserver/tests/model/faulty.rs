//! Object storage as one owner sees it. It fails now and then, before or after the effect; and at a chosen call the owner
//! dies: from then on nothing that it does has an effect.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lakebed_blobstore::{BlobStore, Limits};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::records::Numbers;
use crate::sabotage::Sabotage;

/// What goes wrong.
pub struct Faults {
    pub numbers: Numbers,
    /// Of a thousand calls, so many fail.
    pub failing: u64,
    /// After so many calls the owner dies.
    pub dies_in: Option<u64>,
    pub dead: bool,
    pub sabotage: Option<Sabotage>,
    /// An object that is not listed.
    pub hidden: Option<Path>,
}

impl Faults {
    /// Whether an error of an operation says nothing.
    pub fn excuse(&self) -> bool {
        self.dead || self.failing > 0 || self.dies_in.is_some()
    }

    fn fate(&mut self) -> Fate {
        let after = self.numbers.below(2) == 0;
        let fails = match after {
            true => Fate::FailsAfter,
            false => Fate::FailsBefore,
        };
        if self.dead {
            return Fate::FailsBefore;
        }
        if let Some(left) = self.dies_in.as_mut() {
            if *left == 0 {
                self.dead = true;
                return fails;
            }
            *left -= 1;
        }
        match self.numbers.below(1000) < self.failing {
            true => fails,
            false => Fate::Works,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Works,
    FailsBefore,
    FailsAfter,
}

fn failure() -> Error {
    Error::Generic {
        store: "faulty",
        source: "as the seed wants".into(),
    }
}

/// See the module header.
#[derive(Clone)]
pub struct Faulty {
    pub inner: Arc<InMemory>,
    pub faults: Arc<Mutex<Faults>>,
}

impl Faulty {
    pub fn store(&self) -> BlobStore {
        let limits = Limits {
            attempts: 1,
            ..Limits::default()
        };
        BlobStore::over(Arc::new(self.clone()), limits)
    }

    fn fate(&self) -> Fate {
        self.faults.lock().unwrap().fate()
    }

    /// Whether a sabotage is at work.
    fn does(&self, sabotage: Sabotage) -> bool {
        self.faults.lock().unwrap().sabotage == Some(sabotage)
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        // Takes a while, so that who waits for it may be stopped then.
        tokio::task::yield_now().await;
        let fate = self.fate();
        if fate == Fate::FailsBefore {
            return Err(failure());
        }
        let is = |kind: &str| location.as_ref().contains(kind);
        if is("/layers/") && self.does(Sabotage::LostLayer)
            || is("/manifests/") && self.does(Sabotage::LostManifest)
        {
            return Ok(PutResult {
                e_tag: None,
                version: None,
                extensions: Default::default(),
            });
        }
        let put = self.inner.put_opts(location, payload, opts).await;
        match fate {
            Fate::Works => put,
            _ => Err(failure()),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        tokio::task::yield_now().await;
        match self.fate() {
            Fate::Works => self.inner.get_opts(location, options).await,
            _ => Err(failure()),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |location: Result<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                let fate = this.fate();
                if fate == Fate::FailsBefore {
                    return Err(failure());
                }
                let one = futures::stream::iter([Ok(location)]).boxed();
                let done = this.inner.delete_stream(one).try_collect::<Vec<_>>().await;
                match (fate, done) {
                    (Fate::Works, Ok(mut done)) => done.pop().ok_or_else(failure),
                    (Fate::Works, Err(error)) => Err(error),
                    _ => Err(failure()),
                }
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.fate() != Fate::Works {
            return futures::stream::iter([Err(failure())]).boxed();
        }
        let hidden = self.faults.lock().unwrap().hidden.clone();
        let seen = move |meta: &ObjectMeta| std::future::ready(Some(&meta.location) != hidden.as_ref());
        self.inner.list(prefix).try_filter(seen).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
