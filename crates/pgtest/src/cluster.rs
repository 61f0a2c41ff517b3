//! Private clusters.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use tempfile::TempDir;

use crate::{Installation, run, temp_dir, wait_long, wait_until};

/// How long recovery of the longest WAL of a test may take.
const RECOVERY: Duration = Duration::from_secs(600);

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// With a shutdown checkpoint.
    Clean,
    /// As in a crash: no checkpoint, nothing written.
    Crash,
}

/// What a cluster is made with.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Whether its pages have checksums. Off unless asked for, in every version: `initdb` of 18 would switch them on.
    pub data_checksums: bool,
    /// Further arguments of `initdb`.
    pub arguments: Vec<String>,
}

/// A private cluster.
#[derive(Debug)]
pub struct Cluster {
    installation: Installation,
    home: TempDir,
    server: Option<Child>,
    /// Port in the name of its socket.
    port: u16,
}

impl Cluster {
    /// A cluster of version 15, without data checksums and with trust for local connections.
    pub fn init() -> Cluster {
        Cluster::init_with(&Installation::default_15(), &InitOptions::default())
    }

    /// A cluster of that installation, with trust for local connections.
    pub fn init_with(installation: &Installation, options: &InitOptions) -> Cluster {
        let home = temp_dir();
        let mut initdb = installation.program("initdb");
        initdb
            .current_dir(home.path())
            .args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]);
        if options.data_checksums {
            initdb.arg("--data-checksums");
        } else if installation.major >= 18 {
            initdb.arg("--no-data-checksums");
        }
        initdb.args(&options.arguments);
        run(initdb.args(["--locale", "C", "-D"]).arg(home.path().join("data")));
        Cluster {
            installation: installation.clone(),
            home,
            server: None,
            port: 5432,
        }
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
        Cluster {
            installation: self.installation.clone(),
            home,
            server: None,
            port: 5432,
        }
    }

    /// What it was made with and runs on.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// As [`Cluster::start`], also on this port of 127.0.0.1.
    pub fn start_on(&mut self, port: u16, settings: &[&str]) {
        self.port = port;
        let port = format!("port={port}");
        let mut all = vec!["listen_addresses=127.0.0.1", &port];
        all.extend(settings);
        self.start(&all);
    }

    /// Starts the server with these settings (`name=value`) and waits until it answers.
    pub fn start(&mut self, settings: &[&str]) {
        let mut server = self.spawn(settings);
        wait_until("the server to accept connections", || {
            if let Ok(Some(status)) = server.try_wait() {
                panic!("the server ended at start: {status}\n{}", self.log());
            }
            let mut ready = self.installation.program("pg_isready");
            ready.arg("-q").arg("-h").arg(self.home.path());
            ready.env("PGPORT", self.port.to_string());
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
        wait_long("the end of recovery", RECOVERY, || {
            let server = self.server.as_mut().expect("the server");
            if let Ok(Some(status)) = server.try_wait() {
                panic!("the server ended in recovery: {status}\n{}", self.log());
            }
            // Not while the postmaster still goes from one state to the next, when a signal to it has been seen to be lost.
            let pid_file = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
            if !pid_file.lines().any(|line| line.trim_end() == "ready") {
                return false;
            }
            // Written after the checkpoint.
            let mut pg_controldata = self.installation.program("pg_controldata");
            let control = run(pg_controldata.env("LC_ALL", "C").arg(self.data_dir()));
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
        let mut postgres = self.installation.program("postgres");
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
        let mut client = self.installation.program(name);
        client
            .current_dir(self.home.path())
            .env("PGHOST", self.home.path());
        client.env("PGPORT", self.port.to_string());
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
