//! Members that change: told by the controller, adopted on disk, and joined by safekeepers without the WAL so far.

use lakebed_proto::quorum;
use lakebed_proto::v1::{self, RefusalKind};
use lakebed_quorum::membership::Membership;
use lakebed_safekeeper::control_file;
use lakebed_types::{Generation, NodeId};
use tonic::{Code, Status};

use crate::driver::Driver;
use crate::node::{Nodes, create_request, timeline_ref};
use crate::sample::sample;
use crate::stream::{Stream, vote};

fn members(generation: u64, old: &[u64], new: &[u64]) -> Membership {
    let set = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect();
    Membership {
        generation: Generation(generation),
        old: set(old),
        new: (!new.is_empty()).then(|| set(new)),
    }
}

async fn tell(nodes: &Nodes, id: u64, membership: &Membership) -> Result<(), Status> {
    let request = v1::ChangeMembershipRequest {
        timeline: Some(timeline_ref()),
        membership: Some(quorum::membership_to_wire(membership)),
    };
    nodes.client(id).await.change_membership(request).await.map(drop)
}

/// What the disk of a node says.
fn stored(nodes: &Nodes, id: u64) -> Membership {
    control_file::load(&nodes.timeline_dir(id)).unwrap().membership
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_generation_is_on_disk_when_it_is_confirmed_and_ends_the_one_before() {
    let nodes = Nodes::start(3).await;
    let mut before = Stream::greeted(&nodes, 1, &[1, 2, 3]).await;
    let joint = members(3, &[1, 2, 3], &[1, 2, 4]);
    for _ in 0..2 {
        tell(&nodes, 1, &joint).await.unwrap();
        assert_eq!(stored(&nodes, 1), joint);
    }
    assert_eq!(before.refused(vote(1)).await, (RefusalKind::Generation, 3));
    let refused = [
        members(2, &[1, 2, 3], &[1, 2, 4]),
        members(3, &[1, 2, 3], &[1, 2, 5]),
        // Without this safekeeper.
        members(4, &[2, 3, 4], &[]),
    ];
    for membership in refused {
        let status = tell(&nodes, 1, &membership).await.unwrap_err();
        assert_eq!(
            status.code(),
            Code::FailedPrecondition,
            "{membership:?}: {status}"
        );
        assert_eq!(stored(&nodes, 1), joint);
    }
    let mut nameless = members(4, &[1], &[]);
    nameless.old.clear();
    let status = tell(&nodes, 1, &nameless).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    // The others hear of it from a proposer.
    assert_eq!(stored(&nodes, 2), members(1, &[1, 2, 3], &[]));
    let driver = Driver::start_as(&nodes.addresses, joint.clone(), 0);
    driver.commit(sample().at_percent(1)).await;
    assert_eq!(stored(&nodes, 2), joint);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_joins_begins_where_others_have_removed_wal_and_then_counts() {
    let mut nodes = Nodes::start(3).await;
    let (begin, middle, end) = (
        sample().at_percent(20),
        sample().at_percent(40),
        sample().at_percent(60),
    );
    Driver::start(&nodes.addresses, 3, 0).commit(middle).await;
    let joint = members(2, &[1, 2, 3], &[1, 3, 4]);
    let create = v1::CreateSafekeeperTimelineRequest {
        membership: Some(quorum::membership_to_wire(&joint)),
        begin_lsn: begin.0,
        history: nodes.status(1).await.history,
        ..create_request(&[])
    };
    nodes.up(4).await;
    let mut client = nodes.client(4).await;
    let elsewhere = [
        v1::CreateSafekeeperTimelineRequest {
            begin_lsn: sample().start.0 - 8,
            ..create.clone()
        },
        v1::CreateSafekeeperTimelineRequest {
            history: Vec::new(),
            ..create.clone()
        },
    ];
    for create in elsewhere {
        let status = client.create_timeline(create).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    for _ in 0..2 {
        let status = client.create_timeline(create.clone()).await.unwrap().into_inner();
        assert_eq!((status.truncate_lsn, status.flush_lsn), (begin.0, begin.0));
    }
    // It is read from disk as it was made.
    nodes.down(4).await;
    nodes.up(4).await;

    nodes.down(2).await;
    let driver = Driver::start_as(&nodes.addresses, joint, 0);
    driver.commit(end).await;
    nodes.flushed(4, end).await;
    assert!(
        driver
            .until("a donor", |progress| progress.donated > 0)
            .await
            .donated
            > 0
    );
    let wal = nodes.read(4, begin, end, 0).await;
    let term = nodes.status(4).await.term;
    let wal = match wal {
        Ok(wal) => wal,
        // It has flushed what it has not heard to be committed yet.
        Err(_) => nodes.read(4, begin, end, term).await.unwrap(),
    };
    assert!(wal == sample().bytes(begin, end));
    let status = nodes.read(4, sample().start, end, term).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    // Now one of those who were there before is not needed any more.
    nodes.down(3).await;
    let alone = members(3, &[1, 3, 4], &[]);
    drop(driver);
    let driver = Driver::start_as(&nodes.addresses, alone, 0);
    driver.commit(sample().at_percent(70)).await;
}
