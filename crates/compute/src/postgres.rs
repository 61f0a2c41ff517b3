//! The Postgres process: its command line, its start and its end.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lakebed_shim_abi::{ENV_DATA, ENV_SHM, ENV_SOCKET};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::ComputeConfig;
use crate::data_dir::Owner;

/// Settings on the command line, where nothing in a file or in SQL can change them. Each is needed so that a flush of
/// WAL waits for the quorum, or so that no local state is taken for durable.
const PINNED: [(&str, &str); 9] = [
    ("fsync", "on"),
    ("wal_sync_method", "fdatasync"),
    ("restart_after_crash", "off"),
    ("wal_recycle", "off"),
    ("wal_init_zero", "off"),
    ("wal_log_hints", "off"),
    ("archive_mode", "off"),
    ("recovery_target_timeline", "current"),
    ("data_sync_retry", "off"),
];
/// How long Postgres may take until it accepts connections.
const START: Duration = Duration::from_secs(60);
/// How long the Postgres of a sidecar that was killed may take to end.
const PREDECESSOR: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(1);

/// A running Postgres.
#[derive(Debug)]
pub struct Postgres {
    pid: Pid,
    exited: watch::Receiver<Option<Result<ExitStatus, String>>>,
}

fn command(config: &ComputeConfig, shm: &Path, owner: Owner) -> anyhow::Result<Command> {
    let program = config.pg_bin.join("postgres");
    if !program.exists() {
        bail!(
            "there is no Postgres at {}: install postgresql-15, or set `pg_bin` to the directory of its programs",
            program.display()
        );
    }
    if !config.shim.exists() {
        bail!(
            "there is no library {}: set `shim` to liblakebed_shim.so",
            config.shim.display()
        );
    }
    // A build directory or a root's home is often closed to the user that Postgres runs as.
    let copy = config.shim_copy();
    let _ = fs::remove_file(&copy);
    fs::copy(&config.shim, &copy).with_context(|| format!("copying {}", config.shim.display()))?;
    crate::data_dir::give(&copy, owner)?;
    let data = config.data_dir();
    let mut command = Command::new(program);
    command.current_dir(&config.dir);
    command.arg("-D").arg(&data);
    let own = [
        format!("listen_addresses={}", config.pg_listen),
        format!("port={}", config.pg_port),
        format!("unix_socket_directories={}", config.dir.display()),
    ];
    let pinned = PINNED.iter().map(|(name, value)| format!("{name}={value}"));
    for setting in own.into_iter().chain(pinned) {
        command.arg("-c").arg(setting);
    }
    let mut wal_level = "replica";
    for setting in &config.settings {
        let Some((name, value)) = setting.split_once('=') else {
            bail!("`{setting}` in `settings` is not of the form name=value");
        };
        if name.trim() == "wal_level" {
            // With `minimal` Postgres fsyncs relations instead of logging them, and nothing would be in the tier.
            wal_level = match value.trim() {
                level @ ("replica" | "logical") => level,
                other => {
                    bail!("wal_level can be replica or logical; `{other}` in `settings` would lose data")
                }
            };
            continue;
        }
        if PINNED.iter().any(|(pinned, _)| *pinned == name.trim()) {
            bail!("`{name}` in `settings` cannot be changed: commits would no longer be safe");
        }
        command.arg("-c").arg(setting);
    }
    command.arg("-c").arg(format!("wal_level={wal_level}"));
    command.env("LD_PRELOAD", config.shim_copy());
    command
        .env(ENV_SHM, shm)
        .env(ENV_SOCKET, config.shim_socket())
        .env(ENV_DATA, &data);
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command.stdin(Stdio::null());
    let log = File::options().create(true).append(true).open(config.log_path());
    let log = log.with_context(|| format!("opening {}", config.log_path().display()))?;
    let errors = log.try_clone().context("opening the log twice")?;
    command.stdout(log).stderr(errors);
    // Its own group: a Ctrl-C at the terminal is the sidecar's, which stops Postgres in order.
    command.process_group(0);
    Ok(command)
}

impl Postgres {
    /// Starts the postmaster.
    ///
    /// # Errors
    /// Postgres is not installed, or cannot be executed.
    pub async fn start(config: &ComputeConfig, shm: &Path, owner: Owner) -> anyhow::Result<Postgres> {
        let mut command = command(config, shm, owner)?;
        let (tell, exited) = watch::channel(None);
        let (started, start) = oneshot::channel();
        // The kernel signals Postgres when the *thread* that started it ends; this one ends with Postgres.
        let thread = std::thread::Builder::new().name("postgres".to_owned());
        let body = move || match command.spawn() {
            Ok(mut child) => {
                let _ = started.send(Ok(child.id()));
                let status = child.wait().map_err(|error| error.to_string());
                tell.send_replace(Some(status));
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        };
        thread.spawn(body).context("starting a thread")?;
        let pid = start
            .await
            .context("starting Postgres")?
            .context("executing postgres")?;
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("no process id")?;
        Ok(Postgres { pid, exited })
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Returns once Postgres accepts connections.
    ///
    /// # Errors
    /// It ends before, or takes too long.
    pub async fn ready(&self, config: &ComputeConfig) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        let path = config.data_dir().join("postmaster.pid");
        let log = config.log_path();
        loop {
            // The eighth line says "ready" then (`utils/pidfile.h`), which is what pg_ctl looks at.
            let text = fs::read_to_string(&path).unwrap_or_default();
            if text.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                return Ok(());
            }
            if let Some(status) = self.has_exited() {
                bail!(
                    "Postgres ended at its start ({status}); its log {} says: {}",
                    log.display(),
                    tail(&log)
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "Postgres does not accept connections after {START:?}; see {}",
                    log.display()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How it ended, if it has.
    pub fn has_exited(&self) -> Option<String> {
        self.exited.borrow().as_ref().map(describe)
    }

    /// Waits for its end.
    pub async fn exited(&self) -> String {
        let mut exited = self.exited.clone();
        match exited.wait_for(Option::is_some).await {
            Ok(status) => status.as_ref().map(describe).unwrap_or_default(),
            Err(_) => "its end was not seen".to_owned(),
        }
    }

    fn signal(&self, signal: Signal) {
        // Once it was waited for, the number may be another's.
        if self.exited.borrow().is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Stops it without acknowledging anything more: SIGQUIT, then SIGKILL. Its children die with it.
    pub async fn stop_now(&self, patience: Duration) {
        self.signal(Signal::QUIT);
        if tokio::time::timeout(patience, self.exited()).await.is_err() {
            self.signal(Signal::KILL);
            self.exited().await;
        }
    }

    /// Stops it in order ("fast": sessions end, a checkpoint is written), or at once when that takes too long.
    pub async fn stop(&self, patience: Duration) {
        self.signal(Signal::INT);
        if tokio::time::timeout(patience, self.exited()).await.is_err() {
            tracing::warn!("Postgres does not stop in order; stopping it at once");
            self.stop_now(Duration::from_secs(1)).await;
        }
    }
}

fn describe(status: &Result<ExitStatus, String>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.clone(),
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

/// Waits until the Postgres of an earlier sidecar in this directory has ended, as it does by itself.
///
/// # Errors
/// It does not end.
pub async fn wait_for_predecessor(data: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    let is_postgres = || {
        let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        test_kill_process(pid).is_ok()
            && command.is_ok_and(|command| command.contains(&*data.to_string_lossy()))
    };
    let deadline = Instant::now() + PREDECESSOR;
    while is_postgres() {
        if Instant::now() > deadline {
            bail!(
                "the Postgres of an earlier compute, process {}, still runs in {}: stop it",
                pid.as_raw_nonzero(),
                data.display()
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
