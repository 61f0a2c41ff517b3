//! What was acknowledged is there after a restart, byte for byte, and whoever was away catches up.

use std::process::Command;

use lakebed_pgtest::{program, run};

use crate::driver::Driver;
use crate::node::Nodes;
use crate::sample::sample;

#[tokio::test(flavor = "multi_thread")]
async fn wal_is_the_same_after_a_restart_of_all() {
    let mut nodes = Nodes::start(3).await;
    let (start, end) = (sample().start, sample().end());
    let driver = Driver::start(&nodes.addresses, 3, 0);
    assert_eq!(driver.won().await.1, start);
    driver.commit(end).await;
    for id in 1..=3 {
        nodes.flushed(id, end).await;
    }
    drop(driver);
    for id in 1..=3 {
        nodes.down(id).await;
    }
    for id in 1..=3 {
        nodes.up(id).await;
        let status = nodes.status(id).await;
        assert_eq!((status.flush_lsn, status.stopped_reason), (end.0, String::new()));
        assert_eq!(status.history.last().unwrap().term, 1);
        let wal = nodes.read(id, start, end, 1).await.unwrap();
        assert!(
            wal == sample().bytes(start, end),
            "safekeeper {id} has other bytes"
        );
    }
    let directory = nodes.timeline_dir(1);
    run(Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(directory.ancestors().nth(2).unwrap()));
    let mut pg_waldump = program("pg_waldump");
    pg_waldump
        .arg("-p")
        .arg(&directory)
        .args(["-s", &start.to_string(), "-e", &end.to_string()]);
    assert_eq!(run(&mut pg_waldump).lines().count(), sample().records.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_catches_up() {
    let mut nodes = Nodes::start(3).await;
    let start = sample().start;
    let (first, second, third) = (
        sample().at_percent(10),
        sample().at_percent(30),
        sample().at_percent(40),
    );
    let driver = Driver::start(&nodes.addresses, 3, 0);
    driver.commit(first).await;
    nodes.down(3).await;
    driver.commit(second).await;

    // The proposer that goes on brings it up to date itself.
    nodes.up(3).await;
    nodes.flushed(3, second).await;
    assert_eq!(driver.until("any", |_| true).await.donated, 0);

    // One that comes anew has nothing but what the others have.
    nodes.down(3).await;
    driver.commit(third).await;
    drop(driver);
    let driver = Driver::start(&nodes.addresses, 3, 1);
    assert_eq!(driver.won().await.1, third);
    driver.until("commit", |progress| progress.commit >= third).await;
    nodes.up(3).await;
    nodes.flushed(3, third).await;
    let donated = driver.until("any", |_| true).await.donated;
    assert_eq!(donated as u64, third.0 - second.0);
    let term = driver.won().await.0;
    let wal = nodes.read(3, start, third, term.0).await.unwrap();
    assert!(wal == sample().bytes(start, third));
}
