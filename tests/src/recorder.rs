//! A client that remembers which of its transactions were acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

/// Table that it writes to.
pub const TABLE: &str = "create table if not exists recorded (client int, n bigint, primary key (client, n))";

/// What a recorder saw.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Highest number whose commit was acknowledged; all below were too.
    pub acknowledged: u64,
    /// Highest number that was sent.
    pub attempted: u64,
    /// Longest time between a commit's start and its acknowledgement.
    pub longest: Duration,
    /// Why it stopped, if the server made it.
    pub error: Option<String>,
}

/// Inserts 1, 2, 3, … one transaction each, until stopped or the first error.
#[derive(Debug)]
pub struct Recorder {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    attempted: Arc<AtomicU64>,
    thread: JoinHandle<Record>,
}

impl Recorder {
    /// Starts after number `from`.
    pub fn start(url: &str, client: i32, from: u64) -> Recorder {
        let stop = Arc::new(AtomicBool::new(false));
        let (acknowledged, attempted) = (Arc::new(AtomicU64::new(from)), Arc::new(AtomicU64::new(from)));
        let (stopped, acked, sent, url) = (
            stop.clone(),
            acknowledged.clone(),
            attempted.clone(),
            url.to_owned(),
        );
        let thread = std::thread::spawn(move || {
            let mut record = Record {
                acknowledged: from,
                attempted: from,
                ..Record::default()
            };
            let mut connection = match Client::connect(&url, NoTls) {
                Ok(connection) => connection,
                Err(error) => {
                    record.error = Some(error.to_string());
                    return record;
                }
            };
            while !stopped.load(Ordering::Acquire) {
                record.attempted += 1;
                sent.store(record.attempted, Ordering::Release);
                let begin = Instant::now();
                let statement = format!("insert into recorded values ({client}, {})", record.attempted);
                if let Err(error) = connection.batch_execute(&statement) {
                    record.error = Some(error.to_string());
                    break;
                }
                record.longest = record.longest.max(begin.elapsed());
                record.acknowledged = record.attempted;
                acked.store(record.acknowledged, Ordering::Release);
            }
            record
        });
        Recorder {
            stop,
            acknowledged,
            attempted,
            thread,
        }
    }

    /// Acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Sent so far.
    pub fn attempted(&self) -> u64 {
        self.attempted.load(Ordering::Acquire)
    }

    /// Stops after the transaction under way.
    pub fn stop(self) -> Record {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the recorder")
    }

    /// Waits until the server ends it.
    pub fn join(self) -> Record {
        self.thread.join().expect("the recorder")
    }
}
