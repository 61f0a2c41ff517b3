//! A full disk, a real one: appends are refused and say why, and go on by themselves when there is room.
//!
//! Each safekeeper's directory is a file system of its own.

use std::fs;
use std::path::Path;

use lakebed_pgtest::SmallDisk;
use lakebed_types::Lsn;

use crate::driver::Driver;
use crate::node::{Nodes, eventually};
use crate::sample::{SEGMENT, sample};

async fn start() -> (Nodes, Vec<SmallDisk>) {
    let mut disks = Vec::new();
    let nodes = Nodes::start_at(3, &mut |directory: &Path| {
        disks.push(SmallDisk::mount(directory, 64 << 20));
    })
    .await;
    (nodes, disks)
}

async fn is_full(nodes: &Nodes, id: u64) -> bool {
    let status = nodes.status_json(id);
    let reason = status["timelines"][0]["full_reason"].as_str();
    assert_eq!(nodes.status(id).await.stopped_reason, "");
    reason.is_some_and(|reason| reason.contains("the disk is full"))
}

async fn same_on_all(nodes: &Nodes, end: Lsn, term: u64) {
    for id in 1..=3 {
        nodes.flushed(id, end).await;
        let wal = nodes.read(id, sample().start, end, term).await.unwrap();
        assert!(
            wal == sample().bytes(sample().start, end),
            "safekeeper {id} has other bytes"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_full_disk_is_not_noticed_and_takes_wal_again_when_there_is_room() {
    let (nodes, disks) = start().await;
    let (some, end) = (sample().at_percent(5), sample().end());
    let driver = Driver::start(&nodes.addresses, 3, 0);
    driver.commit(some).await;
    disks[0].fill();
    driver.commit(end).await;
    eventually("the full disk to be told of", async || is_full(&nodes, 1).await).await;
    let flushed = nodes.status(1).await.flush_lsn;
    assert!(
        flushed >= some.0 && flushed < end.0,
        "flushed to {}",
        Lsn(flushed)
    );
    // What is there is served.
    let wal = nodes.read(1, sample().start, some, 1).await.unwrap();
    assert!(wal == sample().bytes(sample().start, some));
    disks[0].make_room();
    same_on_all(&nodes, end, 1).await;
    assert!(!is_full(&nodes, 1).await);
}

/// The flush position is that of an append's end at most: what was promised before is kept, and nothing more is said.
#[tokio::test(flavor = "multi_thread")]
async fn with_all_disks_full_commits_wait_and_go_on_and_nothing_is_lost() {
    let (mut nodes, disks) = start().await;
    let (some, end) = (sample().at_percent(5), sample().end());
    let driver = Driver::start(&nodes.addresses, 3, 0);
    driver.commit(some).await;
    for disk in &disks {
        disk.fill();
    }
    driver.write(end);
    for id in 1..=3 {
        eventually("the full disk to be told of", async || is_full(&nodes, id).await).await;
    }
    let waiting = driver.until("any", |_| true).await.commit;
    assert!(waiting < end, "{waiting} was committed without room");
    // A restart finds the same, and needs no room.
    nodes.down(2).await;
    nodes.up(2).await;
    assert!(nodes.status(2).await.flush_lsn >= some.0);
    for disk in &disks {
        disk.make_room();
    }
    driver
        .until("commit of all", |progress| progress.commit >= end)
        .await;
    same_on_all(&nodes, end, 1).await;
    let segments = fs::read_dir(nodes.timeline_dir(1)).unwrap().flatten();
    for entry in segments.filter(|entry| entry.file_name().len() == 24) {
        assert_eq!(entry.metadata().unwrap().len(), u64::from(SEGMENT), "{entry:?}");
    }
}
