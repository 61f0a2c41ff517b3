//! A role as a child process: started, watched, started again, stopped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// How long a daemon may take until it serves.
pub const READY: Duration = Duration::from_secs(120);
/// How long it may take to end.
const END: Duration = Duration::from_secs(45);
/// Pause before one that died is started again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a role says when it serves.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// Of its admin pages.
    pub admin: String,
}

/// How a child is started.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// For people.
    pub name: String,
    /// Arguments of this program.
    pub arguments: Vec<String>,
    /// Where its standard error goes.
    pub log: PathBuf,
}

/// A child that serves.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
    /// What it said.
    pub ready: Ready,
}

impl Recipe {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// It ends before that, or takes too long: the error says what its log says.
    pub async fn start(&self) -> anyhow::Result<Running> {
        let program = std::env::current_exe().context("finding this program")?;
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("opening {}", self.log.display()))?;
        let mut child = Command::new(program)
            .args(&self.arguments)
            .arg("--stop-with-parent")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C at the terminal is for the parent, which stops its children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        let out = child.stdout.take().context("its standard output")?;
        let line = tokio::time::timeout(READY, BufReader::new(out).lines().next_line()).await;
        let line = match line {
            Ok(line) => line.with_context(|| format!("reading from {}", self.name))?,
            Err(_) => {
                let _ = child.kill().await;
                bail!(
                    "{} does not serve after {READY:?}; see {}",
                    self.name,
                    self.log.display()
                );
            }
        };
        let Some(line) = line else {
            let status = child.wait().await?;
            bail!(
                "{} ended at its start ({status}): {}",
                self.name,
                last_line(&self.log)
            );
        };
        let ready = serde_json::from_str(&line).with_context(|| format!("{} said `{line}`", self.name))?;
        Ok(Running {
            child,
            name: self.name.clone(),
            log: self.log.clone(),
            ready,
        })
    }

    /// Keeps it running until `stop`, then stops it. Says when it dies.
    pub async fn keep(self, mut running: Running, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return running.stop().await,
                ended = running.ended() => {
                    eprintln!("{} ended ({ended}); starting it again", self.name);
                }
            }
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(AGAIN) => {}
                }
                match self.start().await {
                    Ok(again) => {
                        running = again;
                        break;
                    }
                    Err(error) => eprintln!("{error:#}"),
                }
            }
        }
    }
}

impl Running {
    /// Waits for its end; says how it ended and why.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) if status.success() => status.to_string(),
            Ok(status) => format!("{status}: {}", last_line(&self.log)),
            Err(error) => error.to_string(),
        }
    }

    /// Stops it in order; kills it when that takes too long.
    pub async fn stop(mut self) {
        let pid = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            eprintln!("{} does not end in {END:?}; killing it", self.name);
            let _ = self.child.kill().await;
        }
    }
}

/// The last line of a log that says something.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("its log is empty").to_owned()
}
