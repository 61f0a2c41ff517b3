//! Resource managers of extensions, numbers 128 and above, as plug-ins.
//!
//! An extension registers its redo function with Postgres in `_PG_init` (`RegisterCustomRmgr`). Here the same knowledge
//! is a value of the trait [`ResourceManager`], and [`Managers`] holds those that a program was built with. Nothing is
//! loaded at run time: an operator with such an extension builds a program of their own.
//!
//! The contract is that of the built-in managers. A record may change the pages that it names and nothing else, each
//! of them without a look at another one. What every redo function does the same way is done outside: images are
//! restored, pages that the record initializes are zeros, and a page that has the record's LSN already is left alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use lakebed_wal::record::FIRST_CUSTOM_MANAGER;

use crate::{Fault, PageBytes, PageRecord, mask};

/// Redo of one extension's records.
///
/// ```
/// use std::sync::Arc;
/// use lakebed_redo::{Managers, PageBytes, PageRecord, ResourceManager, mask, page};
///
/// /// Records that overwrite what is behind the page's header.
/// struct Toy;
///
/// impl ResourceManager for Toy {
///     fn name(&self) -> &str {
///         "toy"
///     }
///
///     fn redo(&self, record: &PageRecord<'_>, bytes: &mut PageBytes) -> Result<(), &'static str> {
///         let data = record.own.data.ok_or("no data")?;
///         let target = bytes.get_mut(24..24 + data.len()).ok_or("more data than a page holds")?;
///         target.copy_from_slice(data);
///         page::set_lsn(bytes, record.end);
///         Ok(())
///     }
///
///     fn mask(&self, bytes: &mut PageBytes, _block: u32) {
///         mask::lsn_and_checksum(bytes);
///     }
/// }
///
/// let mut managers = Managers::default();
/// managers.register(200, Arc::new(Toy)).unwrap();
/// assert!(managers.knows(200));
/// ```
pub trait ResourceManager: Send + Sync {
    /// Its name, as the extension's `RmgrData` has it.
    fn name(&self) -> &str;

    /// Name of a record type, from the upper half of `xl_info`; for reports.
    fn operation(&self, info: u8) -> String {
        format!("{info:#04x}")
    }

    /// Changes the page that `record.own` names as the manager's redo function does, and sets its LSN to `record.end`.
    ///
    /// The record comes from WAL or from a layer, so its bytes and those of the page are hostile: check them.
    ///
    /// # Errors
    /// What is wrong with the record or the page. The timeline cannot be replayed any further.
    fn redo(&self, record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), &'static str>;

    /// Blanks what may differ between a page and its replayed copy, as the manager's mask function does: the LSN and
    /// the checksum at least. For comparisons only.
    fn mask(&self, page: &mut PageBytes, block: u32);
}

/// A number that a plug-in cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The number is below 128.
    #[error("resource manager {0} is Postgres's own")]
    Reserved(u8),
    /// There is a plug-in for it already.
    #[error("resource manager {rmid} is taken by {name}")]
    Taken {
        /// The number.
        rmid: u8,
        /// Name of the plug-in that has it.
        name: String,
    },
}

/// The plug-ins of a program, by number. Copies share them.
#[derive(Clone, Default)]
pub struct Managers(BTreeMap<u8, Arc<dyn ResourceManager>>);

impl fmt::Debug for Managers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.0.iter().map(|(rmid, manager)| (rmid, manager.name()));
        f.debug_map().entries(named).finish()
    }
}

impl Managers {
    /// No plug-ins: Postgres's own resource managers alone.
    pub fn none() -> &'static Managers {
        static NONE: Managers = Managers(BTreeMap::new());
        &NONE
    }

    /// Registers a plug-in for a number.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub fn register(&mut self, rmid: u8, manager: Arc<dyn ResourceManager>) -> Result<(), RegisterError> {
        if rmid < FIRST_CUSTOM_MANAGER {
            return Err(RegisterError::Reserved(rmid));
        }
        if let Some(other) = self.0.get(&rmid) {
            let name = other.name().to_owned();
            return Err(RegisterError::Taken { rmid, name });
        }
        self.0.insert(rmid, manager);
        Ok(())
    }

    /// The plug-in for a number.
    pub fn get(&self, rmid: u8) -> Option<&dyn ResourceManager> {
        self.0.get(&rmid).map(|manager| &**manager)
    }

    /// Whether there is redo for what records of this resource manager, Postgres's own or a plug-in, do to pages.
    /// Without it only images can be restored, and a record that changes a page without one must not be taken.
    pub fn knows(&self, rmid: u8) -> bool {
        crate::redo_of(rmid).is_some() || self.0.contains_key(&rmid)
    }

    /// Masks a page and the image of it in a record of this resource manager, for their comparison.
    pub fn mask(&self, rmid: u8, ours: &mut PageBytes, image: &mut PageBytes, block: u32) {
        match self.get(rmid) {
            Some(manager) => {
                manager.mask(ours, block);
                manager.mask(image, block);
            }
            None => mask::both_for_record(rmid, ours, image, block),
        }
    }

    pub(crate) fn redo(&self, record: &PageRecord<'_>, page: &mut PageBytes) -> Result<(), Fault> {
        let manager = self.get(record.rmid);
        let manager = manager.ok_or("no redo for pages of this resource manager")?;
        manager.redo(record, page)
    }
}

#[cfg(test)]
mod tests;
