//! Counters of a compute, as of the moment that they are asked for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lakebed_shim_abi::region::Region;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::acks::Acks;
use crate::files::Files;
use crate::local_wal::LocalWal;
use crate::quorum::Standing;
use crate::spans::Spans;

/// Where the numbers are.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) region: Region,
    pub(crate) files: Arc<Files>,
    pub(crate) local: Arc<LocalWal>,
    pub(crate) acks: Arc<Acks>,
    pub(crate) spans: Arc<Spans>,
    pub(crate) commit_delay_us: Arc<AtomicU32>,
    pub(crate) standing: watch::Receiver<Standing>,
}

impl Metrics {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shim = &self.region.control().counters;
        let files = self.files.counters();
        let pages = self.files.pages().counters();
        let counters = [
            (
                "blocks_waited_for",
                "Blocks that Postgres waited for",
                &shim.blocks_filled,
            ),
            (
                "block_wait_us",
                "Microseconds that Postgres waited for blocks",
                &shim.fill_wait_us,
            ),
            ("file_opens", "Relation files opened", &shim.opens),
            (
                "reads_repeated",
                "Reads done again because a block changed its state",
                &shim.reads_repeated,
            ),
            (
                "flush_waits",
                "WAL flushes that waited for the quorum",
                &shim.flush_waits,
            ),
            (
                "flush_wait_us",
                "Microseconds that WAL flushes waited for the quorum",
                &shim.flush_wait_us,
            ),
            (
                "wal_ring_full",
                "WAL writes that found the ring full",
                &shim.ring_full,
            ),
            ("pages_filled", "Pages written into local files", &files.filled),
            ("pages_prefetched", "Pages fetched ahead", &files.prefetched),
            ("files_whole", "Files fetched whole", &files.whole),
            ("pages_received", "Pages received from pageservers", &pages.pages),
            ("page_retries", "Page requests asked again", &pages.retries),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            let name = format!("lakebed_compute_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        let spans = [
            ("wal_read", "Reading WAL that Postgres wrote", &self.spans.read),
            (
                "wal_handed_over",
                "Waking the quorum's driver",
                &self.spans.handed_over,
            ),
            ("wal_sent", "Sending WAL to all safekeepers", &self.spans.sent),
            ("wal_answered", "Answers of a quorum to WAL", &self.spans.answered),
            ("wal_released", "Waking flushes that waited", &self.spans.released),
        ];
        for (name, help, span) in spans {
            let (us, count) = span.total_us();
            for (what, value) in [("us", us), ("times", count)] {
                let counter = ConstCounter::new(value);
                let (name, help) = (
                    format!("lakebed_compute_{name}_{what}"),
                    format!("{help}, {what}"),
                );
                let metric = encoder.encode_descriptor(&name, &help, None, counter.metric_type())?;
                counter.encode(metric)?;
            }
        }
        let standing = self.standing.borrow().clone();
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let gauges = [
            (
                "term",
                "Term of this compute",
                standing.won.map_or(0, |won| number(won.term.0)),
            ),
            (
                "commit_lsn",
                "Position below which WAL is on a quorum",
                number(standing.commit.0),
            ),
            (
                "safekeepers_generation",
                "Generation of the safekeepers that this compute acts under",
                number(standing.generation.0),
            ),
            (
                "safekeepers_settled",
                "The last generation of safekeepers that came into force",
                number(standing.settled.0),
            ),
            (
                "local_wal_bytes",
                "WAL in memory",
                number(self.local.bytes() as u64),
            ),
            (
                "flushes_waiting",
                "WAL writes that wait for the quorum",
                number(self.acks.waiting() as u64),
            ),
            (
                "commit_delay_us",
                "Microseconds that the first of several commits waits for others; 0 also where it is set by hand",
                i64::from(self.commit_delay_us.load(Ordering::Relaxed)),
            ),
            (
                "files_with_state",
                "Files whose blocks come on demand",
                number(self.files.slots_given() as u64),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let name = format!("lakebed_compute_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
