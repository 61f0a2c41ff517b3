//! An image of a page whose chain is long, wherever its values are: one more value of the memory table.
//!
//! # At which LSN
//!
//! The page is built at the last record `newest`. Its image stands for exactly that if it is read before every older value
//! of the page and no value between the two is passed over. Places are asked from the memory table to the oldest layer, so
//! with `begin` as the end of everything that is in no active table (what was frozen last, or the layers):
//! - `begin <= newest`: else a table was frozen meanwhile that may have values after `newest`, and an image in the active
//!   table would hide them. Then it is made again.
//! - its LSN is that of the page's last change if that is in the active table, and `begin` if it is not: the page did
//!   not change in between, a layer has values from `begin` on only, and a reader below it does not ask there.
//!
//! Whatever is ingested later has higher LSNs: the last record moves together with the table, under one lock.
//!
//! # How much is written
//!
//! An image is added only to a chain that is due by the policy, and begins the next: at most one for so many deltas or
//! bytes, however often the page is read. It is no WAL: a table with nothing but images is not flushed before records come,
//! and what is lost with the process is made again by the next read.

use lakebed_layer::Chain;
use lakebed_types::PageKey;

use super::read::Cost;
use super::{Timeline, TimelineError};

/// What became of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is there.
    Yes,
    /// The chain of the newest version is short.
    NotDue,
    /// A table was frozen meanwhile. Try again.
    Late,
    /// The table is full, and no record comes with which it could be flushed.
    NoRoom,
}

impl Timeline {
    /// Whether a read that replayed so much wants an image.
    pub fn wants_image(&self, cost: &Cost) -> bool {
        cost.since.is_due(&self.thresholds.images)
    }

    /// Makes an image of the page's newest version, if its chain is long.
    ///
    /// # Errors
    /// As a read of the page.
    pub fn add_image(&self, key: &PageKey) -> Result<Added, TimelineError> {
        if !self.identity.shard.owns(key) {
            return Err(TimelineError::WrongShard(*key));
        }
        let newest = self.last_record();
        let life = self.life(key, newest);
        let (mut chain, mut cost) = (Chain::new(life.floor, newest), Cost::default());
        self.collect(key, &mut chain, &mut cost.layers, &mut ())?;
        let Some(changed) = chain.newest() else {
            return Ok(Added::NotDue);
        };
        if !chain.since_image().is_due(&self.thresholds.images) {
            return Ok(Added::NotDue);
        }
        let page = self.page_of_chain(key, life, chain, &mut cost)?;
        self.write(|state| {
            if state.begin > newest || state.broken {
                return Ok(Added::Late);
            }
            if state.active.bytes() >= self.thresholds.flush_bytes {
                return Ok(Added::NoRoom);
            }
            let added = state
                .active
                .insert_image(key, changed.max(state.begin), &page[..]);
            added.map_err(|error| TimelineError::Internal(error.to_string()))?;
            Ok(Added::Yes)
        })
    }
}
