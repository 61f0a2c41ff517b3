//! A compute and clients of its Postgres.

use std::path::{Path, PathBuf};
use std::process::Command;

use lakebed_pgtest::{Installation, run};
use lakebed_types::Lsn;
use postgres::{Client, NoTls};
use serde_json::Value;

use crate::process::{Process, tail};
use crate::{free_port, http};

/// A compute; killed when dropped.
#[derive(Debug)]
pub struct Compute {
    /// The sidecar.
    pub sidecar: Process,
    /// Port of Postgres.
    pub port: u16,
    directory: PathBuf,
    postgres: Installation,
}

impl Compute {
    /// Boots a compute and waits until it accepts connections.
    pub fn start(postgres: &Installation, connect: &str, directory: &Path, more: &[&str]) -> Compute {
        match Compute::try_start(postgres, connect, directory, more) {
            Ok(compute) => compute,
            Err(why) => panic!("{why}"),
        }
    }

    /// As [`Compute::start`]; why not, when it ends instead.
    pub fn try_start(
        postgres: &Installation,
        connect: &str,
        directory: &Path,
        more: &[&str],
    ) -> Result<Compute, String> {
        let port = free_port();
        let mut arguments = vec![
            "compute".to_owned(),
            format!("--connect={connect}"),
            format!("--dir={}", directory.display()),
            format!("--pg-bin={}", postgres.bin_dir.display()),
            format!("--pg-port={port}"),
        ];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let name = directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let log = directory.with_extension("log");
        let sidecar = Process::try_start(&name, &arguments, &log, None)?;
        Ok(Compute {
            sidecar,
            port,
            directory: directory.to_owned(),
            postgres: postgres.clone(),
        })
    }

    /// Directory of this compute.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The data directory of its Postgres.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// What the sidecar tells about itself.
    pub fn status(&self) -> Value {
        self.sidecar.status()
    }

    /// What the sidecar's admin page answers to a change.
    pub fn put(&self, path: &str, body: &str) -> (u16, String) {
        http::put(&self.sidecar.admin, path, body)
    }

    /// Process id of the postmaster.
    pub fn postmaster(&self) -> i32 {
        let pid = self.status()["postgres"]["pid"].as_i64().expect("a process id");
        i32::try_from(pid).expect("a process id")
    }

    /// Every process of its Postgres: they all work in the data directory.
    pub fn processes(&self) -> Vec<i32> {
        let data = self.data_dir();
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data))
            .collect()
    }

    /// A client program that will connect to it.
    pub fn program(&self, name: &str) -> Command {
        let mut client = self.postgres.program(name);
        client
            .current_dir("/")
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string());
        client.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        client
    }

    /// Runs a client program; what it printed.
    pub fn run(&self, name: &str, arguments: &[&str]) -> String {
        run(self.program(name).args(arguments)).trim_end().to_owned()
    }

    /// Runs statements with psql, each its own transaction; unaligned rows.
    pub fn sql(&self, statements: &[&str]) -> String {
        let mut psql = self.program("psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1"]);
        for statement in statements {
            psql.args(["-c", statement]);
        }
        run(&mut psql).trim_end().to_owned()
    }

    /// Where its WAL ends that is in the tier.
    pub fn position(&self) -> Lsn {
        let text = self.sql(&["select pg_current_wal_flush_lsn()"]);
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Object ids of all databases.
    pub fn databases(&self) -> Vec<u32> {
        let all = self.sql(&["select string_agg(oid::text, ',') from pg_database"]);
        all.split(',').map(|oid| oid.parse().expect("an oid")).collect()
    }

    /// Runs a script with psql, backslash commands included.
    pub fn script(&self, name: &str, script: &str) {
        let path = self.directory.with_extension(format!("{name}.sql"));
        std::fs::write(&path, script).expect("a script");
        let path = path.display().to_string();
        self.run("psql", &["-Xq", "-v", "ON_ERROR_STOP=1", "-f", &path]);
    }

    /// A connection.
    pub fn connection(&self) -> Client {
        let connection = Client::connect(&self.url(), NoTls);
        connection.unwrap_or_else(|error| panic!("{error}\n{}", self.postgres_log()))
    }

    /// Connection URL.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Connection URL of a database.
    pub fn url_of(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database} connect_timeout=10",
            self.port
        )
    }

    /// A connection to a database.
    pub fn connection_to(&self, database: &str) -> Client {
        let connection = Client::connect(&self.url_of(database), NoTls);
        connection.unwrap_or_else(|error| panic!("{database}: {error}\n{}", self.postgres_log()))
    }

    /// End of the log of Postgres.
    pub fn postgres_log(&self) -> String {
        tail(&self.directory.join("postgres.log"))
    }

    /// `kill -9` of the sidecar, which takes Postgres along.
    pub fn kill(self) {
        self.sidecar.kill();
    }

    /// Stops it in order.
    pub fn stop(self) {
        let status = self.sidecar.stop();
        assert!(status.success(), "{status}");
    }
}

/// Whether a process exists (a zombie does not count).
pub fn process_exists(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.chars().next().unwrap_or('Z'));
    state.is_some_and(|state| state != 'Z' && state != 'X')
}
