//! A compute of the private tier.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lakebed_compute::config::WireWal;
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Handle;

use super::admin;
use super::tier::{PrivateTier, free_port};

/// How long a compute may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between looks at what does not listen yet.
const LOOK: Duration = Duration::from_micros(250);
/// Pause between connections to what is still starting: each costs it a process.
const AGAIN: Duration = Duration::from_millis(2);

/// Killed when dropped.
#[derive(Debug)]
pub struct Compute {
    /// Port of Postgres.
    pub port: u16,
    /// Port of its admin service.
    pub admin_port: u16,
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    began: Instant,
}

impl Compute {
    /// Starts the process.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn spawn(tier: &PrivateTier, branch: &str, settings: &[&str]) -> anyhow::Result<Compute> {
        Compute::spawn_with(tier, branch, settings, WireWal::Auto)
    }

    /// Starts the process, with this way for WAL to go to safekeepers.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn spawn_with(
        tier: &PrivateTier,
        branch: &str,
        settings: &[&str],
        wire_wal: WireWal,
    ) -> anyhow::Result<Compute> {
        let (port, admin_port) = (free_port()?, free_port()?);
        let directory = tier.directory.path.join("computes").join(branch);
        let log = tier.directory.log(&format!("compute-{branch}"));
        let errors = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.args([
            "compute".to_owned(),
            format!("--connect={}", tier.connect(branch)),
            format!("--dir={}", directory.display()),
            format!("--pg-bin={}", tier.pg_bin.display()),
            format!("--pg-port={port}"),
            format!("--admin-listen=127.0.0.1:{admin_port}"),
            format!("--run-as={}", tier.run_as),
            format!("--shim={}", tier.shim.display()),
            format!("--wire-wal={wire_wal}"),
            "--stop-with-parent".to_owned(),
        ]);
        command.args(settings.iter().map(|setting| format!("--set={setting}")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let socket = directory.join(format!(".s.PGSQL.{port}"));
        // An earlier compute may have been given the same port.
        let _ = std::fs::remove_file(&socket);
        let began = Instant::now();
        let child = command.spawn().context("starting a compute")?;
        Ok(Compute {
            port,
            admin_port,
            child,
            log,
            socket,
            began,
        })
    }

    /// Connects as soon as that is possible; tells the time from the start of the process to the answer to the first
    /// query. Blocks.
    ///
    /// # Errors
    /// It ends before, or takes too long.
    pub fn first_answer(&mut self) -> anyhow::Result<(Client, Duration)> {
        // It listens on TCP just before it makes this socket; looking for the file costs Postgres nothing.
        while !self.socket.exists() {
            self.still_starting()?;
            std::thread::sleep(LOOK);
        }
        let url = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        let mut client = loop {
            match Client::connect(&url, NoTls) {
                Ok(client) => break client,
                Err(error) if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => {}
                Err(error) => return Err(error).context("connecting to a compute"),
            }
            self.still_starting()?;
            std::thread::sleep(AGAIN);
        };
        client.simple_query("select 1")?;
        Ok((client, self.began.elapsed()))
    }

    fn still_starting(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default().to_owned();
            bail!("the compute ended at its start ({status}): {last}");
        }
        if self.began.elapsed() > PATIENCE {
            bail!("the compute does not answer after {PATIENCE:?}");
        }
        Ok(())
    }

    /// Turns page images in WAL on or off, while it runs. Blocks.
    ///
    /// # Errors
    /// It does not come to hold.
    pub fn write_full_pages(&self, on: bool) -> anyhow::Result<()> {
        let wanted = if on { "on" } else { "off" };
        let asked = admin::put(self.admin_port, "/v1/full_page_writes", wanted);
        Handle::current().block_on(asked).map(drop)
    }

    /// Stops it in order. Blocks.
    ///
    /// # Errors
    /// It fails while it stops.
    pub fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("stopping a compute")?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the compute ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
