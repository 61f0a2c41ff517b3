//! Processor time of this process, from `/proc`.

use std::fs;

use anyhow::Context;

/// Seconds until now.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Of all threads, also those that have ended.
    pub process: f64,
    /// Of the living threads of one name.
    pub threads: f64,
}

impl Used {
    /// What was used between two moments.
    pub fn since(&self, before: &Used) -> Used {
        Used {
            process: self.process - before.process,
            threads: self.threads - before.threads,
        }
    }
}

/// What this process has used, and of it the threads of this name.
///
/// # Errors
/// `/proc` is not there or has another form.
pub fn seconds(name: &str) -> anyhow::Result<Used> {
    let mut threads = 0.0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task.join("comm")) else {
            continue;
        };
        if text.trim() == name {
            threads += of(&fs::read_to_string(task.join("stat"))?)?;
        }
    }
    let process = of(&fs::read_to_string("/proc/self/stat")?)?;
    Ok(Used { process, threads })
}

/// Fields 14 and 15, in ticks of 10 ms; the name before them may hold anything.
fn of(stat: &str) -> anyhow::Result<f64> {
    let (_, rest) = stat.rsplit_once(')').context("stat has another form")?;
    let mut ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let mut next = || ticks.next().context("stat has another form");
    Ok((next()?? + next()??) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_is_passed_over() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 3 4 20 0 1 0 5";
        assert_eq!(of(stat).unwrap(), 3.0);
        assert!(of("7 a S").is_err());
    }
}
