//! Which pages are read most, take longest, or have the longest chains.
//!
//! A page that is changed all the time and never gets an image becomes slower and slower, and nothing in a mean or a
//! histogram says which one it is. Here each read is counted by page, in two windows of a minute, of which the older is
//! replaced by the newer. A window holds a bounded number of pages: when it is full, those that lead in none of the
//! [`Order`]s leave it, so that what leads by far is there and its counts are right, while a page in the middle may be
//! missing or be counted too low.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lakebed_types::{Lsn, PageKey, ShardIdentity, TenantId, TimelineId};
use rustc_hash::{FxBuildHasher, FxHashMap};
use serde::{Deserialize, Serialize};

use crate::timeline::read::Cost;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(60);
/// Most pages in a window: half a megabyte.
const PAGES: usize = 4096;
/// How many of each order stay when a window is full. Three orders: at least a quarter is free then.
const KEPT: usize = PAGES / 4;

/// A page of a shard here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageName {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Shard.
    pub shard: ShardIdentity,
    /// Page.
    pub key: PageKey,
}

/// What reads of a page cost in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heat {
    /// Reads.
    pub reads: u64,
    /// Most values that a read replayed.
    pub longest_chain: usize,
    /// Time of all replays.
    pub redo: Duration,
    /// Longest replay.
    pub longest_redo: Duration,
    /// Last LSN that was read.
    pub lsn: Lsn,
}

impl Heat {
    fn add(&mut self, other: &Heat) {
        self.reads += other.reads;
        self.longest_chain = self.longest_chain.max(other.longest_chain);
        self.redo += other.redo;
        self.longest_redo = self.longest_redo.max(other.longest_redo);
        self.lsn = self.lsn.max(other.lsn);
    }
}

/// By what pages are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Most values that a read replayed.
    #[default]
    Chain,
    /// Time of all replays.
    Redo,
    /// Reads.
    Reads,
}

impl Order {
    const ALL: [Order; 3] = [Order::Chain, Order::Redo, Order::Reads];

    fn of(self, heat: &Heat) -> u128 {
        match self {
            Order::Chain => heat.longest_chain as u128,
            Order::Redo => heat.redo.as_nanos(),
            Order::Reads => u128::from(heat.reads),
        }
    }
}

/// One window.
#[derive(Debug, Default)]
struct Window(FxHashMap<PageName, Heat>);

impl Window {
    fn add(&mut self, page: PageName, heat: &Heat) {
        if self.0.len() >= PAGES && !self.0.contains_key(&page) {
            self.make_room();
        }
        self.0.entry(page).or_default().add(heat);
    }

    fn make_room(&mut self) {
        let mut kept = FxHashMap::with_capacity_and_hasher(PAGES, FxBuildHasher);
        let mut pages: Vec<(PageName, Heat)> = self.0.drain().collect();
        for order in Order::ALL {
            pages.select_nth_unstable_by_key(KEPT, |(_, heat)| std::cmp::Reverse(order.of(heat)));
            kept.extend(pages[..KEPT].iter().copied());
        }
        self.0 = kept;
    }
}

#[derive(Debug, Default)]
struct Windows {
    /// Number of the newer one since the start.
    number: u64,
    now: Window,
    before: Window,
}

impl Windows {
    fn advance(&mut self, number: u64) {
        if number > self.number {
            let now = std::mem::take(&mut self.now);
            // What is older than the window before is gone.
            self.before = if number == self.number + 1 {
                now
            } else {
                Window::default()
            };
            self.number = number;
        }
    }

    fn top(&self, order: Order, limit: usize, of: impl Fn(&PageName) -> bool) -> Vec<(PageName, Heat)> {
        let mut all = FxHashMap::default();
        let both = self.before.0.iter().chain(&self.now.0);
        for (page, heat) in both.filter(|(page, _)| of(page)) {
            all.entry(*page).or_insert_with(Heat::default).add(heat);
        }
        let mut top: Vec<_> = all.into_iter().collect();
        // Of equals always the same first.
        top.sort_by_key(|(page, heat)| (std::cmp::Reverse(order.of(heat)), page.timeline, page.key));
        top.truncate(limit);
        top
    }
}

/// See the module header.
#[derive(Debug)]
pub struct HotPages {
    began: Instant,
    windows: Mutex<Windows>,
}

impl Default for HotPages {
    fn default() -> HotPages {
        HotPages {
            began: Instant::now(),
            windows: Mutex::default(),
        }
    }
}

impl HotPages {
    fn with<T>(&self, body: impl FnOnce(&mut Windows) -> T) -> T {
        let number = self.began.elapsed().as_secs() / WINDOW.as_secs();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.advance(number);
        body(&mut windows)
    }

    /// Counts a read.
    pub fn read(&self, page: PageName, lsn: Lsn, cost: &Cost) {
        let heat = Heat {
            reads: 1,
            longest_chain: cost.values,
            redo: cost.redo,
            longest_redo: cost.redo,
            lsn,
        };
        self.with(|windows| windows.now.add(page, &heat));
    }

    /// The first of these pages in an order, in the last one to two minutes.
    pub fn top(&self, order: Order, limit: usize, of: impl Fn(&PageName) -> bool) -> Vec<(PageName, Heat)> {
        self.with(|windows| windows.top(order, limit, of))
    }
}

#[cfg(test)]
mod tests {
    use lakebed_types::{ForkNumber, RelTag, ShardCount};

    use super::*;

    fn page(block: u32) -> PageName {
        let rel = RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Main,
        };
        PageName {
            tenant: TenantId::from_slice(&[1; 16]).unwrap(),
            timeline: TimelineId::from_slice(&[2; 16]).unwrap(),
            shard: ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap(),
            key: PageKey::Rel { rel, block },
        }
    }

    fn heat(reads: u64, longest_chain: usize, redo_us: u64) -> Heat {
        Heat {
            reads,
            longest_chain,
            redo: Duration::from_micros(redo_us),
            longest_redo: Duration::from_micros(redo_us),
            lsn: Lsn(8),
        }
    }

    fn blocks(windows: &Windows, order: Order, limit: usize) -> Vec<u32> {
        let block = |(name, _): &(PageName, Heat)| match name.key {
            PageKey::Rel { block, .. } => block,
            _ => unreachable!("only relations here"),
        };
        windows.top(order, limit, |_| true).iter().map(block).collect()
    }

    #[test]
    fn leaders_in_each_order_stay_among_any_number_of_pages() {
        let mut windows = Windows::default();
        for block in 0..20 * PAGES as u32 {
            windows.now.add(page(block), &heat(1, 1, 1));
            if block % 500 == 0 {
                windows.now.add(page(7), &heat(1, 1, 1));
                windows.now.add(page(8), &heat(1, 900, 1));
                windows.now.add(page(9), &heat(1, 1, 5000));
            }
            assert!(windows.now.0.len() <= PAGES);
        }
        let rounds = (20 * PAGES as u64).div_ceil(500);
        assert_eq!(blocks(&windows, Order::Chain, 1), [8]);
        assert_eq!(blocks(&windows, Order::Redo, 1), [9]);
        let (_, of_7) = windows.top(Order::Reads, 3, |_| true)[0];
        assert!(of_7.reads >= rounds, "{} of {rounds}", of_7.reads);
        let mut most = blocks(&windows, Order::Reads, 3);
        most.sort_unstable();
        assert_eq!(most, [7, 8, 9]);
    }

    #[test]
    fn what_was_hot_is_forgotten_after_two_windows() {
        let mut windows = Windows::default();
        windows.now.add(page(1), &heat(3, 10, 1));
        windows.advance(1);
        windows.now.add(page(1), &heat(2, 4, 1));
        windows.now.add(page(2), &heat(1, 5, 1));
        let top = windows.top(Order::Chain, 5, |page| page.key == self::page(1).key);
        assert_eq!(
            (top[0].0, top[0].1.reads, top[0].1.longest_chain),
            (page(1), 5, 10)
        );
        windows.advance(2);
        assert_eq!(blocks(&windows, Order::Chain, 5), [2, 1]);
        windows.advance(4);
        assert!(windows.top(Order::Chain, 5, |_| true).is_empty());
    }
}
