//! Nodes that come, restart, move and lose their disks.

use lakebed_proto::v1;
use tonic::Code;

use crate::tier::{Tier, fresh_cluster, refused, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_pageserver_gets_its_shards_back_at_the_next_generation() {
    let mut tier = Tier::with_nodes(3, 1).await;
    let main = tier.bootstrap("acme", &fresh_cluster()).await.unwrap().branch;
    assert!(main.shards.iter().all(|shard| shard.generation == 1));
    tier.stop("pageserver-11").await;
    tier.start_pageserver(11).await;
    let main = tier.resolve("acme", "main").await.unwrap();
    assert!(
        main.shards.iter().all(|shard| shard.generation == 2),
        "{:?}",
        main.shards
    );
    // It serves the timeline, and takes a new one.
    tier.branch("acme", "child", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_another_address_is_called_there() {
    let mut tier = Tier::with_nodes(3, 1).await;
    let main = tier.bootstrap("acme", &fresh_cluster()).await.unwrap().branch;
    let nowhere = "127.0.0.1:1";
    tier.register(11, v1::NodeRole::Pageserver, nowhere, 5)
        .await
        .unwrap();
    until("the obstacle to be told", || async {
        let status = tier
            .controller()
            .await
            .get_status(v1::GetControllerStatusRequest {})
            .await;
        let waiting = status.unwrap().into_inner().waiting_for;
        waiting
            .iter()
            .any(|text| text.contains("pageserver 11: cannot connect to 127.0.0.1:1"))
            .then_some(())
    })
    .await;
    tier.stop("pageserver-11").await;
    tier.start_pageserver(11).await;
    let child = tier.branch("acme", "child", None).await.unwrap();
    assert!(
        child.shards.iter().all(|shard| shard.generation == 3),
        "{:?}",
        child.shards
    );
    assert_eq!(
        child.shards[0].node.as_ref().unwrap().address,
        tier.address("pageserver-11")
    );
    assert_eq!(child.start_lsn, main.start_lsn);
    until("nothing to be waited for", || async {
        let status = tier
            .controller()
            .await
            .get_status(v1::GetControllerStatusRequest {})
            .await;
        status.unwrap().into_inner().waiting_for.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_safekeeper_without_its_disk_and_a_taken_id_are_refused() {
    let tier = Tier::with_nodes(1, 0).await;
    let lost = tier.register(1, v1::NodeRole::Safekeeper, "h:1", 99).await;
    refused(lost, Code::FailedPrecondition, "another data directory");
    let taken = tier.register(1, v1::NodeRole::Pageserver, "h:1", 99).await;
    refused(taken, Code::FailedPrecondition, "give this node another id");
}
