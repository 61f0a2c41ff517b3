//! Layers of a real timeline are merged: every page at every LSN stays what it was, on a branch too, over takeovers in
//! the middle of a merge; a read asks one layer and those of level 0; what nothing names any more goes, and nothing else.

mod records;
mod toy;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_blobstore::{BlobStore, paths};
use lakebed_layer::{ImagePolicy, LayerKind, PlanPolicy};
use lakebed_pageserver::manifest::{self, ManifestError, Place};
use lakebed_pageserver::timeline::compaction::{Next, Slice};
use lakebed_pageserver::timeline::explain::{Source, Step};
use lakebed_pageserver::timeline::read::Cost;
use lakebed_pageserver::timeline::{Identity, Storage, Thresholds, Timeline, TimelineError};
use lakebed_pgtest::{Cluster, temp_dir};
use lakebed_redo::PageBytes;
use lakebed_types::{Generation, Lsn, PageKey, TimelineId};
use records::{BLOCKS, Expected, Numbers, ingest, make, truncated_to};
use toy::{REL, imported, managers, taken_over};

/// Small, so that a few thousand records make many partitions.
fn storage(directory: &Path, store: &BlobStore) -> Storage {
    Storage {
        directory: directory.to_owned(),
        disk: Default::default(),
        store: store.clone(),
        thresholds: Thresholds {
            images: ImagePolicy {
                deltas: 6,
                bytes: 4096,
            },
            plan: PlanPolicy {
                level0: 3,
                layer_bytes: 30_000,
                history: 2,
                waste: 8,
                catalogue: 3,
            },
            rewind_seconds: 0,
            ..Thresholds::of_size(1 << 20)
        },
        managers: managers(),
    }
}

/// Compares every page at some LSNs, and what each read asked.
fn check(timeline: &Arc<Timeline>, expected: &Expected, lsns: &[Lsn]) {
    let level0 = |timeline: &Timeline| timeline.sizes().level0 as u32;
    let bound = 1 + level0(timeline);
    let bound = bound + timeline.parent().map_or(0, |link| 1 + level0(&link.timeline));
    for lsn in lsns {
        for block in 0..BLOCKS {
            let key = PageKey::Rel { rel: REL, block };
            let (page, cost) = timeline.page_and_cost(&key, *lsn).unwrap();
            assert!(page == expected.page(block, *lsn), "block {block} at {lsn}");
            assert!(
                cost.layers.found <= bound,
                "block {block} at {lsn}: {cost:?}, not {bound}"
            );
            explained(timeline, &key, *lsn, &page, &cost);
        }
    }
}

/// What a page is explained with is what its read did.
fn explained(timeline: &Timeline, key: &PageKey, lsn: Lsn, page: &PageBytes, cost: &Cost) {
    let explained = timeline.explain(key, lsn).unwrap();
    assert!(*explained.page == *page, "{key} at {lsn}");
    assert_eq!(explained.values.len(), cost.values, "{key} at {lsn}");
    assert!(
        explained.values.is_sorted_by_key(|value| value.lsn),
        "{explained:?}"
    );
    let asked = |step: &&Step| matches!(step.source, Source::Layer { .. });
    let layers = explained.steps.iter().filter(asked).count();
    assert_eq!(layers, cost.layers.layers as usize, "{key} at {lsn}");
    let filtered = explained.steps.iter().filter(|step| step.filtered).count();
    assert_eq!(filtered, cost.layers.filtered as usize, "{key} at {lsn}");
    for (at, step) in explained.steps.iter().enumerate() {
        let of_step = explained.values.iter().filter(|value| value.step == at);
        assert_eq!(of_step.clone().count(), step.values, "{key} at {lsn}, step {at}");
        if let Source::Layer { first, last, .. } = step.source {
            for value in of_step {
                assert!((first..=last).contains(&value.lsn), "{step:?}: {value:?}");
            }
        }
    }
}

async fn objects(store: &BlobStore, timeline: &Timeline) -> Vec<String> {
    let Identity {
        tenant,
        shard,
        timeline,
        ..
    } = timeline.identity;
    let directory = paths::timeline(tenant, shard, timeline);
    let listed = store.list(&format!("{directory}/layers")).await.unwrap();
    let mut names: Vec<String> = listed
        .iter()
        .filter_map(|path| Some(path.rsplit('/').next()?.to_owned()))
        .collect();
    names.sort();
    names
}

fn named(timeline: &Timeline) -> Vec<String> {
    let mut names: Vec<String> = timeline
        .layer_map()
        .layers()
        .map(|desc| desc.id.to_string())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_stays_what_it_was_while_layers_are_merged() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let mut timeline = imported(&cluster.data_dir(), storage(&local.path().join("0"), &store)).await;
    let (mut numbers, mut expected) = (Numbers(1), Expected::default());
    let (mut records, mut lsns) = (Vec::new(), vec![timeline.identity.start]);
    let mut branch: Option<(Arc<Timeline>, Expected, Vec<Lsn>)> = None;
    let (mut merges, mut cuts, mut dropped) = (0, 0, 0);
    for round in 0..14u64 {
        let start = timeline.last_record();
        let new = make(&mut numbers, start, &mut expected);
        lsns.push(new[new.len() / 2].end);
        records.extend(new);
        ingest(&timeline, &records);
        check(&timeline, &expected, &lsns[lsns.len() - 1..]);
        timeline.flush().await.unwrap();
        if round == 5 {
            // In the middle of what there is, so that some of it is in merged layers.
            let at = lsns[3];
            timeline.add_branch(TimelineId([3; 16]), at).await.unwrap();
            let identity = Identity {
                timeline: TimelineId([3; 16]),
                start: at,
                consistent: at,
                ..timeline.identity.clone()
            };
            let directory = local.path().join("branch");
            let parent = Some((timeline.clone(), at));
            let child = Timeline::create(identity, parent, storage(&directory, &store));
            child.flush().await.unwrap();
            let kept = expected.0.iter().map(|(block, versions)| {
                let seen = versions.iter().filter(|(lsn, _)| *lsn <= at);
                (*block, seen.cloned().collect())
            });
            branch = Some((child, Expected(kept.collect()), lsns[..4].to_vec()));
        }
        if let Some((child, expected, lsns)) = &mut branch {
            let new = make(&mut numbers, child.last_record(), expected);
            lsns.push(new[new.len() / 3].end);
            ingest(child, &new);
            child.flush().await.unwrap();
            dropped += child.compact().await.unwrap().dropped;
            check(child, expected, lsns);
        }
        if let (Next::Merge(mut running), 1) = (timeline.plan_compaction().await.unwrap(), merges % 2) {
            // Killed in the middle of a merge, at one of its cuts.
            {
                for _ in 0..2 {
                    running = match timeline.merge_for(running, Duration::MAX).await.unwrap() {
                        Slice::Cut(running, finished) => {
                            timeline.commit_merge(finished).await.unwrap();
                            cuts += 1;
                            running
                        }
                        Slice::Pause(running) | Slice::Done(running, _) => running,
                    };
                }
            }
            let directory = local.path().join(format!("{}", round + 1));
            let next = taken_over(&timeline, &store, storage(&directory, &store)).await;
            // Who was superseded can neither flush nor delete.
            let last = timeline.last_record();
            timeline.publish(Default::default(), Lsn(last.0 + 8));
            for refused in [timeline.flush().await, timeline.sweep().await.map(drop)] {
                assert!(
                    matches!(
                        refused,
                        Err(TimelineError::Manifest(ManifestError::Superseded { .. }))
                    ),
                    "{refused:?}"
                );
            }
            timeline = next;
            assert_eq!(timeline.last_record(), last);
        }
        let count = timeline.compact().await.unwrap();
        (merges, dropped) = (merges + u32::from(count.pages > 0), dropped + count.dropped);
        check(&timeline, &expected, &lsns);
    }
    let sizes = timeline.sizes();
    assert!(
        sizes.partitions > 3 && sizes.level0 < 3 && sizes.history > 0,
        "{sizes:?}"
    );
    println!("{sizes:?}, {merges} merges, {cuts} cuts before a kill, {dropped} values dropped");
    assert!(cuts > 0 && merges > 3, "{cuts} cuts, {merges} merges");
    // All history can be read: what went are deltas that an image of the same LSN stands for.
    assert!(timeline.layer_map().catalogue().len() < 3);
    let size = records
        .iter()
        .fold(0, |size, record| match record.blocks.first() {
            Some(changed) => size.max(changed.block + 1),
            None => size.min(truncated_to(record)),
        });
    assert_eq!(timeline.relation_size(REL, timeline.last_record()), Some(size));

    // With nothing kept for a way back, what is there is what is named, and it is enough.
    let before = objects(&store, &timeline).await;
    let removed = timeline.sweep().await.unwrap();
    let (after, named) = (objects(&store, &timeline).await, named(&timeline));
    assert!(
        removed > 20 && before.len() >= after.len() + removed,
        "{removed} of {before:?}"
    );
    assert!(
        named.iter().all(|name| after.contains(name)),
        "{named:?} not all in {after:?}"
    );
    let again = taken_over(&timeline, &store, storage(&local.path().join("again"), &store)).await;
    check(&again, &expected, &lsns);
    let (child, expected, lsns) = branch.unwrap();
    let child = taken_over(
        &child,
        &store,
        storage(&local.path().join("branch-again"), &store),
    )
    .await;
    check(&child, &expected, &lsns);
    let history = child.layer_map();
    assert!(history.layers().any(|desc| desc.kind == LayerKind::History));
}

#[tokio::test]
async fn a_timeline_can_be_taken_back_to_manifests_that_are_kept() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let directory = local.path().join("a");
    let first = imported(&cluster.data_dir(), storage(&directory, &store)).await;
    let place = Place::new(
        &store,
        first.identity.tenant,
        first.identity.shard,
        first.identity.timeline,
    );
    // An owner that keeps them.
    let keeping = Storage {
        thresholds: Thresholds {
            rewind_seconds: 3600,
            ..storage(&directory, &store).thresholds
        },
        ..storage(&directory, &store)
    };
    let claimed = manifest::claim(&place, Generation(1)).await.unwrap().unwrap();
    let timeline = Timeline::open(first.identity.clone(), None, keeping, claimed)
        .await
        .unwrap();
    let (mut numbers, mut expected) = (Numbers(2), Expected::default());
    let (mut back, mut back_to) = (Expected::default(), Vec::new());
    for round in 0..8 {
        let records = make(&mut numbers, timeline.last_record(), &mut expected);
        ingest(&timeline, &records);
        timeline.flush().await.unwrap();
        if round == 3 {
            back = expected.clone();
            back_to = place.list().await.unwrap();
        }
        timeline.compact().await.unwrap();
        timeline.sweep().await.unwrap();
    }
    let beyond = place.list().await.unwrap();
    let beyond: Vec<_> = beyond[back_to.len()..]
        .iter()
        .map(|(version, _)| *version)
        .collect();
    assert!(beyond.len() > 8);
    place.delete(&beyond).await.unwrap();
    let again = taken_over(&timeline, &store, storage(&local.path().join("b"), &store)).await;
    let at = again.last_record();
    assert!(at < timeline.last_record());
    check(&again, &back, &[at]);
}

#[tokio::test]
async fn a_claim_goes_on_from_what_is_there() {
    let (cluster, local) = (Cluster::init(), temp_dir());
    let store = BlobStore::open("memory:").unwrap();
    let timeline = imported(&cluster.data_dir(), storage(&local.path().join("a"), &store)).await;
    let identity = &timeline.identity;
    let place = Place::new(&store, identity.tenant, identity.shard, identity.timeline);
    // Same generation, after a restart: numbers go on, and an old format is refused by name.
    let (manifest, sequence) = manifest::claim(&place, Generation(1)).await.unwrap().unwrap();
    assert_eq!(
        place.current(Generation(1)).await.unwrap(),
        Some((Generation(1), sequence))
    );
    assert_eq!(manifest.disk_consistent, identity.start);
    let error = place.current(Generation(0)).await.unwrap_err();
    assert!(
        matches!(
            error,
            ManifestError::Superseded {
                found: Generation(1),
                ..
            }
        ),
        "{error}"
    );
    let json = br#"{"format": 1, "layers": []}"#;
    let old = [format!("{:08x}\n", crc32c::crc32c(json)).as_bytes(), json].concat();
    let error = manifest::parse("m", &old).unwrap_err().to_string();
    assert!(error.contains("before the first release"), "{error}");
}
