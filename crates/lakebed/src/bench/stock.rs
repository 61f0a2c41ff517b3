//! Stock Postgres whose commits wait for two of three receivers of WAL on disk: what a tier is compared with.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lakebed_compute::data_dir::Owner;
use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};

use super::tier::{PrivateTier, free_port};
use crate::initdb::Initial;

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A Postgres; killed when dropped, with its receivers.
#[derive(Debug)]
pub struct Stock {
    /// Its port.
    pub port: u16,
    pg_bin: PathBuf,
    home: PathBuf,
    owner: Owner,
    postgres: Child,
    receivers: Vec<Child>,
    /// There until it is stopped in order.
    initial: Option<Initial>,
}

impl Stock {
    /// Starts it, without receivers. Blocks.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(tier: &PrivateTier, name: &str, settings: &[&str]) -> anyhow::Result<Stock> {
        let initial = Initial::make(&tier.pg_bin, tier.home().join(name), tier.owner)?;
        Stock::start_on(tier, initial, settings)
    }

    /// Starts it on a data directory that is there. Blocks.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_on(tier: &PrivateTier, initial: Initial, settings: &[&str]) -> anyhow::Result<Stock> {
        let home = initial.home().to_owned();
        let port = free_port()?;
        let mut command = Command::new(tier.pg_bin.join("postgres"));
        command.arg("-D").arg(initial.data());
        let own = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={}", home.display()),
        ];
        let settings = settings.iter().map(|setting| (*setting).to_owned());
        for setting in own.into_iter().chain(settings) {
            command.arg("-c").arg(setting);
        }
        let log = File::create(home.join("postgres.log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        let postgres = spawn(command, &home, tier.owner)?;
        let stock = Stock {
            port,
            pg_bin: tier.pg_bin.clone(),
            home,
            owner: tier.owner,
            postgres,
            receivers: Vec::new(),
            initial: Some(initial),
        };
        let began = Instant::now();
        while stock.connect().is_err() {
            if began.elapsed() > PATIENCE {
                bail!("stock Postgres does not start");
            }
            std::thread::sleep(LOOK);
        }
        Ok(stock)
    }

    /// Stops it with a checkpoint; returns its data directory. Blocks.
    ///
    /// # Errors
    /// It does not stop in order.
    pub fn stop(mut self) -> anyhow::Result<Initial> {
        kill_process(Pid::from_child(&self.postgres), Signal::INT)?;
        let ended = self.postgres.wait()?;
        ensure!(ended.success(), "stock Postgres ended with {ended}");
        self.initial.take().context("it has no data directory")
    }

    /// A connection.
    ///
    /// # Errors
    /// It is refused.
    pub fn connect(&self) -> anyhow::Result<Client> {
        let url = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        Ok(Client::connect(&url, NoTls)?)
    }

    /// Starts three receivers, each of which connects to one of these ports, and lets commits wait for two of them. Blocks.
    ///
    /// # Errors
    /// They do not come to receive.
    pub fn receive(&mut self, ports: [u16; 3]) -> anyhow::Result<()> {
        for (name, port) in ["r1", "r2", "r3"].into_iter().zip(ports) {
            let directory = self.home.join(name);
            fs::create_dir(&directory)?;
            if let Some((uid, gid)) = self.owner {
                chown(&directory, Some(uid), Some(gid))?;
            }
            let mut command = Command::new(self.pg_bin.join("pg_receivewal"));
            command.args(["--synchronous", "--no-loop", "-D"]).arg(&directory);
            command.arg("-d").arg(format!(
                "host=127.0.0.1 port={port} user=postgres application_name={name}"
            ));
            let log = File::create(self.home.join(format!("{name}.log")))?;
            command.stdout(log.try_clone()?).stderr(log);
            self.receivers.push(spawn(command, &self.home, self.owner)?);
        }
        let mut client = self.connect()?;
        client.batch_execute("alter system set synchronous_standby_names = 'ANY 2 (r1, r2, r3)'")?;
        client.batch_execute("select pg_reload_conf()")?;
        let began = Instant::now();
        loop {
            let row = client.query_one(
                "select count(*) from pg_stat_replication where sync_state = 'quorum'",
                &[],
            )?;
            if row.get::<_, i64>(0) == 3 {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("the receivers of stock Postgres do not receive");
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn spawn(mut command: Command, directory: &Path, owner: Owner) -> anyhow::Result<Child> {
    command.current_dir(directory).stdin(Stdio::null());
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command.spawn().with_context(|| format!("{command:?}"))
}

impl Drop for Stock {
    fn drop(&mut self) {
        for receiver in &mut self.receivers {
            let _ = receiver.kill();
            let _ = receiver.wait();
        }
        // Its children end with it; SIGKILL would leave them.
        if let Ok(None) = self.postgres.try_wait() {
            let _ = kill_process(Pid::from_child(&self.postgres), Signal::QUIT);
            let _ = self.postgres.wait();
        }
    }
}
