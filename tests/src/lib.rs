//! A whole tier of real processes for one test.
//!
//! Each role is the program `lakebed` with a TOML file, on private ports and directories; a test kills and restarts
//! them by name. Everything ends, and is removed, with the [`Tier`]. Build the programs first: `./test` does, or
//! `cargo build`.
//!
//! This crate is for tests alone: what goes wrong is a panic that says what failed and shows the logs' ends.
#![forbid(unsafe_code)]

pub mod comparison;
mod compute;
pub mod faults;
mod http;
pub mod page_cache;
pub mod pages;
mod process;
pub mod recorder;
pub mod recovery;
pub mod waldump;

pub use compute::{Compute, process_exists};
pub use http::get as http_get;
pub use process::Process;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use faults::Faults;
use lakebed_pgtest::{Installation, SmallDisk, run, temp_dir, wait_until};
use serde_json::Value;
use tempfile::TempDir;

/// Directory of the programs under test.
pub fn build_dir() -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    let directory = test.ancestors().nth(2).expect("the build directory").to_owned();
    for name in ["lakebed", "liblakebed_compute_shim.so"] {
        assert!(
            directory.join(name).exists(),
            "{name} is not in {}: run `cargo build` with the same profile first",
            directory.display()
        );
    }
    directory
}

/// Below what the system gives to outgoing connections, one of which could take a port between its choice and its use.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A port that is free and that no other call returns, in any test process, until this process ends.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let locks = std::env::temp_dir().join("lakebed-test-ports");
    fs::create_dir_all(&locks).expect("a directory of locks");
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes begin at different places, so that they seldom meet.
    let first = std::process::id().wrapping_mul(97) as usize % PORTS.len();
    let port = PORTS.skip(first).chain(PORTS).find(|port| {
        let lock = File::create(locks.join(port.to_string())).expect("a lock file");
        let free = lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", *port)).is_ok();
        if free {
            taken.push(lock);
        }
        free
    });
    port.expect("a free port")
}

/// The program under test, run to its end; what it printed on stdout.
pub fn lakebed(arguments: &[&str]) -> String {
    let mut command = Command::new(build_dir().join("lakebed"));
    run(command.args(arguments).envs(lakebed_s3test::CREDENTIALS))
        .trim_end()
        .to_owned()
}

/// How a tier is made.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Number of safekeepers.
    pub safekeepers: usize,
    /// Number of pageservers, one shard each.
    pub shards: usize,
    /// Bytes of WAL in a pageserver's memory that make a layer; small in tests, so that layers are made.
    pub flush_bytes: usize,
    /// Seconds for which a compute may read at the LSN of its boot without renewing that.
    pub lease_s: u64,
    /// Object storage of all nodes, with WAL in it at most this many milliseconds later. Without it: a directory, which
    /// gets no WAL.
    pub store: Option<(String, u64)>,
    /// Safekeepers have [`Faults`], and a file system of this many bytes each.
    pub faults: Option<u64>,
    /// Programs of the tenant `test` and of its computes.
    pub postgres: Installation,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            safekeepers: 3,
            shards: 2,
            flush_bytes: 8 << 20,
            lease_s: 60,
            store: None,
            faults: None,
            postgres: Installation::default_15(),
        }
    }
}

/// One role: how it is started, and its process while it runs.
#[derive(Debug)]
struct Role {
    arguments: Vec<String>,
    process: Option<Process>,
    faults: Option<Faults>,
    /// Its data directory, when that is a file system of its own.
    disk: Option<SmallDisk>,
}

/// A running tier with a tenant `test` and its branch `main`.
#[derive(Debug)]
pub struct Tier {
    /// Dropped first: what runs there, and is mounted there, ends before the directory goes.
    roles: BTreeMap<String, Role>,
    home: TempDir,
    controller: String,
    postgres: Installation,
    /// What every safekeeper is told about object storage.
    backup: String,
    /// File systems and faults of safekeepers, as [`Shape::faults`].
    small_disks: Option<u64>,
}

impl Tier {
    /// Starts all roles and imports a fresh `initdb`.
    pub fn start(shape: &Shape) -> Tier {
        Tier::start_from(shape, None)
    }

    /// As [`Tier::start`]; imports this data directory, which was shut down in order, instead.
    pub fn start_from(shape: &Shape, data: Option<&Path>) -> Tier {
        let tier = Tier::without_tenant(shape);
        tier.create_tenant("test", shape, data);
        tier
    }

    /// Starts all roles and creates nothing. What asks for a branch by name means one of a tenant `test`.
    pub fn without_tenant(shape: &Shape) -> Tier {
        let home = temp_dir();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("a directory for all");
        let controller = format!("127.0.0.1:{}", free_port());
        let (store, backup) = match &shape.store {
            None => (
                format!("file://{}", home.path().join("objects").display()),
                String::new(),
            ),
            Some((store, interval_ms)) => (
                store.clone(),
                format!("[safekeeper.backup]\nstore = '{store}'\nupload_interval_ms = {interval_ms}\n"),
            ),
        };
        let mut tier = Tier {
            home,
            controller: controller.clone(),
            postgres: shape.postgres.clone(),
            backup,
            small_disks: shape.faults,
            roles: BTreeMap::new(),
        };
        let path = |name: &str| tier.home.path().join(name).display().to_string();
        let text = format!(
            "[controller]\nnode_id = 1\ndata_dir = '{}'\nlisten = '{controller}'\n",
            path("controller")
        );
        let node = tier.node_table();
        let mut pageservers = Vec::new();
        for number in 1..=shape.shards {
            let name = format!("pageserver-{number}");
            let text = format!(
                "{node}[pageserver]\nnode_id = {}\ndata_dir = '{}'\nlisten = '127.0.0.1:{}'\n\
                 admin_listen = '127.0.0.1:0'\nstore = '{store}'\nflush_bytes = {}\nlease_s = {}\n",
                100 + number,
                path(&name),
                free_port(),
                shape.flush_bytes,
                shape.lease_s
            );
            pageservers.push((name, text));
        }
        tier.add_role("controller", "controller", &text);
        for number in 1..=shape.safekeepers {
            tier.add_safekeeper(number);
        }
        for (name, text) in pageservers {
            tier.add_role(&name, "pageserver", &text);
        }
        tier
    }

    fn node_table(&self) -> String {
        format!("[node]\ncontrollers = ['{}']\n", self.controller)
    }

    /// Starts one more safekeeper, `safekeeper-NUMBER`.
    pub fn add_safekeeper(&mut self, number: usize) {
        let name = format!("safekeeper-{number}");
        let text = format!(
            "{}[safekeeper]\nnode_id = {number}\ndata_dir = '{}'\nlisten = '127.0.0.1:{}'\n{}",
            self.node_table(),
            self.home.path().join(&name).display(),
            free_port(),
            self.backup,
        );
        self.add_role(&name, "safekeeper", &text);
    }

    fn add_role(&mut self, name: &str, role: &str, text: &str) {
        let config = self.home.path().join(format!("{name}.toml"));
        fs::write(&config, text).expect("a configuration");
        let arguments = vec![role.to_owned(), format!("--config={}", config.display())];
        let faulty = self.small_disks.filter(|_| role == "safekeeper");
        let entry = Role {
            arguments,
            process: None,
            faults: faulty.map(|_| Faults::new(&self.home.path().join(format!("{name}.faults")))),
            disk: faulty.map(|bytes| SmallDisk::mount(&self.home.path().join(name), bytes)),
        };
        self.roles.insert(name.to_owned(), entry);
        self.start_role(name);
    }

    /// Creates a tenant from a fresh `initdb`, or from this data directory.
    pub fn create_tenant(&self, name: &str, shape: &Shape, data: Option<&Path>) {
        let mut arguments = vec![
            "tenant".to_owned(),
            "create".to_owned(),
            name.to_owned(),
            format!("--connect=lakebed://{}", self.controller),
            format!("--shards={}", shape.shards),
            format!("--safekeepers={}", shape.safekeepers),
            format!("--pg-bin={}", shape.postgres.bin_dir.display()),
        ];
        arguments.extend(data.map(|data| format!("--from={}", data.display())));
        lakebed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Directory of everything.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Names of the roles that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.roles
            .keys()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// Starts a role again.
    pub fn start_role(&mut self, name: &str) {
        let log = self.home.path().join(format!("{name}.log"));
        let role = self
            .roles
            .get_mut(name)
            .unwrap_or_else(|| panic!("no role {name}"));
        assert!(role.process.is_none(), "{name} runs already");
        role.process = Some(Process::start_with(
            name,
            &role.arguments,
            &log,
            role.faults.as_ref(),
        ));
    }

    /// Kills a role as `kill -9` does.
    pub fn kill_role(&mut self, name: &str) {
        let role = self
            .roles
            .get_mut(name)
            .unwrap_or_else(|| panic!("no role {name}"));
        role.process
            .take()
            .unwrap_or_else(|| panic!("{name} does not run"))
            .kill();
    }

    /// Ends roles with faults as a power cut does, all at the same time.
    pub fn cut_power(&mut self, names: &[String]) {
        for name in names {
            self.faults(name).cut_power();
        }
        for name in names {
            let role = self.roles.get_mut(name).expect("a role");
            let status = role.process.take().map(|mut process| process.wait());
            self.faults(name).restore_power();
            println!("{name}: power cut, {status:?}");
        }
    }

    /// The faults of a role that has them.
    pub fn faults(&self, name: &str) -> &Faults {
        let faults = self.roles.get(name).and_then(|role| role.faults.as_ref());
        faults.unwrap_or_else(|| panic!("{name} has no faults"))
    }

    /// The file system of a role that has its own.
    pub fn disk(&self, name: &str) -> &SmallDisk {
        let disk = self.roles.get(name).and_then(|role| role.disk.as_ref());
        disk.unwrap_or_else(|| panic!("{name} has no file system"))
    }

    fn process(&self, name: &str) -> &Process {
        let process = self.roles.get(name).and_then(|role| role.process.as_ref());
        process.unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// Freezes a role, as an overloaded machine or a cut network would: connections stay, nobody answers.
    pub fn pause_role(&self, name: &str) {
        self.process(name).pause();
    }

    /// Thaws a role.
    pub fn resume_role(&self, name: &str) {
        self.process(name).resume();
    }

    /// What a role's `/v1/status` tells.
    pub fn status(&self, name: &str) -> Value {
        self.process(name).status()
    }

    /// What a role's `/metrics` tells.
    pub fn metrics(&self, name: &str) -> String {
        self.process(name).metrics()
    }

    /// Status code and body of what a `PUT` to a role's admin page answers.
    pub fn put(&self, name: &str, path: &str, body: &str) -> (u16, String) {
        self.process(name).put(path, body)
    }

    /// What a role's admin page answers at any other path.
    pub fn admin(&self, name: &str, path: &str) -> Value {
        self.process(name).admin(path)
    }

    /// Has a safekeeper look through all its WAL and control files, and waits until it has; its status then.
    pub fn scrub(&self, name: &str) -> Value {
        let pass = self.process(name).scrub();
        let mut status = Value::Null;
        wait_until("the scrubber's pass to end", || {
            status = self.status(name);
            status["scrub"]["passes_ended"].as_u64() >= Some(pass)
        });
        status
    }

    /// Code and text of a role's `/healthz`.
    pub fn health(&self, name: &str) -> (u16, String) {
        let process = self.roles.get(name).and_then(|role| role.process.as_ref());
        process.unwrap_or_else(|| panic!("{name} does not run")).health()
    }

    /// Address of the controller.
    pub fn controller(&self) -> &str {
        &self.controller
    }

    /// Connection string of a branch.
    pub fn connect(&self, branch: &str) -> String {
        format!("lakebed://{}/test/{branch}", self.controller)
    }

    /// A client command about this tier; what it printed.
    pub fn client(&self, arguments: &[&str]) -> String {
        let connect = format!("--connect=lakebed://{}/test", self.controller);
        let mut all = arguments.to_vec();
        all.push(&connect);
        lakebed(&all)
    }

    /// A client command that must fail; what it said.
    pub fn refused_client(&self, arguments: &[&str]) -> String {
        let connect = format!("--connect=lakebed://{}/test", self.controller);
        let mut command = Command::new(build_dir().join("lakebed"));
        let output = command.args(arguments).arg(connect).output();
        let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(!output.status.success(), "{command:?} did not fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Branches by name, as `branch list --json` tells them.
    pub fn branches(&self) -> BTreeMap<String, Value> {
        let lines = self.client(&["branch", "list", "--json"]);
        let parse = |line: &str| {
            let branch: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            (branch["name"].as_str().expect("a name").to_owned(), branch)
        };
        lines.lines().map(parse).collect()
    }

    /// Starts a compute on a branch in a directory of its own below [`Tier::home`].
    pub fn compute(&self, branch: &str, directory: &str) -> Compute {
        self.compute_with(branch, directory, &[])
    }

    /// As [`Tier::compute`], with more arguments.
    pub fn compute_with(&self, branch: &str, directory: &str, more: &[&str]) -> Compute {
        let directory = self.home.path().join(directory);
        Compute::start(&self.postgres, &self.connect(branch), &directory, more)
    }
}
