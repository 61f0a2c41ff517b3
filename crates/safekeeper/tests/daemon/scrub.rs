//! Bytes that rot on disk: found, healed byte for byte where somebody has them, and never served where nobody has.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use lakebed_types::Lsn;
use tonic::Code;

use crate::driver::Driver;
use crate::node::{Nodes, eventually};
use crate::sample::{SEGMENT, sample};

/// The segment file of a position.
pub fn segment(nodes: &Nodes, id: u64, at: Lsn) -> PathBuf {
    let number = at.0 / u64::from(SEGMENT);
    let name = format!("{:024X}", (1u128 << 64) + u128::from(number));
    nodes.timeline_dir(id).join(name)
}

/// Changes every bit of a byte on disk.
pub fn rot(nodes: &Nodes, id: u64, at: Lsn) {
    let path = segment(nodes, id, at);
    let file = File::options().read(true).write(true).open(path).unwrap();
    let offset = at.0 % u64::from(SEGMENT);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}

/// In the middle of the record at this part of the way; its neighbours are whole.
fn inside(percent: usize) -> Lsn {
    let end = sample().at_percent(percent);
    let record = sample().records.iter().find(|record| record.end == end).unwrap();
    Lsn((record.start.0 + record.end.0) / 2)
}

pub fn scrub(nodes: &Nodes, id: u64) -> serde_json::Value {
    nodes.status_json(id)["timelines"][0]["scrub"].clone()
}

async fn committed(count: u64) -> Nodes {
    let nodes = Nodes::start(count).await;
    let driver = Driver::start(&nodes.addresses, count, 0);
    driver.commit(sample().end()).await;
    for id in 1..=count {
        eventually("the commit to be known", async || {
            nodes.status(id).await.commit_lsn == sample().end().0
        })
        .await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_is_found_and_healed_from_the_others() {
    let nodes = committed(3).await;
    let places = [inside(3), inside(40), inside(41), inside(90)];
    for at in places {
        rot(&nodes, 2, at);
    }
    let (start, end) = (sample().start, sample().end());
    eventually("all to be healed", async || {
        let status = scrub(&nodes, 2);
        let none_left = status["damage"].as_array().is_some_and(Vec::is_empty);
        status["healed"].as_u64() >= Some(1) && none_left && nodes.read(2, start, end, 1).await.is_ok()
    })
    .await;
    for id in 1..=3 {
        let wal = nodes.read(id, start, end, 1).await.unwrap();
        assert!(wal == sample().bytes(start, end), "safekeeper {id}");
    }
    assert_eq!(scrub(&nodes, 1)["healed"], 0);
    assert_eq!(nodes.status(2).await.stopped_reason, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_that_nobody_can_heal_is_told_and_not_served() {
    let nodes = committed(1).await;
    let (start, end) = (sample().start, sample().end());
    let at = inside(50);
    rot(&nodes, 1, at);
    eventually("the damage to be told of", async || {
        let damage = scrub(&nodes, 1)["damage"].clone();
        damage
            .as_array()
            .is_some_and(|damage| damage.len() == 1 && damage[0].to_string().contains("was not healed"))
    })
    .await;
    // Also when only the record's other bytes are asked for.
    for (from, to) in [(start, end), (Lsn(at.0 + 1), Lsn(at.0 + 2)), (Lsn(at.0 - 1), at)] {
        let refused = nodes.read(1, from, to, 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss, "{from} to {to}: {refused}");
    }
    for (from, to) in [(start, sample().at_percent(49)), (sample().at_percent(51), end)] {
        let wal = nodes.read(1, from, to, 1).await.unwrap();
        assert!(wal == sample().bytes(from, to), "{from} to {to}");
    }
    assert_eq!(nodes.status(1).await.stopped_reason, "");
}
