//! A process of the program under test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use lakebed_pgtest::wait_until;
use lakebed_s3test::CREDENTIALS;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::faults::Faults;
use crate::{build_dir, http};

/// Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Address of its service.
    pub address: String,
    /// Address of its admin pages.
    pub admin: String,
}

impl Process {
    /// Starts `lakebed` and waits until it says that it serves.
    pub fn start(name: &str, arguments: &[String], log: &Path) -> Process {
        Process::start_with(name, arguments, log, None)
    }

    /// As [`Process::start`], with faults.
    pub fn start_with(name: &str, arguments: &[String], log: &Path, faults: Option<&Faults>) -> Process {
        match Process::try_start(name, arguments, log, faults) {
            Ok(process) => process,
            Err(why) => panic!("{why}"),
        }
    }

    /// As [`Process::start`]; how it ended and its log's end when it does not come to serve.
    pub fn try_start(
        name: &str,
        arguments: &[String],
        log: &Path,
        faults: Option<&Faults>,
    ) -> Result<Process, String> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log file");
        let mut command = Command::new(build_dir().join("lakebed"));
        command.args(arguments).arg("--stop-with-parent");
        command.envs(CREDENTIALS);
        command.envs(faults.into_iter().flat_map(Faults::environment));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let out = child.stdout.take().expect("its output");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("a line");
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            let status = child.wait().expect("its end");
            return Err(format!("{name} ended at its start: {status}\n{}", tail(log)));
        };
        let text = |key: &str| ready[key].as_str().expect("an address").to_owned();
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            address: text("address"),
            admin: text("admin"),
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("its end");
    }

    /// Stops it in order.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Freezes it, as an overloaded machine would.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Thaws it.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("{} to end\n{}", self.name, tail(&self.log));
        let mut status = None;
        wait_until(&what, || {
            status = self.child.try_wait().expect("its state");
            status.is_some()
        });
        status.expect("its end")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What its `/v1/status` tells.
    pub fn status(&self) -> Value {
        self.admin("/v1/status")
    }

    /// What it tells at a path of its admin page.
    pub fn admin(&self, path: &str) -> Value {
        let body = http::get(&self.admin, path);
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{}: {error}: {body}", self.name))
    }

    /// Starts a pass of a safekeeper's scrubber; its number.
    pub fn scrub(&self) -> u64 {
        let (code, body) = http::post(&self.admin, "/v1/scrub");
        assert_eq!(code, 202, "{}: {body}", self.name);
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        answer["pass"].as_u64().expect("a number")
    }

    /// Status code and text of its `/healthz`.
    pub fn health(&self) -> (u16, String) {
        http::answer(&self.admin, "/healthz")
    }

    /// Status code and body of what a `PUT` at a path of its admin page answers.
    pub fn put(&self, path: &str, body: &str) -> (u16, String) {
        http::put(&self.admin, path, body)
    }

    /// Its metrics.
    pub fn metrics(&self) -> String {
        http::get(&self.admin, "/metrics")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- end of the log of {}\n{}", self.name, tail(&self.log));
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
