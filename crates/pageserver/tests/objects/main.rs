//! Local layers are a cache of object storage: they come when they are needed, go when there are too many, and what is
//! damaged is fetched anew, or told to be damaged, and never served.

#[path = "../toy/mod.rs"]
mod toy;
mod world;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use lakebed_layer::LayerKind;
use lakebed_pageserver::layer_disk::{DiskPolicy, LayerDisk};
use lakebed_pageserver::manifest::{ManifestError, parse};
use lakebed_pageserver::timeline::{Timeline, TimelineError};
use world::{BLOCKS, World, flip, key, positions};

fn catalogue_layers(timeline: &Timeline) -> u64 {
    let map = timeline.layer_map();
    map.layers()
        .filter(|desc| desc.kind == LayerKind::Catalogue)
        .count() as u64
}

fn budget(world: &World, bytes: u64) -> Arc<LayerDisk> {
    Arc::new(LayerDisk::new(DiskPolicy {
        directory: world.dir.path().to_owned(),
        budget_bytes: Some(bytes),
        reserve_bytes: 0,
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_fetches_no_pages_and_reads_fetch_each_layer_once() {
    let world = World::new(&Arc::default()).await;
    let disk = Arc::<LayerDisk>::default();
    let timeline = world.reopened("empty", &disk).await;
    let catalogue = catalogue_layers(&timeline);
    assert_eq!(disk.metrics.downloads.get(), catalogue);
    assert_eq!(timeline.local_layers().len() as u64, catalogue);

    // Many readers of one page wait for one download of each layer that it needs.
    let lsn = *world.lsns.last().unwrap();
    let reads = (0..32).map(|_| timeline.obtaining(|| timeline.page(&key(7), lsn)));
    for read in join_all(reads).await {
        world.check(7, world.lsns.len() - 1, &read.unwrap()[..]);
    }
    let (_, cost) = timeline.page_and_cost(&key(7), lsn).unwrap();
    let fetched = disk.metrics.downloads.get() - catalogue;
    assert!(
        fetched >= 1 && fetched <= u64::from(cost.layers.layers),
        "{fetched} for {cost:?}"
    );
    assert!(world.read_all(&timeline).await.is_empty());
    let layers = timeline.layer_map().layers().count() as u64;
    assert!(
        disk.metrics.downloads.get() <= layers,
        "{} of {layers}",
        disk.metrics.downloads.get()
    );
    // From here on nothing is missed.
    let before = disk.metrics.waits.get();
    assert!(world.read_all(&timeline).await.is_empty());
    assert_eq!(disk.metrics.waits.get(), before);
    let used = disk.used();
    let bytes = timeline.layer_map().layers().map(|desc| desc.bytes).sum::<u64>();
    assert!(
        used.bytes <= bytes && used.layers == timeline.local_layers().len(),
        "{used:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_small_disk_every_page_is_still_read() {
    let world = World::new(&Arc::default()).await;
    let layers = world.timeline.layer_map();
    let all: u64 = layers.layers().map(|desc| desc.bytes).sum();
    let largest = layers.layers().map(|desc| desc.bytes).max().unwrap();
    for bytes in [largest, all / 2] {
        let disk = budget(&world, bytes);
        let timeline = world.reopened(&format!("small-{bytes}"), &disk).await;
        assert!(world.read_all(&timeline).await.is_empty());
        disk.make_room(0);
        let used = disk.used();
        assert!(used.bytes <= bytes, "{used:?} of {bytes}");
        let files = world.files(&format!("small-{bytes}"));
        let on_disk: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!((files.len(), on_disk), (used.layers, used.bytes));
        let metrics = &disk.metrics;
        assert!(metrics.evictions.get() > 0, "{metrics:?}");
        assert!(metrics.evicted_bytes.get() >= metrics.evictions.get());
    }
    // Layers are made, uploaded, merged and retired on such a disk.
    let world = World::new(&budget(&world, 0)).await;
    assert!(world.read_all(&world.timeline).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_last_stays_longest() {
    let world = World::new(&Arc::default()).await;
    let disk = budget(&world, u64::MAX);
    let timeline = world.reopened("local", &disk).await;
    assert!(world.read_all(&timeline).await.is_empty());
    let all = timeline.local_layers();
    disk.advance();
    let lsn = *world.lsns.last().unwrap();
    timeline.page(&key(3), lsn).unwrap();
    let tick = disk.tick();
    let read = timeline
        .handles()
        .into_iter()
        .filter(|handle| handle.last_read() == tick);
    let (read, bytes) = read.fold((Vec::new(), 0), |(mut ids, bytes), handle| {
        ids.push(handle.desc.id);
        (ids, bytes + handle.desc.bytes)
    });
    assert!(!read.is_empty() && read.len() < all.len());

    // The list of what was read survives the owner, and who is next warms up with it, as far as there is room.
    timeline.remember_recent(Vec::new()).await;
    let catalogue: u64 = timeline
        .layer_map()
        .layers()
        .filter(|desc| desc.kind == LayerKind::Catalogue)
        .map(|desc| desc.bytes)
        .sum();
    let small = budget(&world, bytes + catalogue);
    let next = world.reopened("next", &small).await;
    assert!(next.warm_up().await >= read.len());
    let local = next.local_layers();
    assert!(
        read.iter().all(|id| local.contains(id)),
        "{local:?} without some of {read:?}"
    );
    assert_eq!(small.metrics.evictions.get(), 0);
    assert_eq!(small.metrics.waits.get(), catalogue_layers(&next));
    next.page(&key(3), lsn).unwrap();

    // What is read goes last.
    small.advance();
    next.page(&key(3), lsn).unwrap();
    while next.local_layers().len() > read.len() {
        let before = next.local_layers();
        let tight = small.used().bytes;
        let room = world_budget(&small) - tight + 1;
        small.make_room(room);
        let left = next.local_layers();
        assert!(left.len() < before.len());
        assert!(read.iter().all(|id| left.contains(id)), "{left:?}");
    }

    // A damaged list is no list.
    let recent = world.objects("layers")[0]
        .parent()
        .unwrap()
        .with_file_name("recent");
    flip(&recent, 12);
    let cold = world.reopened("cold", &Arc::default()).await;
    assert_eq!(cold.warm_up().await, 0);
}

/// A read that needs the layer that is just to be fetched for nobody does not wait until no read waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_warming_up_share_downloads() {
    let world = World::new(&Arc::default()).await;
    assert!(world.read_all(&world.timeline).await.is_empty());
    world.timeline.remember_recent(Vec::new()).await;
    let (disk, lsn) = (Arc::<LayerDisk>::default(), *world.lsns.last().unwrap());
    let timeline = world.reopened("local", &disk).await;
    let of = &timeline;
    let reads = (0..BLOCKS).map(|block| of.obtaining(move || of.page(&key(block), lsn)));
    let (_, read) = tokio::join!(timeline.warm_up(), join_all(reads));
    for (block, page) in (0..).zip(read) {
        world.check(block, world.lsns.len() - 1, &page.unwrap()[..]);
    }
    let layers = timeline.layer_map().layers().count();
    assert_eq!(timeline.local_layers().len(), layers);
    assert_eq!(disk.metrics.downloads.get(), layers as u64);
}

fn world_budget(disk: &LayerDisk) -> u64 {
    disk.policy().and_then(|policy| policy.budget_bytes).unwrap()
}

/// Whatever byte of whatever local file is wrong: every page is read, right, and the files are whole afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_local_files_is_repaired() {
    let world = World::new(&Arc::default()).await;
    let disk = Arc::<LayerDisk>::default();
    {
        let timeline = world.reopened("local", &disk).await;
        assert!(world.read_all(&timeline).await.is_empty());
    }
    let whole: Vec<(_, Vec<u8>)> = world
        .files("local")
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let mut rounds = 0;
    for round in (0..).step_by(13) {
        let mut flipped = 0;
        for (number, (path, bytes)) in whole.iter().enumerate() {
            let positions = positions(bytes.len() as u64, number as u64);
            if let Some(at) = positions.get(round + number % 13) {
                flip(path, *at);
                flipped += 1;
            }
        }
        if flipped == 0 {
            break;
        }
        rounds += 1;
        let before = disk.metrics.repairs.get();
        let timeline = world.reopened("local", &disk).await;
        assert!(world.read_all(&timeline).await.is_empty(), "round {round}");
        let repaired = disk.metrics.repairs.get() - before;
        let differing = whole
            .iter()
            .filter(|(path, bytes)| fs::read(path).unwrap() != *bytes);
        let differing: Vec<_> = differing.map(|(path, _)| path.clone()).collect();
        // A byte that no read came by stays as it is, and is noticed when one does.
        assert!(
            repaired as usize + differing.len() >= flipped,
            "{repaired} repaired, {differing:?} not, of {flipped}"
        );
        for (path, bytes) in &whole {
            fs::write(path, bytes).unwrap();
        }
    }
    println!("{rounds} rounds over {} files", whole.len());
    // Cut, empty, missing, another layer's.
    let (first, second) = (&whole[0], &whole[1]);
    for bytes in [&first.1[..first.1.len() / 2], &[], &second.1[..]] {
        fs::write(&first.0, bytes).unwrap();
        let timeline = world.reopened("local", &disk).await;
        assert!(world.read_all(&timeline).await.is_empty());
    }
    // While they are open: the file is cut under the reader.
    let timeline = world.reopened("local", &disk).await;
    assert!(world.read_all(&timeline).await.is_empty());
    for (path, _) in &whole {
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(40)
            .unwrap();
    }
    let before = disk.metrics.repairs.get();
    assert!(world.read_all(&timeline).await.is_empty());
    assert!(disk.metrics.repairs.get() > before);
}

/// With the object damaged at the same place, the pages that it concerns are told to be damaged, and the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_object_storage_has_no_better_is_told_and_the_rest_goes_on() {
    let world = World::new(&Arc::default()).await;
    let disk = Arc::<LayerDisk>::default();
    let timeline = world.reopened("local", &disk).await;
    assert!(world.read_all(&timeline).await.is_empty());
    // The middle of the largest layer of pages: a data block.
    let map = timeline.layer_map();
    let current = map.layers().filter(|desc| desc.kind == LayerKind::Current);
    let desc = *current.max_by_key(|desc| desc.bytes).unwrap();
    let name = desc.id.to_string();
    let object = world
        .objects("layers")
        .into_iter()
        .find(|path| path.ends_with(&name));
    let object = object.unwrap();
    let at = 40;
    flip(&object, at);
    flip(&world.dir.path().join("local").join(&name), at);
    let downloads = disk.metrics.downloads.get();
    let errors = world.read_all(&timeline).await;
    assert!(!errors.is_empty() && errors.len() < world.lsns.len() * BLOCKS as usize);
    for (block, _, error) in &errors {
        let text = error.to_string();
        assert!(matches!(error, TimelineError::Unobtainable(_)) && !error.may_pass());
        assert!(
            text.contains(&name) && text.contains("object storage has no good copy"),
            "block {block}: {text}"
        );
    }
    // It was looked for once, not for each page.
    assert_eq!(disk.metrics.downloads.get() - downloads, 1);
    assert_eq!(disk.metrics.repair_failures.get(), 1);
    // A new owner without a local file serves as much.
    let other = world.reopened("other", &Arc::default()).await;
    assert_eq!(world.read_all(&other).await.len(), errors.len());
    // The object is gone as well: the same of all its pages.
    fs::remove_file(&object).unwrap();
    let other = world.reopened("third", &Arc::default()).await;
    let errors = world.read_all(&other).await;
    assert!(errors.iter().all(|(_, _, error)| !error.may_pass()), "{errors:?}");
    assert!(!errors.is_empty());
}

/// Whatever byte of whatever object of a layer is wrong: a page is right, or told to be damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_flipped_byte_of_an_object_is_served() {
    let world = World::new(&Arc::default()).await;
    let named: Vec<String> = world
        .timeline
        .layer_map()
        .layers()
        .map(|d| d.id.to_string())
        .collect();
    let objects = world.objects("layers").into_iter();
    let objects: Vec<_> = objects
        .filter(|path| named.contains(&path.file_name().unwrap().to_string_lossy().into_owned()))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let (mut told, mut unnoticed) = (0, 0);
    for round in (0..).step_by(19) {
        let mut flipped = 0;
        for (number, (path, bytes)) in objects.iter().enumerate() {
            fs::write(path, bytes).unwrap();
            if let Some(at) = positions(bytes.len() as u64, number as u64).get(round + number % 19) {
                flip(path, *at);
                flipped += 1;
            }
        }
        if flipped == 0 {
            break;
        }
        let storage = world::storage(
            &world.dir.path().join(format!("round-{round}")),
            &world.store,
            &Arc::default(),
        );
        // Without its catalogue a timeline is not opened, and says why.
        match open(&world, storage).await {
            Ok(timeline) => match world.read_all(&timeline).await.len() {
                0 => unnoticed += 1,
                errors => told += errors,
            },
            Err(error) => {
                assert!(!error.may_pass(), "{error}");
                told += 1;
            }
        }
    }
    assert!(told > 0, "{told} told, {unnoticed} rounds without a damaged read");
}

async fn open(
    world: &World,
    storage: lakebed_pageserver::timeline::Storage,
) -> Result<Arc<Timeline>, TimelineError> {
    let identity = world.timeline.identity.clone();
    let place = lakebed_pageserver::manifest::Place::new(
        &world.store,
        identity.tenant,
        identity.shard,
        identity.timeline,
    );
    let claimed = lakebed_pageserver::manifest::claim(&place, identity.generation).await;
    Timeline::open(identity, None, storage, claimed.unwrap().unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_flipped_byte_of_a_manifest_is_believed() {
    let world = World::new(&Arc::default()).await;
    let mut objects = world.objects("manifests");
    let is_whole = |path: &&PathBuf| {
        let object = parse("m", &fs::read(path).unwrap()).unwrap();
        object.follows().is_none()
    };
    let whole = objects.iter().rfind(is_whole).unwrap().clone();
    let following = objects.iter().rfind(|path| !is_whole(path)).unwrap().clone();
    for path in [&whole, &following] {
        let bytes = fs::read(path).unwrap();
        let all = (0..bytes.len()).step_by(1 + bytes.len() / 2000);
        for at in all.chain(0..64).chain(bytes.len() - 64..bytes.len()) {
            for bits in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= bits;
                let parsed = parse("m", &damaged);
                assert!(
                    matches!(parsed, Err(ManifestError::Damaged { .. })),
                    "byte {at}: {parsed:?}"
                );
            }
        }
        for length in [0, 8, 9, bytes.len() - 1] {
            assert!(parse("m", &bytes[..length]).is_err());
        }
    }
    // What the newest one builds on is lost.
    let path = objects.pop().unwrap();
    let newest = parse("m", &fs::read(&path).unwrap()).unwrap();
    assert!(newest.follows().is_some(), "the newest is a difference");
    let (kept, identity) = (fs::read(&whole).unwrap(), &world.timeline.identity);
    fs::remove_file(&whole).unwrap();
    let place = lakebed_pageserver::manifest::Place::new(
        &world.store,
        identity.tenant,
        identity.shard,
        identity.timeline,
    );
    let claimed = lakebed_pageserver::manifest::claim(&place, identity.generation).await;
    assert!(
        matches!(claimed, Err(ManifestError::BaseLost { .. })),
        "{claimed:?}"
    );
    fs::write(&whole, kept).unwrap();
    flip(&path, 20);
    let claimed = lakebed_pageserver::manifest::claim(&place, identity.generation).await;
    assert!(
        matches!(claimed, Err(ManifestError::Damaged { .. })),
        "{claimed:?}"
    );
}

/// Object storage that is away is not damage: a read says that it may be asked again, and then it is answered.
#[tokio::test]
async fn a_store_that_is_away_is_not_damage() {
    let world = World::new(&Arc::default()).await;
    let disk = Arc::<LayerDisk>::default();
    let timeline = world.reopened("local", &disk).await;
    let layers = world.objects("layers")[0].parent().unwrap().to_owned();
    let away = layers.with_file_name("away");
    // A file where the directory was: the store fails, and does not say that there is no such object.
    fs::rename(&layers, &away).unwrap();
    fs::write(&layers, b"").unwrap();
    let lsn = *world.lsns.last().unwrap();
    let read = tokio::time::timeout(
        Duration::from_secs(60),
        timeline.obtaining(|| timeline.page(&key(1), lsn)),
    );
    let error = read.await.unwrap().map(drop).unwrap_err();
    assert!(error.may_pass(), "{error}");
    fs::remove_file(&layers).unwrap();
    fs::rename(&away, &layers).unwrap();
    assert!(world.read_all(&timeline).await.is_empty());
}
