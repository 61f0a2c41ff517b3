//! Counters and gauges of a pageserver.

use std::sync::Arc;
use std::time::Duration;

use lakebed_layer::MergeCount;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::catalogue::Catalogue;
use crate::timeline::Timeline;
use crate::timeline::read::Cost;

/// Bounds of [`Metrics::page_chain_length`].
const CHAIN_LENGTHS: [f64; 12] = [
    0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0,
];

/// Bounds of [`Metrics::page_layers`].
const LAYERS: [f64; 12] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0];

/// Handles to the metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Pages served.
    pub pages: Counter,
    /// Streams of pages that readers have open.
    pub page_streams: Gauge,
    /// Pages not served, whatever the status.
    pub page_failures: Counter,
    /// Time to build each page.
    pub page_seconds: Histogram,
    /// Values that were replayed for each page: an image alone is 1, a page that is known or all zeros 0.
    pub page_chain_length: Histogram,
    /// Layers that had the page, for each page: the read amplification.
    pub page_layers: Histogram,
    /// Blocks read for each page, of data and of index.
    pub page_blocks: Histogram,
    /// Layers that were asked for pages that were served: hits, but for the waits of [`crate::layer_disk::DiskMetrics`].
    pub layer_reads: Counter,
    /// Time of the replay of each page that was built.
    pub page_redo_seconds: Histogram,
    /// Images made of pages that reads found with long chains.
    pub read_images: Counter,
    /// Pages with long chains that found the queue for images full.
    pub read_images_refused: Counter,
    /// Records ingested.
    pub records: Counter,
    /// Connections to safekeepers that ended with an error.
    pub feed_errors: Counter,
    /// Layers stored.
    pub flushes: Counter,
    /// Attempts to store a layer that failed and will be repeated.
    pub flush_failures: Counter,
    /// Changes of the layers that compaction made.
    pub merges: Counter,
    /// Attempts of compaction that failed and will be repeated.
    pub compaction_failures: Counter,
    /// Bytes that compaction read.
    pub compaction_read_bytes: Counter,
    /// Bytes that compaction wrote.
    pub compaction_written_bytes: Counter,
    /// Images that compaction made.
    pub compaction_images: Counter,
    /// Values that compaction dropped: nobody can read them any more.
    pub compaction_dropped: Counter,
    /// Pages that branches which are being detached have got of their own, or need not have.
    pub pages_detached: Counter,
    /// Objects removed.
    pub objects_removed: Counter,
    /// Pages for which a block had to be read from disk.
    pub pages_from_disk: Counter,
    /// Pages not served because they are asked for in history that was given up.
    pub pages_not_kept: Counter,
    /// Bytes of all layers, and of those of history.
    pub layer_bytes: Gauge,
    /// See above.
    pub history_bytes: Gauge,
    /// Layers from before a split that are still to be rewritten.
    pub copied_layers: Gauge,
    /// Bytes of pages that are gone and that are still in layers.
    pub dead_bytes: Gauge,
    /// Versions in resident catalogues.
    pub catalogue_versions: Gauge,
    /// Layers copied for new shards.
    pub layers_copied: Counter,
    /// LSNs that somebody may read as long as the lease is renewed.
    pub leases: Gauge,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            pages: Counter::default(),
            page_streams: Gauge::default(),
            page_failures: Counter::default(),
            page_seconds: Histogram::new(exponential_buckets(0.000_005, 2.0, 18)),
            page_chain_length: Histogram::new(CHAIN_LENGTHS),
            page_layers: Histogram::new(LAYERS),
            page_blocks: Histogram::new(LAYERS),
            layer_reads: Counter::default(),
            page_redo_seconds: Histogram::new(exponential_buckets(0.000_001, 2.0, 18)),
            read_images: Counter::default(),
            read_images_refused: Counter::default(),
            records: Counter::default(),
            feed_errors: Counter::default(),
            flushes: Counter::default(),
            flush_failures: Counter::default(),
            merges: Counter::default(),
            compaction_failures: Counter::default(),
            compaction_read_bytes: Counter::default(),
            compaction_written_bytes: Counter::default(),
            compaction_images: Counter::default(),
            compaction_dropped: Counter::default(),
            pages_detached: Counter::default(),
            objects_removed: Counter::default(),
            pages_from_disk: Counter::default(),
            pages_not_kept: Counter::default(),
            layer_bytes: Gauge::default(),
            history_bytes: Gauge::default(),
            copied_layers: Gauge::default(),
            dead_bytes: Gauge::default(),
            catalogue_versions: Gauge::default(),
            layers_copied: Counter::default(),
            leases: Gauge::default(),
        };
        let m = &metrics;
        registry.register("pageserver_pages", "Pages served", m.pages.clone());
        registry.register(
            "pageserver_page_streams",
            "Streams of pages that readers have open",
            m.page_streams.clone(),
        );
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
        registry.register(
            "pageserver_page_layers",
            "Layers that had a page that was served",
            m.page_layers.clone(),
        );
        registry.register(
            "pageserver_page_blocks",
            "Blocks of layers that were read for a page",
            m.page_blocks.clone(),
        );
        registry.register(
            "pageserver_layer_reads",
            "Layers that were asked for pages; less pageserver_local_waits they were local",
            m.layer_reads.clone(),
        );
        registry.register(
            "pageserver_page_redo_seconds",
            "Time of the replay of a page",
            m.page_redo_seconds.clone(),
        );
        registry.register(
            "pageserver_read_images",
            "Images made of pages that reads found with long chains",
            m.read_images.clone(),
        );
        registry.register(
            "pageserver_read_images_refused",
            "Pages with long chains that found the queue for images full",
            m.read_images_refused.clone(),
        );
        let compaction = [
            ("merges", "Changes of the layers by compaction", &m.merges),
            (
                "failures",
                "Failed attempts of compaction",
                &m.compaction_failures,
            ),
            (
                "read_bytes",
                "Bytes that compaction read",
                &m.compaction_read_bytes,
            ),
            (
                "written_bytes",
                "Bytes that compaction wrote",
                &m.compaction_written_bytes,
            ),
            ("images", "Images that compaction made", &m.compaction_images),
            ("dropped", "Values that compaction dropped", &m.compaction_dropped),
            (
                "pages_detached",
                "Pages of branches that are being detached which are their own now",
                &m.pages_detached,
            ),
            (
                "objects_removed",
                "Objects that nothing named any more",
                &m.objects_removed,
            ),
        ];
        for (name, help, counter) in compaction {
            registry.register(format!("pageserver_compaction_{name}"), help, counter.clone());
        }
        registry.register(
            "pageserver_pages_from_disk",
            "Pages for which a block was not in the operating system's page cache",
            m.pages_from_disk.clone(),
        );
        registry.register(
            "pageserver_pages_not_kept",
            "Pages asked for in history that was given up",
            m.pages_not_kept.clone(),
        );
        let history = [
            ("layer_bytes", "Bytes of all layers", &m.layer_bytes),
            ("history_bytes", "Bytes of layers of history", &m.history_bytes),
            (
                "copied_layers",
                "Layers from before a split that are still to be rewritten without the pages of other shards",
                &m.copied_layers,
            ),
            (
                "dead_bytes",
                "Bytes in layers of pages that were dropped or truncated before the window",
                &m.dead_bytes,
            ),
            (
                "catalogue_versions",
                "Versions of relation sizes, files, commit times and the like that are in memory",
                &m.catalogue_versions,
            ),
            (
                "leases",
                "LSNs that are kept for who renews their lease",
                &m.leases,
            ),
        ];
        for (name, help, gauge) in history {
            registry.register(format!("pageserver_{name}"), help, gauge.clone());
        }
        registry.register(
            "pageserver_layers_copied",
            "Layers copied in object storage for shards that are split off",
            m.layers_copied.clone(),
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

    /// Counts a page that was served.
    pub fn served(&self, cost: &Cost, took: Duration) {
        self.pages.inc();
        self.page_chain_length.observe(cost.values as f64);
        self.page_layers.observe(f64::from(cost.layers.found));
        self.page_blocks
            .observe(f64::from(cost.layers.data_blocks + cost.layers.index_blocks));
        self.layer_reads.inc_by(u64::from(cost.layers.layers));
        self.page_redo_seconds.observe(cost.redo.as_secs_f64());
        self.page_seconds.observe(took.as_secs_f64());
    }

    /// Tells what is kept, of all timelines together.
    pub fn keeps(&self, timelines: &[Arc<Timeline>]) {
        let set = |gauge: &Gauge, to: u64| gauge.set(i64::try_from(to).unwrap_or(i64::MAX));
        let sizes = || timelines.iter().map(|timeline| timeline.sizes());
        set(&self.layer_bytes, sizes().map(|sizes| sizes.layer_bytes).sum());
        set(
            &self.history_bytes,
            sizes().map(|sizes| sizes.history_bytes).sum(),
        );
        let copies = sizes().map(|sizes| sizes.copies as u64);
        set(&self.copied_layers, copies.sum());
        set(&self.dead_bytes, sizes().map(|sizes| sizes.dead_bytes).sum());
        let versions = timelines.iter();
        let versions = versions.map(|timeline| timeline.catalogue(Catalogue::versions) as u64);
        set(&self.catalogue_versions, versions.sum());
        let leases = timelines
            .iter()
            .map(|timeline| timeline.kept_history().leases.len() as u64);
        set(&self.leases, leases.sum());
    }

    /// Counts what a merge did between two moments.
    pub fn merged(&self, before: &MergeCount, after: &MergeCount) {
        self.compaction_read_bytes
            .inc_by(after.bytes_read - before.bytes_read);
        self.compaction_written_bytes
            .inc_by(after.bytes_written - before.bytes_written);
        self.compaction_images.inc_by(after.images - before.images);
        self.compaction_dropped.inc_by(after.dropped - before.dropped);
    }
}
