//! A part of a state that other states share, hashed when it has changed and not with every state that has it.
//!
//! Most steps change one safekeeper and one proposer. A state is its parts' hashes, of 64 bits each, to the checker,
//! which keeps 64 bits of each state anyway: two states with the same ones count as one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// See the module header. Whoever changes one [seals](Part::seal) it before the state is compared or hashed.
#[derive(Debug, Clone)]
pub(crate) struct Part<T> {
    value: Arc<T>,
    /// None once it was changed.
    hash: Option<u64>,
}

impl<T: Hash> Part<T> {
    pub(crate) fn new(value: T) -> Part<T> {
        let mut part = Part {
            value: Arc::new(value),
            hash: None,
        };
        part.seal();
        part
    }

    /// Computes the hash anew, if need be.
    pub(crate) fn seal(&mut self) {
        if self.hash.is_none() {
            let mut hasher = DefaultHasher::new();
            self.value.hash(&mut hasher);
            self.hash = Some(hasher.finish());
        }
    }

    /// The hash of what was sealed.
    pub(crate) fn hash_of(&self) -> Option<u64> {
        self.hash
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Clone> DerefMut for Part<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.hash = None;
        Arc::make_mut(&mut self.value)
    }
}

impl<T> PartialEq for Part<T> {
    fn eq(&self, other: &Part<T>) -> bool {
        self.hash.is_some() && self.hash == other.hash
    }
}

impl<T> Eq for Part<T> {}

impl<T> Hash for Part<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}
