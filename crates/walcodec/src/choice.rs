//! How to send a batch: a decision from rates that were measured, without clock and IO.
//!
//! Two rules. A *small* batch is somebody's commit: it is made as short as possible, as long as coding it at
//! both ends takes no more than one part in [`LATENCY_SHARE`] of the time that an answer takes anyway, less what a slow
//! link saves. A *large* batch is a backlog: it goes in the way that gets most WAL per second through the slower of coder
//! and link, so that a link that is faster than the coder carries plain bytes; of ways about as fast, the one with the
//! fewest bytes.
//!
//! Rates are averages that lean to the newest, and start from what was measured on one machine. A way that
//! is not used drifts back to that, so that one slow moment does not rule it out for ever.

use crate::stream::Method;

/// Batches from this size on are a backlog.
pub const LARGE_BYTES: usize = 32 << 10;
/// Coding may take this part of the time to an answer. Small, since a compute codes for each of its safekeepers, one
/// after the other, and all that while no other commit is sent.
pub const LATENCY_SHARE: u64 = 50;
/// A measurement counts for one part in this many of the average.
const MEMORY: u64 = 8;
const DRIFT: u64 = 64;
/// Ways whose speed differs by less than one part in this many are alike.
const ALIKE: u64 = 10;

/// What a method costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Nanoseconds to encode a KiB; decoding is taken to be as slow.
    pub ns_per_kib: u64,
    /// Bytes that go out for a KiB.
    pub bytes_per_kib: u64,
}

const START: [Cost; 3] = [
    Cost {
        ns_per_kib: 0,
        bytes_per_kib: 1024,
    },
    Cost {
        ns_per_kib: 12_000,
        bytes_per_kib: 400,
    },
    Cost {
        ns_per_kib: 15_000,
        bytes_per_kib: 150,
    },
];
const METHODS: [Method; 3] = [Method::Plain, Method::Zstd, Method::Records];

/// See the module header.
#[derive(Clone, Debug)]
pub struct Choice {
    /// By method, and for small and large batches.
    costs: [[Cost; 3]; 2],
    /// Nanoseconds that a KiB takes on the link.
    link_ns_per_kib: Option<u64>,
    /// Nanoseconds from a small batch to its answer.
    answer_ns: Option<u64>,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            costs: [START; 2],
            link_ns_per_kib: None,
            answer_ns: None,
        }
    }
}

fn towards(value: u64, target: u64, parts: u64) -> u64 {
    (value * (parts - 1) + target) / parts
}

fn per_kib(amount: u64, bytes: usize) -> u64 {
    amount.saturating_mul(1024) / (bytes.max(1) as u64)
}

impl Choice {
    fn costs(&mut self, length: usize) -> &mut [Cost; 3] {
        let [small, large] = &mut self.costs;
        if length < LARGE_BYTES { small } else { large }
    }

    /// How to send a batch of this many bytes.
    pub fn choose(&mut self, length: usize) -> Method {
        let link = self.link_ns_per_kib.unwrap_or_default();
        let answer = self.answer_ns;
        let costs = *self.costs(length);
        let ways = METHODS.into_iter().zip(costs);
        let on_link = |cost: Cost| cost.bytes_per_kib * link / 1024;
        let chosen = if length < LARGE_BYTES {
            let affordable = ways.filter(|(_, cost)| {
                let more = (2 * cost.ns_per_kib + on_link(*cost)).saturating_sub(link);
                answer
                    .is_none_or(|answer| more.saturating_mul(length as u64) / 1024 <= answer / LATENCY_SHARE)
            });
            affordable.min_by_key(|(_, cost)| cost.bytes_per_kib)
        } else {
            let slower = |cost: Cost| cost.ns_per_kib.max(on_link(cost));
            let best = costs.into_iter().map(slower).min().unwrap_or_default();
            let alike = ways.filter(|(_, cost)| slower(*cost) <= best + best / ALIKE);
            alike.min_by_key(|(_, cost)| cost.bytes_per_kib)
        };
        let chosen = chosen.map_or(Method::Plain, |(method, _)| method);
        for ((method, start), cost) in METHODS.into_iter().zip(START).zip(self.costs(length)) {
            if method != chosen {
                cost.ns_per_kib = towards(cost.ns_per_kib, start.ns_per_kib, DRIFT);
                cost.bytes_per_kib = towards(cost.bytes_per_kib, start.bytes_per_kib, DRIFT);
            }
        }
        chosen
    }

    /// A batch of `length` bytes became one of `coded` bytes in so many nanoseconds.
    pub fn encoded(&mut self, method: Method, length: usize, coded: usize, ns: u64) {
        let known = METHODS.into_iter().zip(self.costs(length));
        for (_, cost) in known.filter(|(known, _)| *known == method && method != Method::Plain) {
            cost.ns_per_kib = towards(cost.ns_per_kib, per_kib(ns, length), MEMORY);
            cost.bytes_per_kib = towards(cost.bytes_per_kib, per_kib(coded as u64, length), MEMORY);
        }
    }

    /// A small batch was answered after so many nanoseconds.
    pub fn answered(&mut self, ns: u64) {
        self.answer_ns = Some(self.answer_ns.map_or(ns, |known| towards(known, ns, MEMORY)));
    }

    /// The link carried so many bytes in so many nanoseconds, with more waiting all the time.
    pub fn carried(&mut self, bytes: usize, ns: u64) {
        let now = per_kib(ns, bytes);
        self.link_ns_per_kib = Some(
            self.link_ns_per_kib
                .map_or(now, |known| towards(known, now, MEMORY)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(link: Option<u64>, answer: Option<u64>) -> Choice {
        Choice {
            link_ns_per_kib: link,
            answer_ns: answer,
            ..Choice::default()
        }
    }

    #[test]
    fn the_decision_as_a_table() {
        const SMALL: usize = 512;
        const LARGE: usize = 1 << 20;
        // Link and answer in ns, length, what is right.
        let table = [
            (None, None, SMALL, Method::Records),
            // 15 µs of coding in an answer of 1 ms, and in one of 300 µs.
            (Some(1_000), Some(1_000_000), SMALL, Method::Records),
            (Some(1_000), Some(300_000), SMALL, Method::Plain),
            // There the link saves more than coding takes: 10 Mbit/s.
            (Some(800_000), Some(20_000), SMALL, Method::Records),
            // 1 GB/s, 80 MB/s and 1 MB/s.
            (Some(1_000), None, LARGE, Method::Plain),
            (Some(14_000), None, LARGE, Method::Zstd),
            (Some(1_000_000), None, LARGE, Method::Records),
        ];
        for (link, answer, length, right) in table {
            let chosen = choice(link, answer).choose(length);
            assert_eq!(chosen, right, "link {link:?}, answer {answer:?}, {length} bytes");
        }
    }

    #[test]
    fn measurements_change_the_decision_and_time_brings_it_back() {
        let mut choice = choice(Some(20_000), Some(300_000));
        assert_eq!(choice.choose(1 << 20), Method::Zstd);
        for _ in 0..50 {
            choice.encoded(Method::Zstd, 1 << 20, 1 << 20, 1 << 30);
        }
        assert_ne!(choice.choose(1 << 20), Method::Zstd);
        let again = (0..2000)
            .map(|_| choice.choose(1 << 20))
            .find(|chosen| *chosen == Method::Zstd);
        assert!(again.is_some());
        for _ in 0..50 {
            choice.carried(1 << 20, 1 << 20);
        }
        assert_eq!(choice.choose(1 << 20), Method::Plain);
    }
}
