//! Milestone M1: pages built from an `initdb` import and WAL equal what stock recovery makes of the same WAL, page by
//! page, under Postgres's own masks. Two shards; in the middle the local disk is lost and everything comes back from
//! object storage.

// Of it only what makes layers local.
#[allow(dead_code)]
mod toy;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use lakebed_blobstore::BlobStore;
use lakebed_pageserver::data_directory::{DataDirectoryError, Item, visit};
use lakebed_pageserver::import::{Circumstances, Import};
use lakebed_pageserver::ingest::Ingestor;
use lakebed_pageserver::manifest::{self, Place};
use lakebed_pageserver::page_cache::PageCache;
use lakebed_pageserver::timeline::{Identity, Storage, Thresholds, Timeline};
use lakebed_pgtest::{Cluster, Stop, run, temp_dir, wait_until, workloads};
use lakebed_redo::{Managers, PageBytes, mask};
use lakebed_types::shard::shard_of;
use lakebed_types::{
    ForkNumber, Generation, Lsn, PageKey, PgVersion, RelTag, ShardCount, ShardIdentity, TenantId, TimelineId,
};
use lakebed_wal::page::WalFormat;
use lakebed_wal::record::DecodedRecord;
use lakebed_wal::stream::WalDecoder;

const SHARDS: u8 = 2;

/// Small, so that there are layers.
fn storage(directory: &Path, store: &BlobStore) -> Storage {
    Storage {
        directory: directory.to_owned(),
        disk: Default::default(),
        store: store.clone(),
        thresholds: Thresholds::of_size(4 << 20),
        managers: Managers::default(),
    }
}

fn records(pg_wal: &Path, start: Lsn, format: WalFormat) -> Vec<DecodedRecord> {
    let size = u64::from(format.segment_bytes);
    let mut decoder = WalDecoder::new(format, start, Lsn::INVALID);
    let mut records = Vec::new();
    for segment in start.0 / size.. {
        let Ok(bytes) = fs::read(pg_wal.join(format.segment_file_name(segment))) else {
            break;
        };
        let skip = if segment == start.0 / size {
            (start.0 % size) as usize
        } else {
            0
        };
        decoder.feed(&bytes[skip..]);
        while let Ok(Some(record)) = decoder.next_record() {
            records.push(record);
        }
    }
    records
}

struct Shard {
    timeline: Arc<Timeline>,
    local: tempfile::TempDir,
}

/// Imports and stores each shard's part of the cluster.
async fn import_all(cluster: &Path, store: &BlobStore) -> (Vec<Shard>, Lsn, WalFormat) {
    let mut shards = Vec::new();
    let mut start = Lsn(0);
    let mut format = WalFormat {
        version: PgVersion::V15,
        timeline: 1,
        system_identifier: 0,
        segment_bytes: 1 << 24,
    };
    for index in 0..SHARDS {
        let shard = ShardIdentity::new(index, ShardCount::new(SHARDS).unwrap()).unwrap();
        let imported = Import::open(cluster, shard, Circumstances::default()).unwrap();
        start = imported.start;
        format.system_identifier = imported.cluster.system_identifier;
        let identity = Identity {
            tenant: TenantId([1; 16]),
            timeline: TimelineId([2; 16]),
            shard,
            generation: Generation(1),
            cluster: imported.cluster,
            start,
            consistent: start,
        };
        let local = temp_dir();
        let timeline = Timeline::create(identity, None, storage(&local.path().join("t"), store));
        // Most of it in layers of one LSN.
        let portions = store_portions(&timeline, imported).await;
        assert!(portions > 5, "{portions} portions");
        timeline.flush().await.unwrap();
        shards.push(Shard { timeline, local });
    }
    (shards, start, format)
}

/// Everything that an import finds, in portions; how many there were before the last.
async fn store_portions(timeline: &Arc<Timeline>, import: Import) -> usize {
    let (portions, runtime) = (timeline.clone(), tokio::runtime::Handle::current());
    let start = import.start;
    let read = tokio::task::spawn_blocking(move || {
        let mut count = 0;
        let rest = import.read(1 << 20, &mut |portion| {
            count += 1;
            runtime.block_on(portions.store_portion(portion))
        });
        (rest.unwrap(), count)
    });
    let (rest, count) = read.await.unwrap();
    timeline.publish(rest, start);
    count
}

/// A shard that lost its local disk, taken over by the next generation.
async fn take_over(shard: &Shard, store: &BlobStore) -> Shard {
    let old = &shard.timeline.identity;
    let identity = Identity {
        generation: Generation(old.generation.0 + 1),
        ..old.clone()
    };
    let place = Place::new(store, old.tenant, old.shard, old.timeline);
    let claimed = manifest::claim(&place, identity.generation).await;
    let claimed = claimed.unwrap().expect("a manifest");
    let local = temp_dir();
    let storage = storage(&local.path().join("t"), store);
    let timeline = Timeline::open(identity, None, storage, claimed).await.unwrap();
    toy::everything_local(&timeline).await;
    Shard { timeline, local }
}

async fn ingest(shard: &Shard, records: &[DecodedRecord]) {
    let mut ingestor = Ingestor::new(shard.timeline.clone()).unwrap();
    for (index, record) in records
        .iter()
        .enumerate()
        .filter(|(_, record)| record.end > shard.timeline.last_record())
    {
        ingestor.record(record).unwrap();
        if index % 500 == 0 {
            ingestor.publish(record.end);
            if shard.timeline.wants_flush() {
                shard.timeline.flush().await.unwrap();
            }
        }
    }
    ingestor.publish(records.last().unwrap().end);
}

/// Differences by fork or SLRU, and how many pages were compared.
#[derive(Default, Debug)]
struct Comparison {
    pages: BTreeMap<&'static str, u32>,
    differences: Vec<String>,
}

fn compare(shards: &[Shard], recovered: &Path, lsn: Lsn) -> Comparison {
    let mut result = Comparison::default();
    let count = ShardCount::new(SHARDS).unwrap();
    let catalogue = &shards[0].timeline;
    // Recovery resets an unlogged relation to a copy of its init fork; the compute's sidecar does that in the tier.
    let unlogged = |rel: RelTag| {
        rel.fork != ForkNumber::Init
            && catalogue
                .relation_size(rel.with_fork(ForkNumber::Init), lsn)
                .is_some()
    };
    let mut sizes = BTreeMap::new();
    let read = |key: &PageKey| {
        shards[usize::from(shard_of(key, count))]
            .timeline
            .page(key, lsn)
            .unwrap()
    };
    visit::<DataDirectoryError>(recovered, &mut |item| {
        match item {
            Item::Fork { rel, .. } | Item::Page(PageKey::Rel { rel, .. }, _) if unlogged(rel) => {}
            Item::Fork { rel, blocks } if rel.fork != ForkNumber::Fsm => {
                let size = sizes.entry(rel).or_insert(0);
                *size = blocks.max(*size);
            }
            Item::Page(key, theirs) => {
                let (mut ours, mut theirs): (Box<PageBytes>, _) = (read(&key), *theirs);
                let kind = match key {
                    PageKey::Rel { rel, .. } if rel.fork == ForkNumber::Fsm => return Ok(()),
                    PageKey::Rel { rel, block } if rel.fork != ForkNumber::Vm => {
                        mask::by_layout(&mut ours, block);
                        mask::by_layout(&mut theirs, block);
                        if rel.fork == ForkNumber::Init {
                            "init"
                        } else {
                            "main"
                        }
                    }
                    PageKey::Rel { .. } => {
                        mask::visibility_map(&mut ours);
                        mask::visibility_map(&mut theirs);
                        "vm"
                    }
                    PageKey::Slru { kind, page } => {
                        // Postgres writes whole segments' leading pages; what recovery never touched may be missing here.
                        if !catalogue.catalogue(|catalogue| catalogue.has_slru_page(kind, page, lsn)) {
                            result
                                .differences
                                .push(format!("{kind:?} page {page} does not exist"));
                        }
                        kind.directory()
                    }
                    PageKey::Control => "control",
                };
                *result.pages.entry(kind).or_default() += 1;
                if let Some(at) = (0..theirs.len()).find(|&at| ours[at] != theirs[at]) {
                    let end = (at + 16).min(theirs.len());
                    let (ours, theirs) = (&ours[at..end], &theirs[at..end]);
                    result.differences.push(format!(
                        "{key:?} at byte {at}: {ours:02x?}, recovery has {theirs:02x?}"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    })
    .unwrap();
    let known = catalogue.catalogue(|catalogue| catalogue.all_relations(lsn).collect::<BTreeMap<_, _>>());
    for (rel, blocks) in &sizes {
        if known.get(rel) != Some(blocks) {
            result.differences.push(format!(
                "{rel} has {:?} blocks, recovery has {blocks}",
                known.get(rel)
            ));
        }
    }
    for rel in known
        .keys()
        .filter(|rel| rel.fork != ForkNumber::Fsm && !sizes.contains_key(rel))
    {
        result
            .differences
            .push(format!("{rel} does not exist after recovery"));
    }
    result
}

/// Stock recovery of the WAL, from the cluster's first state to the end.
fn recover(base: &mut Cluster, pg_wal: &Path) {
    fs::write(base.data_dir().join("recovery.signal"), "").unwrap();
    let restore = format!("restore_command=cp {}/%f %p", pg_wal.display());
    base.start(&[
        &restore,
        "autovacuum=off",
        "max_prepared_transactions=10",
        "hot_standby=off",
    ]);
    wait_until("the end of recovery", || {
        base.sql("SELECT pg_is_in_recovery()") == "f"
    });
    base.sql("CHECKPOINT");
    base.stop(Stop::Clean);
}

/// All relation pages of a data directory.
fn pages_of(directory: &Path) -> Vec<PageKey> {
    let mut keys = Vec::new();
    visit::<DataDirectoryError>(directory, &mut |item| {
        if let Item::Page(key @ PageKey::Rel { .. }, _) = item {
            keys.push(key);
        }
        Ok(())
    })
    .unwrap();
    keys
}

/// A page that is read again and again as WAL comes in is the page that one read builds.
fn built_on_what_was_built(shards: &[Shard], key: &PageKey, steps: &[Lsn]) {
    let count = ShardCount::new(SHARDS).unwrap();
    let timeline = &shards[usize::from(shard_of(key, count))].timeline;
    let cache = PageCache::new(1 << 20);
    for lsn in steps {
        let (page, _) = timeline.page_with(&cache, key, *lsn).unwrap();
        assert!(
            page[..] == timeline.page(key, *lsn).unwrap()[..],
            "{key} at {lsn}"
        );
        let (again, cost) = timeline.page_with(&cache, key, *lsn).unwrap();
        assert!(again == page && cost.values == 0, "{key} at {lsn}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_equal_stock_recovery() {
    let mut primary = Cluster::init();
    let mut base = primary.copy();
    let bucket = temp_dir();
    let store = BlobStore::open(&format!("file://{}", bucket.path().display())).unwrap();
    let (mut shards, start, format) = import_all(&primary.data_dir(), &store).await;

    let tablespace = temp_dir();
    primary.start(&[
        "full_page_writes=off",
        "wal_keep_size=8GB",
        "wal_recycle=off",
        "max_prepared_transactions=10",
        "autovacuum_naptime=1",
    ]);
    run(primary.client("pgbench").args(["-i", "-q", "-s", "5"]));
    run(primary
        .client("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-t", "1000"]));
    primary.sql(workloads::DDL);
    primary.sql(&format!(
        "CREATE TABLESPACE ts LOCATION '{}'",
        tablespace.path().display()
    ));
    primary.sql(workloads::DATABASES);
    run(primary
        .client("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-t", "500"]));
    primary.stop(Stop::Clean);

    let pg_wal = primary.data_dir().join("pg_wal");
    let records = records(&pg_wal, start, format);
    let end = records.last().unwrap().end;
    let middle = records.len() / 2;
    for shard in &mut shards {
        ingest(shard, &records[..middle]).await;
        shard.timeline.flush().await.unwrap();
        assert!(shard.timeline.compact().await.unwrap().pages > 0);
        // What comes after the flush is lost with the disk, and ingested again.
        ingest(shard, &records[middle..middle + 1000]).await;
        *shard = take_over(shard, &store).await;
        assert_eq!(shard.timeline.last_record(), records[middle - 1].end);
        ingest(shard, &records[middle..]).await;
        shard.timeline.flush().await.unwrap();
        shard.timeline.compact().await.unwrap();
        println!("{:?}", shard.timeline.sizes());
        assert!(shard.local.path().join("t").is_dir());
    }
    // The tablespace's directory is the primary's; recovery makes its own beside it.
    fs::rename(tablespace.path(), tablespace.path().with_extension("primary")).unwrap();
    fs::create_dir(tablespace.path()).unwrap();
    run(std::process::Command::new("chown")
        .arg("--reference")
        .arg(base.data_dir())
        .arg(tablespace.path()));
    recover(&mut base, &pg_wal);

    let result = compare(&shards, &base.data_dir(), end);
    println!(
        "pages compared: {:?}, {} records, {} differences",
        result.pages,
        records.len(),
        result.differences.len()
    );
    assert!(
        result.differences.is_empty(),
        "{:#?}",
        &result.differences[..result.differences.len().min(20)]
    );
    assert!(result.pages["main"] > 10_000 && result.pages["vm"] > 20);

    let steps: Vec<Lsn> = (1..=4)
        .map(|part| records[(records.len() - 1) * part / 4].end)
        .collect();
    for key in pages_of(&base.data_dir()) {
        built_on_what_was_built(&shards, &key, &steps);
    }

    // One flipped byte is found as exactly one difference.
    let table = base.data_dir().join("base/1/1259");
    let mut bytes = fs::read(&table).unwrap();
    bytes[8192 - 20] ^= 1;
    fs::write(&table, bytes).unwrap();
    assert_eq!(compare(&shards, &base.data_dir(), end).differences.len(), 1);
    let _ = fs::remove_dir_all(tablespace.path().with_extension("primary"));
}
