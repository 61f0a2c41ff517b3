//! A healthy store is clean; whatever is wrong is said to be what it is; and nothing that anybody refers to is deleted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use lakebed_blobstore::BlobStore;
use lakebed_layer::{ImagePolicy, PlanPolicy, ValueKind};
use lakebed_pageserver::manifest::{Cluster, Place, claim};
use lakebed_pageserver::timeline::{Changes, Identity, Storage, Thresholds, Timeline};
use lakebed_safekeeper::backup::objects::{WalObject, directory};
use lakebed_scrub::{Kind, Options, Report, State, scrub};
use lakebed_types::{
    ForkNumber, Generation, Lsn, NodeId, PageKey, PgVersion, RelTag, ShardCount, ShardIdentity, TenantId,
    Term, TimelineId,
};
use lakebed_walframe::build::Cut;
use lakebed_walframe::{Header, ObjectBuilder};

const TENANT: TenantId = TenantId([1; 16]);
const MAIN: TimelineId = TimelineId([2; 16]);
const BRANCH: TimelineId = TimelineId([3; 16]);
/// Blocks that each flush writes.
const BLOCKS: u32 = 8;

struct World {
    dir: tempfile::TempDir,
    store: BlobStore,
}

fn shard() -> ShardIdentity {
    ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap()
}

fn key(block: u32) -> PageKey {
    let rel = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 1,
        fork: ForkNumber::Main,
    };
    PageKey::Rel { rel, block }
}

fn image(block: u32, lsn: Lsn) -> Bytes {
    let byte = |at: u64| (at.wrapping_mul(lsn.0 * 64 + u64::from(block) + 1) >> 3) as u8;
    (0..8192).map(byte).collect()
}

fn options() -> Options {
    Options {
        tenant: None,
        deep: true,
        delete_orphans: false,
        grace: Duration::from_secs(3600),
    }
}

/// One round: every block gets another image.
async fn write(timeline: &Arc<Timeline>) {
    let lsn = Lsn(timeline.last_record().0 + 64);
    let mut changes = Changes::default();
    for block in 0..BLOCKS {
        let body = image(block, lsn);
        changes.value(key(block), lsn, ValueKind::Image, |out| {
            out.extend_from_slice(&body)
        });
    }
    timeline.publish(changes, lsn);
    timeline.flush().await.unwrap();
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&format!("file://{}", dir.path().join("store").display())).unwrap();
        World { dir, store }
    }

    fn storage(&self, name: &str, rewind_seconds: u64) -> Storage {
        Storage {
            directory: self.dir.path().join(name),
            disk: Arc::default(),
            store: self.store.clone(),
            thresholds: Thresholds {
                images: ImagePolicy::default(),
                plan: PlanPolicy {
                    level0: 2,
                    layer_bytes: 60_000,
                    history: 2,
                    waste: 8,
                    catalogue: 3,
                },
                rewind_seconds,
                ..Thresholds::of_size(1 << 20)
            },
            managers: Default::default(),
        }
    }

    fn identity(&self, timeline: TimelineId, start: Lsn) -> Identity {
        Identity {
            tenant: TENANT,
            timeline,
            shard: shard(),
            generation: Generation(1),
            cluster: Cluster {
                system_identifier: 7,
                postgres_major: PgVersion::V15,
                wal_segment_bytes: 1 << 24,
                data_checksums: false,
            },
            start,
            consistent: start,
        }
    }

    /// A timeline with a branch, and WAL.
    async fn healthy(&self) -> Arc<Timeline> {
        let main = Timeline::create(self.identity(MAIN, Lsn(0x1000)), None, self.storage("main", 3600));
        for _ in 0..5 {
            write(&main).await;
        }
        main.compact().await.unwrap();
        let at = main.last_record();
        main.add_branch(BRANCH, at).await.unwrap();
        let branch = Timeline::create(
            self.identity(BRANCH, at),
            Some((main.clone(), at)),
            self.storage("branch", 3600),
        );
        branch.flush().await.unwrap();
        write(&branch).await;
        main.remember_recent(Vec::new()).await;
        for (begin, end) in [(0x1000, 0x9000), (0x9000, 0xA000)] {
            self.wal(begin, end).await;
        }
        main
    }

    async fn wal(&self, begin: u64, end: u64) {
        let object = WalObject {
            begin: Lsn(begin),
            end: Lsn(end),
            term: Term(1),
            node: NodeId(1),
            whole: false,
        };
        let header = Header {
            pg_version: PgVersion::V15,
            segment_bytes: 1 << 24,
            system_id: 7,
            begin: object.begin,
            end: object.end,
        };

        let mut builder = ObjectBuilder::new(header);
        for from in (begin..end).step_by(4096) {
            let to = end.min(from + 4096);
            let cut = Cut {
                range: Lsn(from)..Lsn(to),
                inside_record: false,
            };
            builder.frame(&cut, &vec![begin as u8; (to - from) as usize]);
        }
        let path = format!("{}/{}", directory(TENANT, MAIN), object.name());
        self.store
            .put_if_absent(&path, builder.finish(&[]).into())
            .await
            .unwrap();
    }

    fn of_timeline(&self, timeline: TimelineId, kind: &str) -> Vec<PathBuf> {
        let tenant = self.dir.path().join("store/tenants").join(TENANT.to_string());
        let timelines = tenant.join("shards/0-1/timelines");
        files(&timelines.join(timeline.to_string()).join(kind))
    }

    fn wal_files(&self) -> Vec<PathBuf> {
        files(&self.dir.path().join("store").join(directory(TENANT, MAIN)))
    }

    /// Files of layers that the timeline has now.
    fn named(&self, timeline: &Timeline) -> Vec<PathBuf> {
        let map = timeline.layer_map();
        let names: BTreeSet<String> = map.layers().map(|desc| desc.id.to_string()).collect();
        let mut files = self.of_timeline(timeline.identity.timeline, "layers");
        files.retain(|path| names.contains(&*path.file_name().unwrap().to_string_lossy()));
        files
    }

    async fn report(&self, options: &Options) -> Report {
        scrub(&self.store, options).await.unwrap()
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// Makes an object look as if it had been written so long ago.
fn age(path: &Path, seconds: u64) {
    let then = SystemTime::now() - Duration::from_secs(seconds);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(then).unwrap();
}

fn kinds(report: &Report) -> Vec<(Kind, String)> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let findings = report.findings.iter();
    let mut kinds: Vec<_> = findings
        .map(|finding| (finding.kind, name(&finding.path)))
        .collect();
    kinds.sort();
    kinds
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_store_is_clean() {
    let world = World::new();
    world.healthy().await;
    let report = world.report(&options()).await;
    assert!(report.is_clean() && report.leftovers.is_empty(), "{report:?}");
    assert_eq!((report.timelines, report.wal_objects), (2, 2));
    assert!(report.layers > 3 && report.manifests > 6, "{report:?}");
    assert!(report.checked_bytes > 100_000, "{report:?}");
    let of_another = Options {
        tenant: Some(TenantId([9; 16])),
        ..options()
    };
    assert_eq!(world.report(&of_another).await.objects, 0);
}

/// Each of these alone is found, and is told as what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_as_what_it_is() {
    let world = World::new();
    let main = world.healthy().await;
    let layer = world.named(&main).pop().unwrap();
    let manifest = world.of_timeline(MAIN, "manifests").pop().unwrap();
    let wal = world.wal_files()[0].clone();
    let quick = Options {
        deep: false,
        ..options()
    };
    type Change = fn(&mut Vec<u8>);
    let flip: Change = |bytes| {
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
    };
    let cut: Change = |bytes| bytes.truncate(bytes.len() - 7);
    let cases: [(&Path, Change, Kind, bool); 6] = [
        (&layer, flip, Kind::Damaged, false),
        (&layer, cut, Kind::WrongSize, true),
        (&manifest, flip, Kind::Damaged, true),
        (&manifest, cut, Kind::Damaged, true),
        (&wal, flip, Kind::Damaged, false),
        (&wal, cut, Kind::Damaged, true),
    ];
    for (path, change, kind, told_quickly) in cases {
        let whole = fs::read(path).unwrap();
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
        let expected = [(kind, name(path))];
        assert_eq!(kinds(&world.report(&options()).await), expected);
        assert_eq!(
            !world.report(&quick).await.is_clean(),
            told_quickly,
            "{}",
            path.display()
        );
        fs::write(path, whole).unwrap();
    }
    // Gone: a layer, WAL in the middle, the parent of a branch.
    for (path, expected) in [
        (&layer, (Kind::Missing, name(&layer))),
        (&wal, (Kind::Gap, MAIN.to_string())),
    ] {
        if expected.0 == Kind::Gap {
            world.wal(0x800, 0x1000).await;
        }
        let aside = world.dir.path().join("aside");
        fs::rename(path, &aside).unwrap();
        assert_eq!(kinds(&world.report(&quick).await), [expected]);
        fs::rename(&aside, path).unwrap();
    }
    for path in world.of_timeline(MAIN, "manifests") {
        fs::remove_file(path).unwrap();
    }
    let report = world.report(&quick).await;
    assert_eq!(kinds(&report), [(Kind::NoParent, BRANCH.to_string())]);
    // Its layers may be of an import that runs.
    assert!(report.leftovers_of(State::Unfinished).count() > 3);
    let deleting = Options {
        delete_orphans: true,
        grace: Duration::ZERO,
        ..options()
    };
    let before = world.of_timeline(MAIN, "layers");
    world.report(&deleting).await;
    assert_eq!(
        world.of_timeline(MAIN, "layers"),
        before,
        "without a manifest nothing goes"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_go_on_proof_alone() {
    let world = World::new();
    let main = world.healthy().await;
    let layer = world.named(&main).pop().unwrap();
    // Of the present owner: one that it stores just now, one that it gave up long ago; of an owner before; and something else.
    let other = |name: &str| layer.with_file_name(name);
    let (young, old, of_before) = (other("1-ffff01"), other("1-ffff02"), other("0-1"));
    for path in [&young, &old, &of_before] {
        fs::copy(&layer, path).unwrap();
    }
    age(&old, 100_000);
    age(&of_before, 100_000);
    let foreign = world.dir.path().join("store/readme");
    fs::write(&foreign, "what is this?").unwrap();
    let expected = |state, deleting| {
        let report: &Report = deleting;
        let mut names: Vec<String> = report
            .leftovers_of(state)
            .map(|leftover| name(Path::new(&leftover.path)))
            .collect();
        names.sort();
        names
    };
    let report = world.report(&options()).await;
    assert!(report.findings.is_empty() && !report.is_clean());
    assert_eq!(expected(State::Orphan, &report), [name(&of_before), name(&old)]);
    assert_eq!(expected(State::Unfinished, &report), [name(&young)]);
    assert_eq!(expected(State::Unknown, &report), ["readme"]);
    let deleting = Options {
        delete_orphans: true,
        ..options()
    };
    // With a manifest that cannot be read there is no proof.
    let manifest = world.of_timeline(MAIN, "manifests")[0].clone();
    let whole = fs::read(&manifest).unwrap();
    fs::write(&manifest, &whole[..20]).unwrap();
    let report = world.report(&deleting).await;
    assert_eq!(expected(State::Deleted, &report), [""; 0]);
    assert_eq!(report.leftovers_of(State::Orphan).count(), 0);
    fs::write(&manifest, whole).unwrap();

    let report = world.report(&deleting).await;
    assert_eq!(expected(State::Deleted, &report), [name(&of_before), name(&old)]);
    assert!(report.is_clean(), "{report:?}");
    assert!(young.exists() && foreign.exists() && !old.exists() && !of_before.exists());
    let report = world.report(&options()).await;
    assert!(report.is_clean() && report.leftovers.len() == 2, "{report:?}");
    // Nothing is left of the look at the clock.
    assert!(
        files(&world.dir.path().join("store"))
            .iter()
            .all(|path| name(path) != "scrub" || files(path).is_empty())
    );
}

/// A store under load: manifests and layers come and go while orphans are looked for and deleted, again and again, with no grace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_named_goes_under_load() {
    let world = Arc::new(World::new());
    let main = Timeline::create(world.identity(MAIN, Lsn(0x1000)), None, world.storage("main", 0));
    write(&main).await;
    let done = Arc::new(AtomicBool::new(false));
    let scrubs = tokio::spawn({
        let (world, done) = (world.clone(), done.clone());
        async move {
            let deleting = Options {
                deep: false,
                delete_orphans: true,
                grace: Duration::ZERO,
                ..options()
            };
            let (mut looks, mut deleted) = (0, 0);
            while !done.load(Ordering::Relaxed) || looks < 3 {
                match scrub(&world.store, &deleting).await {
                    Ok(report) => {
                        assert!(report.findings.is_empty(), "{report:?}");
                        deleted += report.leftovers_of(State::Deleted).count();
                        looks += 1;
                    }
                    // Busier than it can be looked at.
                    Err(lakebed_scrub::ScrubError::Restless(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            (looks, deleted)
        }
    });
    for round in 0..60u64 {
        write(&main).await;
        main.compact().await.unwrap();
        main.sweep().await.unwrap();
        // What an owner before left.
        let left = world
            .named(&main)
            .pop()
            .unwrap()
            .with_file_name(format!("0-{round:x}"));
        fs::write(&left, "left behind").unwrap();
        age(&left, 100_000);
    }
    done.store(true, Ordering::Relaxed);
    let (looks, deleted) = scrubs.await.unwrap();
    println!("{looks} looks, {deleted} orphans deleted");
    let named = main.layer_map().layers().count();
    assert_eq!(world.named(&main).len(), named);
    assert!(deleted > 0, "{looks} looks");
    // From object storage alone it is all there.
    let place = Place::new(&world.store, TENANT, shard(), MAIN);
    let generation = Generation(2);
    let claimed = claim(&place, generation).await.unwrap().unwrap();
    let identity = Identity {
        generation,
        ..main.identity.clone()
    };
    let next = Timeline::open(identity, None, world.storage("next", 0), claimed)
        .await
        .unwrap();
    let lsn = main.last_record();
    for block in 0..BLOCKS {
        for lsn in [Lsn(0x1000 + 64), Lsn(0x1000 + 64 * 30), lsn] {
            let page = next.obtaining(|| next.page(&key(block), lsn)).await.unwrap();
            assert!(page[..] == image(block, lsn)[..], "block {block} at {lsn}");
        }
    }
}
