//! Deleting what object storage has of a timeline, on complete proof that nobody needs it.
//!
//! That the timeline is given up is decided by the controllers, through raft, and is never taken back: its id is not used again.
//! What is checked here:
//! - no owner of a higher generation has stored a manifest: what this node believes is up to date;
//! - the timeline's last manifest is whole, and of each branch that it names no manifest is left: nobody reads through it.
//!
//! Layers go first, and manifests last: as long as there is a layer there is a manifest, and a repeat finds the branches. The last
//! one is stored anew before, whole, and goes behind all others: a manifest may build on others, and what a crash leaves must be
//! readable. What an owner that was superseded stores afterwards stays; nothing refers to it.

use lakebed_blobstore::{BlobStore, paths};
use lakebed_types::{Generation, ShardIdentity, TenantId};

use crate::manifest::{self, Place, Version};
use crate::node::NodeError;
use crate::timeline::TimelineError;

/// Deletes all objects of a shard's timeline. Repeating it is harmless.
///
/// # Errors
/// The proof fails, or object storage does.
pub async fn delete(
    store: &BlobStore,
    place: &Place,
    (tenant, shard): (TenantId, ShardIdentity),
    own: Generation,
) -> Result<(), NodeError> {
    if let Some(manifest) = place.latest(own).await.map_err(TimelineError::from)? {
        for child in manifest.branches.keys() {
            let branch = Place::new(store, tenant, shard, *child);
            if branch.current(own).await.map_err(TimelineError::from)?.is_some() {
                return Err(NodeError::HasBranch {
                    timeline: place.timeline(),
                    child: *child,
                });
            }
        }
    }
    let claimed = manifest::claim(place, own).await.map_err(TimelineError::from)?;
    let last: Option<Version> = claimed.map(|(_, sequence)| (own, sequence));
    let layers = format!("{}/layers", place.directory());
    let mut objects = store.list(&layers).await.map_err(TimelineError::from)?;
    let recent = format!("{}/{}", place.directory(), paths::RECENT);
    objects.push(recent);
    store.delete_all(objects).await.map_err(TimelineError::from)?;
    let versions = place.list().await.map_err(TimelineError::from)?;
    let versions = versions.into_iter().map(|(version, _)| version);
    let (last, others): (Vec<_>, Vec<_>) = versions.partition(|version| Some(*version) == last);
    place.delete(&others).await.map_err(TimelineError::from)?;
    place.delete(&last).await.map_err(TimelineError::from)?;
    Ok(())
}
