//! The Postgres process: its command line, its start and its end.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lakebed_shim_abi::{ENV_DATA, ENV_SHM, ENV_SOCKET};
use lakebed_types::PgVersion;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::ComputeConfig;
use crate::data_dir::Owner;

/// Settings on the command line, where nothing in a file or in SQL can change them, and since which version there is
/// each. They are needed so that a flush of WAL waits for the quorum, so that no local state is taken for durable, or so
/// that every file call goes through the shim.
const PINNED: [(PgVersion, &str, &str); 11] = [
    (PgVersion::V15, "fsync", "on"),
    (PgVersion::V15, "wal_sync_method", "fdatasync"),
    (PgVersion::V15, "restart_after_crash", "off"),
    (PgVersion::V15, "wal_recycle", "off"),
    (PgVersion::V15, "wal_init_zero", "off"),
    (PgVersion::V15, "wal_log_hints", "off"),
    (PgVersion::V15, "archive_mode", "off"),
    (PgVersion::V15, "recovery_target_timeline", "current"),
    (PgVersion::V15, "data_sync_retry", "off"),
    // Past the page cache, through which sidecar and Postgres see each other's bytes.
    (PgVersion::V16, "debug_io_direct", ""),
    // Summaries of WAL that came before this compute cannot be made, and none outlives it.
    (PgVersion::V17, "summarize_wal", "off"),
];

/// A setting of which only some values are safe.
struct Limited {
    since: PgVersion,
    name: &'static str,
    /// What may be asked for; the first is what nobody asks for.
    values: [&'static str; 2],
    otherwise: &'static str,
}

const LIMITED: [Limited; 2] = [
    // With `minimal` Postgres fsyncs relations instead of logging them, and nothing would be in the tier.
    Limited {
        since: PgVersion::V15,
        name: "wal_level",
        values: ["replica", "logical"],
        otherwise: "would lose data",
    },
    // The kernel would read and write relation files behind the shim's back.
    Limited {
        since: PgVersion::V18,
        name: "io_method",
        values: ["worker", "sync"],
        otherwise: "would read pages that were not fetched",
    },
];

/// The settings of the command line: what is pinned, and what the user asks for.
fn settings(version: PgVersion, asked: &[String]) -> anyhow::Result<Vec<String>> {
    let pinned = || PINNED.iter().filter(|(since, ..)| version >= *since);
    let limited = || LIMITED.iter().filter(|limited| version >= limited.since);
    let mut all: Vec<String> = pinned()
        .map(|(_, name, value)| format!("{name}={value}"))
        .collect();
    all.extend(limited().map(|limited| format!("{}={}", limited.name, limited.values[0])));
    for setting in asked {
        let Some((name, value)) = setting.split_once('=') else {
            bail!("`{setting}` in `settings` is not of the form name=value");
        };
        // As Postgres takes them, in any case.
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name == "full_page_writes" {
            bail!(
                "`full_page_writes` in `settings` could not be switched while the compute runs: leave it out, and PUT \
                 /v1/full_page_writes of the compute's admin address"
            );
        }
        if pinned().any(|(_, pinned, _)| *pinned == name) {
            bail!("`{name}` in `settings` cannot be changed: commits would no longer be safe");
        }
        if let Some(Limited {
            values, otherwise, ..
        }) = limited().find(|limited| limited.name == name)
            && !values.iter().any(|known| known.eq_ignore_ascii_case(value))
        {
            bail!(
                "{name} can be {} or {}; `{value}` in `settings` {otherwise}",
                values[0],
                values[1]
            );
        }
        // Of two the later counts.
        all.push(setting.clone());
    }
    Ok(all)
}

/// How long Postgres may take until it accepts connections.
const START: Duration = Duration::from_secs(60);
/// How long the Postgres of a sidecar that was killed may take to end.
const PREDECESSOR: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(1);

/// A running Postgres.
#[derive(Clone, Debug)]
pub struct Postgres {
    pid: Pid,
    exited: watch::Receiver<Option<Result<ExitStatus, String>>>,
}

fn command(config: &ComputeConfig, version: PgVersion, shm: &Path, owner: Owner) -> anyhow::Result<Command> {
    let program = config.pg_bin.join("postgres");
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
    for setting in own.into_iter().chain(settings(version, &config.settings)?) {
        command.arg("-c").arg(setting);
    }
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
    /// Starts the postmaster, whose programs are of this version.
    ///
    /// # Errors
    /// Postgres is not installed, or cannot be executed.
    pub async fn start(
        config: &ComputeConfig,
        version: PgVersion,
        shm: &Path,
        owner: Owner,
    ) -> anyhow::Result<Postgres> {
        let mut command = command(config, version, shm, owner)?;
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

    /// Makes it read its configuration again.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_safety_needs_stay_and_unknown_ones_of_older_versions_are_absent() {
        let of = |version, asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|&setting| setting.to_owned()).collect();
            settings(version, &asked).map_err(|error| error.to_string())
        };
        let last = |version, name: &str, asked: &[&str]| {
            let all = of(version, asked).unwrap();
            let value = all
                .iter()
                .rev()
                .find_map(|setting| setting.strip_prefix(name)?.strip_prefix('='));
            value.map(str::to_owned)
        };
        let table = [
            (PgVersion::V15, "fsync", Some("on")),
            (PgVersion::V15, "wal_level", Some("replica")),
            (PgVersion::V15, "debug_io_direct", None),
            (PgVersion::V16, "debug_io_direct", Some("")),
            (PgVersion::V16, "summarize_wal", None),
            (PgVersion::V17, "summarize_wal", Some("off")),
            (PgVersion::V17, "io_method", None),
            (PgVersion::V18, "io_method", Some("worker")),
        ];
        for (version, name, value) in table {
            assert_eq!(last(version, name, &[]).as_deref(), value, "{name} of {version}");
        }
        assert_eq!(
            last(PgVersion::V18, "io_method", &["io_method=sync"]).as_deref(),
            Some("sync")
        );
        assert_eq!(
            last(PgVersion::V15, "wal_level", &["wal_level=logical"]).as_deref(),
            Some("logical")
        );
        let refused = [
            (PgVersion::V15, "fsync=off"),
            (PgVersion::V15, "FSYNC = off"),
            (PgVersion::V15, "wal_level=minimal"),
            (PgVersion::V17, "summarize_wal=on"),
            (PgVersion::V18, "io_method=io_uring"),
            (PgVersion::V16, "debug_io_direct=data"),
            (PgVersion::V15, "full_page_writes=on"),
            (PgVersion::V15, "work_mem"),
        ];
        for (version, setting) in refused {
            assert!(of(version, &[setting]).is_err(), "{setting} on {version}");
        }
    }
}
