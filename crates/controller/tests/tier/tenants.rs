//! Creating a tenant, also when clients, controllers and nodes stop on the way.

use std::time::Duration;

use lakebed_controller::bootstrap::{BootstrapError, create_tenant};
use lakebed_proto::v1;
use lakebed_types::TenantId;
use tonic::Code;

use crate::tier::{DEADLINE, Tier, fresh_cluster, new_tenant, refused, soon, until};

fn create(name: &str, shards: u32) -> v1::CreateTenantRequest {
    v1::CreateTenantRequest {
        name: name.to_owned(),
        shards,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_there_is_found_and_a_different_one_refused() {
    let tier = Tier::with_nodes(3, 1).await;
    let first = tier.bootstrap("acme", &fresh_cluster()).await.unwrap();
    let again = tier.bootstrap("acme", &fresh_cluster()).await.unwrap();
    assert!(again.existed && again.branch == first.branch);
    let other = tier.controller().await.create_tenant(create("acme", 3)).await;
    refused(other, Code::AlreadyExists, "with 2 shards");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_its_client_left_is_thrown_away_and_done_again() {
    let tier = Tier::with_nodes(3, 2).await;
    let mut controller = tier.controller().await;
    let left = controller
        .create_tenant(create("acme", 0))
        .await
        .unwrap()
        .into_inner();
    let left = left.tenant.unwrap();
    assert_eq!(left.state(), v1::TenantState::Importing);
    // Its client died a moment ago, so its lease has not ended yet.
    let id = TenantId::from_slice(&left.tenant).unwrap();
    let lease = v1::AcquireLeaseRequest {
        name: format!("import-{id}"),
        holder: "the one that died".to_owned(),
        duration_ms: 300,
    };
    controller.acquire_lease(lease).await.unwrap();
    let made = tier.bootstrap("acme", &fresh_cluster()).await.unwrap();
    assert_ne!(made.branch.timeline.unwrap().tenant, left.tenant);
    let gone = v1::GetTenantRequest {
        tenant: id.to_string(),
    };
    refused(
        controller.get_tenant(gone).await,
        Code::NotFound,
        "there is no tenant",
    );
    // A client that lost its lease cannot finish for somebody else.
    let late = v1::FinishImportRequest {
        tenant: id.to_string(),
        start_lsn: made.branch.start_lsn,
        last_record_start: made.branch.last_record_start,
        cluster: made.branch.cluster,
        consistent_lsn: 0,
    };
    refused(
        controller.finish_import(late).await,
        Code::NotFound,
        "there is no tenant",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_restarts_between_import_and_safekeepers_goes_on() {
    let mut tier = Tier::with_nodes(3, 1).await;
    tier.stop("safekeeper-1").await;
    tier.stop("safekeeper-2").await;
    tier.stop("controller").await;
    tier.wait_ms = 1000;
    tier.start_controller().await;
    let unfinished = tier.bootstrap("acme", &fresh_cluster()).await;
    let Err(BootstrapError::Controller(status)) = unfinished else {
        panic!("{unfinished:?}");
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("on safekeeper 1"), "{status}");
    let info = tier.resolve("acme", "main").await.unwrap();
    assert_eq!(info.state(), v1::BranchState::Creating);

    tier.stop("controller").await;
    tier.wait_ms = 30_000;
    tier.start_controller().await;
    let waiting = tokio::spawn({
        let (controller, tenant) = (tier.address("controller"), new_tenant("acme"));
        async move { create_tenant(&controller, &tenant, &fresh_cluster(), DEADLINE).await }
    });
    // One more is a quorum; the third comes later.
    tier.start_safekeeper(2).await;
    let made = soon("the tenant", waiting).await.unwrap().unwrap();
    assert_eq!(made.branch.timeline, info.timeline, "the finished import is kept");
    assert_eq!(
        tier.resolve("acme", "main").await.unwrap().state(),
        v1::BranchState::Active
    );
    tier.start_safekeeper(1).await;
    until("the third safekeeper to have the timeline", || async {
        let name = info.timeline.clone().unwrap();
        tier.safekeeper(1).await.get_timeline_status(name).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_deleted_with_its_branches_and_its_name_is_free() {
    let tier = Tier::with_nodes(3, 1).await;
    let made = tier.bootstrap("acme", &fresh_cluster()).await.unwrap();
    tier.branch("acme", "child", None).await.unwrap();
    let mut controller = tier.controller().await;
    let delete = v1::DeleteTenantRequest {
        tenant: "acme".to_owned(),
    };
    controller.delete_tenant(delete).await.unwrap();
    until("the tenant to be gone", || async {
        let ask = v1::GetTenantRequest {
            tenant: "acme".to_owned(),
        };
        let asked = tier.controller().await.get_tenant(ask).await;
        asked.err().filter(|status| status.code() == Code::NotFound)
    })
    .await;
    let name = made.branch.timeline.clone().unwrap();
    let asked = tier.safekeeper(1).await.get_timeline_status(name).await;
    refused(asked, Code::NotFound, "no timeline");
    let again = tier.bootstrap("acme", &fresh_cluster()).await.unwrap();
    assert_ne!(again.branch.timeline, made.branch.timeline);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_no_fresh_cluster_is_refused() {
    let tier = Tier::with_nodes(3, 1).await;
    let copy = tempfile::tempdir().unwrap();
    let error = tier.bootstrap("acme", copy.path()).await.unwrap_err().to_string();
    assert!(error.contains("pg_control"), "{error}");
    let mut cluster = lakebed_pgtest::Cluster::init();
    cluster.start(&[]);
    let error = tier
        .bootstrap("acme", &cluster.data_dir())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("not shut down"), "{error}");
    cluster.stop(lakebed_pgtest::Stop::Clean);
    std::os::unix::fs::symlink("/tmp", cluster.data_dir().join("pg_tblspc/16400")).unwrap();
    let error = tier
        .bootstrap("acme", &cluster.data_dir())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("pg_tblspc/16400 cannot be imported"), "{error}");
    // Nothing half-made is in the way.
    let patience = Duration::from_secs(60);
    create_tenant(
        &tier.address("controller"),
        &new_tenant("acme"),
        &fresh_cluster(),
        patience,
    )
    .await
    .unwrap();
}
