//! Whether timelines of one disk should share their flushes: many files, each with appends that wait for their flush.
//!
//! * `own`: each timeline flushes its own file, as the safekeeper does.
//! * `one-thread`: a single thread flushes the files of all that wait, one after the other.
//! * `syncfs`: one flush of the whole file system for all that wait.
//!
//! usage: cargo run --release -p lakebed-safekeeper --example flush_sharing -- DIRECTORY SECONDS

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

const FILE_BYTES: u64 = 16 << 20;
const APPEND: [u8; 500] = [7; 500];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Own,
    OneThread,
    Syncfs,
}

/// A file that is to be flushed, and who waits.
type Wanted = (usize, SyncSender<io::Result<()>>);

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(directory), Some(seconds)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: flush_sharing DIRECTORY SECONDS");
    };
    let length = Duration::from_secs_f64(seconds.parse()?);
    let directory = Path::new(&directory).join("flush-sharing");
    fs::create_dir(&directory)?;
    let measured = measure(&directory, length);
    fs::remove_dir_all(&directory)?;
    measured
}

fn measure(directory: &Path, length: Duration) -> anyhow::Result<()> {
    for timelines in [1, 4, 16, 64] {
        for round in 1..=2 {
            for (name, way) in [
                ("own", Way::Own),
                ("one-thread", Way::OneThread),
                ("syncfs", Way::Syncfs),
            ] {
                let mut took = run(directory, timelines, way, length)?;
                took.sort_unstable();
                let at = |part: usize| took.get(took.len() * part / 100).map(|us| us.as_micros() as u64);
                let rate = took.len() as f64 / length.as_secs_f64();
                println!(
                    "{}",
                    serde_json::json!({
                        "timelines": timelines, "way": name, "round": round, "appends_per_s": rate as u64,
                        "p50_us": at(50), "p99_us": at(99),
                    })
                );
            }
        }
    }
    Ok(())
}

/// How long each append took until it was durable.
fn run(directory: &Path, timelines: usize, way: Way, length: Duration) -> anyhow::Result<Vec<Duration>> {
    let files: Vec<File> = (0..timelines)
        .map(|i| file(&directory.join(i.to_string())))
        .collect::<io::Result<_>>()?;
    let (want, wanted) = sync_channel::<Wanted>(timelines);
    thread::scope(|scope| {
        let files = &files;
        if way != Way::Own {
            scope.spawn(move || flush_for_all(files, way, &wanted));
        }
        let until = Instant::now() + length;
        let writers: Vec<_> = (0..timelines)
            .map(|i| {
                let want = want.clone();
                scope.spawn(move || -> io::Result<Vec<Duration>> {
                    let (answer, answered) = sync_channel(1);
                    let (mut at, mut took) = (0, Vec::new());
                    while Instant::now() < until {
                        let begin = Instant::now();
                        files[i].write_all_at(&APPEND, at % (FILE_BYTES - 4096))?;
                        if way == Way::Own {
                            files[i].sync_data()?;
                        } else {
                            want.send((i, answer.clone())).map_err(io::Error::other)?;
                            answered.recv().map_err(io::Error::other)??;
                        }
                        took.push(begin.elapsed());
                        at += APPEND.len() as u64;
                    }
                    Ok(took)
                })
            })
            .collect();
        drop(want);
        let mut all = Vec::new();
        for writer in writers {
            all.extend(
                writer
                    .join()
                    .map_err(|_| anyhow::anyhow!("a writer panicked"))??,
            );
        }
        Ok(all)
    })
}

/// With all its blocks written, as a segment is that was used before.
fn file(path: &Path) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?;
    if file.metadata()?.len() < FILE_BYTES {
        file.write_all_at(&vec![0; FILE_BYTES as usize], 0)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn flush_for_all(files: &[File], way: Way, wanted: &Receiver<Wanted>) {
    while let Ok(first) = wanted.recv() {
        let all: Vec<Wanted> = [first].into_iter().chain(wanted.try_iter()).collect();
        let together = (way == Way::Syncfs).then(|| rustix::fs::syncfs(&files[0]).map_err(io::Error::from));
        for (i, answer) in all {
            let result = match &together {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) => Err(error.kind().into()),
                None => files[i].sync_data(),
            };
            // Nobody waits any more when time is up.
            let _ = answer.send(result);
        }
    }
}
