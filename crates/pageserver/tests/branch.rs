//! A branch of a parent with many relations sees what was there at the branch point and what it did itself, whatever becomes of
//! the parent later; and the parent sees nothing of that.

mod toy;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lakebed_blobstore::BlobStore;
use lakebed_pageserver::catalogue::{Catalogue, DatabasePlace, Entry};
use lakebed_pageserver::manifest::{self, Place};
use lakebed_pageserver::timeline::history::Kept;
use lakebed_pageserver::timeline::{Changes, Identity, Storage, Thresholds, Timeline};
use lakebed_pgtest::{Cluster, temp_dir};
use lakebed_types::{Generation, Lsn, PageKey, RelTag, SlruKind, TimelineId};
use toy::{REL, imported_pages, managers};

const BRANCH: TimelineId = TimelineId([3; 16]);
const PLACE: DatabasePlace = (REL.spcnode, 77_777);
const RELATIONS: u32 = 20_000;

fn storage(directory: &Path, store: &BlobStore) -> Storage {
    Storage {
        directory: directory.to_owned(),
        store: store.clone(),
        thresholds: Thresholds {
            // The horizon rises at once, and what is below it goes from memory.
            lease: Duration::ZERO,
            catalogue_versions: 10,
            ..Thresholds::of_size(1 << 20)
        },
        managers: managers(),
        disk: Arc::default(),
    }
}

fn rel(relnode: u32) -> RelTag {
    RelTag {
        dbnode: PLACE.1,
        relnode,
        ..REL
    }
}

/// Takes entries in as of a record; where that ends.
fn take_in(timeline: &Timeline, entries: impl IntoIterator<Item = Entry>) -> Lsn {
    let end = Lsn(timeline.last_record().0 + 64);
    let mut changes = Changes::default();
    changes
        .entries
        .extend(entries.into_iter().map(|entry| (end, entry)));
    timeline.publish(changes, end);
    end
}

/// What somebody who reads at an LSN finds.
#[derive(Debug, PartialEq)]
struct Seen {
    relations: BTreeMap<RelTag, u32>,
    /// Where the lives begin of a few pages.
    floors: Vec<Lsn>,
    file: Option<Bytes>,
    slru_page: bool,
    commit: Option<(Lsn, i64)>,
}

fn seen(timeline: &Timeline, lsn: Lsn) -> Seen {
    timeline.catalogue(|catalogue| Seen {
        relations: catalogue.relations(PLACE, lsn).collect(),
        floors: (0..20)
            .map(|relnode| catalogue.life(rel(relnode), 3, lsn).floor)
            .collect(),
        file: catalogue.file("made/up", lsn),
        slru_page: catalogue.has_slru_page(SlruKind::Clog, 1_000, lsn),
        commit: catalogue.commit_at(lsn),
    })
}

/// A new owner, after the one before has stored what it has.
async fn restarted(
    old: &Arc<Timeline>,
    parent: Option<(Arc<Timeline>, Lsn)>,
    storage: Storage,
) -> Arc<Timeline> {
    old.flush().await.unwrap();
    let identity = Identity {
        generation: Generation(old.identity.generation.0 + 1),
        ..old.identity.clone()
    };
    let place = Place::new(&storage.store, identity.tenant, identity.shard, identity.timeline);
    let claimed = manifest::claim(&place, identity.generation).await.unwrap();
    let opened = Timeline::open(identity, parent, storage, claimed.unwrap());
    opened.await.unwrap()
}

/// A later state of everything: half is gone, half is larger, and there is more.
fn changed(salt: u32) -> Vec<Entry> {
    let relations = (0..RELATIONS).map(|relnode| match relnode % 4 == salt % 4 {
        true => Entry::Dropped(rel(relnode)),
        false => Entry::Size(rel(relnode), 100 + salt),
    });
    let new = (0..100).map(|number| Entry::Size(rel(RELATIONS + 1_000 * salt + number), salt));
    let others = [
        Entry::Reset(rel(1), 2),
        Entry::File("made/up".to_owned(), Some(Bytes::from(vec![salt as u8]))),
        Entry::SlruPage(SlruKind::Clog, 1_000, salt % 2 == 1),
        Entry::Time(1_000_000 * i64::from(salt)),
    ];
    relations.chain(new).chain(others).collect()
}

/// Gives up all history of it but for its branches.
async fn thin(timeline: &Arc<Timeline>, branches: &[TimelineId]) {
    timeline.flush().await.unwrap();
    timeline.allow(Kept {
        horizon: timeline.last_record(),
        branches: branches.iter().copied().collect(),
    });
    let before = timeline.catalogue(Catalogue::versions);
    timeline.compact().await.unwrap();
    let after = timeline.catalogue(Catalogue::versions);
    assert!(after < before, "{after} versions of {before}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_sees_what_was_there_whatever_becomes_of_the_parent() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let directory = |name: &str| storage(&local.path().join(name), &store);
    let pages = |key: &PageKey| !matches!(key, PageKey::Rel { .. });
    let parent = imported_pages(&cluster.data_dir(), directory("parent"), pages).await;
    take_in(
        &parent,
        (0..RELATIONS).map(|relnode| Entry::Size(rel(relnode), relnode)),
    );
    let start = take_in(&parent, changed(1));
    // The branch begins behind the head.
    take_in(&parent, changed(2));
    parent.flush().await.unwrap();
    let expected = seen(&parent, start);
    assert!(expected.relations.len() > 15_000 && expected.file.is_some() && expected.slru_page);
    parent.add_branch(BRANCH, start).await.unwrap();
    let identity = Identity {
        timeline: BRANCH,
        start,
        consistent: start,
        ..parent.identity.clone()
    };
    let branch = Timeline::create(identity, Some((parent.clone(), start)), directory("branch"));
    branch.flush().await.unwrap();
    // None of it is a copy.
    let copied = branch.catalogue(Catalogue::versions);
    assert!(copied < 100, "{copied} versions");
    assert_eq!(seen(&branch, branch.last_record()), expected);
    take_in(&parent, changed(3));
    let ahead = Lsn(start.0 + 100_000);
    assert_eq!(seen(&branch, ahead), expected, "the parent goes on");
    thin(&parent, &[BRANCH]).await;
    assert_eq!(seen(&branch, ahead), expected, "the parent is thinned");
    assert_eq!(seen(&parent, start), expected);

    // Now the branch goes its own way.
    let parents = seen(&parent, parent.last_record());
    let own = take_in(&branch, changed(5));
    let own_expected = seen(&branch, own);
    assert_eq!(own_expected.relations[&rel(2)], 105);
    assert!(!own_expected.relations.contains_key(&rel(1)));
    take_in(&branch, changed(7));
    let last = take_in(&branch, changed(9));
    let last_expected = seen(&branch, last);
    assert_eq!(seen(&branch, start), expected);
    assert_eq!(seen(&branch, own), own_expected);
    assert_eq!(seen(&parent, parent.last_record()), parents);
    assert_ne!(parents, last_expected);
    thin(&branch, &[]).await;
    assert_eq!(seen(&branch, last), last_expected, "the branch is thinned");

    // Other owners, the parent's with what it did meanwhile.
    take_in(&parent, changed(10));
    let parent = restarted(&parent, None, directory("parent-2")).await;
    let branch = restarted(&branch, Some((parent.clone(), start)), directory("branch-2")).await;
    assert_eq!(seen(&branch, start), expected, "after a restart");
    assert_eq!(seen(&branch, last), last_expected, "after a restart");
    thin(&parent, &[BRANCH]).await;
    assert_eq!(seen(&branch, last), last_expected, "thinned after a restart");

    // By itself, with what it saw of the parent.
    branch.detach();
    branch.compact().await.unwrap();
    assert!(branch.detached().done && !parent.has_branch(BRANCH).await);
    let floorless = |seen: Seen| (seen.relations, seen.file, seen.slru_page, seen.commit);
    let last_expected = floorless(last_expected);
    for salt in 11..16 {
        take_in(&parent, changed(salt));
    }
    thin(&parent, &[]).await;
    assert_eq!(floorless(seen(&branch, last)), last_expected, "detached");
    let branch = restarted(&branch, None, directory("branch-3")).await;
    assert_eq!(
        floorless(seen(&branch, last)),
        last_expected,
        "detached, restarted"
    );
}
