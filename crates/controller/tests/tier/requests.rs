//! Requests that no honest client sends, and those that collide.

use lakebed_proto::v1;
use tonic::Code;

use crate::tier::{At, Tier, refused};

fn text(text: &str) -> String {
    text.to_owned()
}

#[tokio::test]
async fn bad_names_and_unknown_tenants_are_refused_by_name() {
    let tier = Tier::new().await;
    let mut controller = tier.controller().await;
    let long = "x".repeat(1 << 16);
    for bad in ["", "a/b", "../x", "a\nb", "\u{0}", "-rf", &long] {
        let request = v1::CreateTenantRequest {
            name: text(bad),
            ..Default::default()
        };
        refused(
            controller.create_tenant(request).await,
            Code::InvalidArgument,
            "is not a valid name",
        );
        let request = v1::GetTenantRequest { tenant: text(bad) };
        let refusal = controller.get_tenant(request).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
        assert!(
            refusal.message().len() < 300,
            "an answer does not repeat all that was sent"
        );
        refused(
            tier.branch("acme", bad, None).await,
            Code::InvalidArgument,
            "is not a valid name",
        );
        refused(
            tier.delete_branch("acme", bad).await,
            Code::InvalidArgument,
            "is not a valid name",
        );
    }
    let unknown = "00000000000000000000000000000000";
    for tenant in ["nobody", unknown] {
        refused(tier.resolve(tenant, "main").await, Code::NotFound, tenant);
        refused(
            tier.branch(tenant, "b", Some(At::AtLsn(u64::MAX))).await,
            Code::NotFound,
            tenant,
        );
        refused(tier.delete_branch(tenant, "b").await, Code::NotFound, tenant);
        let request = v1::DeleteTenantRequest { tenant: text(tenant) };
        refused(controller.delete_tenant(request).await, Code::NotFound, tenant);
    }
}

#[tokio::test]
async fn values_out_of_range_are_refused_by_field() {
    let tier = Tier::new().await;
    let mut controller = tier.controller().await;
    let node = v1::RegisterNodeRequest {
        node_id: 1,
        role: 1,
        address: text("h:1"),
        incarnation: 1,
    };
    let rows = [
        (
            v1::RegisterNodeRequest {
                node_id: 0,
                ..node.clone()
            },
            "node_id is 0",
        ),
        (
            v1::RegisterNodeRequest {
                role: 0,
                ..node.clone()
            },
            "role 0 is neither",
        ),
        (
            v1::RegisterNodeRequest {
                role: 77,
                ..node.clone()
            },
            "role 77 is neither",
        ),
        (
            v1::RegisterNodeRequest {
                address: text("h/../x:1"),
                ..node.clone()
            },
            "expected host:port",
        ),
        (
            v1::RegisterNodeRequest {
                address: text("h:0"),
                ..node
            },
            "expected host:port",
        ),
    ];
    for (request, expected) in rows {
        refused(
            controller.register_node(request).await,
            Code::InvalidArgument,
            expected,
        );
    }
    let tenant = v1::CreateTenantRequest {
        name: text("acme"),
        ..Default::default()
    };
    refused(
        controller.create_tenant(tenant.clone()).await,
        Code::FailedPrecondition,
        "no pageserver",
    );
    for shards in [129, 256, u32::MAX] {
        let request = v1::CreateTenantRequest {
            shards,
            ..tenant.clone()
        };
        refused(
            controller.create_tenant(request).await,
            Code::InvalidArgument,
            "1 to 128",
        );
    }
    for duration_ms in [0, 3_600_001, u32::MAX] {
        let lease = v1::AcquireLeaseRequest {
            name: text("l"),
            holder: text("h"),
            duration_ms,
        };
        refused(
            controller.acquire_lease(lease).await,
            Code::InvalidArgument,
            "duration_ms",
        );
    }
}

#[tokio::test]
async fn a_lease_has_one_holder_and_outlives_a_restart() {
    let mut tier = Tier::new().await;
    let lease = |holder| v1::AcquireLeaseRequest {
        name: text("compute-main"),
        holder: text(holder),
        duration_ms: 3_600_000,
    };
    tier.controller().await.acquire_lease(lease("a")).await.unwrap();
    tier.stop("controller").await;
    tier.start_controller().await;
    let mut controller = tier.controller().await;
    refused(
        controller.acquire_lease(lease("b")).await,
        Code::FailedPrecondition,
        "held by 'a'",
    );
    controller.acquire_lease(lease("a")).await.unwrap();
    let release = v1::ReleaseLeaseRequest {
        name: text("compute-main"),
        holder: text("a"),
    };
    controller.release_lease(release).await.unwrap();
    controller.acquire_lease(lease("b")).await.unwrap();
}
