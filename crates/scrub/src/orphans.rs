//! Deletion of orphans, after the whole proof of the crate's header.

use lakebed_blobstore::{BlobError, BlobStore};

use crate::judge::{self, Judged};
use crate::names::Directory;
use crate::report::State;
use crate::stored::Stored;
use crate::{ScrubError, now};

/// How often a timeline that changes meanwhile is looked at.
const ATTEMPTS: u32 = 3;

/// The time by the store's clock: that of an object written now, which goes again.
pub(crate) async fn clock(store: &BlobStore) -> Result<i64, BlobError> {
    let directory = "scrub";
    let path = format!("{directory}/clock-{:032x}", rand::random::<u128>());
    store.put(&path, Vec::new().into()).await?;
    let listed = store.list_objects(directory).await;
    store.delete(&path).await?;
    let own = listed?.into_iter().find(|listed| listed.path == path);
    // A store that does not list what was written is not one to delete from: then nothing is old enough.
    Ok(own.map_or(0, |own| own.written_unix_s).min(now()))
}

/// Deletes orphans of a timeline, and gives what was known of it then.
pub(crate) async fn delete(
    store: &BlobStore,
    directory: &Directory,
    (mut stored, mut judged): (Stored, Judged),
    times: (i64, i64),
) -> Result<(Stored, Judged), ScrubError> {
    for _ in 0..ATTEMPTS {
        let orphans = judged.1.iter().filter(|leftover| leftover.state == State::Orphan);
        let paths: Vec<String> = orphans.map(|leftover| leftover.path.clone()).collect();
        if paths.is_empty() {
            break;
        }
        if stored.is_current(store, directory).await? {
            tracing::info!(
                directory = directory.path(),
                orphans = paths.len(),
                "deleting orphans"
            );
            store.delete_all(paths).await?;
            for leftover in judged.1.iter_mut() {
                if leftover.state == State::Orphan {
                    leftover.state = State::Deleted;
                }
            }
            break;
        }
        stored = Stored::read(store, directory).await?;
        judged = judge::timeline(directory, &stored, times);
    }
    Ok((stored, judged))
}
