//! Redo of Postgres's own resource managers, and where others can be put in its place. Extensions' managers are plug-ins
//! of the crate `redo` ([`lakebed_redo::Managers`]), for the whole tier alike.

use lakebed_ingest::{Effects, IngestError, interpret_into};
use lakebed_redo::{PageBytes, redo_block};
use lakebed_wal::record::{BlockRef, DecodedRecord};

/// Replays records: what is verified. Tests put wrong ones in the place of [`Native`].
pub trait Redo: Sync {
    /// Changes `page`, the version before the record of the page that `block` names, into the version after it.
    ///
    /// # Errors
    /// The record cannot be replayed on this page: in words, with the position.
    fn page(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String>;

    /// Puts what the record changes besides the pages that it names in the place of what `effects` held.
    ///
    /// # Errors
    /// The record is not understood.
    fn effects(&self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestError>;
}

/// Lakebed's redo of the built-in resource managers.
#[derive(Clone, Copy, Debug)]
pub struct Native;

impl Redo for Native {
    fn page(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String> {
        redo_block(record, block, page).map_err(|error| error.to_string())
    }

    fn effects(&self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestError> {
        interpret_into(record, effects)
    }
}
