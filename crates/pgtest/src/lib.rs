//! Real Postgres for tests: private clusters, started, loaded and stopped.
//!
//! Each cluster lives in a temporary directory of its own and listens on a unix socket there and nowhere else, so
//! that tests run in parallel and again. Postgres refuses to run as root; then the directory belongs to the user
//! `postgres` and its programs run as that user. A cluster that goes out of scope is killed and removed.
//!
//! A cluster is of version 15 unless it is made with another [`Installation`]; `tests/postgres-builds` provides those.
//!
//! This crate is for tests alone: what goes wrong is a panic that says which command failed and shows its output.
#![forbid(unsafe_code)]

mod cluster;
mod installation;
mod small_disk;
pub mod workloads;

use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

pub use cluster::{Cluster, InitOptions, Stop};
pub use installation::{Installation, as_postgres, bin_dir, program};
pub use small_disk::SmallDisk;
use tempfile::TempDir;

pub mod fuzz;

/// How long a start, a stop or any other awaited condition may take.
pub const DEADLINE: Duration = Duration::from_secs(120);

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
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_long(what, DEADLINE, condition);
}

/// As [`wait_until`], for what takes its time: minutes where others have the processors.
///
/// # Panics
/// After the deadline, naming what was waited for.
pub fn wait_long(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
