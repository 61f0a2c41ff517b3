//! How far the client is: for its status page and its metrics.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lakebed_types::Lsn;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::json;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It looks for the server, the controller or the quorum.
    Connecting,
    /// The server's files are being copied to the shards.
    BaseBackup,
    /// The shards store what they received.
    Storing,
    /// WAL goes from the server to the quorum.
    Streaming,
    /// It ended.
    Stopped,
}

impl Phase {
    /// As status and metrics show it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Connecting => "connecting",
            Phase::BaseBackup => "base_backup",
            Phase::Storing => "storing",
            Phase::Streaming => "streaming",
            Phase::Stopped => "stopped",
        }
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    trouble: Option<String>,
    /// Whether the server waits for this client at commits; none until it was asked.
    synchronous: Option<bool>,
    /// Since when the quorum has not had everything that the server has.
    behind_since: Option<Instant>,
    /// The name of the branch's timeline, once known.
    timeline: Option<String>,
    /// A base backup or a stream has begun, once.
    has_worked: bool,
}

/// Numbers that one task writes and any reads.
#[derive(Debug)]
pub struct Progress {
    state: Mutex<State>,
    /// Bytes of the base backup that were received.
    pub backup_done: AtomicU64,
    /// Bytes that the server estimated for it.
    pub backup_total: AtomicU64,
    /// First LSN that can be read.
    pub consistent: AtomicU64,
    /// End of what the server has.
    server_end: AtomicU64,
    /// End of what a quorum has.
    committed: AtomicU64,
    /// Bytes of WAL received since the start of this process.
    pub received_bytes: AtomicU64,
    /// Times that the stream was begun again.
    pub restarts: AtomicU64,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress {
            state: Mutex::new(State {
                phase: Phase::Connecting,
                trouble: None,
                synchronous: None,
                behind_since: None,
                timeline: None,
                has_worked: false,
            }),
            backup_done: AtomicU64::new(0),
            backup_total: AtomicU64::new(0),
            consistent: AtomicU64::new(0),
            server_end: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
        }
    }
}

impl Progress {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Enters a phase; what was wrong is over.
    pub fn enter(&self, phase: Phase) {
        tracing::info!(phase = phase.name(), "wal-client");
        self.change(|state| {
            state.phase = phase;
            state.trouble = None;
            state.has_worked |= matches!(phase, Phase::BaseBackup | Phase::Streaming);
        });
    }

    /// Something is wrong, and it is tried again.
    pub fn trouble(&self, what: String) {
        self.change(|state| {
            state.phase = Phase::Connecting;
            state.trouble = Some(what);
        });
    }

    /// Says in the log how far the base backup is.
    pub fn tell_backup(&self) {
        let mebibytes = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed) >> 20;
        let (received_mib, estimated_mib) = (mebibytes(&self.backup_done), mebibytes(&self.backup_total));
        tracing::info!(received_mib, estimated_mib, "base backup");
    }

    /// Whether a base backup or a stream has begun, once.
    pub fn has_worked(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.has_worked
    }

    /// Whether the server waits for this client at commits.
    pub fn set_synchronous(&self, synchronous: bool) {
        self.change(|state| state.synchronous = Some(synchronous));
    }

    /// Which timeline it feeds.
    pub fn set_timeline(&self, timeline: String) {
        self.change(|state| state.timeline = Some(timeline));
    }

    /// Where server and quorum are.
    pub fn positions(&self, server_end: Lsn, committed: Lsn) {
        self.server_end.fetch_max(server_end.0, Ordering::Relaxed);
        self.committed.store(committed.0, Ordering::Relaxed);
        let behind = committed.0 < self.server_end.load(Ordering::Relaxed);
        self.change(|state| {
            state.behind_since = behind.then(|| state.behind_since.unwrap_or_else(Instant::now));
        });
    }
}

/// What a running client can be asked for.
#[derive(Clone, Debug)]
pub struct Inspect {
    pub(crate) progress: Arc<Progress>,
    pub(crate) server: String,
    pub(crate) branch: String,
    pub(crate) slot: String,
    pub(crate) standby: String,
}

impl Inspect {
    /// Why the server's WAL does not arrive; none while it does, or a base backup does.
    pub fn trouble(&self) -> Option<String> {
        let state = self.progress.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.trouble.clone()
    }

    fn lag(&self) -> (u64, f64) {
        let (server, committed) = (
            self.load(&self.progress.server_end),
            self.load(&self.progress.committed),
        );
        let state = self.progress.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = state
            .behind_since
            .map_or(0.0, |since| since.elapsed().as_secs_f64());
        (server.saturating_sub(committed), seconds)
    }

    fn load(&self, number: &AtomicU64) -> u64 {
        number.load(Ordering::Relaxed)
    }

    /// What `/v1/status` tells.
    pub fn status_json(&self) -> serde_json::Value {
        let progress = &self.progress;
        let (lag_bytes, lag_seconds) = self.lag();
        let lsn = |number: &AtomicU64| match self.load(number) {
            0 => None,
            lsn => Some(Lsn(lsn).to_string()),
        };
        let state = progress.state.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "role": "wal-client",
            "server": self.server,
            "branch": self.branch,
            "timeline": state.timeline,
            "slot": self.slot,
            "standby_name": self.standby,
            "synchronous": state.synchronous,
            "phase": state.phase.name(),
            "trouble": state.trouble,
            "base_backup": {
                "bytes": self.load(&progress.backup_done),
                "estimated_bytes": self.load(&progress.backup_total),
                "consistent_lsn": lsn(&progress.consistent),
            },
            "server_lsn": lsn(&progress.server_end),
            "committed_lsn": lsn(&progress.committed),
            "lag_bytes": lag_bytes,
            "lag_seconds": lag_seconds,
            "received_bytes": self.load(&progress.received_bytes),
            "restarts": self.load(&progress.restarts),
        })
    }

    /// Adds its numbers to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for Inspect {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let progress = &self.progress;
        let (lag_bytes, lag_seconds) = self.lag();
        let gauges = [
            (
                "wal_client_lag_bytes",
                "WAL that the server has and no quorum",
                lag_bytes as f64,
            ),
            (
                "wal_client_lag_seconds",
                "How long a quorum has not had all of the server's WAL",
                lag_seconds,
            ),
            (
                "wal_client_committed_lsn",
                "End of what a quorum has",
                self.load(&progress.committed) as f64,
            ),
            (
                "wal_client_backup_bytes",
                "Bytes of the base backup that were received",
                self.load(&progress.backup_done) as f64,
            ),
            (
                "wal_client_backup_estimated_bytes",
                "Size of the base backup as the server estimated it",
                self.load(&progress.backup_total) as f64,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let counters = [
            (
                "wal_client_received_bytes",
                "WAL received from the server",
                &progress.received_bytes,
            ),
            (
                "wal_client_restarts",
                "Times that the stream was begun again",
                &progress.restarts,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(self.load(value));
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}
