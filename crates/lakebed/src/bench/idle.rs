//! What a timeline costs a safekeeper on which nobody works: memory and open files of a safekeeper with many, after they
//! were made and after a restart, and how long the restart takes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{connect, convert, v1};
use lakebed_types::{TenantId, TimelineId};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::{JoinSet, block_in_place};

use super::Report;
use super::stats::round;
use super::tier::{PrivateTier, TierArgs, free_port};

/// Timelines that are made at the same time.
const AT_A_TIME: usize = 32;
const SEGMENT_BYTES: u32 = 16 << 20;

/// Its options.
#[derive(Debug, Args)]
pub struct IdleArgs {
    /// Timelines.
    #[arg(long, default_value_t = 10_000)]
    pub timelines: u32,
    #[command(flatten)]
    pub tier: TierArgs,
}

pub async fn run(args: &IdleArgs, tier: &mut PrivateTier, report: &Report) -> anyhow::Result<()> {
    let home = tier.home().join("safekeeper");
    fs::create_dir_all(&home)?;
    let safekeeper = block_in_place(|| Safekeeper::start(&home))?;
    let empty = safekeeper.costs()?;
    eprintln!("making {} timelines", args.timelines);
    let began = Instant::now();
    make(&safekeeper.address, args.timelines).await?;
    let made = (safekeeper.costs()?, began.elapsed());
    block_in_place(|| safekeeper.stop())?;
    eprintln!("starting again");
    let safekeeper = block_in_place(|| Safekeeper::start(&home))?;
    let again = (safekeeper.costs()?, safekeeper.took);
    block_in_place(|| safekeeper.stop())?;
    for (when, (costs, took)) in [("made", made), ("started again", again)] {
        report.result(costs.result(when, empty, took, args.timelines));
    }
    Ok(())
}

async fn make(address: &str, count: u32) -> anyhow::Result<()> {
    let channel = connect(address).await?;
    let mut making = JoinSet::new();
    for number in 0..count {
        if making.len() >= AT_A_TIME
            && let Some(made) = making.join_next().await
        {
            made??;
        }
        let mut client = SafekeeperClient::new(channel.clone());
        making.spawn(async move {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let request = v1::CreateSafekeeperTimelineRequest {
                timeline: Some(convert::timeline_ref(TenantId([1; 16]), TimelineId(id))),
                start_lsn: u64::from(SEGMENT_BYTES) + 40,
                cluster: Some(v1::ClusterIdentity {
                    system_identifier: 7,
                    postgres_major: 15,
                    wal_segment_bytes: SEGMENT_BYTES,
                    data_checksums: false,
                }),
                membership: Some(v1::Membership {
                    generation: 1,
                    current: vec![1, 2, 3],
                    next: Vec::new(),
                }),
                begin_lsn: 0,
                history: Vec::new(),
                learner: false,
            };
            let made = client.create_timeline(request).await;
            made.map(|_| ())
                .map_err(|status| anyhow::anyhow!("{}", status.message()))
        });
    }
    while let Some(made) = making.join_next().await {
        made??;
    }
    Ok(())
}

/// A safekeeper without a controller; killed when dropped.
struct Safekeeper {
    child: Child,
    address: String,
    /// From its start until it served.
    took: Duration,
}

/// What a process has of the machine.
#[derive(Clone, Copy)]
struct Costs {
    resident_bytes: u64,
    files: usize,
    threads: u64,
}

impl Safekeeper {
    fn start(home: &Path) -> anyhow::Result<Safekeeper> {
        let config = home.join("safekeeper.toml");
        let text = format!(
            "[node]\ncontrollers = ['127.0.0.1:{}']\n[safekeeper]\nnode_id = 1\ndata_dir = '{}'\nlisten = '127.0.0.1:0'\n\
             admin_listen = '127.0.0.1:0'\n",
            free_port()?,
            home.join("data").display()
        );
        fs::write(&config, text)?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(home.join("log"))?;
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.arg("safekeeper").arg("--config").arg(&config);
        command.arg("--stop-with-parent");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let began = Instant::now();
        let mut child = command.spawn().context("starting a safekeeper")?;
        let mut line = String::new();
        let out = child.stdout.take().context("no output")?;
        BufReader::new(out).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("it said {line:?}"))?;
        let address = ready["address"].as_str().context("no address")?.to_owned();
        Ok(Safekeeper {
            child,
            address,
            took: began.elapsed(),
        })
    }

    fn costs(&self) -> anyhow::Result<Costs> {
        let process = Path::new("/proc").join(self.child.id().to_string());
        let status = fs::read_to_string(process.join("status"))?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Ok(Costs {
            resident_bytes: field("VmRSS:").context("no VmRSS")? << 10,
            files: fs::read_dir(process.join("fd"))?.count(),
            threads: field("Threads:").context("no Threads")?,
        })
    }

    fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("stopping a safekeeper")?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Safekeeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Costs {
    fn result(self, when: &str, empty: Costs, took: Duration, timelines: u32) -> Value {
        let more = self.resident_bytes.saturating_sub(empty.resident_bytes);
        json!({
            "when": when,
            "timelines": timelines,
            "resident_bytes": self.resident_bytes,
            "resident_bytes_empty": empty.resident_bytes,
            "bytes_per_timeline": round(more as f64 / f64::from(timelines.max(1))),
            "open_files": self.files,
            "threads": self.threads,
            "seconds": round(took.as_secs_f64()),
        })
    }
}
