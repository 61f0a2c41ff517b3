//! What must come out: pages as hashes of their values.

use bytes::Bytes;
use lakebed_layer::{Value, ValueKind};
use lakebed_types::{Lsn, PageKey, SlruKind};

/// Pages that are used.
pub const PAGES: u64 = 14;

/// A page by number.
pub fn key(page: u64) -> PageKey {
    PageKey::Slru {
        kind: SlruKind::Clog,
        page,
    }
}

/// A page's content, as redo here makes it of one value.
pub fn redo(page: u64, value: &Value) -> u64 {
    let seed = match value.kind {
        ValueKind::Image => {
            return value
                .body
                .first_chunk()
                .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        }
        ValueKind::Base => 0,
        _ => page,
    };
    // Bodies begin with a random number; the rest is only there to fill blocks.
    let (number, length) = (value.body.first_chunk().copied(), value.body.len() as u64);
    let mixed = seed ^ number.map_or(0, u64::from_le_bytes) ^ length << 50;
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ value.kind as u64
}

/// The image of a page with this content.
pub fn image(page: u64) -> Bytes {
    let mut body = page.to_le_bytes().to_vec();
    body.resize(700, 0xee);
    body.into()
}

/// All values of a timeline in the order in which they were ingested: its WAL.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// LSN, page, value.
    pub values: Vec<(Lsn, PageKey, Value)>,
}

impl Log {
    /// The page at an LSN, if there it starts as `page`.
    pub fn page(&self, start: u64, key: &PageKey, lsn: Lsn) -> u64 {
        let seen = self.values.iter().take_while(|(at, ..)| *at <= lsn);
        let of_page = seen.filter(|(_, page, _)| page == key);
        of_page.fold(start, |page, (.., value)| redo(page, value))
    }
}
