//! pgbench, and what its log tells.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use postgres::{Client, NoTls};

use super::stats::Samples;

/// A server that pgbench is run against. All of it blocks.
#[derive(Clone, Debug)]
pub struct Pgbench {
    /// Programs of Postgres.
    pub pg_bin: PathBuf,
    /// Port of the server.
    pub port: u16,
    /// Where its logs go for a moment.
    pub scratch: PathBuf,
}

/// What one run was like.
#[derive(Debug)]
pub struct Ran {
    /// Transactions.
    pub transactions: u64,
    /// Of each transaction, in milliseconds.
    pub latencies_ms: Samples,
    /// The same by script, in the order of the arguments.
    pub by_script: BTreeMap<usize, Samples>,
    /// As pgbench counts them, without the time to connect.
    pub tps: f64,
}

impl Pgbench {
    fn command(&self) -> Command {
        let beside = self.pg_bin.join("pgbench");
        let mut command = Command::new(if beside.exists() {
            beside
        } else {
            PathBuf::from("pgbench")
        });
        command
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.port.to_string());
        command.stdin(Stdio::null()).current_dir(&self.scratch);
        command
    }

    /// Makes the tables of TPC-B.
    ///
    /// # Errors
    /// It fails; what it said.
    pub fn initialize(&self, scale: u32) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(["-i", "-q", "-s", &scale.to_string(), "postgres"]);
        output(command).map(|_| ())
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// The server refuses.
    pub fn checkpoint(&self) -> anyhow::Result<()> {
        let url = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        Ok(Client::connect(&url, NoTls)?.batch_execute("checkpoint")?)
    }

    /// Runs a script, or TPC-B without one.
    ///
    /// # Errors
    /// It fails; what it said.
    pub fn run(&self, clients: u32, time: Duration, script: Option<&Path>) -> anyhow::Result<Ran> {
        let arguments = script.map(|script| format!("--file={}", script.display()));
        self.run_with(clients, time, arguments.as_slice())
    }

    /// Runs it with these arguments besides, which tell what is run.
    ///
    /// # Errors
    /// It fails; what it said.
    pub fn run_with(&self, clients: u32, time: Duration, arguments: &[String]) -> anyhow::Result<Ran> {
        let time = ["-T".to_owned(), time.as_secs().to_string()];
        self.ran(clients, &[&time, arguments].concat())
    }

    /// Runs TPC-B: so many transactions in all, but for a remainder of the division by the clients.
    ///
    /// # Errors
    /// It fails; what it said.
    pub fn run_transactions(&self, clients: u32, transactions: u64) -> anyhow::Result<Ran> {
        let each = (transactions / u64::from(clients.max(1))).max(1);
        self.ran(clients, &["-t".to_owned(), each.to_string()])
    }

    /// As [`Pgbench::run_transactions`], of a script.
    ///
    /// # Errors
    /// It fails; what it said.
    pub fn run_script(&self, clients: u32, transactions: u64, script: &Path) -> anyhow::Result<Ran> {
        let each = (transactions / u64::from(clients.max(1))).max(1);
        let script = format!("--file={}", script.display());
        self.ran(clients, &["-t".to_owned(), each.to_string(), script])
    }

    fn ran(&self, clients: u32, arguments: &[String]) -> anyhow::Result<Ran> {
        let logs = self.scratch.join("pgbench-logs");
        std::fs::create_dir_all(&logs)?;
        let mut command = self.command();
        command.args(["-n", "-M", "prepared", "-c", &clients.to_string(), "-j"]);
        command.arg(clients.min(2).to_string());
        command.arg("-l");
        command.arg(format!("--log-prefix={}", logs.join("log").display()));
        command.args(arguments).arg("postgres");
        let text = output(command)?;
        let number = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            let rest = line.get(name.len()..)?.trim_start();
            let digits = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
            digits.parse::<f64>().ok()
        };
        let tps = number("tps =").with_context(|| format!("pgbench said {text}"))?;
        let mut by_script: BTreeMap<usize, Samples> = BTreeMap::new();
        for entry in std::fs::read_dir(&logs)? {
            let log = std::fs::read_to_string(entry?.path())?;
            for line in log.lines() {
                // client, transaction, microseconds, script, …
                let mut fields = line.split(' ').skip(2);
                let micros = fields.next().and_then(|field| field.parse::<f64>().ok());
                let script = fields.next().and_then(|field| field.parse().ok());
                let (micros, script) = micros
                    .zip(script)
                    .with_context(|| format!("pgbench logged `{line}`"))?;
                by_script.entry(script).or_default().push(micros / 1e3);
            }
        }
        let all = by_script.values().cloned();
        let latencies_ms = all.reduce(Samples::with).unwrap_or_default();
        std::fs::remove_dir_all(&logs)?;
        Ok(Ran {
            transactions: latencies_ms.len() as u64,
            latencies_ms,
            by_script,
            tps,
        })
    }
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command.output().context("running pgbench")?;
    if !output.status.success() {
        bail!(
            "pgbench failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
