//! Where the time of a commit goes, from what compute and safekeepers count.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::compute::Compute;
use super::metrics;
use super::stats::round;
use super::tier::PrivateTier;

/// Counters at some time, those of all safekeepers added up.
#[derive(Debug)]
pub struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// As they are now. Blocks.
    ///
    /// # Errors
    /// A process does not answer.
    pub fn now(tier: &PrivateTier, compute: &Compute) -> anyhow::Result<Counters> {
        let layout = &tier.directory.layout;
        let safekeepers = layout
            .admin_ports
            .iter()
            .skip(1)
            .take(layout.safekeeper_ports.len());
        let ports: Vec<u16> = [compute.admin_port].iter().chain(safekeepers).copied().collect();
        let mut all = BTreeMap::new();
        for port in ports {
            for (name, value) in Handle::current().block_on(metrics::values(port))? {
                *all.entry(name).or_default() += value;
            }
        }
        Ok(Counters(all))
    }

    fn since(&self, before: &Counters, name: &str) -> f64 {
        let of = |counters: &Counters| counters.0.get(name).copied().unwrap_or_default();
        of(self) - of(before)
    }

    /// Mean microseconds of each part of a flush since `before`.
    pub fn spans_since(&self, before: &Counters) -> Value {
        let mean = |sum: &str, times: &str, unit: f64| {
            self.since(before, sum) * unit / self.since(before, times).max(1.0)
        };
        let compute = |name: &str| {
            let counter = |what: &str| format!("lakebed_compute_{name}_{what}_total");
            mean(&counter("us"), &counter("times"), 1.0)
        };
        let whole = mean(
            "lakebed_compute_flush_wait_us_total",
            "lakebed_compute_flush_waits_total",
            1.0,
        );
        let safekeeper = |name: &str| {
            let histogram = |what: &str| format!("safekeeper_{name}_{what}");
            mean(&histogram("sum"), &histogram("count"), 1e6)
        };
        let parts = [
            ("read_us", compute("wal_read")),
            ("handed_over_us", compute("wal_handed_over")),
            ("sent_us", compute("wal_sent")),
            ("answered_us", compute("wal_answered")),
            ("released_us", compute("wal_released")),
        ];
        let known: f64 = parts.iter().map(|(_, us)| us).sum();
        let mut spans = json!({
            "flushes": self.since(before, "lakebed_compute_flush_waits_total"),
            "flush_us": round(whole),
            "wake_ups_us": round(whole - known),
            "safekeeper_append_us": round(safekeeper("append_seconds")),
            "safekeeper_fdatasync_us": round(safekeeper("flush_seconds")),
        });
        for (name, us) in parts {
            spans[name] = json!(round(us));
        }
        // As it is set now.
        spans["commit_delay_us"] = json!(self.0.get("lakebed_compute_commit_delay_us"));
        spans
    }
}
