//! The one place where this crate calls redo, and where others can be put in its place.

use std::collections::BTreeMap;

use lakebed_redo::{PageBytes, mask, page, redo_block, restore_image};
use lakebed_wal::record::{BlockRef, DecodedRecord};

/// Replays records on pages.
pub trait PageRedo: Sync {
    /// Changes `page`, the version before the record of the page that `block` names, into the version after it.
    ///
    /// # Errors
    /// The record cannot be replayed on this page: in words, with the position.
    fn redo(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String>;
}

/// Lakebed's redo of the built-in resource managers.
#[derive(Clone, Copy, Debug)]
pub struct Native;

impl PageRedo for Native {
    fn redo(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String> {
        redo_block(record, block, page).map_err(|error| error.to_string())
    }
}

/// An extension's resource manager (number 128 and above), as a plug-in. Its records may change pages and nothing else.
pub trait ResourceManager: Sync {
    /// Its name, as the extension's `RmgrData` has it.
    fn name(&self) -> &str;

    /// Name of a record type, from the upper half of `xl_info`.
    fn operation(&self, info: u8) -> String;

    /// Changes the page as the manager's redo function does. Images, pages to start from zeros, and pages that already
    /// have the record's LSN are dealt with outside; setting the page's LSN is this function's business.
    ///
    /// # Errors
    /// What is wrong with the record or the page.
    fn redo(&self, record: &DecodedRecord, block: &BlockRef, page: &mut PageBytes) -> Result<(), String>;

    /// Blanks what may differ between a page and its replayed copy, as the manager's mask function does.
    fn mask(&self, page: &mut PageBytes, block: u32);
}

/// Plug-ins by resource manager number.
#[derive(Default)]
pub struct Managers(BTreeMap<u8, Box<dyn ResourceManager>>);

impl std::fmt::Debug for Managers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// First number that extensions may have (`RM_MIN_CUSTOM_ID`).
pub const FIRST_CUSTOM_MANAGER: u8 = 128;

impl Managers {
    /// Registers a plug-in for a number.
    ///
    /// # Errors
    /// The number belongs to Postgres itself, or is taken.
    pub fn register(&mut self, rmid: u8, manager: Box<dyn ResourceManager>) -> Result<(), String> {
        if rmid < FIRST_CUSTOM_MANAGER {
            return Err(format!("resource manager {rmid} is Postgres's own"));
        }
        if let Some(other) = self.0.get(&rmid) {
            return Err(format!("resource manager {rmid} is taken by {}", other.name()));
        }
        self.0.insert(rmid, manager);
        Ok(())
    }

    pub(crate) fn get(&self, rmid: u8) -> Option<&dyn ResourceManager> {
        self.0.get(&rmid).map(|manager| &**manager)
    }

    /// Masks a page for the comparison with an image in a record of this resource manager.
    pub(crate) fn mask(&self, rmid: u8, page: &mut PageBytes, block: u32) {
        match self.get(rmid) {
            Some(manager) => manager.mask(page, block),
            None => mask::for_record(rmid, page, block),
        }
    }
}

/// Replays a record of a plug-in (`XLogReadBufferForRedoExtended` around its redo function).
pub(crate) fn redo_custom(
    manager: &dyn ResourceManager,
    record: &DecodedRecord,
    block: &BlockRef,
    page: &mut PageBytes,
) -> Result<(), String> {
    let place = |fault: &str| {
        format!(
            "cannot replay the record at {} ({} {}) on {} block {}: {fault}",
            record.start,
            manager.name(),
            manager.operation(record.info & 0xF0),
            block.rel,
            block.block
        )
    };
    if let Some(image) = block.image.as_ref().filter(|image| image.apply) {
        restore_image(image, page).map_err(place)?;
        if !page::is_new(page) {
            page::set_lsn(page, record.end);
        }
        return Ok(());
    }
    if block.will_init {
        page.fill(0);
    } else if page::lsn(page) >= record.end {
        return Ok(());
    }
    manager.redo(record, block, page).map_err(|fault| place(&fault))
}
