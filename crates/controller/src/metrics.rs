//! Counters of a controller, registered where the embedding process wants them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles to all counters; a clone counts into the same ones.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Calls on nodes that succeeded.
    pub calls: Counter,
    /// Calls on nodes that failed and will be repeated.
    pub call_failures: Counter,
    /// Generations of safekeepers that proposers reported to be in force.
    pub safekeepers_settled: Counter,
    /// Timelines whose safekeepers change.
    pub safekeepers_changing: Gauge,
    /// Whether this member leads and is up to date: 1 or 0.
    pub in_charge: Gauge,
    /// The last applied entry of the raft log.
    pub applied_index: Gauge,
    /// raft's term.
    pub term: Gauge,
    /// Registered nodes.
    pub nodes: Gauge,
    /// Tenants.
    pub tenants: Gauge,
    /// Timelines, also those being deleted.
    pub timelines: Gauge,
    /// Steps that failed so far and are repeated.
    pub waiting: Gauge,
}

impl Metrics {
    /// Registers all under `controller_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("controller");
        let counters = [
            ("calls", "Calls on nodes that succeeded", &self.calls),
            (
                "call_failures",
                "Calls on nodes that failed and will be repeated",
                &self.call_failures,
            ),
            (
                "safekeepers_settled",
                "Generations of a timeline's safekeepers that came into force",
                &self.safekeepers_settled,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let gauges = [
            (
                "in_charge",
                "1 while this member leads and is up to date",
                &self.in_charge,
            ),
            (
                "applied_index",
                "Last applied entry of the raft log",
                &self.applied_index,
            ),
            ("term", "Term of raft", &self.term),
            ("nodes", "Registered nodes", &self.nodes),
            ("tenants", "Tenants", &self.tenants),
            (
                "timelines",
                "Timelines, also those being deleted",
                &self.timelines,
            ),
            (
                "safekeepers_changing",
                "Timelines whose safekeepers change",
                &self.safekeepers_changing,
            ),
            (
                "waiting",
                "Steps that failed so far and are repeated",
                &self.waiting,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }
}
