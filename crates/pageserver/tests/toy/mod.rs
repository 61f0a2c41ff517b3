//! A resource manager of an extension, made up for tests, and timelines that know it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_blobstore::BlobStore;
use lakebed_pageserver::import::{Circumstances, Import};
use lakebed_pageserver::layer_disk::Urgency;
use lakebed_pageserver::layer_handle::Miss;
use lakebed_pageserver::manifest::{self, Place};
use lakebed_pageserver::timeline::{Identity, Storage, Timeline};
use lakebed_redo::{Managers, PageBytes, PageRecord, ResourceManager, mask, page};
use lakebed_types::{
    ForkNumber, Generation, PageKey, RelTag, ShardCount, ShardIdentity, TenantId, TimelineId,
};

/// Its resource manager.
pub const RMID: u8 = 142;
/// Whose pages it changes.
pub const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 99_999,
    fork: ForkNumber::Main,
};

/// Writes the block's data where the main data says.
struct Plugin;

impl ResourceManager for Plugin {
    fn name(&self) -> &str {
        "toy"
    }

    fn redo(&self, record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), &'static str> {
        let &[low, high] = record.main else {
            return Err("its main data is not a position");
        };
        let at = usize::from(u16::from_le_bytes([low, high]));
        let data = record.own.data.ok_or("no data")?;
        let target = page.get_mut(at..at + data.len()).ok_or("outside the page")?;
        target.copy_from_slice(data);
        page::set_lsn(page, record.end);
        Ok(())
    }

    fn mask(&self, page: &mut PageBytes, _block: u32) {
        mask::lsn_and_checksum(page);
    }
}

/// The plug-ins of a node that knows it.
pub fn managers() -> Managers {
    let mut managers = Managers::default();
    managers.register(RMID, Arc::new(Plugin)).unwrap();
    managers
}

/// A new timeline of one shard, stored.
#[allow(dead_code)]
pub async fn imported(cluster: &Path, storage: Storage) -> Arc<Timeline> {
    imported_pages(cluster, storage, |_| true).await
}

/// As [`imported`], with some of the pages only.
pub async fn imported_pages(
    cluster: &Path,
    storage: Storage,
    which: impl Fn(&PageKey) -> bool,
) -> Arc<Timeline> {
    let shard = ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap();
    let imported = Import::open(cluster, shard, Circumstances::default()).unwrap();
    let identity = Identity {
        tenant: TenantId([1; 16]),
        timeline: TimelineId([2; 16]),
        shard,
        generation: Generation(1),
        cluster: imported.cluster,
        start: imported.start,
        consistent: imported.consistent,
    };
    let timeline = Timeline::create(identity, None, storage);
    let mut changes = imported.read(usize::MAX, &mut |_| Ok(())).unwrap();
    changes.retain(which);
    timeline.publish(changes, imported.start);
    timeline.flush().await.unwrap();
    timeline
}

/// The same timeline from object storage, owned by the next generation, with all its layers fetched.
#[allow(dead_code)]
pub async fn taken_over(old: &Timeline, store: &BlobStore, storage: Storage) -> Arc<Timeline> {
    let opened = reopened(old, store, storage).await;
    everything_local(&opened).await;
    opened
}

/// The same timeline from object storage, owned by the next generation.
pub async fn reopened(old: &Timeline, store: &BlobStore, storage: Storage) -> Arc<Timeline> {
    let identity = Identity {
        generation: Generation(old.identity.generation.0 + 1),
        ..old.identity.clone()
    };
    let place = Place::new(store, identity.tenant, identity.shard, identity.timeline);
    let claimed = manifest::claim(&place, identity.generation).await.unwrap();
    let opened = Timeline::open(
        identity,
        old.parent().map(|link| (link.timeline.clone(), link.lsn)),
        storage,
        claimed.expect("a manifest"),
    );
    opened.await.unwrap()
}

/// Fetches all layers, for tests that read without waiting.
#[allow(dead_code)]
pub async fn everything_local(timeline: &Timeline) {
    for handle in timeline.handles() {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let miss = Miss::before_it_is_missed(&handle);
        miss.cure(Urgency::Read, deadline).await.unwrap();
    }
}
