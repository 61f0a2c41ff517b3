//! A disk that fails stops its timeline before anything wrong is said; the daemon and its other timelines go on.

use std::fs;

use lakebed_proto::v1;
use lakebed_types::Lsn;

use crate::driver::Driver;
use crate::node::{Nodes, create_request, eventually, timeline_ref};
use crate::sample::{SEGMENT, sample};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_stops_the_timeline_until_it_is_read_from_disk_again() {
    let mut nodes = Nodes::start(1).await;
    let (start, end) = (sample().start, sample().end());
    // The second segment cannot be created: its name is taken.
    let number = start.0 / u64::from(SEGMENT) + 1;
    let obstacle = nodes
        .timeline_dir(1)
        .join(format!("{:024X}", (1u128 << 64) + u128::from(number)));
    fs::create_dir(&obstacle).unwrap();
    let driver = Driver::start(&nodes.addresses, 1, 0);
    driver.write(end);
    eventually("the timeline to stop", async || {
        !nodes.status(1).await.stopped_reason.is_empty()
    })
    .await;
    let status = nodes.status(1).await;
    let name = obstacle.file_name().unwrap().to_str().unwrap();
    assert!(status.stopped_reason.contains(name), "{}", status.stopped_reason);
    assert!(status.flush_lsn <= number * u64::from(SEGMENT));
    let commit = driver.until("any", |_| true).await.commit;
    assert!(commit <= Lsn(status.flush_lsn), "{commit} was acknowledged");
    assert!(nodes.read(1, start, Lsn(start.0 + 8), 1).await.is_err());

    let mut other = create_request(&[1]);
    other.timeline = Some(v1::TimelineRef {
        timeline: vec![9; 16].into(),
        ..timeline_ref()
    });
    nodes.client(1).await.create_timeline(other).await.unwrap();

    nodes.down(1).await;
    fs::remove_dir(&obstacle).unwrap();
    nodes.up(1).await;
    driver
        .until("commit of all", |progress| progress.commit >= end)
        .await;
    let wal = nodes.read(1, start, end, 1).await.unwrap();
    assert!(wal == sample().bytes(start, end));
}
