//! WAL in object storage: how it gets there, what may then go, and a timeline from nothing else.

use bytes::Bytes;
use lakebed_proto::v1;
use lakebed_quorum::acceptor::Durable;
use lakebed_safekeeper::backup::archive::{Archive, Reader};
use lakebed_safekeeper::backup::objects::{WalObject, covered};
use lakebed_safekeeper::backup::restore::restore;
use lakebed_safekeeper::{control_file, timeline};
use lakebed_types::Lsn;
use tempfile::TempDir;

use crate::driver::Driver;
use crate::feeding::{Feed, expected, routed};
use crate::node::{Nodes, TENANT, TIMELINE, eventually, timeline_ref};
use crate::sample::{SEGMENT, sample};

pub fn config(local_segments: u64, retention_s: u64) -> Option<serde_json::Value> {
    Some(serde_json::json!({
        "upload_interval_ms": 100,
        "local_segments": local_segments,
        "retention_s": retention_s,
    }))
}

fn archive(nodes: &Nodes) -> Archive {
    Archive::new(nodes.store(), (TENANT, TIMELINE))
}

async fn objects(nodes: &Nodes) -> Vec<WalObject> {
    let listed = archive(nodes).list().await.unwrap();
    listed.into_iter().map(|(object, _)| object).collect()
}

/// Waits until every node knows that object storage has the WAL up to here.
pub async fn backed_up(nodes: &Nodes, ids: &[u64], lsn: Lsn) {
    for &id in ids {
        let what = format!("safekeeper {id} to know of a backup up to {lsn}");
        eventually(&what, async || nodes.status(id).await.backup_lsn >= lsn.0).await;
    }
}

fn uploader(nodes: &Nodes, id: u64) -> Option<u64> {
    nodes.status_json(id)["timelines"][0]["backup"]["uploader"].as_u64()
}

async fn restored(nodes: &Nodes, until: Option<Lsn>) -> (TempDir, Durable) {
    let home = tempfile::tempdir().unwrap();
    let restored = restore(&archive(nodes), home.path(), until).await.unwrap();
    (home, restored.state)
}

/// The WAL in a directory of segment files.
fn wal(home: &TempDir, begin: Lsn, end: Lsn) -> Bytes {
    let mut wal = Vec::new();
    let mut at = begin.0;
    while at < end.0 {
        let number = at / u64::from(SEGMENT);
        let name = format!("{:024X}", (1u128 << 64) + u128::from(number));
        let bytes = std::fs::read(home.path().join(name)).unwrap();
        let to = end.0.min((number + 1) * u64::from(SEGMENT));
        wal.extend(&bytes[(at % u64::from(SEGMENT)) as usize..(to - number * u64::from(SEGMENT)) as usize]);
        at = to;
    }
    wal.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_wal_is_uploaded_by_one_and_comes_back_byte_for_byte() {
    let nodes = Nodes::start_with(3, config(1, 3600)).await;
    let (start, middle, end) = (sample().start, sample().at_percent(40), sample().end());
    let driver = Driver::start(&nodes.addresses, 3, 0);
    driver.commit(sample().at_percent(3)).await;
    backed_up(&nodes, &[1, 2, 3], sample().at_percent(2)).await;
    driver.commit(middle).await;
    driver.commit(end).await;
    // A heartbeat tells every member of the last commit.
    backed_up(&nodes, &[1, 2, 3], end).await;
    let chosen = uploader(&nodes, 1).unwrap();
    assert!((2..=3).all(|id| uploader(&nodes, id) == Some(chosen)));

    let there = objects(&nodes).await;
    assert_eq!(covered(start, there.iter()), end);
    let wholes = there.iter().filter(|object| object.whole);
    assert_eq!(covered(start, wholes.clone()), {
        let last = Lsn(end.0 / u64::from(SEGMENT) * u64::from(SEGMENT));
        sample().records[sample().records.partition_point(|record| record.end <= last) - 1].end
    });
    eventually("parts to go that whole segments hold", async || {
        let there = objects(&nodes).await;
        let within = |part: &WalObject| there.iter().any(|other| other.whole && part.is_within(other));
        !there.iter().any(within)
    })
    .await;

    let (home, state) = restored(&nodes, None).await;
    assert_eq!((state.truncate, state.commit, state.backup), (start, end, end));
    assert!(wal(&home, start, end) == sample().bytes(start, end));
    timeline::load(home.path(), end).unwrap();
    assert_eq!(control_file::load(home.path()).unwrap(), state);

    // Up to the last record that ends at or below a position.
    let (home, state) = restored(&nodes, Some(Lsn(middle.0 + 1))).await;
    assert_eq!(state.commit, middle);
    assert!(wal(&home, start, middle) == sample().bytes(start, middle));
    timeline::load(home.path(), middle).unwrap();

    // Read by a few records' worth, from inside an object.
    let mut reader = Reader::default();
    let at = sample().at_percent(70);
    let read = archive(&nodes).read(&mut reader, at).await.unwrap();
    assert!(!read.is_empty() && read == sample().bytes(at, Lsn(at.0 + read.len() as u64)));
    let gap = archive(&nodes).read(&mut reader, end).await.unwrap_err();
    assert!(gap.to_string().contains("object storage has no WAL at"), "{gap}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_takes_over_the_upload() {
    let mut nodes = Nodes::start_with(3, config(1, 3600)).await;
    let driver = Driver::start(&nodes.addresses, 3, 0);
    let (first, second) = (sample().at_percent(5), sample().at_percent(10));
    driver.commit(first).await;
    backed_up(&nodes, &[1, 2, 3], sample().at_percent(4)).await;
    let chosen = uploader(&nodes, 1).unwrap();
    nodes.down(chosen).await;
    driver.commit(second).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != chosen).collect();
    backed_up(&nodes, &others, second).await;
    assert_eq!(covered(sample().start, objects(&nodes).await.iter()), second);
    assert!(objects(&nodes).await.iter().any(|object| object.node.0 != chosen));
    nodes.up(chosen).await;
    let third = sample().at_percent(15);
    driver.commit(third).await;
    backed_up(&nodes, &[1, 2, 3], third).await;
    let (home, _) = restored(&nodes, None).await;
    assert!(wal(&home, sample().start, third) == sample().bytes(sample().start, third));
}

fn first_segment_is_there(nodes: &Nodes, id: u64) -> bool {
    let number = sample().start.0 / u64::from(SEGMENT);
    let name = format!("{:024X}", (1u128 << 64) + u128::from(number));
    nodes.timeline_dir(id).join(name).exists()
}

async fn find_boundary(nodes: &Nodes, id: u64, at: Lsn) -> v1::FindBoundaryResponse {
    let request = v1::FindBoundaryRequest {
        timeline: Some(timeline_ref()),
        at_or_below: at.0,
    };
    nodes
        .client(id)
        .await
        .find_boundary(request)
        .await
        .unwrap()
        .into_inner()
}

/// Local WAL goes when it is in object storage, in all shards' layers, and was flushed by all. What went is read from
/// object storage.
#[tokio::test(flavor = "multi_thread")]
async fn wal_is_removed_locally_when_it_is_safe_elsewhere() {
    let mut nodes = Nodes::start_with(3, config(0, 3600)).await;
    let (start, end) = (sample().start, sample().end());
    assert!(
        end.0 / u64::from(SEGMENT) > start.0 / u64::from(SEGMENT),
        "more than a segment"
    );
    let driver = Driver::start(&nodes.addresses, 3, 0);
    driver.commit(sample().at_percent(99)).await;
    // Two shards, fed by different members: only together they say what was consumed.
    let (first, second) = (
        Feed::start_at(&nodes, 1, 0, 1, start).await,
        Feed::start_at(&nodes, 2, 1, 1, start).await,
    );
    first.report(0, sample().at_percent(99)).await;
    backed_up(&nodes, &[1, 2, 3], sample().at_percent(99)).await;
    driver.commit(end).await;
    backed_up(&nodes, &[1, 2, 3], end).await;
    for id in 1..=3 {
        assert_eq!(
            nodes.status(id).await.truncate_lsn,
            start.0,
            "one shard has consumed nothing"
        );
        assert!(first_segment_is_there(&nodes, id));
    }
    second.report(1, end).await;
    for id in 1..=3 {
        eventually("the first segment to go", async || {
            !first_segment_is_there(&nodes, id)
        })
        .await;
        let status = nodes.status(id).await;
        assert!(status.truncate_lsn > start.0 && status.truncate_lsn <= status.backup_lsn);
        assert_eq!(status.stopped_reason, "");
    }
    // From both sides of what was removed, and over the border.
    let kept = Lsn(nodes.status(1).await.truncate_lsn);
    for (from, to) in [(start, sample().at_percent(5)), (start, end), (kept, end)] {
        let read = nodes.read(1, from, to, 1).await.unwrap();
        assert!(read == sample().bytes(from, to), "{from} to {to}");
    }
    let records = &sample().records;
    for index in [
        0,
        1,
        700,
        records.partition_point(|record| record.end <= kept) - 1,
    ] {
        let record = &records[index];
        for at in [record.end, Lsn(record.end.0 + 1)] {
            let found = find_boundary(&nodes, 1, at).await;
            let expected = (record.end.0, record.start.0);
            assert_eq!((found.boundary_lsn, found.last_record_start), expected, "{at}");
        }
    }
    assert_eq!(find_boundary(&nodes, 1, start).await.boundary_lsn, start.0);
    // A shard that lost its layers: from the start, and from inside of what was removed.
    let all = routed(end);
    for (generation, from) in [(2, start), (3, records[700].end)] {
        let mut again = Feed::start_at(&nodes, 1, 1, generation, from).await;
        let got = crate::feeding::records(&again.until(end).await);
        assert!(got == expected(&all, 1, from), "from {from}");
    }
    // All of it comes back, and a node starts without what it removed.
    let (home, _) = restored(&nodes, None).await;
    assert!(wal(&home, start, end) == sample().bytes(start, end));
    drop((driver, first, second));
    nodes.down(2).await;
    nodes.up(2).await;
    assert_eq!(nodes.status(2).await.stopped_reason, "");
}

/// Object storage does not keep WAL for ever either.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_layers_cover_expires_in_object_storage() {
    let nodes = Nodes::start_with(3, config(0, 0)).await;
    let (start, end) = (sample().start, sample().end());
    let driver = Driver::start(&nodes.addresses, 3, 0);
    let feeds = [
        Feed::start_at(&nodes, 1, 0, 1, start).await,
        Feed::start_at(&nodes, 2, 1, 1, start).await,
    ];
    driver.commit(sample().at_percent(99)).await;
    backed_up(&nodes, &[1, 2, 3], sample().at_percent(99)).await;
    for (shard, feed) in (0..).zip(&feeds) {
        feed.report(shard, sample().at_percent(99)).await;
    }
    for id in 1..=3 {
        eventually("the first segment to go", async || {
            !first_segment_is_there(&nodes, id)
        })
        .await;
    }
    driver.commit(end).await;
    eventually("the oldest object to go", async || {
        objects(&nodes).await.iter().all(|object| object.begin > start)
    })
    .await;
    backed_up(&nodes, &[1, 2, 3], end).await;
    let there = objects(&nodes).await;
    let first = there.iter().map(|object| object.begin).min().unwrap();
    assert_eq!(covered(first, there.iter()), end);
    let (home, state) = restored(&nodes, None).await;
    assert_eq!((state.truncate, state.commit), (first, end));
    assert!(wal(&home, first, end) == sample().bytes(first, end));
}

/// A branch before its first commit: there is no WAL, and the timeline comes back all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_without_wal_comes_back_too() {
    let nodes = Nodes::start_with(3, config(1, 3600)).await;
    let start = sample().start;
    let driver = Driver::start(&nodes.addresses, 3, 0);
    eventually("an object without WAL", async || {
        objects(&nodes)
            .await
            .iter()
            .any(|object| (object.begin, object.end) == (start, start))
    })
    .await;
    let (home, state) = restored(&nodes, None).await;
    assert_eq!(
        (state.truncate, state.commit, state.backup),
        (start, start, start)
    );
    timeline::load(home.path(), start).unwrap();
    // Gone once there is more.
    let first = sample().at_percent(3);
    driver.commit(first).await;
    backed_up(&nodes, &[1, 2, 3], first).await;
    eventually("the object without WAL to go", async || {
        objects(&nodes).await.iter().all(|object| object.end > start)
    })
    .await;
}
