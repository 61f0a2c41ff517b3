//! A shard that is split off begins with copies of what the shard has that it is a part of.
//!
//! ```text
//!   0 of 2 ──┬─ copies ─► 0 of 4        the same layers under the same names, in directories of their own:
//!            └─ copies ─► 2 of 4        what is another shard's in them, merges leave out
//!   1 of 2 ──┬─ copies ─► 1 of 4
//!            └─ copies ─► 3 of 4
//! ```
//!
//! Object storage copies by itself, no byte passes through here, and the shard that is copied goes on serving and ingesting
//! meanwhile: [`fill`] copies what its current manifest names, looks whether there is a newer one that names more, and when
//! little is left stores that manifest as the new shard's first. From there on the new shard ingests on its own, beside the
//! other. Whatever interrupts it, what is copied already counts when it begins again.
//!
//! A copy keeps its name, and names must not be used twice: so the new shard's generation is above those of all copies,
//! which the controllers see to and which is checked here.
//!
//! Files that no WAL carries ([`newest_files`]) go to shard 0 alone, the old one until it is retired.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use lakebed_blobstore::{BlobError, BlobStore, paths};
use lakebed_layer::format::LayerReader;
use lakebed_layer::{LayerDesc, LayerId};
use lakebed_types::{Generation, Lsn, TimelineId};
use prometheus_client::metrics::counter::Counter;
use tokio_util::sync::CancellationToken;

use crate::catalogue::{self, Entry};
use crate::manifest::{FORMAT, Gone, Manifest, ManifestError, Parent, Place, Version};
use crate::timeline::TimelineError;

/// Copies under way at a time.
const AT_ONCE: usize = 16;
/// So many layers are copied without looking again whether there are others by then.
const FEW: usize = 16;

/// How far it is; counts over all timelines of the shard.
#[derive(Debug, Default)]
pub struct Progress {
    /// Layers that were copied by this, for a metric.
    pub copied: Counter,
    /// Layers that are copied.
    pub done: AtomicU64,
    /// Layers that are known to be needed.
    pub known: AtomicU64,
}

/// Why a shard is not filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// It is not wanted any more, or this node stops.
    #[error("it is not filled any more")]
    Stopped,
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Object storage.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The shard that is copied has a newer owner than the controllers knew when they chose the new one's generation.
    #[error(
        "timeline {timeline} has layer {layer}, and what generation {own} writes could get such a name: the controllers \
         will choose a higher one"
    )]
    Generation {
        /// Timeline.
        timeline: TimelineId,
        /// A layer of it.
        layer: LayerId,
        /// The new shard's.
        own: Generation,
    },
    /// A layer that the source's manifest names is lost there.
    #[error(
        "timeline {timeline}: layer {layer} is not in object storage as its manifest describes it: restore it"
    )]
    Lost {
        /// Timeline.
        timeline: TimelineId,
        /// The layer.
        layer: LayerId,
    },
}

fn layers(place: &Place) -> String {
    format!("{}/{}", place.directory(), paths::LAYERS)
}

/// Layers of a directory, by name, with their sizes.
async fn copied(store: &BlobStore, to: &Place) -> Result<BTreeMap<LayerId, u64>, BlobError> {
    let listed = store.list_objects(&layers(to)).await?.into_iter();
    let layer = |path: &str| path.rsplit('/').next()?.parse().ok();
    Ok(listed
        .filter_map(|object| Some((layer(&object.path)?, object.bytes)))
        .collect())
}

/// Gives a timeline of a new shard what `from` has of it, unless it has a manifest already. False when there is nothing. To be
/// ended by `stop`, and not by dropping it: a copy that is under way takes effect, whoever waits for it.
///
/// # Errors
/// See [`FillError`]. What was copied stays, and counts when it is repeated.
pub async fn fill(
    store: &BlobStore,
    (from, to): (&Place, &Place),
    own: Generation,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<bool, FillError> {
    let timeline = from.timeline();
    if to.current(own).await?.is_some() {
        return Ok(true);
    }
    let before = (
        progress.done.load(Ordering::Relaxed),
        progress.known.load(Ordering::Relaxed),
    );
    let mut looked_for: Option<LayerId> = None;
    loop {
        let Some(manifest) = from.latest(Generation(u64::MAX)).await? else {
            return Ok(false);
        };
        let named: Vec<LayerDesc> = manifest.map.layers().copied().collect();
        if let Some(desc) = named.iter().find(|desc| desc.id.generation >= own) {
            let layer = desc.id;
            return Err(FillError::Generation { timeline, layer, own });
        }
        if let Some(layer) = looked_for.filter(|layer| manifest.map.get(*layer).is_some()) {
            return Err(FillError::Lost { timeline, layer });
        }
        let have = copied(store, to).await?;
        let is_there = |desc: &&LayerDesc| have.get(&desc.id) == Some(&desc.bytes);
        let missing: Vec<LayerDesc> = named.iter().filter(|desc| !is_there(desc)).copied().collect();
        let there = (named.len() - missing.len()) as u64;
        progress
            .known
            .store(before.1 + named.len() as u64, Ordering::Relaxed);
        progress.done.store(before.0 + there, Ordering::Relaxed);
        let copies: Vec<_> = missing
            .iter()
            .map(|desc| copy(store, (from, to), desc.id, progress))
            .collect();
        let copies = futures::stream::iter(copies).take_until(stop.cancelled());
        // Each to its end, also when one fails.
        let copies: Vec<_> = copies.buffer_unordered(AT_ONCE).collect().await;
        if stop.is_cancelled() {
            return Err(FillError::Stopped);
        }
        match copies.into_iter().collect::<Result<(), _>>() {
            Ok(()) => {}
            // Merged away meanwhile, and swept: then the next manifest does not name it.
            Err((id, BlobError::NotFound(_))) => {
                looked_for = Some(id);
                continue;
            }
            Err((_, error)) => return Err(error.into()),
        }
        if missing.len() > FEW {
            continue;
        }
        let have = copied(store, to).await?;
        if let Some(desc) = named.iter().find(|desc| have.get(&desc.id) != Some(&desc.bytes)) {
            let layer = desc.id;
            return Err(FillError::Lost { timeline, layer });
        }
        // Advice, which helps the new owner to fetch the right layers first.
        let recent = |place: &Place| format!("{}/{}", place.directory(), paths::RECENT);
        let _ = store.copy(&recent(from), &recent(to)).await;
        let version: Version = (own, 1);
        let first = first_manifest(manifest, have.into_keys(), version);
        to.write(version, &first).await?;
        return Ok(true);
    }
}

async fn copy(
    store: &BlobStore,
    (from, to): (&Place, &Place),
    id: LayerId,
    progress: &Progress,
) -> Result<(), (LayerId, BlobError)> {
    let object = |place| format!("{}/{id}", layers(place));
    let copied = store.copy(&object(from), &object(to)).await;
    copied.map_err(|error| (id, error))?;
    progress.done.fetch_add(1, Ordering::Relaxed);
    progress.copied.inc();
    Ok(())
}

/// The first manifest of a new shard's timeline, which has these layers; those that are not named are gone.
fn first_manifest(source: Manifest, have: impl Iterator<Item = LayerId>, version: Version) -> Manifest {
    let named: BTreeSet<LayerId> = source.map.layers().map(|desc| desc.id).collect();
    let gone = have.filter(|id| !named.contains(id)).map(|layer| Gone {
        layer,
        since: version,
    });
    Manifest {
        format: FORMAT,
        gone: gone.collect(),
        // Below its own generation are copies only.
        map: Arc::new(Arc::unwrap_or_clone(source.map).of_split(Generation(version.0.0.saturating_sub(1)))),
        ..source
    }
}

/// Files by path: the LSN of the newest version and its content.
pub type NewestFiles = BTreeMap<String, (Lsn, Option<Bytes>)>;

/// What a timeline's manifest says of where it is and where it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Everything up to here is in its layers.
    pub upto: Lsn,
    /// Its parent.
    pub parent: Option<Parent>,
}

/// Adds what a timeline of a shard 0 that was retired has of files up to `limit`, in layers that are not `known`: of each path
/// the newest version. `None`: it is not stored there.
///
/// # Errors
/// See [`TimelineError`].
pub async fn newest_files(
    store: &BlobStore,
    from: &Place,
    limit: Lsn,
    known: impl Fn(LayerId) -> bool,
    files: &mut NewestFiles,
) -> Result<Option<Stored>, TimelineError> {
    let Some(manifest) = from.latest(Generation(u64::MAX)).await? else {
        return Ok(None);
    };
    for id in manifest.map.catalogue().iter().filter(|id| !known(**id)) {
        let bytes = store.get(&format!("{}/{id}", layers(from))).await?;
        let length = bytes.len() as u64;
        let sections = LayerReader::open(bytes, *id, length)?.sections()?;
        for (lsn, entry) in catalogue::from_sections(sections)? {
            if let (Entry::File(path, content), true) = (entry, lsn <= limit) {
                files.insert(path, (lsn, content));
            }
        }
    }
    Ok(Some(Stored {
        upto: manifest.disk_consistent,
        parent: manifest.parent,
    }))
}
