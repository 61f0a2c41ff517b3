//! What object storage has of one timeline of a shard.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_blobstore::{BlobError, BlobStore, Listed, paths};
use lakebed_layer::LayerId;
use lakebed_pageserver::manifest::{self, Manifest, ManifestError, Version};

use crate::ScrubError;
use crate::names::Directory;
use crate::report::{Finding, Kind};

/// How often a timeline is read again whose manifests go meanwhile.
const ATTEMPTS: u32 = 5;

/// A manifest that was read.
#[derive(Debug)]
pub(crate) struct Read {
    pub listed: Listed,
    pub manifest: Result<Box<Manifest>, ManifestError>,
}

impl Read {
    /// It is whole, and what it builds on is not there.
    fn lacks_base(&self) -> bool {
        matches!(self.manifest, Err(ManifestError::BaseLost { .. }))
    }
}

/// See the module header.
#[derive(Debug)]
pub(crate) struct Stored {
    pub manifests: BTreeMap<Version, Read>,
    pub layers: BTreeMap<LayerId, Listed>,
}

impl Stored {
    /// Lists and reads manifests, then lists layers: one that a manifest names was stored before it.
    pub(crate) async fn read(store: &BlobStore, directory: &Directory) -> Result<Stored, ScrubError> {
        for attempt in 1..=ATTEMPTS {
            let manifests = read_manifests(store, directory).await?;
            // One whose base went is about to go as well, most likely.
            let waits = |read: &Read| attempt < ATTEMPTS && read.lacks_base();
            let settled = manifests.filter(|manifests| !manifests.values().any(waits));
            if let Some(manifests) = settled {
                let layers = format!("{}/{}", directory.path(), paths::LAYERS);
                let layers = store.list_objects(&layers);
                let id = |path: &str| path.rsplit('/').next()?.parse().ok();
                let layers = layers.await?.into_iter();
                let layers = layers.filter_map(|listed| Some((id(&listed.path)?, listed)));
                return Ok(Stored {
                    manifests,
                    layers: layers.collect(),
                });
            }
        }
        Err(ScrubError::Restless(directory.path()))
    }

    /// The newest manifest.
    pub(crate) fn current(&self) -> Option<(&Version, &Read)> {
        self.manifests.iter().next_back()
    }

    /// Layers that a manifest has, with the size that it says.
    pub(crate) fn named(&self) -> BTreeMap<LayerId, u64> {
        let manifests = self
            .manifests
            .values()
            .filter_map(|read| read.manifest.as_ref().ok());
        let descs = manifests.flat_map(|manifest| manifest.map.layers());
        descs.map(|desc| (desc.id, desc.bytes)).collect()
    }

    /// Whether the manifests are still the same ones.
    pub(crate) async fn is_current(
        &self,
        store: &BlobStore,
        directory: &Directory,
    ) -> Result<bool, BlobError> {
        let listed = list_manifests(store, directory).await?;
        let versions: BTreeSet<Version> = listed.into_iter().map(|(version, _)| version).collect();
        Ok(versions.iter().eq(self.manifests.keys()))
    }

    /// Takes back what is not so any more: an owner deletes manifests, and then the layers that only they named.
    pub(crate) async fn confirm(
        &mut self,
        store: &BlobStore,
        findings: &mut Vec<Finding>,
    ) -> Result<(), BlobError> {
        let mut lost = BTreeSet::new();
        for finding in findings.iter().filter(|finding| finding.kind == Kind::Missing) {
            if store.size(&finding.path).await?.is_none() {
                lost.insert(finding.path.clone());
            }
        }
        // Only now: a layer goes after the manifests that name it, so what one names that is still there is lost.
        let mut gone = Vec::new();
        if !lost.is_empty() {
            for (version, read) in &self.manifests {
                if store.size(&read.listed.path).await?.is_none() {
                    gone.push(*version);
                }
            }
        }
        self.manifests.retain(|version, _| !gone.contains(version));
        let named = self.named();
        findings.retain(|finding| {
            let id = finding.path.rsplit('/').next().and_then(|name| name.parse().ok());
            let still_named = id.is_some_and(|id| named.contains_key(&id));
            finding.kind != Kind::Missing || lost.contains(&finding.path) && still_named
        });
        Ok(())
    }
}

async fn list_manifests(
    store: &BlobStore,
    directory: &Directory,
) -> Result<Vec<(Version, Listed)>, BlobError> {
    let path = format!("{}/{}", directory.path(), paths::MANIFESTS);
    let listed = store.list_objects(&path).await?.into_iter();
    let versions = listed.filter_map(|listed| Some((paths::parse_manifest(&listed.path)?, listed)));
    Ok(versions.collect())
}

/// `None` when one went before it was read.
async fn read_manifests(
    store: &BlobStore,
    directory: &Directory,
) -> Result<Option<BTreeMap<Version, Read>>, BlobError> {
    let (mut read, mut objects) = (Vec::new(), BTreeMap::new());
    for (version, listed) in list_manifests(store, directory).await? {
        let bytes = match store.get(&listed.path).await {
            Ok(bytes) => bytes,
            Err(BlobError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let object = manifest::parse(&listed.path, &bytes);
        let damage = object.map(|object| objects.insert(version, object)).err();
        read.push((version, listed, damage));
    }
    // One is as good as all that it builds on.
    let mut manifests = BTreeMap::new();
    for (version, listed, damage) in read {
        let manifest = match damage {
            Some(damage) => Err(damage),
            None => manifest::resolve(&listed.path, version, &objects).map(Box::new),
        };
        let read = Read { listed, manifest };
        if read.lacks_base() && store.size(&read.listed.path).await?.is_none() {
            return Ok(None);
        }
        manifests.insert(version, read);
    }
    Ok(Some(manifests))
}
