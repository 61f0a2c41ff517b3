//! One timeline's WAL in object storage, to be read.
//!
//! A reader keeps a listing and the object that it read last, so that reading on from one place to the next fetches each
//! object once. When an object has gone meanwhile (parts go when a whole segment is there) it lists again.

use bytes::Bytes;
use lakebed_blobstore::{BlobError, BlobStore};
use lakebed_quorum::acceptor::Durable;
use lakebed_types::{Lsn, TenantId, TimelineId};
use lakebed_walframe::Object;

use super::BackupError;
use super::objects::{WalObject, chain, directory};
use crate::control_file::{self, ControlFileError};

/// See the module header.
#[derive(Clone, Debug)]
pub struct Archive {
    store: BlobStore,
    directory: String,
}

impl Archive {
    /// The WAL of a timeline in this store.
    pub fn new(store: BlobStore, (tenant, timeline): (TenantId, TimelineId)) -> Archive {
        Archive {
            store,
            directory: directory(tenant, timeline),
        }
    }

    /// The store.
    pub fn store(&self) -> &BlobStore {
        &self.store
    }

    /// Where an object is.
    pub fn path(&self, object: &WalObject) -> String {
        format!("{}/{}", self.directory, object.name())
    }

    /// All objects with the times at which they were written, in seconds since 1970.
    ///
    /// # Errors
    /// Object storage.
    pub async fn list(&self) -> Result<Vec<(WalObject, i64)>, BackupError> {
        let listed = self.store.list_objects(&self.directory).await?;
        let parsed = listed.iter();
        Ok(parsed
            .filter_map(|entry| Some((WalObject::parse(&entry.path)?, entry.written_unix_s)))
            .collect())
    }

    /// Fetches an object and checks it.
    ///
    /// # Errors
    /// Object storage, or what it returned.
    pub async fn fetch(&self, object: &WalObject) -> Result<Object, BackupError> {
        let path = self.path(object);
        let bytes = self.store.get(&path).await?;
        let damaged = |source| BackupError::Frame {
            path: path.clone(),
            source,
        };
        let opened = Object::open(bytes).map_err(damaged)?;
        if (opened.header.begin, opened.header.end) != (object.begin, object.end) {
            return Err(damaged(lakebed_walframe::FrameError::Damaged(
                "its name says another range",
            )));
        }
        Ok(opened)
    }

    /// Reads from `at` on: the rest of the frame that holds it. Its first byte is `at`.
    ///
    /// # Errors
    /// [`BackupError::Gap`] when object storage does not have it; object storage, or what it returned.
    pub async fn read(&self, reader: &mut Reader, at: Lsn) -> Result<Bytes, BackupError> {
        if !reader.holds(at) {
            reader.object = Some(self.object_at(at).await?);
        }
        let Some((name, object)) = &reader.object else {
            return Err(gap(at, "nothing"));
        };
        let entry = object.index.frames(at, Lsn(at.0 + 1)).first().copied();
        let entry = entry.ok_or_else(|| gap(at, &name.name()))?;
        let frame = object.frame(&entry).map_err(|source| BackupError::Frame {
            path: self.path(name),
            source,
        })?;
        let skip = at.0.checked_sub(frame.header.begin.0).map(|skip| skip as usize);
        let rest = skip
            .and_then(|skip| frame.wal.get(skip..))
            .filter(|rest| !rest.is_empty());
        rest.map(Bytes::copy_from_slice)
            .ok_or_else(|| gap(at, &name.name()))
    }

    /// What the writer of the object that holds the WAL at `at` knew about the timeline, and where that object ends.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub async fn state_at(&self, reader: &mut Reader, at: Lsn) -> Result<(Durable, Lsn), BackupError> {
        if !reader.holds(at) {
            reader.object = Some(self.object_at(at).await?);
        }
        let Some((name, object)) = &reader.object else {
            return Err(gap(at, "nothing"));
        };
        let state = control_file::decode(&object.index.state);
        let state = state.ok_or(ControlFileError::Damaged("the state that came with an object"))?;
        Ok((state, name.end))
    }

    async fn object_at(&self, at: Lsn) -> Result<(WalObject, Object), BackupError> {
        for last in [false, true] {
            let listed = self.list().await?;
            let objects: Vec<WalObject> = listed.into_iter().map(|(object, _)| object).collect();
            let found = chain(at, objects.iter()).first().copied();
            let Some(found) = found else {
                return Err(gap(at, &reach(&objects)));
            };
            match self.fetch(&found).await {
                Ok(object) => return Ok((found, object)),
                Err(BackupError::Blob(BlobError::NotFound(_))) if !last => {}
                Err(error) => return Err(error),
            }
        }
        Err(gap(at, "objects that come and go"))
    }

    /// Where a decoder can begin that is to find the last boundary at or below `at`: the start of the frame that holds
    /// the byte before.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub async fn boundary_before(&self, reader: &mut Reader, at: Lsn) -> Result<Lsn, BackupError> {
        let before = Lsn(at.0.saturating_sub(1));
        if !reader.holds(before) {
            reader.object = Some(self.object_at(before).await?);
        }
        let Some((name, object)) = &reader.object else {
            return Err(gap(at, "nothing"));
        };
        // Back over the pieces of a record that is longer than a frame.
        for entry in object.index.frames(name.begin, at).iter().rev() {
            let frame = object.frame(entry).map_err(|source| BackupError::Frame {
                path: self.path(name),
                source,
            })?;
            if !frame.header.inside_record {
                return Ok(frame.header.begin);
            }
        }
        Err(gap(at, &name.name()))
    }
}

/// What a reader of an [`Archive`] read last.
#[derive(Debug, Default)]
pub struct Reader {
    object: Option<(WalObject, Object)>,
}

impl Reader {
    fn holds(&self, at: Lsn) -> bool {
        self.object
            .as_ref()
            .is_some_and(|(object, _)| (object.begin..object.end).contains(&at))
    }
}

fn gap(at: Lsn, why: &str) -> BackupError {
    BackupError::Gap {
        at,
        why: format!("it has {why}"),
    }
}

/// What objects reach over, in words.
pub(super) fn reach(objects: &[WalObject]) -> String {
    let (begin, end) = (
        objects.iter().map(|object| object.begin).min(),
        objects.iter().map(|object| object.end).max(),
    );
    match (begin, end) {
        (Some(begin), Some(end)) => format!("{} objects between {begin} and {end}", objects.len()),
        _ => "no WAL of this timeline".to_owned(),
    }
}
