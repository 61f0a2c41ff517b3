//! Processes bound to processors: what one request takes depends on where the two sides of it run.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Threads that are bound until this is dropped.
#[derive(Debug)]
pub struct Pinned {
    processes: Vec<Pid>,
    before: CpuSet,
}

/// The first and the last processor that this process may use; `None` when there is only one.
fn two() -> anyhow::Result<Option<(usize, usize)>> {
    let allowed = sched_getaffinity(None)?;
    let mut processors = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = processors.next();
    Ok(first.zip(processors.next_back()))
}

/// Binds the calling thread, and what it starts from now on, to the first or the last processor. Whether there are two.
///
/// # Errors
/// The system refuses.
pub fn this_thread(last: bool) -> anyhow::Result<bool> {
    let Some(two) = two()? else { return Ok(false) };
    sched_setaffinity(None, &only(if last { two.1 } else { two.0 }))?;
    Ok(true)
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}

impl Pinned {
    /// Binds these processes to the first processor, and this one to the last. `None` when there is only one.
    ///
    /// # Errors
    /// The system refuses.
    pub fn apart(others: &[Pid]) -> anyhow::Result<Option<Pinned>> {
        let before = sched_getaffinity(None)?;
        let Some((first, last)) = two()? else {
            return Ok(None);
        };
        let own = rustix::process::getpid();
        let pinned = Pinned {
            processes: others.iter().copied().chain([own]).collect(),
            before,
        };
        for process in others {
            bind(*process, &only(first))?;
        }
        bind(own, &only(last))?;
        Ok(Some(pinned))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for process in &self.processes {
            let _ = bind(*process, &self.before);
        }
    }
}

/// Binds all threads of a process.
fn bind(process: Pid, set: &CpuSet) -> anyhow::Result<()> {
    let directory = format!("/proc/{}/task", process.as_raw_nonzero());
    for task in fs::read_dir(&directory).with_context(|| directory.clone())? {
        let name = task?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok());
        let thread = thread.and_then(Pid::from_raw).context("a thread's number")?;
        match sched_setaffinity(Some(thread), set) {
            // It has ended meanwhile.
            Err(rustix::io::Errno::SRCH) => {}
            result => result?,
        }
    }
    Ok(())
}

/// The process that was started with this configuration file.
///
/// # Errors
/// There is none.
pub fn process_of(config: &Path) -> anyhow::Result<Pid> {
    let wanted = format!("--config={}", config.display());
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == wanted.as_bytes())
        {
            return Pid::from_raw(pid).context("a process's number");
        }
    }
    anyhow::bail!("no process has {}", config.display())
}
