//! The manifest: what a shard's timeline consists of, as a small immutable object.
//!
//! Each change writes a new one, `<generation>-<sequence>`, created with put-if-absent; the highest is current. An
//! owner with a lower generation can still write, but nobody reads what it writes.
//!
//! **What is in an object**: the CRC32C of the rest as eight hexadecimal digits, a line feed, and JSON: a whole [`Manifest`], or
//! ([`Object::Following`]) what it has other than an earlier one of the same generation, so that a commit costs what it changes
//! and not what there is. [`log`] chooses. The first object of a generation is whole.
//!
//! **Taking over** ([`claim`]): the new owner stores what it found under its own generation, then lists again: the owner
//! before may have gone on between the first look and that. An owner lists after each manifest that it stores, and stops when
//! there is a higher generation. So of two owners at least one sees the other: either the earlier one stops before it
//! deletes anything, or the new one begins with its last manifest.
//!
//! **Old manifests** are kept for a while, and with them the layers that they name: who lost WAL deletes manifests that are
//! ahead of it, and the one before is current again.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lakebed_blobstore::{BlobError, BlobStore, Listed, paths};
use lakebed_layer::{LayerId, LayerMap};
use lakebed_types::{Generation, Lsn, PageKey, PgVersion, ShardIdentity, TenantId, TimelineId};
use serde::{Deserialize, Serialize};

pub mod change;
pub mod log;

use change::Change;
use log::Following;

/// Newest format that this version reads, and the one that it writes. 3: leases; 4: differences.
pub const FORMAT: u32 = 4;
/// Oldest format that this version reads.
const OLDEST_FORMAT: u32 = 2;

/// The WAL's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// `system_identifier` of the control file.
    pub system_identifier: u64,
    /// Major version of Postgres.
    pub postgres_major: PgVersion,
    /// Bytes of a WAL segment.
    pub wal_segment_bytes: u32,
    /// Its pages carry checksums. An attachment from before there was this field is of a cluster without.
    #[serde(default)]
    pub data_checksums: bool,
}

/// Where a branch hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent timeline.
    pub timeline: TimelineId,
    /// The branch point: a record boundary of the parent.
    pub lsn: Lsn,
}

/// A layer that this manifest does not name and that earlier ones did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// The layer.
    pub layer: LayerId,
    /// Generation and sequence of the first manifest without it: once all before that are deleted, it may be too.
    pub since: (Generation, u64),
}

/// A shard's timeline as object storage knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Whose WAL it is.
    pub cluster: Cluster,
    /// Parent of a branch.
    pub parent: Option<Parent>,
    /// First LSN of the timeline's own history.
    pub start: Lsn,
    /// First LSN that may be read, when that is after the start.
    pub consistent: Lsn,
    /// Everything up to here is in the layers.
    pub disk_consistent: Lsn,
    /// Its layers: the timeline's own map, not a copy, since there may be many and most manifests change few.
    #[serde(with = "shared_map")]
    pub map: Arc<LayerMap>,
    /// Layers whose objects are still to be deleted.
    pub gone: Vec<Gone>,
    /// Branches that hang here, and where: these LSNs stay readable.
    pub branches: BTreeMap<TimelineId, Lsn>,
    /// Below this LSN only single LSNs can be read.
    pub horizon: Lsn,
    /// LSNs below it that somebody may read as long as the lease is renewed.
    #[serde(default)]
    pub leases: Vec<KeptLease>,
    /// While a branch is being detached: the layers have a base of every page below this one, so that nothing of them is
    /// read from the parent any more. Not written where it is none.
    #[serde(
        with = "lakebed_layer::key_text::maybe",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub based: Option<PageKey>,
}

/// A map that is held by several, as text: as if it were one's own.
mod shared_map {
    use std::sync::Arc;

    use lakebed_layer::LayerMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(map: &Arc<LayerMap>, out: S) -> Result<S::Ok, S::Error> {
        map.as_ref().serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Arc<LayerMap>, D::Error> {
        LayerMap::deserialize(input).map(Arc::new)
    }
}

/// A lease of an LSN below the horizon. Others need not be remembered: nothing they need was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptLease {
    /// The LSN.
    pub lsn: Lsn,
    /// Who reads there.
    pub holder: String,
}

/// Why there is no usable manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Object storage failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Another node owns the shard now.
    #[error(
        "generation {found} has written a manifest of {directory}; this node has generation {own} and must not go on"
    )]
    Superseded {
        /// The timeline's directory.
        directory: String,
        /// Generation of the newest manifest.
        found: Generation,
        /// Own generation.
        own: Generation,
    },
    /// The object is whole, and one that it builds on is not.
    #[error("manifest {path} builds on {base}, which is not there or is damaged: restore that object")]
    BaseLost {
        /// The object.
        path: String,
        /// Name of the other one, in the same directory.
        base: String,
    },
    /// The object is not what it should be.
    #[error("manifest {path}: {reason}")]
    Damaged {
        /// The object.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where the manifests of a shard's timeline are.
#[derive(Clone, Debug)]
pub struct Place {
    store: BlobStore,
    timeline: TimelineId,
    /// The timeline's directory.
    directory: String,
}

/// Generation and sequence: the order of manifests.
pub type Version = (Generation, u64);

impl Place {
    /// Of a shard's timeline.
    pub fn new(store: &BlobStore, tenant: TenantId, shard: ShardIdentity, timeline: TimelineId) -> Place {
        Place::in_directory(store, timeline, paths::timeline(tenant, shard, timeline))
    }

    /// Of what a directory of object storage holds.
    pub fn in_directory(store: &BlobStore, timeline: TimelineId, directory: String) -> Place {
        Place {
            store: store.clone(),
            timeline,
            directory,
        }
    }

    /// The timeline.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The current manifest; `None` when the timeline was never stored.
    ///
    /// # Errors
    /// See [`Place::current`]; or it is damaged.
    pub async fn latest(&self, own: Generation) -> Result<Option<Manifest>, ManifestError> {
        match self.current(own).await? {
            Some(version) => self.read(version).await.map(Some),
            None => Ok(None),
        }
    }

    /// The timeline's directory in object storage.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    fn path(&self, (generation, sequence): Version) -> String {
        let name = paths::manifest_name(generation, sequence);
        format!("{}/{}/{name}", self.directory, paths::MANIFESTS)
    }

    /// All manifests, oldest first.
    ///
    /// # Errors
    /// Object storage's.
    pub async fn list(&self) -> Result<Vec<(Version, Listed)>, ManifestError> {
        let listed = self
            .store
            .list_objects(&format!("{}/{}", self.directory, paths::MANIFESTS))
            .await?;
        let version = |listed: Listed| Some((paths::parse_manifest(&listed.path)?, listed));
        let mut all: Vec<_> = listed.into_iter().filter_map(version).collect();
        all.sort_by_key(|(version, _)| *version);
        Ok(all)
    }

    /// The version of the current manifest; `None` when the timeline was never stored.
    ///
    /// # Errors
    /// [`ManifestError::Superseded`] when it is of a higher generation than `own`, or object storage's.
    pub async fn current(&self, own: Generation) -> Result<Option<Version>, ManifestError> {
        let newest = self.list().await?.pop().map(|(version, _)| version);
        match newest {
            Some((found, _)) if found > own => Err(ManifestError::Superseded {
                directory: self.directory.clone(),
                found,
                own,
            }),
            newest => Ok(newest),
        }
    }

    /// The highest version above `version`, if there is one.
    ///
    /// # Errors
    /// Object storage's.
    pub async fn newer_than(&self, version: Version) -> Result<Option<Version>, ManifestError> {
        let manifests = format!("{}/{}", self.directory, paths::MANIFESTS);
        let listed = self.store.list_after(&manifests, &self.path(version)).await?;
        let found = listed
            .iter()
            .filter_map(|listed| paths::parse_manifest(&listed.path));
        Ok(found.max())
    }

    async fn object(&self, version: Version) -> Result<Object, ManifestError> {
        let path = self.path(version);
        parse(&path, &self.store.get(&path).await?)
    }

    /// Reads a manifest, through all that it follows.
    ///
    /// # Errors
    /// Object storage's; or one of the objects is damaged or lost.
    pub async fn read(&self, version: Version) -> Result<Manifest, ManifestError> {
        let (mut at, mut objects) = (version, BTreeMap::new());
        loop {
            let object = match self.object(at).await {
                Err(ManifestError::Blob(BlobError::NotFound(_))) if at != version => {
                    return Err(lost(&self.path(version), at));
                }
                object => object?,
            };
            let follows = object.follows();
            objects.insert(at, object);
            match follows {
                // Not in circles.
                Some(next) if next < at => at = next,
                Some(next) => return Err(lost(&self.path(at), next)),
                None => break,
            }
        }
        resolve(&self.path(version), version, &objects)
    }

    /// The whole manifest that this one begins with; itself, if it is whole.
    ///
    /// # Errors
    /// Object storage's; or it is damaged.
    pub async fn whole_of(&self, version: Version) -> Result<Version, ManifestError> {
        match self.object(version).await? {
            Object::Whole(_) => Ok(version),
            Object::Following(following) => Ok(following.whole),
        }
    }

    /// Stores a manifest under a version that was never used. How many bytes.
    ///
    /// # Errors
    /// See [`BlobError`]; `Exists` means that another process uses the same generation.
    pub async fn write(&self, version: Version, manifest: &Manifest) -> Result<usize, ManifestError> {
        let path = self.path(version);
        let bytes = encode(&path, manifest)?;
        self.put(&path, bytes).await
    }

    /// Stores a manifest as its difference from another.
    ///
    /// # Errors
    /// As [`Place::write`].
    pub async fn write_following(
        &self,
        version: Version,
        following: &Following,
    ) -> Result<usize, ManifestError> {
        let path = self.path(version);
        let text = FollowingText {
            format: FORMAT,
            follows: paths::manifest_name(following.follows.0, following.follows.1),
            whole: paths::manifest_name(following.whole.0, following.whole.1),
            change: &following.change,
        };
        let bytes = encode(&path, &text)?;
        self.put(&path, bytes).await
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<usize, ManifestError> {
        let length = bytes.len();
        self.store.put_if_absent(path, bytes).await?;
        Ok(length)
    }

    /// Deletes manifests.
    ///
    /// # Errors
    /// Object storage's; repeat it.
    pub async fn delete(&self, versions: &[Version]) -> Result<(), ManifestError> {
        match versions.is_empty() {
            true => Ok(()),
            false => {
                let paths = versions.iter().map(|version| self.path(*version)).collect();
                Ok(self.store.delete_all(paths).await?)
            }
        }
    }
}

/// Makes `own` the generation of the newest manifest: stores the current one again, under the next version. Gives it with
/// that version's sequence number, which nobody else has; `None` when the timeline was never stored.
///
/// # Errors
/// See [`ManifestError`].
pub async fn claim(place: &Place, own: Generation) -> Result<Option<(Manifest, u64)>, ManifestError> {
    let Some(mut base) = place.current(own).await? else {
        return Ok(None);
    };
    let mut sequence = if base.0 == own { base.1 } else { 0 };
    loop {
        let manifest = place.read(base).await?;
        sequence += 1;
        place.write((own, sequence), &manifest).await?;
        place.current(own).await?;
        let others = place.list().await?.into_iter().map(|(version, _)| version);
        match others.filter(|version| *version < (own, 0)).max() {
            // The owner before went on meanwhile.
            Some(newest) if base.0 < own && newest > base => base = newest,
            _ => return Ok(Some((manifest, sequence))),
        }
    }
}

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A manifest.
    Whole(Box<Manifest>),
    /// What it has other than another one.
    Following(Box<Following>),
}

impl Object {
    /// The manifest that it is to be read with.
    pub fn follows(&self) -> Option<Version> {
        match self {
            Object::Whole(_) => None,
            Object::Following(following) => Some(following.follows),
        }
    }

    /// Everything up to here is in the layers.
    pub fn disk_consistent(&self) -> Lsn {
        match self {
            Object::Whole(manifest) => manifest.disk_consistent,
            Object::Following(following) => following.change.disk_consistent,
        }
    }
}

#[derive(Serialize)]
struct FollowingText<'a> {
    format: u32,
    follows: String,
    whole: String,
    change: &'a Change,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FollowingRead {
    #[serde(rename = "format")]
    _format: u32,
    follows: String,
    whole: String,
    change: Change,
}

fn lost(path: &str, (generation, sequence): Version) -> ManifestError {
    ManifestError::BaseLost {
        path: path.to_owned(),
        base: paths::manifest_name(generation, sequence),
    }
}

/// The manifest of a version, from objects among which are all that it follows. `path` is for errors.
///
/// # Errors
/// [`ManifestError::BaseLost`], or [`ManifestError::Damaged`]: they do not fit each other.
pub fn resolve(
    path: &str,
    version: Version,
    objects: &BTreeMap<Version, Object>,
) -> Result<Manifest, ManifestError> {
    let (mut at, mut changes) = (version, Vec::new());
    let whole = loop {
        match objects.get(&at).ok_or_else(|| lost(path, at))? {
            Object::Whole(manifest) => break manifest,
            Object::Following(following) if following.follows < at => {
                changes.push(&following.change);
                at = following.follows;
            }
            Object::Following(following) => return Err(lost(path, following.follows)),
        }
    };
    let mut manifest = Manifest::clone(whole);
    for change in changes.into_iter().rev() {
        let applied = change.clone().apply(manifest);
        manifest = applied.map_err(|reason| ManifestError::Damaged {
            path: path.to_owned(),
            reason: format!("it does not fit what it builds on: {reason}"),
        })?;
    }
    Ok(manifest)
}

/// Reads what the object at `path` holds.
///
/// # Errors
/// [`ManifestError::Damaged`].
pub fn parse(path: &str, bytes: &[u8]) -> Result<Object, ManifestError> {
    let damaged = |reason: String| ManifestError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let (crc, json) = bytes
        .split_at_checked(9)
        .ok_or_else(|| damaged("it is too short".to_owned()))?;
    if crc != format!("{:08x}\n", crc32c::crc32c(json)).as_bytes() {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    #[derive(Deserialize)]
    struct OnlyFormat {
        format: u32,
        follows: Option<String>,
    }
    let OnlyFormat { format, follows } =
        serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    if format > FORMAT {
        return Err(damaged(format!(
            "it has format {format}; this version reads {FORMAT}. Use a newer lakebed"
        )));
    }
    if format < OLDEST_FORMAT {
        return Err(damaged(format!(
            "it has format {format}, of a lakebed from before the first release, and this version reads {OLDEST_FORMAT} \
             and later ones only: create the tenant anew"
        )));
    }
    if follows.is_some() {
        let read: FollowingRead = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        let version = |name: &str| {
            let version = paths::parse_manifest(name);
            version.ok_or_else(|| damaged(format!("'{name}' is not the name of a manifest")))
        };
        return Ok(Object::Following(Box::new(Following {
            follows: version(&read.follows)?,
            whole: version(&read.whole)?,
            change: read.change,
        })));
    }
    let manifest: Manifest = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    manifest.map.check().map_err(|error| damaged(error.to_string()))?;
    Ok(Object::Whole(Box::new(manifest)))
}

fn encode(path: &str, object: &impl Serialize) -> Result<Bytes, ManifestError> {
    let json = serde_json::to_vec(object).map_err(|error| ManifestError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let mut bytes = format!("{:08x}\n", crc32c::crc32c(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes.into())
}
