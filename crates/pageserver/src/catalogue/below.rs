//! What a branch has of its parent's catalogue: all of it up to the branch point, where it stands.
//!
//! ```text
//!   branch   own versions     ●────●───►
//!                             │ a question that they do not answer, at no later LSN than the branch point
//!   parent   ●───●──────●─────┴───●────►  later ones are never seen from there
//! ```
//!
//! What is at the branch point never changes: entries come at the end, and [`super::thin`] gives up nothing that is read at a
//! branch point, which a parent keeps before its branch is there. A branch that is detached gets a catalogue of its own to
//! stand on, with everything as of the branch point.
//!
//! **Files are copied**, the newest version of each. They are few, and a file that no WAL carries is stored at the LSN of the last
//! record: one that comes to a parent after its branch may have the branch point's, and is none of the branch's business.

use std::sync::{Arc, RwLock};

use lakebed_types::Lsn;

use super::{Catalogue, version_at};

/// A catalogue that its timeline changes, and that branches look at. Who holds one may ask those below it, never the other way
/// round.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<RwLock<Catalogue>>);

impl Shared {
    /// Of this one.
    pub fn new(catalogue: Catalogue) -> Shared {
        Shared(Arc::new(RwLock::new(catalogue)))
    }

    /// Asks it.
    pub fn ask<T>(&self, question: impl FnOnce(&Catalogue) -> T) -> T {
        // A poisoned lock means that a thread panicked in the middle of a change; the data is not trustworthy then.
        question(&self.0.read().expect("the catalogue's lock is poisoned"))
    }

    /// Changes it.
    pub fn change<T>(&self, change: impl FnOnce(&mut Catalogue) -> T) -> T {
        change(&mut self.0.write().expect("the catalogue's lock is poisoned"))
    }
}

/// See the module header.
#[derive(Clone, Debug)]
pub(super) struct Below {
    catalogue: Shared,
    /// The branch point.
    upto: Lsn,
}

impl Below {
    /// Asks about an LSN, or about the branch point, if that is before it.
    pub fn ask<T>(&self, lsn: Lsn, question: impl FnOnce(&Catalogue, Lsn) -> T) -> T {
        let lsn = lsn.min(self.upto);
        self.catalogue.ask(|catalogue| question(catalogue, lsn))
    }
}

impl Catalogue {
    /// That of a branch which begins at `lsn`.
    pub fn branch(parent: Shared, lsn: Lsn) -> Catalogue {
        let mut branch = Catalogue::default();
        branch.files = parent.ask(|parent| {
            let newest = parent.files.iter().filter_map(|(path, versions)| {
                let (version, content) = version_at(versions, lsn)?;
                let content = content.as_ref()?;
                Some((path.clone(), vec![(*version, Some(content.clone()))]))
            });
            newest.collect()
        });
        branch.versions = branch.count();
        branch.rest_on(parent, lsn);
        branch
    }

    /// Has it ask another one for what it has not, as of `lsn`.
    pub fn rest_on(&mut self, catalogue: Shared, lsn: Lsn) {
        let upto = lsn;
        self.below = Some(Below { catalogue, upto });
    }

    /// Asks what is below, if there is something, at no later LSN than the branch point.
    pub(super) fn ask_below<T>(&self, lsn: Lsn, question: impl FnOnce(&Catalogue, Lsn) -> T) -> Option<T> {
        self.below.as_ref().map(|below| below.ask(lsn, question))
    }
}

#[cfg(test)]
#[path = "below_tests.rs"]
mod tests;
