//! Counters of a safekeeper, registered where the embedding process wants them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Handles to all counters; a clone counts into the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Messages of proposers.
    pub requests: Counter,
    /// Messages that were refused.
    pub refusals: Counter,
    /// Bytes of WAL that were accepted.
    pub accepted_bytes: Counter,
    /// Batches that the disk executed.
    pub disk_batches: Counter,
    /// Control files that were replaced.
    pub control_writes: Counter,
    /// Seconds that a flush of WAL took.
    pub flush_seconds: Histogram,
    /// Seconds from an append that was taken to its answer.
    pub append_seconds: Histogram,
    /// Times that a timeline found no room on its disk.
    pub full_disks: Counter,
    /// Bytes of WAL that the scrubber read.
    pub scrub_bytes: Counter,
    /// Stretches of WAL that it healed.
    pub scrub_healed: Counter,
    /// Damage that it found and could not heal; again in each round.
    pub scrub_damaged: Counter,
    /// Timelines that work.
    pub timelines_running: Gauge,
    /// Timelines that stopped and need an operator.
    pub timelines_stopped: Gauge,
    /// Proposers that are connected.
    pub proposers: Gauge,
    /// Shards that are being fed.
    pub feeds: Gauge,
    /// Bytes of records that were sent to shards.
    pub fed_bytes: Counter,
    /// Bytes of records that were decoded for shards; below `fed_bytes` when shards share.
    pub decoded_bytes: Counter,
    /// Bytes of raw WAL that were read by others.
    pub read_bytes: Counter,
    /// Objects of WAL that were uploaded.
    pub backup_objects: Counter,
    /// Their bytes.
    pub backup_stored_bytes: Counter,
    /// Bytes of the WAL in them.
    pub backup_wal_bytes: Counter,
    /// Objects of WAL that were deleted.
    pub backup_deleted: Counter,
    /// Looks at a timeline's WAL in object storage that failed.
    pub backup_failures: Counter,
    /// Committed WAL that is not in object storage, of all timelines, in bytes.
    pub backup_lag_bytes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            requests: Counter::default(),
            refusals: Counter::default(),
            accepted_bytes: Counter::default(),
            disk_batches: Counter::default(),
            control_writes: Counter::default(),
            flush_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 18)),
            append_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 18)),
            full_disks: Counter::default(),
            scrub_bytes: Counter::default(),
            scrub_healed: Counter::default(),
            scrub_damaged: Counter::default(),
            timelines_running: Gauge::default(),
            timelines_stopped: Gauge::default(),
            proposers: Gauge::default(),
            feeds: Gauge::default(),
            fed_bytes: Counter::default(),
            decoded_bytes: Counter::default(),
            read_bytes: Counter::default(),
            backup_objects: Counter::default(),
            backup_stored_bytes: Counter::default(),
            backup_wal_bytes: Counter::default(),
            backup_deleted: Counter::default(),
            backup_failures: Counter::default(),
            backup_lag_bytes: Gauge::default(),
        }
    }
}

impl Metrics {
    fn register_backup(&self, r: &mut Registry) {
        for (name, help, counter) in [
            ("backup_objects", "Objects of WAL uploaded", &self.backup_objects),
            (
                "backup_stored_bytes",
                "Bytes of these objects",
                &self.backup_stored_bytes,
            ),
            (
                "backup_wal_bytes",
                "Bytes of the WAL in them",
                &self.backup_wal_bytes,
            ),
            ("backup_deleted", "Objects of WAL deleted", &self.backup_deleted),
            ("backup_failures", "Failed uploads of WAL", &self.backup_failures),
        ] {
            r.register(name, help, counter.clone());
        }
        r.register(
            "backup_lag_bytes",
            "Committed WAL that is not in object storage",
            self.backup_lag_bytes.clone(),
        );
    }

    fn register_scrub(&self, r: &mut Registry) {
        for (name, help, counter) in [
            (
                "scrub_bytes",
                "Bytes of WAL read by the scrubber",
                &self.scrub_bytes,
            ),
            ("scrub_healed", "Stretches of WAL healed", &self.scrub_healed),
            ("scrub_damaged", "Damage that was not healed", &self.scrub_damaged),
        ] {
            r.register(name, help, counter.clone());
        }
    }

    /// Registers all under `safekeeper_…`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("safekeeper");
        r.register("requests", "Messages of proposers", self.requests.clone());
        r.register("refusals", "Messages that were refused", self.refusals.clone());
        r.register(
            "accepted_bytes",
            "Bytes of WAL accepted",
            self.accepted_bytes.clone(),
        );
        r.register(
            "disk_batches",
            "Batches of disk operations",
            self.disk_batches.clone(),
        );
        r.register(
            "control_writes",
            "Control files replaced",
            self.control_writes.clone(),
        );
        r.register(
            "flush_seconds",
            "Duration of WAL flushes",
            self.flush_seconds.clone(),
        );
        r.register(
            "append_seconds",
            "From an append that was taken to its answer",
            self.append_seconds.clone(),
        );
        r.register(
            "full_disks",
            "Times that a timeline found no room",
            self.full_disks.clone(),
        );
        r.register(
            "timelines_running",
            "Timelines that work",
            self.timelines_running.clone(),
        );
        r.register(
            "timelines_stopped",
            "Timelines that stopped",
            self.timelines_stopped.clone(),
        );
        r.register("proposers", "Connected proposers", self.proposers.clone());
        r.register("feeds", "Shards that are being fed", self.feeds.clone());
        r.register(
            "fed_bytes",
            "Bytes of records sent to shards",
            self.fed_bytes.clone(),
        );
        r.register(
            "decoded_bytes",
            "Bytes of records decoded for shards",
            self.decoded_bytes.clone(),
        );
        r.register(
            "read_bytes",
            "Bytes of raw WAL read by others",
            self.read_bytes.clone(),
        );
        self.register_backup(r);
        self.register_scrub(r);
    }
}

/// Counts one for as long as it lives.
#[derive(Debug)]
pub struct Live(Gauge);

impl Live {
    /// Counts one more.
    pub fn new(gauge: &Gauge) -> Live {
        gauge.inc();
        Live(gauge.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.dec();
    }
}
