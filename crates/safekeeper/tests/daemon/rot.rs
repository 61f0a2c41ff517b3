//! Bytes that rot while a node is down: a node whose acknowledged WAL is damaged says nothing until it is whole again,
//! and becomes so by itself.

use std::fs;

use lakebed_safekeeper::control_file;
use lakebed_types::Lsn;

use crate::backup::{backed_up, config};
use crate::driver::Driver;
use crate::node::{Nodes, eventually};
use crate::sample::{SEGMENT, sample};
use crate::scrub::{rot, scrub, segment};

/// In the middle of the record that ends here.
fn inside(end: Lsn) -> Lsn {
    let record = sample().records.iter().find(|record| record.end == end).unwrap();
    Lsn((record.start.0 + record.end.0) / 2)
}

fn durable_commit(nodes: &Nodes, id: u64) -> Lsn {
    control_file::load(&nodes.timeline_dir(id)).unwrap().commit
}

/// Three nodes that have flushed all WAL up to `end`, and are down.
async fn three_down(end: Lsn, backup: Option<serde_json::Value>) -> Nodes {
    let mut nodes = Nodes::start_with(3, backup.clone()).await;
    let driver = Driver::start(&nodes.addresses, 3, 0);
    // What is committed last is too little to be worth a control write.
    let last = sample().records.partition_point(|record| record.end < end);
    driver.commit(sample().records[last - 100].end).await;
    driver.commit(end).await;
    for id in 1..=3 {
        nodes.flushed(id, end).await;
    }
    if backup.is_some() {
        backed_up(&nodes, &[1, 2, 3], end).await;
    }
    drop(driver);
    for id in 1..=3 {
        nodes.down(id).await;
    }
    nodes
}

async fn works_again(nodes: &Nodes, id: u64, end: Lsn) {
    eventually("the node to work again", async || {
        let status = nodes.status(id).await;
        if !status.stopped_reason.is_empty() || status.flush_lsn < end.0 {
            return false;
        }
        // Refused when a proposer's term reaches the node between the two calls.
        let wal = nodes.read(id, sample().start, end, status.term).await;
        wal.is_ok_and(|wal| {
            assert!(wal == sample().bytes(sample().start, end));
            true
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_wal_above_the_durable_commit_is_not_cut_and_comes_from_the_others() {
    let end = sample().at_percent(90);
    let mut nodes = three_down(end, None).await;
    assert!(
        durable_commit(&nodes, 2) < end,
        "nothing lies above the durable commit"
    );
    // The last record, and with nothing behind it but the mark.
    rot(&nodes, 2, inside(end));
    nodes.up(2).await;
    let status = nodes.status(2).await;
    assert!(
        status.stopped_reason.contains("durable up to"),
        "{}",
        status.stopped_reason
    );
    assert!(
        status.stopped_reason.contains(&end.to_string()),
        "{}",
        status.stopped_reason
    );
    // With a member that lacks it an election would go without what was committed: this one gives no vote.
    let driver = Driver::start(&nodes.addresses, 3, 1);
    nodes.up(1).await;
    eventually("the first to promise", async || nodes.status(1).await.term == 2).await;
    drop(driver);
    // One is enough, although it does not know by itself how far that was committed.
    assert!(durable_commit(&nodes, 1) < end);
    works_again(&nodes, 2, end).await;
    let driver = Driver::start(&nodes.addresses, 3, 9);
    assert_eq!(driver.won().await.1, end);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_heals_also_from_a_later_term() {
    let (end, later) = (sample().at_percent(40), sample().at_percent(60));
    let mut nodes = three_down(end, None).await;
    rot(&nodes, 3, inside(end));
    nodes.up(1).await;
    nodes.up(2).await;
    let driver = Driver::start(&nodes.addresses, 3, 1);
    driver.commit(later).await;
    nodes.up(3).await;
    works_again(&nodes, 3, later).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_others_object_storage_heals_what_was_committed_also_whole_files() {
    let end = sample().end();
    let mut nodes = three_down(end, config(9, 3600)).await;
    let commit = durable_commit(&nodes, 2);
    assert!(sample().start.0 / u64::from(SEGMENT) < commit.0 / u64::from(SEGMENT));
    fs::remove_file(segment(&nodes, 2, sample().start)).unwrap();
    rot(&nodes, 2, inside(commit));
    nodes.up(2).await;
    assert_ne!(nodes.status(2).await.stopped_reason, "");
    works_again(&nodes, 2, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrubber_reads_what_is_flushed_and_not_committed() {
    let mut nodes = Nodes::start(3).await;
    let (committed, flushed) = (sample().at_percent(20), sample().at_percent(30));
    let driver = Driver::start(&nodes.addresses, 3, 0);
    driver.commit(committed).await;
    eventually("the commit to be known", async || {
        nodes.status(1).await.commit_lsn == committed.0
    })
    .await;
    nodes.down(2).await;
    nodes.down(3).await;
    driver.write(flushed);
    nodes.flushed(1, flushed).await;
    rot(&nodes, 1, inside(sample().at_percent(25)));
    eventually("the damage to be told of", async || {
        let damage = scrub(&nodes, 1)["damage"].to_string();
        damage.contains("was not healed")
    })
    .await;
    assert_eq!(nodes.status(1).await.commit_lsn, committed.0);
    nodes.up(2).await;
    driver.commit(flushed).await;
    eventually("it to be healed", async || {
        let status = scrub(&nodes, 1);
        status["healed"].as_u64() >= Some(1) && status["damage"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
    let wal = nodes.read(1, committed, flushed, 1).await.unwrap();
    assert!(wal == sample().bytes(committed, flushed));
}
