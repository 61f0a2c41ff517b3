//! Branches of a tenant with the WAL of a real server.

use std::time::{SystemTime, UNIX_EPOCH};

use lakebed_pgtest::{Cluster, Stop};
use lakebed_proto::v1;
use lakebed_types::Lsn;
use tonic::Code;

use crate::tier::{At, Tier, refused, until};
use crate::wal::Wal;

const SETTINGS: &[&str] = &["wal_keep_size=1GB", "fsync=off", "autovacuum=off"];

fn micros(text: &str) -> i64 {
    text.trim().parse().unwrap()
}

fn lsn(text: &str) -> u64 {
    text.trim().parse::<Lsn>().unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_start_at_the_head_at_a_boundary_and_at_a_time_and_outlive_a_restart() {
    let mut tier = Tier::with_nodes(3, 2).await;
    let mut cluster = Cluster::init();
    let made = tier.bootstrap("acme", &cluster.data_dir()).await.unwrap();
    let main = made.branch;
    assert!(!made.existed);
    assert_eq!(
        (main.name.as_str(), main.state()),
        ("main", v1::BranchState::Active)
    );
    assert_eq!((main.safekeepers.len(), main.shards.len()), (3, 2));

    cluster.start(SETTINGS);
    cluster.sql("create table t (a int); insert into t select generate_series(1, 1000)");
    let before = lsn(&cluster.sql("select pg_current_wal_insert_lsn()"));
    cluster.sql("insert into t values (-1)");
    let after = lsn(&cluster.sql("select pg_current_wal_insert_lsn()"));
    let between = micros(&cluster.sql("select (extract(epoch from clock_timestamp()) * 1000000)::bigint"));
    cluster.sql("insert into t values (-2)");
    cluster.stop(Stop::Clean);
    let wal = Wal::read(&cluster.data_dir(), &main);
    wal.commit(&tier, &main).await;

    // At the head.
    let head = tier.branch("acme", "head", None).await.unwrap();
    assert_eq!(head.state(), v1::BranchState::Active);
    assert_eq!((head.last_record_start, head.start_lsn), {
        let (start, end) = *wal.records.last().unwrap();
        (start.0, end.0)
    });
    assert_eq!(head.parent, main.timeline.as_ref().unwrap().timeline);
    assert_eq!((head.parent_name.as_str(), head.cluster), ("main", main.cluster));

    // At a position: on a boundary, inside the record after it, and at the very start.
    let (record_start, record_end) = wal.records[wal.records.len() / 2];
    for (name, at) in [("exact", record_end.0), ("inside", record_end.0 + 3)] {
        let branch = tier.branch("acme", name, Some(At::AtLsn(at))).await.unwrap();
        assert_eq!(
            (branch.last_record_start, branch.start_lsn),
            (record_start.0, record_end.0),
            "{name}"
        );
    }
    let first = tier
        .branch("acme", "first", Some(At::AtLsn(main.start_lsn + 1)))
        .await
        .unwrap();
    assert_eq!(
        (first.last_record_start, first.start_lsn),
        (main.last_record_start, main.start_lsn)
    );

    // A branch of a branch, before the point where the latter begins, is one of the common ancestor.
    let of_ancestor = tier.branch_from("acme", "of-ancestor", "head", Some(At::AtLsn(record_end.0)));
    let of_ancestor = of_ancestor.await.unwrap();
    assert_eq!(
        (of_ancestor.parent_name.as_str(), of_ancestor.start_lsn),
        ("main", record_end.0)
    );
    // At the point itself, it is one of the branch.
    let of_branch = tier.branch_from("acme", "of-branch", "head", None).await.unwrap();
    assert_eq!(
        (of_branch.parent_name.as_str(), of_branch.start_lsn),
        ("head", head.start_lsn)
    );

    // At a time: the commit before it and not the one after.
    for (name, from) in [("then", "main"), ("then-of-branch", "head")] {
        let then = tier
            .branch_from("acme", name, from, Some(At::AtUnixMicros(between)))
            .await
            .unwrap();
        assert!(
            before < then.start_lsn && then.start_lsn <= after,
            "{before} {} {after}",
            then.start_lsn
        );
        assert_eq!(then.parent_name, "main");
    }
    // Before the first commit, but after the cluster was there.
    let at = Some(At::AtUnixMicros(main.created_unix_micros));
    assert_eq!(
        tier.branch("acme", "new", at).await.unwrap().start_lsn,
        main.start_lsn
    );

    // Outside history.
    let beyond = tier.branch("acme", "x", Some(At::AtLsn(wal.end().0 + 1))).await;
    refused(
        beyond,
        Code::OutOfRange,
        &format!("committed up to {}", wal.end()),
    );
    let early = tier
        .branch("acme", "x", Some(At::AtLsn(main.start_lsn - 1)))
        .await;
    refused(
        early,
        Code::OutOfRange,
        &format!("starts at {}", Lsn(main.start_lsn)),
    );
    let early = tier
        .branch("acme", "x", Some(At::AtUnixMicros(main.created_unix_micros - 1)))
        .await;
    refused(early, Code::OutOfRange, "before the history");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
    let late = tier
        .branch("acme", "x", Some(At::AtUnixMicros(now + 3_600_000_000)))
        .await;
    refused(late, Code::OutOfRange, "in the future");
    refused(
        tier.branch("acme", "head", None).await,
        Code::AlreadyExists,
        "'head' already exists",
    );
    refused(
        tier.branch_from("acme", "x", "nobody", None).await,
        Code::NotFound,
        "no branch 'nobody'",
    );

    // Nothing is lost with the controller, and the pageservers do not need it.
    let names = tier.branch_names("acme").await;
    assert_eq!(names.len(), 10, "{names:?}");
    tier.stop("controller").await;
    let owner = head.shards[0].node.as_ref().unwrap().node_id;
    let question = v1::GetLsnByTimeRequest {
        timeline: main.timeline.clone(),
        unix_micros: between,
    };
    let told = tier
        .pageserver(owner)
        .await
        .get_lsn_by_time(question)
        .await
        .unwrap()
        .into_inner();
    assert!(before < told.lsn && told.lsn <= after);
    tier.start_controller().await;
    assert_eq!(tier.branch_names("acme").await, names);
    assert_eq!(tier.resolve("acme", "head").await.unwrap(), head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_is_deleted_everywhere_and_not_before_its_children() {
    let tier = Tier::with_nodes(3, 1).await;
    tier.bootstrap("acme", &crate::tier::fresh_cluster())
        .await
        .unwrap();
    let parent = tier.branch("acme", "parent", None).await.unwrap();
    let child = tier.branch_from("acme", "child", "parent", None).await.unwrap();

    let refusal = tier.delete_branch("acme", "parent").await;
    refused(
        refusal,
        Code::FailedPrecondition,
        "other branches start from it: child",
    );
    refused(
        tier.delete_branch("acme", "main").await,
        Code::FailedPrecondition,
        "delete",
    );
    refused(
        tier.delete_branch("acme", "nobody").await,
        Code::NotFound,
        "no branch 'nobody'",
    );

    tier.delete_branch("acme", "child").await.unwrap();
    tier.delete_branch("acme", "parent").await.unwrap();
    assert_eq!(tier.branch_names("acme").await, ["main"]);
    for branch in [&child, &parent] {
        for id in 1..=3 {
            until("the timeline to leave the safekeeper", || async {
                let name = branch.timeline.clone().unwrap();
                let asked = tier.safekeeper(id).await.get_timeline_status(name).await;
                asked.err().filter(|status| status.code() == Code::NotFound)
            })
            .await;
        }
        until("the timeline to leave the pageserver", || async {
            let question = v1::GetLsnByTimeRequest {
                timeline: branch.timeline.clone(),
                unix_micros: 0,
            };
            let asked = tier.pageserver(11).await.get_lsn_by_time(question).await;
            asked.err().filter(|status| status.code() == Code::NotFound)
        })
        .await;
    }
    // The name is free.
    let again = tier.branch("acme", "parent", None).await.unwrap();
    assert_ne!(again.timeline, parent.timeline);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_detached_outlives_its_parent() {
    let tier = Tier::with_nodes(3, 2).await;
    let data = crate::tier::fresh_cluster();
    let main = tier.bootstrap("acme", &data).await.unwrap().branch;
    let child = tier.branch("acme", "child", None).await.unwrap();
    refused(
        tier.delete_branch("acme", "main").await,
        Code::FailedPrecondition,
        "start from it: child; `lakebed branch detach CHILD`",
    );
    refused(
        tier.detach_branch("acme", "nobody").await,
        Code::NotFound,
        "no branch 'nobody'",
    );
    let unnamed = tier.detach_branch("acme", "").await;
    assert_eq!(unnamed.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(
        tier.detach_branch("acme", "main").await.unwrap(),
        main,
        "has no parent"
    );

    let begun = tier.detach_branch("acme", "child").await.unwrap();
    assert_eq!(begun.timeline, child.timeline);
    let done = until("the branch to be detached", || async {
        let now = tier.resolve("acme", "child").await.unwrap();
        assert_eq!(now.detaching, !now.parent.is_empty());
        (!now.detaching).then_some(now)
    })
    .await;
    let expected = v1::BranchInfo {
        parent: Default::default(),
        parent_name: String::new(),
        ..child
    };
    assert_eq!(done, expected);
    assert_eq!(tier.detach_branch("acme", "child").await.unwrap(), done);

    tier.delete_branch("acme", "main").await.unwrap();
    for id in 1..=3 {
        until("the timeline to leave the safekeeper", || async {
            let name = main.timeline.clone().unwrap();
            let asked = tier.safekeeper(id).await.get_timeline_status(name).await;
            asked.err().filter(|status| status.code() == Code::NotFound)
        })
        .await;
    }
    refused(
        tier.delete_branch("acme", "child").await,
        Code::FailedPrecondition,
        "'child' is the only branch of its tenant",
    );
    refused(
        tier.branch_from("acme", "early", "child", Some(At::AtLsn(done.start_lsn - 8)))
            .await,
        Code::OutOfRange,
        &format!(
            "before the history of this branch, which starts at {}",
            Lsn(done.start_lsn)
        ),
    );
    // Its own children are as those of any other, and the name of its former parent is free.
    let again = tier.branch_from("acme", "main", "child", None).await.unwrap();
    assert_eq!(again.parent_name, "child");
    let made = tier.bootstrap("acme", &data).await.unwrap();
    assert!(made.existed);
    assert_eq!(made.branch.timeline, done.timeline);
}

/// A tier with the branch `main`, and WAL for it that no safekeeper has yet.
async fn with_wal() -> (Tier, v1::BranchInfo, Wal) {
    let tier = Tier::with_nodes(3, 1).await;
    let mut cluster = Cluster::init();
    let main = tier.bootstrap("acme", &cluster.data_dir()).await.unwrap().branch;
    cluster.start(SETTINGS);
    cluster.sql("create table t (a int)");
    cluster.stop(Stop::Clean);
    let wal = Wal::read(&cluster.data_dir(), &main);
    (tier, main, wal)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_quorum_knows_as_committed_is_not_left_out_of_a_branch() {
    let (tier, main, wal) = with_wal().await;
    // Two safekeepers have everything, and were told of less.
    let told = wal.records[wal.records.len() / 2].1;
    for id in 1..=2 {
        wal.propose(&tier, id, &main, 1, told).await;
    }
    let refusal = tier.branch("acme", "head", None).await;
    refused(
        refusal,
        Code::FailedPrecondition,
        &format!("committed up to {}", wal.end()),
    );
    // Up to what is known, it works.
    let known = tier
        .branch("acme", "known", Some(At::AtLsn(told.0)))
        .await
        .unwrap();
    assert_eq!(known.start_lsn, told.0);
    // Then a compute says it.
    for id in 1..=2 {
        wal.propose(&tier, id, &main, 2, wal.end()).await;
    }
    assert_eq!(
        tier.branch("acme", "head", None).await.unwrap().start_lsn,
        wal.end().0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_safekeeper_may_have_is_not_left_out_of_a_branch() {
    let (mut tier, main, wal) = with_wal().await;
    let told = wal.records[wal.records.len() / 2].1;
    // One has everything and was told of less. It was acknowledged if another one has it too.
    wal.propose(&tier, 1, &main, 1, told).await;
    tier.stop("safekeeper-3").await;
    refused(
        tier.branch("acme", "head", None).await,
        Code::FailedPrecondition,
        &format!("committed up to {}", wal.end()),
    );
    // Neither has, so it was not.
    tier.start_safekeeper(3).await;
    let head = tier.branch("acme", "head", None).await.unwrap();
    assert_eq!(head.start_lsn, told.0);
}
