//! A page that is looked for in one layer after another.

use lakebed_types::{Lsn, PageKey};

use super::{filter, index};

/// What a look into a layer needs of the page's key, made once for all layers that are asked.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    pub(super) key: PageKey,
    /// Its stored form.
    pub(super) bytes: [u8; PageKey::ENCODED_BYTES],
    /// For filters.
    pub(super) hash: u64,
}

impl Sought {
    /// Looks for this page.
    pub fn new(key: &PageKey) -> Sought {
        let bytes = key.encode();
        Sought {
            key: *key,
            bytes,
            hash: filter::hash(&bytes),
        }
    }

    /// Where the page's values up to an LSN end among index entries.
    pub(super) fn upto(&self, lsn: Lsn) -> index::Order {
        index::order(&self.bytes, lsn)
    }
}
