//! Real Postgres for tests: private clusters, started, loaded and stopped.
//!
//! Each cluster lives in a temporary directory of its own and listens on a unix socket there and nowhere else, so
//! that tests run in parallel and again. Postgres refuses to run as root; then the directory belongs to the user
//! `postgres` and its programs run as that user. A cluster that goes out of scope is killed and removed.
//!
//! This crate is for tests alone: what goes wrong is a panic that says which command failed and shows its output.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use tempfile::TempDir;

pub mod fuzz;

/// How long a start, a stop or any other awaited condition may take.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Directory of the programs under test: `PG_BIN`, or where Debian puts version 15.
pub fn bin_dir() -> PathBuf {
    let dir =
        env::var_os("PG_BIN").map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from);
    assert!(
        dir.join("postgres").exists(),
        "no Postgres in {}: install postgresql-15, or set PG_BIN to the directory of its programs",
        dir.display()
    );
    dir
}

/// A command that runs one of Postgres's programs as a user that Postgres accepts.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(bin_dir().join(name));
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// Runs a command to its end and returns what it printed on stdout.
///
/// # Panics
/// When it fails, with all that it printed.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{out}\n{err}",
        output.status
    );
    out.into_owned()
}

/// User and group to run Postgres as, when this process is root.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(ids.expect("running as root needs a user named postgres, which the package postgresql-15 creates"))
}

/// A temporary directory that Postgres may write to.
pub fn temp_dir() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("lakebed-test-")
        .tempdir()
        .expect("a temporary directory");
    if let Some((uid, gid)) = other_user() {
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).expect("a directory given to postgres");
    }
    dir
}

/// Waits until a condition holds.
///
/// # Panics
/// After [`DEADLINE`], naming what was waited for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// With a shutdown checkpoint.
    Clean,
    /// As in a crash: no checkpoint, nothing written.
    Crash,
}

/// A private cluster.
#[derive(Debug)]
pub struct Cluster {
    home: TempDir,
    server: Option<Child>,
}

impl Cluster {
    /// Runs `initdb`, without data checksums and with trust for local connections.
    pub fn init() -> Cluster {
        let home = temp_dir();
        let mut initdb = program("initdb");
        initdb
            .current_dir(home.path())
            .args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]);
        run(initdb.args(["--locale", "C", "-D"]).arg(home.path().join("data")));
        Cluster { home, server: None }
    }

    /// A second cluster whose data directory is a copy of this one's, which must not be running.
    pub fn copy(&self) -> Cluster {
        assert!(
            self.server.is_none(),
            "copying the files of a running server gives no consistent copy"
        );
        let home = temp_dir();
        let mut cp = Command::new("cp");
        run(cp.arg("-a").arg(self.data_dir()).arg(home.path().join("data")));
        Cluster { home, server: None }
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Starts the server with these settings (`name=value`) and waits until it answers.
    pub fn start(&mut self, settings: &[&str]) {
        let mut server = self.spawn(settings);
        wait_until("the server to accept connections", || {
            if let Ok(Some(status)) = server.try_wait() {
                panic!("the server ended at start: {status}\n{}", self.log());
            }
            let mut ready = program("pg_isready");
            ready.arg("-q").arg("-h").arg(self.home.path());
            ready.status().is_ok_and(|status| status.success())
        });
        self.server = Some(server);
    }

    /// Starts the server with these settings, and stops it as in a crash once it has recovered and stored the result
    /// with its end-of-recovery checkpoint. Nobody connects meanwhile, so that its files are what recovery made and
    /// nothing else: a connection reads catalogues, which sets hint bits and may prune pages.
    pub fn recover(&mut self, settings: &[&str]) {
        let mut all = vec!["autovacuum=off", "max_logical_replication_workers=0", "fsync=off"];
        all.extend(settings);
        self.server = Some(self.spawn(&all));
        wait_until("the end of recovery", || {
            let server = self.server.as_mut().expect("the server");
            if let Ok(Some(status)) = server.try_wait() {
                panic!("the server ended in recovery: {status}\n{}", self.log());
            }
            // Written after the checkpoint.
            let control = run(program("pg_controldata").env("LC_ALL", "C").arg(self.data_dir()));
            control
                .lines()
                .any(|line| line.starts_with("Database cluster state:") && line.ends_with("in production"))
        });
        self.stop(Stop::Crash);
    }

    fn spawn(&self, settings: &[&str]) -> Child {
        assert!(self.server.is_none(), "the server runs already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        let mut postgres = program("postgres");
        postgres
            .arg("-D")
            .arg(self.data_dir())
            .args(["-c", "listen_addresses=", "-k"])
            .arg(self.home.path());
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        postgres.current_dir(self.home.path()).stdin(Stdio::null());
        postgres.stdout(log.try_clone().expect("a log file")).stderr(log);
        postgres
            .spawn()
            .unwrap_or_else(|error| panic!("{postgres:?}: {error}"))
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, how: Stop) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let signal = match how {
            Stop::Clean => rustix::process::Signal::INT,
            Stop::Crash => rustix::process::Signal::QUIT,
        };
        let pid = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process(pid, signal).expect("a signal to the server");
        wait_until("the server to end", || matches!(server.try_wait(), Ok(Some(_))));
    }

    /// A client program (`psql`, `pgbench`, …) that will connect to this cluster as `postgres`.
    pub fn client(&self, name: &str) -> Command {
        let mut client = program(name);
        client
            .current_dir(self.home.path())
            .env("PGHOST", self.home.path());
        client.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        client
    }

    /// Runs SQL with psql, each statement in its own transaction, stopping at the first error; returns unaligned
    /// rows.
    pub fn sql(&self, statements: &str) -> String {
        let script = self.home.path().join("script.sql");
        fs::write(&script, statements).expect("a script file");
        let mut psql = self.client("psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&script);
        run(&mut psql).trim_end().to_owned()
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The directory around the data directory, where the socket is.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGQUIT lets it remove its shared memory; waiting keeps its files in place until then.
            let pid = rustix::process::Pid::from_child(&server);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let begin = Instant::now();
            while matches!(server.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_starts_answers_crashes_and_recovers() {
        let mut cluster = Cluster::init();
        cluster.start(&["fsync=off"]);
        cluster.sql("create table t as select 42 as n");
        cluster.stop(Stop::Crash);
        cluster.start(&["fsync=off"]);
        assert_eq!(cluster.sql("select n from t"), "42");
        cluster.stop(Stop::Clean);
        let mut copy = cluster.copy();
        copy.start(&["fsync=off"]);
        assert_eq!(copy.sql("select n from t"), "42");
        assert!(cluster.log().contains("automatic recovery") || cluster.log().contains("redo"));
    }
}
