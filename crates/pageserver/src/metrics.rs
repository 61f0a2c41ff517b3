//! Counters and gauges of a pageserver.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Bounds of [`Metrics::page_chain_length`].
const CHAIN_LENGTHS: [f64; 12] = [
    0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0,
];

/// Handles to the metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Pages served.
    pub pages: Counter,
    /// Pages not served, whatever the status.
    pub page_failures: Counter,
    /// Time to build each page.
    pub page_seconds: Histogram,
    /// Values that were replayed for each page: an image alone is 1, a page that is known or all zeros 0.
    pub page_chain_length: Histogram,
    /// Records ingested.
    pub records: Counter,
    /// Connections to safekeepers that ended with an error.
    pub feed_errors: Counter,
    /// Layers stored.
    pub flushes: Counter,
    /// Attempts to store a layer that failed and will be repeated.
    pub flush_failures: Counter,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            pages: Counter::default(),
            page_failures: Counter::default(),
            page_seconds: Histogram::new(exponential_buckets(0.000_005, 2.0, 18)),
            page_chain_length: Histogram::new(CHAIN_LENGTHS),
            records: Counter::default(),
            feed_errors: Counter::default(),
            flushes: Counter::default(),
            flush_failures: Counter::default(),
        };
        let m = &metrics;
        registry.register("pageserver_pages", "Pages served", m.pages.clone());
        registry.register(
            "pageserver_page_failures",
            "Pages asked for and not served",
            m.page_failures.clone(),
        );
        registry.register(
            "pageserver_page_seconds",
            "Time to build a page",
            m.page_seconds.clone(),
        );
        registry.register(
            "pageserver_page_chain_length",
            "Values that were replayed for a page",
            m.page_chain_length.clone(),
        );
        registry.register("pageserver_records", "WAL records ingested", m.records.clone());
        registry.register(
            "pageserver_feed_errors",
            "Failed connections to safekeepers",
            m.feed_errors.clone(),
        );
        registry.register("pageserver_flushes", "Layers stored", m.flushes.clone());
        registry.register(
            "pageserver_flush_failures",
            "Failed attempts to store a layer",
            m.flush_failures.clone(),
        );
        metrics
    }
}
