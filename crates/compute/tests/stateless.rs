//! A stock Postgres boots from nothing, commits by quorum, and comes back after its directory is gone.
//!
//! Safekeepers and pageservers run in this process, on real sockets and disks; Postgres and the shim are real.

use std::path::PathBuf;
use std::sync::Arc;

use lakebed_compute::branch::{Branch, ShardAddress};
use lakebed_compute::pages::Placement;
use lakebed_compute::quorum::Members;
use lakebed_compute::{ComputeConfig, Ended, Sidecar};
use lakebed_pageserver::config::PageserverConfig;
use lakebed_pageserver::daemon::{Managers, Pageserver};
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::manifest::Cluster as ClusterIdentity;
use lakebed_pageserver::node::{Attachment, Taken, TimelineSpec};
use lakebed_pgtest::{Cluster, program, run, temp_dir};
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, convert, quorum, v1};
use lakebed_quorum::membership::Membership;
use lakebed_safekeeper::SafekeeperConfig;
use lakebed_types::{Generation, NodeId, ShardCount, ShardIdentity, TenantId, TimelineId};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

const TENANT: TenantId = TenantId([3; 16]);
const TIMELINE: TimelineId = TimelineId([4; 16]);

struct Tier {
    home: tempfile::TempDir,
    branch: Branch,
    stop: CancellationToken,
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn shim() -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    let directory = test.ancestors().nth(2).expect("the build directory");
    let shim = directory.join("liblakebed_compute_shim.so");
    assert!(
        shim.exists(),
        "{} is missing: cargo build -p lakebed-compute-shim",
        shim.display()
    );
    shim
}

async fn tier() -> Tier {
    let home = temp_dir();
    let stop = CancellationToken::new();
    let initial = Cluster::init();
    let mut safekeepers = std::collections::BTreeMap::new();
    for node_id in 1..=3 {
        let config = SafekeeperConfig {
            data_dir: home.path().join(format!("safekeeper-{node_id}")),
            listen: "127.0.0.1:0".parse().expect("an address"),
            node_id,
            admin_listen: None,
            backup: None,
            scrub: Default::default(),
        };
        let (ready, address) = oneshot::channel();
        tokio::spawn(lakebed_safekeeper::run(config, stop.clone(), ready));
        safekeepers.insert(NodeId(node_id), address.await.expect("a safekeeper").to_string());
    }
    let count = ShardCount::new(2).expect("a count");
    let mut shards = Vec::new();
    let mut nodes = Vec::new();
    let mut imported = None;
    for index in 0..2 {
        let shard = ShardIdentity::new(index, count).expect("a shard");
        let config = PageserverConfig {
            node_id: 10 + u64::from(index),
            data_dir: home.path().join(format!("pageserver-{index}")),
            listen: "127.0.0.1:0".parse().expect("an address"),
            admin_listen: "127.0.0.1:0".parse().expect("an address"),
            store: format!("file://{}/store", home.path().display()),
            flush_bytes: 64 << 20,
            image_deltas: 24,
            image_bytes: 16 << 10,
            index_cache_bytes: 16 << 20,
            rewind_s: 3600,
            lease_s: 900,
            page_cache_bytes: 16 << 20,
            disk_budget_bytes: None,
            disk_reserve_bytes: 0,
        };
        let server = Pageserver::start(
            config,
            Managers::default(),
            &mut Registry::default(),
            stop.clone(),
        )
        .await
        .expect("a pageserver");
        let node = server.node();
        let address = server.address().expect("an address").to_string();
        shards.push(ShardAddress { shard, address });
        tokio::spawn(server.serve());
        let key = (TENANT, shard);
        imported = Some(
            node.import(
                key,
                Generation(1),
                TIMELINE,
                &initial.data_dir(),
                Circumstances::default(),
            )
            .await
            .expect("an import"),
        );
        nodes.push((node, shard));
    }
    let Taken {
        cluster,
        start,
        last_record_start,
        ..
    } = imported.expect("two imports");
    let membership = Membership {
        generation: Generation(1),
        old: safekeepers.keys().copied().collect(),
        new: None,
    };
    for address in safekeepers.values() {
        let mut client = SafekeeperClient::new(connect(address).await.expect("a connection"));
        let request = v1::CreateSafekeeperTimelineRequest {
            timeline: Some(convert::timeline_ref(TENANT, TIMELINE)),
            start_lsn: start.0,
            cluster: Some(v1::ClusterIdentity {
                system_identifier: cluster.system_identifier,
                postgres_major: cluster.postgres_major.major(),
                wal_segment_bytes: cluster.wal_segment_bytes,
                data_checksums: cluster.data_checksums,
            }),
            membership: Some(quorum::membership_to_wire(&membership)),
            begin_lsn: 0,
            history: Vec::new(),
            learner: false,
        };
        client.create_timeline(request).await.expect("a timeline");
    }
    for (node, shard) in nodes {
        attach(&node, shard, cluster, safekeepers.values().cloned().collect()).await;
    }
    let branch = Branch {
        tenant: TENANT,
        timeline: TIMELINE,
        name: "test/main".to_owned(),
        start,
        last_record_start,
        version: cluster.postgres_major,
        system_id: cluster.system_identifier,
        segment_bytes: cluster.wal_segment_bytes,
        membership,
        safekeepers,
        joining: None,
        shards,
    };
    Tier { home, branch, stop }
}

async fn attach(
    node: &Arc<lakebed_pageserver::node::Node>,
    shard: ShardIdentity,
    cluster: ClusterIdentity,
    safekeepers: Vec<String>,
) {
    let spec = TimelineSpec {
        timeline: TIMELINE,
        parent: None,
        cluster,
        safekeepers,
        kept: Default::default(),
    };
    let attachment = Attachment {
        tenant: TENANT,
        shard,
        generation: Generation(1),
        timelines: vec![spec],
        retired: false,
    };
    node.attach(attachment).await.expect("an attachment");
}

impl Tier {
    async fn compute(&self, name: &str) -> (Sidecar, u16) {
        let port = free_port();
        let config = ComputeConfig {
            dir: self.home.path().join(name),
            pg_bin: lakebed_pgtest::bin_dir(),
            shim: shim(),
            pg_listen: "127.0.0.1".to_owned(),
            pg_port: port,
            admin_listen: "127.0.0.1:0".parse().expect("an address"),
            run_as: "postgres".to_owned(),
            lease_ms: 10_000,
            heartbeat_ms: 250,
            local_wal_bytes: 64 << 20,
            wire_wal: Default::default(),
            settings: vec!["autovacuum_naptime=1".to_owned()],
        };
        let (_, shards) = watch::channel(self.branch.shards.clone());
        let placement = Placement {
            shards,
            stale: Arc::new(Notify::new()),
        };
        let members = Members::of(&self.branch);
        let sidecar = Sidecar::start(config, self.branch.clone(), placement, members).await;
        (sidecar.unwrap_or_else(|error| panic!("{error:#}")), port)
    }
}

async fn client(name: &str, port: u16, arguments: &[&str]) -> String {
    let mut command = program(name);
    command
        .current_dir("/tmp")
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string());
    command
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .args(arguments);
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await;
    output.expect("a client").trim_end().to_owned()
}

async fn sql(port: u16, statement: &str) -> String {
    client("psql", port, &["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_boots_commits_and_comes_back_from_nothing() {
    let _ = tracing_subscriber::fmt()
        .with_test_writer()
        .with_env_filter("info")
        .try_init();
    let tier = tier().await;
    let (sidecar, port) = tier.compute("one").await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(sidecar.run(stop.clone()));
    assert_eq!(sql(port, "select 40 + 2").await, "42");
    sql(
        port,
        "create table t as select n, md5(n::text) as m from generate_series(1, 10000) n",
    )
    .await;
    client("pgbench", port, &["-i", "-q", "-s", "2"]).await;
    client("pgbench", port, &["-n", "-c", "4", "-t", "200"]).await;
    let sums = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history), \
                (select sum(hashtext(m)) from t)";
    let before = sql(port, sums).await;
    stop.cancel();
    assert_eq!(running.await.expect("an end"), Ended::Stopped);

    let (sidecar, port) = tier.compute("two").await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(sidecar.run(stop.clone()));
    assert_eq!(sql(port, sums).await, before);
    sql(port, "update t set m = 'x' where n % 2 = 0").await;
    sql(port, "vacuum t").await;
    assert_eq!(sql(port, "select count(*) from t where m = 'x'").await, "5000");
    stop.cancel();
    assert_eq!(running.await.expect("an end"), Ended::Stopped);
    tier.stop.cancel();
}
