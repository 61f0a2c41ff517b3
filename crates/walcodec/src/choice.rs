//! How to send a batch: a decision from rates that were measured, without clock and IO.
//!
//! Two rules. A *small* batch is somebody's commit: it is coded when the bytes that this saves would cost several times what
//! coding costs. What a byte costs is measured where it matters, in the time to an answer: over many commits, answers take
//! the longer the more bytes are on the way, and the slope of that [`Line`] is the link's (and the receiver's) time for a byte,
//! whatever the disk takes. On a fast link commits are therefore sent as they are. A *large* batch is a backlog: it goes in
//! the way that gets most WAL per second through the slower of coder and link, so that a link that is faster than the coder
//! carries plain bytes; of ways about as fast, the one with the fewest bytes.
//!
//! Rates are averages that lean to the newest, and start from what was measured on one machine. A way that
//! is not used drifts back to that, so that one slow moment does not rule it out for ever.

use crate::stream::Method;

/// Batches from this size on are a backlog.
pub const LARGE_BYTES: usize = 32 << 10;
/// For commits, the time saved must be this many times the time for coding, at both ends: a compute codes for each of its
/// safekeepers, one after the other, and all that while no other commit is sent.
const COMMIT_MARGIN: u64 = 4;
/// A commit's answer counts for one part in this many of the line.
const LINE_MEMORY: f64 = 4096.0;
/// Answers before the line is believed.
const LINE_ANSWERS: f64 = 64.0;
/// An answer that took this many times the average is a stall of something else; so much of it counts.
const STALL: f64 = 8.0;
/// Commits of about one size tell no slope. When the bytes on the way differ less than this, one commit in [`EXPLORE`] goes
/// the other way, whose size is another.
const SPREAD_BYTES: f64 = 300.0;
const EXPLORE: u64 = 16;
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

/// Times to answers as a line over the bytes on the way, by least squares with fading memory.
#[derive(Clone, Debug, Default)]
struct Line {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    fn add(&mut self, bytes: usize, ns: u64) {
        let average = self.y / self.weight.max(1.0);
        let (x, mut y) = (bytes as f64, ns as f64);
        if self.weight >= LINE_ANSWERS {
            y = y.min(STALL * average);
        }
        let keep = 1.0 - 1.0 / LINE_MEMORY;
        self.weight = self.weight * keep + 1.0;
        self.x = self.x * keep + x;
        self.y = self.y * keep + y;
        self.xx = self.xx * keep + x * x;
        self.xy = self.xy * keep + x * y;
    }

    /// Standard deviation of the bytes.
    fn spread(&self) -> f64 {
        let mean = self.x / self.weight.max(1.0);
        (self.xx / self.weight.max(1.0) - mean * mean).max(0.0).sqrt()
    }

    /// Nanoseconds for a KiB; none while too little is known.
    fn ns_per_kib(&self) -> Option<u64> {
        let determinant = self.weight * self.xx - self.x * self.x;
        if self.weight < LINE_ANSWERS || determinant <= self.weight * self.weight {
            return None;
        }
        let slope = (self.weight * self.xy - self.x * self.y) / determinant;
        Some((slope.max(0.0) * 1024.0) as u64)
    }
}

/// See the module header.
#[derive(Clone, Debug)]
pub struct Choice {
    /// By method, and for small and large batches.
    costs: [[Cost; 3]; 2],
    /// Nanoseconds that a KiB takes on the link.
    link_ns_per_kib: Option<u64>,
    /// Of commits.
    answers: Line,
    /// Commits that were sent.
    commits: u64,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            costs: [START; 2],
            link_ns_per_kib: None,
            answers: Line::default(),
            commits: 0,
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
        let costs = *self.costs(length);
        let chosen = if length < LARGE_BYTES {
            Some(self.commit(costs))
        } else {
            let link = self.link_ns_per_kib.unwrap_or_default();
            let slower = |cost: Cost| cost.ns_per_kib.max(cost.bytes_per_kib * link / 1024);
            let best = costs.into_iter().map(slower).min().unwrap_or_default();
            let ways = METHODS.into_iter().zip(costs);
            let alike = ways.filter(|(_, cost)| slower(*cost) <= best + best / ALIKE);
            alike
                .min_by_key(|(_, cost)| cost.bytes_per_kib)
                .map(|(method, _)| method)
        };
        let chosen = chosen.unwrap_or(Method::Plain);
        for ((method, start), cost) in METHODS.into_iter().zip(START).zip(self.costs(length)) {
            if method != chosen {
                cost.ns_per_kib = towards(cost.ns_per_kib, start.ns_per_kib, DRIFT);
                cost.bytes_per_kib = towards(cost.bytes_per_kib, start.bytes_per_kib, DRIFT);
            }
        }
        chosen
    }

    fn commit(&mut self, costs: [Cost; 3]) -> Method {
        let link = self.answers.ns_per_kib().unwrap_or_default();
        let gain = |cost: Cost| {
            let saved = 1024_u64.saturating_sub(cost.bytes_per_kib).saturating_mul(link) / 1024;
            saved.saturating_sub(COMMIT_MARGIN * 2 * cost.ns_per_kib)
        };
        // The first of equals, so that plain bytes need no gain.
        let ways = METHODS.into_iter().zip(costs).rev();
        let best = ways
            .max_by_key(|(_, cost)| gain(*cost))
            .map_or(Method::Plain, |(method, _)| method);
        self.commits += 1;
        let explore = self.answers.spread() < SPREAD_BYTES && self.commits.is_multiple_of(EXPLORE);
        match best {
            best if !explore => best,
            Method::Plain => Method::Records,
            _ => Method::Plain,
        }
    }

    /// A batch of `length` bytes became one of `coded` bytes in so many nanoseconds.
    pub fn encoded(&mut self, method: Method, length: usize, coded: usize, ns: u64) {
        let known = METHODS.into_iter().zip(self.costs(length));
        for (_, cost) in known.filter(|(known, _)| *known == method && method != Method::Plain) {
            cost.ns_per_kib = towards(cost.ns_per_kib, per_kib(ns, length), MEMORY);
            cost.bytes_per_kib = towards(cost.bytes_per_kib, per_kib(coded as u64, length), MEMORY);
        }
    }

    /// A commit was answered after so many nanoseconds, with so many bytes on the way when it was sent, its own among them.
    pub fn answered(&mut self, on_the_way: usize, ns: u64) {
        self.answers.add(on_the_way, ns);
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

    fn choice(link: Option<u64>) -> Choice {
        Choice {
            link_ns_per_kib: link,
            ..Choice::default()
        }
    }

    #[test]
    fn the_decision_for_a_backlog_as_a_table() {
        const LARGE: usize = 1 << 20;
        // Link in ns a KiB: unknown, 1 GB/s, 80 MB/s and 1 MB/s.
        let table = [
            (None, Method::Plain),
            (Some(1_000), Method::Plain),
            (Some(14_000), Method::Zstd),
            (Some(1_000_000), Method::Records),
        ];
        for (link, right) in table {
            assert_eq!(choice(link).choose(LARGE), right, "link {link:?}");
        }
    }

    /// Commits of these sizes, each answered after the disk's time and the link's; how the last hundred were sent.
    fn commits(ns_per_kib: u64, sizes: &[usize]) -> Vec<Method> {
        let mut choice = Choice::default();
        let mut sent = Vec::new();
        for round in 0..2_000_u64 {
            let length = sizes[round as usize % sizes.len()];
            let method = choice.choose(length);
            let bytes = match method {
                Method::Records => length / 6,
                _ => length,
            };
            // Between 200 and 400 µs, without any relation to the size.
            let disk = 200_000 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 200_000;
            choice.encoded(method, length, bytes, 15 * length as u64);
            choice.answered(bytes, disk + bytes as u64 * ns_per_kib / 1024);
            sent.push(method);
        }
        sent.split_off(1_900)
    }

    #[test]
    fn commits_are_coded_when_the_link_is_slow() {
        let count = |ns_per_kib, sizes: &[usize]| {
            let sent = commits(ns_per_kib, sizes);
            sent.iter().filter(|method| **method == Method::Records).count()
        };
        // 10 Mbit/s is 820 µs for a KiB. One in sixteen goes the other way where all are of one size.
        for sizes in [&[700][..], &[700, 1400, 5600]] {
            assert!(count(820_000, sizes) >= 93, "{sizes:?}");
            // A gigabit.
            assert!(count(8_000, sizes) <= 7, "{sizes:?}");
        }
        assert_eq!(count(8_000, &[700, 1400, 5600]), 0);
    }

    #[test]
    fn measurements_change_the_decision_and_time_brings_it_back() {
        let mut choice = choice(Some(20_000));
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
