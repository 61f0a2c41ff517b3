//! WAL of a stock Postgres that pageserver shards of this process take in, as the daemon does.
//!
//! A [`Workload`] is two copies of a data directory: `base`, which each shard imports, and `after`, whose WAL goes on from
//! there. The WAL is cut and routed beforehand, and sent over gRPC by a thread that counts for itself ([`super::feeder`]).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lakebed_blobstore::BlobStore;
use lakebed_pageserver::config::PageserverConfig;
use lakebed_pageserver::import::Circumstances;
use lakebed_pageserver::metrics::Metrics;
use lakebed_pageserver::node::{Attachment, Node, Taken, TimelineSpec, wait_for};
use lakebed_pageserver::timeline::Timeline;
use lakebed_pageserver::timeline::compaction::Next;
use lakebed_pageserver::timeline::history::Kept;
use lakebed_redo::Managers;
use lakebed_types::{Generation, Lsn, ShardCount, ShardIdentity, TenantId, TimelineId};
use lakebed_wal::control::ControlFile;
use lakebed_wal::stream::RawRecord;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use super::feeder::{self, Feeder};
use super::pgbench::Pgbench;
use super::stock::Stock;
use super::tier::PrivateTier;
use super::written_wal;
use crate::initdb::Initial;

const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);
/// How long it may take to take in all WAL, or to compact it.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(20);
/// Clients of the workloads.
pub const CLIENTS: u32 = 4;
const SETTINGS: [&str; 10] = [
    "full_page_writes=off",
    "fsync=off",
    "synchronous_commit=off",
    "autovacuum=off",
    "max_wal_size=64GB",
    "checkpoint_timeout=1h",
    "wal_keep_size=64GB",
    "wal_recycle=off",
    "wal_init_zero=off",
    "shared_buffers=512MB",
];

/// See the module header.
#[derive(Clone, Debug)]
pub struct Workload(PathBuf);

impl Workload {
    /// The one in this directory. If it is not there, `prepare` makes the base in a running Postgres and `work` the rest.
    /// Blocks.
    ///
    /// # Errors
    /// Postgres does not start, or what the two say.
    pub fn make(
        tier: &PrivateTier,
        directory: PathBuf,
        prepare: impl FnOnce(&Pgbench) -> anyhow::Result<()>,
        work: impl FnOnce(&Pgbench) -> anyhow::Result<()>,
    ) -> anyhow::Result<Workload> {
        if directory.join("done").exists() {
            return Ok(Workload(directory));
        }
        std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let pgbench = |stock: &Stock| Pgbench {
            pg_bin: tier.pg_bin.clone(),
            port: stock.port,
            scratch: tier.home().to_owned(),
        };
        eprintln!("making the base");
        let initial = Initial::make(&tier.pg_bin, tier.home().join("stock"), tier.owner)?;
        let stock = Stock::start_on(tier, initial, &SETTINGS)?;
        prepare(&pgbench(&stock))?;
        let initial = stock.stop()?;
        copy(&initial.data(), &directory.join("base"))?;
        eprintln!("running the workload");
        let stock = Stock::start_on(tier, initial, &SETTINGS)?;
        work(&pgbench(&stock))?;
        let initial = stock.stop()?;
        copy(&initial.data(), &directory.join("after"))?;
        std::fs::write(directory.join("done"), "")?;
        Ok(Workload(directory))
    }

    /// As [`Workload::make`]: so many transactions of TPC-B on tables of this scale.
    ///
    /// # Errors
    /// Postgres does not start, or pgbench fails.
    pub fn tpcb(
        tier: &PrivateTier,
        directory: PathBuf,
        scale: u32,
        transactions: u64,
    ) -> anyhow::Result<Workload> {
        Workload::make(
            tier,
            directory,
            |pgbench| pgbench.initialize(scale),
            |pgbench| pgbench.run_transactions(CLIENTS, transactions).map(drop),
        )
    }

    /// The records from `start` on, where one begins, and where they end.
    ///
    /// # Errors
    /// The WAL cannot be read.
    pub fn read_wal(&self, start: Lsn) -> anyhow::Result<(Vec<RawRecord>, Lsn)> {
        let after = self.0.join("after");
        let control = std::fs::read(after.join("global/pg_control")).context("reading pg_control")?;
        let control = ControlFile::decode(&control)?;
        let mut records = Vec::new();
        let end = written_wal::records(&after, &control, start, |record| {
            records.push(record);
            Ok(())
        })?;
        Ok((records, end))
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(
        copied.success(),
        "copying {} to {}: {copied}",
        from.display(),
        to.display()
    );
    Ok(())
}

/// A node that has the base of a workload, and its WAL ready to take in.
pub struct Replayed {
    /// The node.
    pub node: Arc<Node>,
    /// Its timeline, on each shard.
    pub timelines: Vec<Arc<Timeline>>,
    /// Where the WAL begins and ends.
    pub lsns: (Lsn, Lsn),
    /// Records of it.
    pub records: usize,
    keys: Vec<(TenantId, ShardIdentity)>,
    taken: Taken,
    feeder: Feeder,
}

impl Replayed {
    /// Imports the base for each of so many shards into a node below `home`, and leaves nothing to compact. `settings` are
    /// of its configuration.
    ///
    /// # Errors
    /// The import fails.
    pub async fn prepare(
        workload: &Workload,
        home: &Path,
        shards: u8,
        settings: &[(&str, Value)],
    ) -> anyhow::Result<Replayed> {
        let count = ShardCount::new(shards).context("a number of shards")?;
        let key = |index| Some((TENANT, ShardIdentity::new(index, count)?));
        let keys = (0..shards).map(|index| key(index).context("a shard"));
        let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
        let store = format!("file://{}", home.join("objects").display());
        let node = node(home, &BlobStore::open(&store)?, settings)?;
        let base = workload.0.join("base");
        let mut taken = None;
        for &key in &keys {
            let imported = node.import(key, Generation(1), TIMELINE, &base, Circumstances::default());
            taken = Some(imported.await?);
        }
        let taken = taken.context("no shard")?;
        let (batches, records, end) = block_in_place(|| {
            let (records, end) = workload.read_wal(taken.start)?;
            anyhow::Ok((feeder::batches(&records, shards)?, records.len(), end))
        })?;
        let mut replayed = Replayed {
            node,
            timelines: Vec::new(),
            lsns: (taken.start, end),
            records,
            keys,
            taken,
            feeder: Feeder::start(Arc::new(batches))?,
        };
        replayed.attach(false, Kept::default()).await?;
        for &(tenant, shard) in &replayed.keys {
            let timeline = replayed.node.timeline(tenant, shard, TIMELINE)?;
            replayed.timelines.push(timeline);
        }
        replayed.compacted().await?;
        Ok(replayed)
    }

    /// Waits until the node's compaction has nothing left to do.
    ///
    /// # Errors
    /// It does not come to an end.
    pub async fn compacted(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for timeline in &self.timelines {
            // A merge that runs is in the plan until it is committed.
            while !matches!(timeline.plan_compaction().await?, Next::Nothing) {
                ensure!(Instant::now() < deadline, "compaction does not come to an end");
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    async fn attach(&self, fed: bool, kept: Kept) -> anyhow::Result<()> {
        for &(tenant, shard) in &self.keys {
            let address = fed.then(|| self.feeder.address.clone());
            let spec = TimelineSpec {
                timeline: TIMELINE,
                parent: None,
                cluster: self.taken.cluster,
                safekeepers: address.into_iter().collect(),
                kept: kept.clone(),
            };
            let attachment = Attachment {
                tenant,
                shard,
                generation: Generation(1),
                timelines: vec![spec],
                retired: false,
            };
            self.node.attach(attachment).await?;
        }
        Ok(())
    }

    /// Lets history before a horizon go, as controllers do.
    ///
    /// # Errors
    /// The node refuses.
    pub async fn keep(&self, kept: Kept) -> anyhow::Result<()> {
        self.attach(true, kept).await
    }

    /// Takes in all WAL.
    ///
    /// # Errors
    /// It does not come to the end.
    pub async fn take_in(&self) -> anyhow::Result<()> {
        self.attach(true, Kept::default()).await?;
        for timeline in &self.timelines {
            wait_for(timeline, self.lsns.1, PATIENCE).await?;
        }
        Ok(())
    }

    /// Stores what is in memory.
    ///
    /// # Errors
    /// It cannot be stored, or ingest stopped.
    pub async fn flush(&self) -> anyhow::Result<()> {
        for timeline in &self.timelines {
            timeline.flush().await?;
            if let Some(reason) = timeline.stopped() {
                anyhow::bail!("ingest stopped: {reason}");
            }
        }
        Ok(())
    }

    /// Megabytes of WAL.
    pub fn megabytes(&self) -> f64 {
        (self.lsns.1.0 - self.lsns.0.0) as f64 / 1e6
    }

    /// Ends the node.
    pub async fn stop(self) {
        self.node.stop().await;
    }
}

/// A node without shards, on this object storage.
///
/// # Errors
/// A setting is none, or the directory cannot be made.
pub fn node(home: &Path, store: &BlobStore, settings: &[(&str, Value)]) -> anyhow::Result<Arc<Node>> {
    let mut config = json!({
        "node_id": 1,
        "data_dir": home.join("data"),
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "store": "memory:",
    });
    for (name, value) in settings {
        config[*name] = value.clone();
    }
    let config: PageserverConfig = serde_json::from_value(config)?;
    std::fs::create_dir_all(&config.data_dir)?;
    let metrics = Metrics::register(&mut Registry::default());
    Ok(Node::new(
        config,
        Managers::default(),
        store.clone(),
        metrics,
        CancellationToken::new(),
    ))
}
