//! A timeline that is as large as wanted, without its bytes: a manifest that names layers which are nowhere, and a catalogue
//! of relations that no Postgres has.
//!
//! Whatever a branch of it costs is seen so, since making one reads no layer of pages. Those that are made up lie behind all
//! pages that there are, so that no read, merge or image asks for them; the relations are of a database that there is not, and
//! stand in a catalogue layer that is there. All of it is as old as the timeline, so that a branch at its start has it, and
//! such a one needs no compute. Only while no pageserver runs; and no compute may run afterwards, since its base backup would
//! ask for the pages.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use lakebed_blobstore::{BlobError, BlobStore, paths};
use lakebed_layer::format::{Codec, LayerWriter};
use lakebed_layer::{Edit, LayerDesc, LayerId, LayerKind, Partition};
use lakebed_pageserver::catalogue::{Entry, to_sections};
use lakebed_pageserver::manifest::{Manifest, Place};
use lakebed_types::{ForkNumber, Generation, Lsn, PageKey, RelTag, SlruKind, TimelineId};
use serde_json::{Value, json};

/// Of each layer that is made up: what a pageserver's are by default.
pub const LAYER_BYTES: u64 = 64 << 20;
/// Numbers of layers of pages begin here: an owner's own follow from the sequence of its first manifest.
const FIRST_NUMBER: u64 = 1 << 62;
/// Those of catalogue layers, by the number of relations.
const FIRST_CATALOGUE: u64 = FIRST_NUMBER + (1 << 40);
/// Pages of SLRUs below this are of a cluster that ran for a while.
const FIRST_PAGE: u64 = 1 << 40;
/// A database that there is not.
const DATABASE: u32 = u32::MAX;

/// What object storage has of a timeline, on each shard, and what that was before anything was made up.
#[derive(Debug)]
pub struct Stored {
    store: BlobStore,
    places: Vec<(Place, Manifest)>,
}

/// How large a timeline is made.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Bytes of layers of pages, of all shards.
    pub bytes: u64,
    /// Relations.
    pub relations: u32,
}

/// What it was made to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// Layers, real and made up, of all shards.
    pub layers: usize,
    /// Bytes of their manifests, stored whole.
    pub manifest_bytes: usize,
}

impl Stored {
    /// This timeline of this store.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub async fn of(store: &BlobStore, timeline: TimelineId) -> anyhow::Result<Stored> {
        let paths = store.list("tenants").await?;
        let manifests = paths.iter().filter_map(|path| path.split_once("/manifests/"));
        let own = manifests.filter(|(directory, _)| directory.ends_with(&format!("/{timeline}")));
        let directories: BTreeSet<&str> = own.map(|(directory, _)| directory).collect();
        ensure!(
            !directories.is_empty(),
            "object storage has no timeline {timeline}"
        );
        let mut places = Vec::new();
        for directory in directories {
            let directory = directory.to_owned();
            let place = Place::in_directory(store, timeline, directory);
            let listed = place.list().await?;
            let (version, _) = listed.last().context("a timeline without manifests")?;
            let manifest = place.read(*version).await?;
            places.push((place, manifest));
        }
        Ok(Stored {
            store: store.clone(),
            places,
        })
    }

    /// Has each shard's newest manifest name what is wanted, instead of what it named before.
    ///
    /// # Errors
    /// Object storage's; or a manifest cannot be read.
    pub async fn make(&self, wanted: Wanted) -> anyhow::Result<Size> {
        let mut size = Size::default();
        let layers = wanted.bytes / LAYER_BYTES / self.places.len() as u64;
        for (place, first) in &self.places {
            let listed = place.list().await?;
            let (version, _) = listed.last().context("a timeline without manifests")?;
            let mut manifest = with_layers(first, layers)?;
            if wanted.relations > 0 {
                let catalogue = self.catalogue(place, first, wanted.relations).await?;
                let (map, _) = manifest.map.apply(&Edit::Flush(vec![catalogue]))?;
                manifest.map = Arc::new(map);
            }
            size.layers += manifest.map.layers().count();
            let next = (version.0, version.1 + 1);
            size.manifest_bytes += place.write(next, &manifest).await?;
        }
        Ok(size)
    }

    /// A catalogue layer with so many relations, stored.
    async fn catalogue(&self, place: &Place, first: &Manifest, relations: u32) -> anyhow::Result<LayerDesc> {
        let rel = |relnode| RelTag {
            spcnode: 1663,
            dbnode: DATABASE,
            relnode,
            fork: ForkNumber::Main,
        };
        let entries: Vec<(Lsn, Entry)> = (1..=relations)
            .map(|relnode| (first.start, Entry::Size(rel(relnode), 1)))
            .collect();
        let id = LayerId {
            generation: generation(first)?,
            number: FIRST_CATALOGUE + u64::from(relations),
        };
        let kind = LayerKind::Catalogue;
        let writer = LayerWriter::new(Vec::new(), id, kind, Codec::of(kind))?;
        let (bytes, desc) = writer.finish(first.start, first.start, &to_sections(&entries))?;
        let path = format!("{}/{}/{id}", place.directory(), paths::LAYERS);
        match self.store.put_if_absent(&path, Bytes::from(bytes)).await {
            // For another number of bytes.
            Ok(()) | Err(BlobError::Exists(_)) => Ok(desc),
            Err(error) => Err(error.into()),
        }
    }
}

fn generation(manifest: &Manifest) -> anyhow::Result<Generation> {
    let generation = manifest.map.layers().map(|desc| desc.id.generation).max();
    generation.context("the timeline has no layers")
}

/// The manifest with so many layers that are made up.
fn with_layers(manifest: &Manifest, layers: u64) -> anyhow::Result<Manifest> {
    let mut value = serde_json::to_value(manifest)?;
    let generation = generation(manifest)?;
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
        known.insert(id.to_string(), json!(desc));
        let partitions: &mut Vec<Value> = map["partitions"].as_array_mut().context("no partitions")?;
        partitions.push(json!(partition));
    }
    let manifest: Manifest = serde_json::from_value(value)?;
    manifest.map.check()?;
    Ok(manifest)
}
