//! Counters of one store.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    operation: &'static str,
}

/// Handles to all counters; a clone counts into the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Family<Label, Counter>,
    retries: Family<Label, Counter>,
    failures: Family<Label, Counter>,
    seconds: Family<Label, Histogram>,
    /// Puts whose answer was lost or ambiguous, and that were looked up afterwards.
    pub(crate) ambiguous: Counter,
    /// Bytes of objects written.
    pub(crate) written: Counter,
    /// Bytes of objects read.
    pub(crate) read: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            attempts: Family::default(),
            retries: Family::default(),
            failures: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))),
            ambiguous: Counter::default(),
            written: Counter::default(),
            read: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers all under `blobstore_…`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("blobstore");
        r.register("attempts", "Requests to object storage", self.attempts.clone());
        r.register(
            "retries",
            "Requests that repeat a failed one",
            self.retries.clone(),
        );
        r.register("failures", "Operations given up", self.failures.clone());
        r.register("seconds", "Duration of a request", self.seconds.clone());
        r.register(
            "ambiguous_puts",
            "Puts without a clear answer, looked up afterwards",
            self.ambiguous.clone(),
        );
        r.register("written_bytes", "Bytes of objects written", self.written.clone());
        r.register("read_bytes", "Bytes of objects read", self.read.clone());
    }

    pub(crate) fn attempt(&self, operation: &'static str, took: Duration) {
        let label = Label { operation };
        self.attempts.get_or_create(&label).inc();
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    pub(crate) fn retry(&self, operation: &'static str) {
        self.retries.get_or_create(&Label { operation }).inc();
    }

    pub(crate) fn failure(&self, operation: &'static str) {
        self.failures.get_or_create(&Label { operation }).inc();
    }
}
