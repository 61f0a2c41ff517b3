//! Values that are not in a file yet.

use std::collections::HashMap;

use lakebed_types::{Lsn, PageKey};

use crate::Value;

/// Ingested values by page, in LSN order.
#[derive(Debug, Default)]
pub struct MemoryLayer {
    pages: HashMap<PageKey, Vec<(Lsn, Value)>>,
    bytes: usize,
}

impl MemoryLayer {
    /// Adds the next version of a page. LSNs of one page never go down; several values of one record have one LSN.
    pub fn push(&mut self, key: PageKey, lsn: Lsn, value: Value) {
        self.bytes += value.weight();
        let chain = self.pages.entry(key).or_default();
        debug_assert!(
            chain.last().is_none_or(|(last, _)| *last <= lsn),
            "versions out of order"
        );
        chain.push((lsn, value));
    }

    /// The page's values, oldest first.
    pub fn get(&self, key: &PageKey) -> &[(Lsn, Value)] {
        self.pages.get(key).map_or(&[], Vec::as_slice)
    }

    /// Bytes in memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pages that have values here.
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// All pages in key order.
    pub fn sorted(&self) -> Vec<(&PageKey, &[(Lsn, Value)])> {
        let mut pages: Vec<_> = self
            .pages
            .iter()
            .map(|(key, chain)| (key, chain.as_slice()))
            .collect();
        pages.sort_unstable_by_key(|(key, _)| **key);
        pages
    }
}
