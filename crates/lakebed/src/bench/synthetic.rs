//! A branch that is as large as wanted, without its bytes: manifests that name layers which are nowhere.
//!
//! Whatever a branch of it costs is seen so, since making one reads no layer. The layers lie behind all pages that there are, so
//! that no read, merge or image asks for them. Only while no pageserver runs.

use anyhow::{Context, bail};
use lakebed_blobstore::{BlobStore, paths};
use lakebed_layer::{LayerDesc, LayerId, LayerKind, Partition};
use lakebed_pageserver::manifest::{Manifest, Place};
use lakebed_types::{Lsn, PageKey, SlruKind, TimelineId};
use serde_json::{Value, json};

/// Of each layer that is made up: a large timeline's are about as large.
pub const LAYER_BYTES: u64 = 64 << 20;
/// Their numbers begin here: an owner's own follow from the sequence of its first manifest.
const FIRST_NUMBER: u64 = 1 << 62;
/// Pages of SLRUs below this are of a cluster that ran for a while.
const FIRST_PAGE: u64 = 1 << 40;

/// What object storage has of a timeline, of each shard.
#[derive(Debug)]
pub struct Stored(Vec<Place>);

/// What it was made to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// Layers, real and made up, of all shards.
    pub layers: usize,
    /// Bytes of their manifests, stored whole.
    pub manifest_bytes: usize,
}

impl Stored {
    /// The only timeline of a store.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub async fn only(store: &BlobStore) -> anyhow::Result<Stored> {
        let mut directories: Vec<(TimelineId, String)> = Vec::new();
        for path in store.list("tenants").await? {
            let Some((directory, _)) = path.split_once("/manifests/") else {
                continue;
            };
            let timeline = directory.rsplit('/').next().and_then(|name| name.parse().ok());
            let timeline = timeline.with_context(|| format!("{path}: not of a timeline"))?;
            directories.push((timeline, directory.to_owned()));
        }
        directories.sort();
        directories.dedup();
        let Some((first, _)) = directories.first() else {
            bail!("object storage has no timeline");
        };
        if directories.iter().any(|(timeline, _)| timeline != first) {
            bail!("object storage has more than one timeline");
        }
        let places = directories.iter();
        let places = places.map(|(id, directory)| Place::in_directory(store, *id, directory.clone()));
        Ok(Stored(places.collect()))
    }

    /// Has each shard's newest manifest name layers of `bytes` in all.
    ///
    /// # Errors
    /// Object storage's; or a manifest cannot be read.
    pub async fn grow(&self, bytes: u64) -> anyhow::Result<Size> {
        let mut size = Size::default();
        let wanted = bytes / LAYER_BYTES / self.0.len() as u64;
        for place in &self.0 {
            let listed = place.list().await?;
            let (version, _) = listed.last().context("a timeline without manifests")?;
            let manifest = grown(&place.read(*version).await?, wanted)?;
            size.layers += manifest.map.layers().count();
            let next = (version.0, version.1 + 1);
            size.manifest_bytes += place.write(next, &manifest).await?;
        }
        Ok(size)
    }

    /// Number and bytes of all manifests.
    ///
    /// # Errors
    /// Object storage's.
    pub async fn manifests(&self, store: &BlobStore) -> anyhow::Result<(usize, u64)> {
        let mut all = (0, 0);
        for place in &self.0 {
            let directory = format!("{}/{}", place.directory(), paths::MANIFESTS);
            for listed in store.list_objects(&directory).await? {
                all = (all.0 + 1, all.1 + listed.bytes);
            }
        }
        Ok(all)
    }
}

/// The manifest with so many layers that are made up.
fn grown(manifest: &Manifest, layers: u64) -> anyhow::Result<Manifest> {
    let mut value = serde_json::to_value(manifest)?;
    let generation = manifest.map.layers().map(|desc| desc.id.generation).max();
    let generation = generation.context("the timeline has no layers")?;
    for number in 0..layers {
        let key = |page| PageKey::Slru {
            kind: SlruKind::MultiXactMembers,
            page: FIRST_PAGE + page,
        };
        let id = LayerId {
            generation,
            number: FIRST_NUMBER + number,
        };
        let desc = LayerDesc {
            id,
            kind: LayerKind::Current,
            first: manifest.start,
            last: manifest.disk_consistent,
            pages_span: Some((key(number * 10), key(number * 10 + 9))),
            pages: 10,
            values: 1000,
            bytes: LAYER_BYTES,
        };
        let partition = Partition {
            from: key(number * 10),
            through: manifest.disk_consistent,
            current: Some(id),
            history: Vec::new(),
            reclaimed: Lsn(0),
            pinned: Vec::new(),
        };
        let map = &mut value["map"];
        let known = map["layers"].as_object_mut().context("no map of layers")?;
        // It was grown before: what is there stays.
        if known.insert(id.to_string(), json!(desc)).is_none() {
            let partitions: &mut Vec<Value> = map["partitions"].as_array_mut().context("no partitions")?;
            partitions.push(json!(partition));
        }
    }
    let manifest: Manifest = serde_json::from_value(value)?;
    manifest.map.check()?;
    Ok(manifest)
}
