//! What WAL costs on the wire: bytes between the writer and one receiver of its WAL.
//!
//! Counted by a TCP proxy in front of one of the three receivers, in both directions, over the time of the run: for
//! the tier that is the gRPC connection from the compute to a safekeeper with all its framing, for stock Postgres the
//! replication connection of one `pg_receivewal`. Pageservers also come through the proxy; theirs are other
//! connections, and the compute's is the one that carries the most towards the server. A checkpoint comes just before
//! each run: the first change of a page after it is what stock Postgres writes a page image for.
//!
//! Workloads: `pgbench`, its TPC-B; `tpcc`, five transactions of order entry ([`super::tpcc`]); `index`, a B-tree on random
//! float8 values, whose bytes are counted until no more come. Ways of the tier: how its compute sends WAL.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use lakebed_compute::config::WireWal;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::Report;
use super::compute::Compute;
use super::pgbench::Pgbench;
use super::proxy::Proxy;
use super::stats::round;
use super::stock::Stock;
use super::tier::{PrivateTier, TierArgs};
use super::tpcc;
use crate::up::tenant::BRANCH;

/// No byte for this long: all of it has come.
const QUIET: Duration = Duration::from_millis(500);
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// TPC-B of pgbench.
    Pgbench,
    /// Order entry.
    Tpcc,
    /// A B-tree on random float8 values.
    Index,
}

/// Its options.
#[derive(Debug, Args)]
pub struct WalVolumeArgs {
    /// What is run.
    #[arg(long, value_delimiter = ',', default_value = "pgbench,tpcc,index")]
    pub workloads: Vec<Workload>,
    /// How the tier's compute sends WAL: auto, compact, plain.
    #[arg(long, value_delimiter = ',', default_value = "auto,compact,plain")]
    pub ways: Vec<WireWal>,
    /// Without stock Postgres beside it.
    #[arg(long)]
    pub no_stock: bool,
    /// Seconds of each run.
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
    /// Scale of the pgbench tables.
    #[arg(long, default_value_t = 50)]
    pub scale: u32,
    /// Warehouses of order entry.
    #[arg(long, default_value_t = 5)]
    pub warehouses: u32,
    /// Rows of the index.
    #[arg(long, default_value_t = 10_000_000)]
    pub index_rows: u32,
    /// Numbers of clients; order entry runs with the last of them.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    pub clients: Vec<u32>,
    /// Seconds between checkpoints, of all systems.
    #[arg(long, default_value_t = 30)]
    pub checkpoint_seconds: u32,
    #[command(flatten)]
    pub tier: TierArgs,
}

struct System<'a> {
    name: String,
    proxy: &'a Proxy,
    pgbench: Pgbench,
    /// Which direction carries WAL.
    towards_server: bool,
    args: &'a WalVolumeArgs,
    report: &'a Report,
}

pub async fn run(args: &WalVolumeArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    let ports = &tier.directory.layout.safekeeper_ports;
    let last = ports.len();
    let proxy = Proxy::start(ports.last().copied().unwrap_or_default()).await?;
    let name = format!("safekeeper-{last}");
    tier.told.advertise.insert(name, proxy.address.to_string());
    tier.start().await?;
    let tier = &*tier;
    let settings = [
        format!("checkpoint_timeout={}s", args.checkpoint_seconds),
        "shared_buffers=1GB".to_owned(),
        "max_wal_size=16GB".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let handle = tokio::runtime::Handle::current();
    block_in_place(|| {
        let pgbench = |port| Pgbench {
            pg_bin: tier.pg_bin.clone(),
            port,
            scratch: tier.home().to_owned(),
        };
        for (number, way) in args.ways.iter().enumerate() {
            let mut compute = Compute::spawn_with(tier, BRANCH, &settings, *way)?;
            drop(compute.first_answer()?);
            let lakebed = System {
                name: format!("lakebed-{way}"),
                proxy: &proxy,
                pgbench: pgbench(compute.port),
                towards_server: true,
                args,
                report,
            };
            if number == 0 {
                lakebed.load()?;
            }
            lakebed.measure()?;
            compute.stop()?;
        }
        for (name, compression) in [
            ("stock", "wal_compression=off"),
            ("stock-lz4", "wal_compression=lz4"),
        ] {
            if args.no_stock {
                break;
            }
            let mut settings = settings.clone();
            settings.push(compression);
            let mut stock = Stock::start(tier, name, &settings)?;
            let proxy = handle.block_on(Proxy::start(stock.port))?;
            stock.receive([stock.port, stock.port, proxy.address.port()])?;
            let system = System {
                name: name.to_owned(),
                proxy: &proxy,
                pgbench: pgbench(stock.port),
                towards_server: false,
                args,
                report,
            };
            system.load()?;
            system.measure()?;
        }
        Ok(())
    })
}

impl System<'_> {
    fn client(&self) -> anyhow::Result<Client> {
        let port = self.pgbench.port;
        let url = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        Ok(Client::connect(&url, NoTls)?)
    }

    fn runs(&self, workload: Workload) -> bool {
        self.args.workloads.contains(&workload)
    }

    fn load(&self) -> anyhow::Result<()> {
        eprintln!("loading, {}", self.name);
        if self.runs(Workload::Pgbench) {
            self.pgbench.initialize(self.args.scale)?;
        }
        if self.runs(Workload::Tpcc) {
            tpcc::load(self.pgbench.port, self.args.warehouses)?;
        }
        if self.runs(Workload::Index) {
            let rows = self.args.index_rows;
            let sql = format!("create table a as select random() from generate_series(1, {rows})");
            self.client()?.batch_execute(&sql)?;
        }
        Ok(())
    }

    fn measure(&self) -> anyhow::Result<()> {
        if self.runs(Workload::Pgbench) {
            for &clients in &self.args.clients {
                self.transactions("pgbench", clients, &[])?;
            }
        }
        if self.runs(Workload::Tpcc) {
            let arguments = tpcc::arguments(&self.pgbench.scratch, self.args.warehouses)?;
            let clients = self.args.clients.last().copied().unwrap_or(1);
            self.transactions("tpcc", clients, &arguments)?;
        }
        if self.runs(Workload::Index) {
            self.index()?;
        }
        Ok(())
    }

    /// Bytes since then on the connection that carries WAL: in both directions, and in that of WAL.
    fn since(&self, before: &[(u64, u64)]) -> (u64, u64) {
        let after = self.proxy.counts();
        let grown = after.iter().enumerate().map(|(number, (up, down))| {
            let (up_before, down_before) = before.get(number).copied().unwrap_or_default();
            let (up, down) = (up - up_before, down - down_before);
            (up + down, if self.towards_server { up } else { down })
        });
        grown.max_by_key(|(_, wal)| *wal).unwrap_or_default()
    }

    /// Waits until nothing more comes.
    fn settle(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut last = (self.proxy.counts(), Instant::now());
        while last.1.elapsed() < QUIET {
            if began.elapsed() > PATIENCE {
                bail!("the WAL of {} does not come to an end", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
            let now = self.proxy.counts();
            // Heartbeats go on.
            let grown =
                |(now, before): (&(u64, u64), &(u64, u64))| now.0 + now.1 > before.0 + before.1 + 1000;
            if now.len() != last.0.len() || now.iter().zip(&last.0).any(grown) {
                last = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn transactions(&self, workload: &str, clients: u32, arguments: &[String]) -> anyhow::Result<()> {
        eprintln!("{workload}, {clients} clients, {}", self.name);
        self.pgbench.checkpoint()?;
        self.settle()?;
        let before = self.proxy.counts();
        let time = Duration::from_secs(self.args.seconds);
        let ran = self.pgbench.run_with(clients, time, arguments)?;
        let (both, wal) = self.since(&before);
        let per_tx = |bytes: u64| round(bytes as f64 / ran.transactions.max(1) as f64);
        let mut result = json!({
            "system": self.name,
            "workload": workload,
            "clients": clients,
            "wire_bytes_per_tx": per_tx(both),
            "wal_direction_bytes_per_tx": per_tx(wal),
            "transactions": ran.transactions,
            "tps": round(ran.tps),
            "p50_ms": ran.latencies_ms.percentile(50.0),
            "seconds": self.args.seconds,
        });
        let size = if workload == "tpcc" {
            ("warehouses", self.args.warehouses)
        } else {
            ("scale", self.args.scale)
        };
        if let Value::Object(fields) = &mut result {
            fields.insert(size.0.to_owned(), json!(size.1));
        }
        self.report.result(result);
        Ok(())
    }

    fn index(&self) -> anyhow::Result<()> {
        eprintln!("index, {}", self.name);
        let mut client = self.client()?;
        client.batch_execute("checkpoint")?;
        self.settle()?;
        let before = self.proxy.counts();
        let began = Instant::now();
        client.batch_execute("create index a_random on a (random)")?;
        let seconds = began.elapsed().as_secs_f64();
        self.settle()?;
        let (both, wal) = self.since(&before);
        client.batch_execute("drop index a_random")?;
        let mib = |bytes: u64| round(bytes as f64 / f64::from(1 << 20));
        self.report.result(json!({
            "system": self.name,
            "workload": "index",
            "rows": self.args.index_rows,
            "wire_mib": mib(both),
            "wal_direction_mib": mib(wal),
            "build_seconds": round(seconds),
        }));
        Ok(())
    }
}
