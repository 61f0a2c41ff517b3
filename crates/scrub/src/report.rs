//! What was found.

use serde::Serialize;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Bytes are not what they should be.
    Damaged,
    /// What something refers to is not there.
    Missing,
    /// An object has another size than what refers to it says.
    WrongSize,
    /// A branch has no parent, or one that does not reach it.
    NoParent,
    /// WAL is missing between objects.
    Gap,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The object, or the directory.
    pub path: String,
    /// In words.
    pub what: String,
}

/// What a leftover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody will ever name it.
    Orphan,
    /// It was one, and is deleted.
    Deleted,
    /// Of a change that may yet be under way.
    Unfinished,
    /// Not of this tier, or of a newer version.
    Unknown,
}

/// An object that nothing refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The object.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Seconds since it was written.
    pub age_s: u64,
    /// What it is.
    pub state: State,
    /// Why that is known, or why no more is known.
    pub why: String,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Objects in the listing.
    pub objects: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Timelines of shards.
    pub timelines: usize,
    /// Manifests that were read.
    pub manifests: usize,
    /// Layers that are there.
    pub layers: usize,
    /// Objects of WAL.
    pub wal_objects: usize,
    /// Bytes of layers and WAL that were read and checked.
    pub checked_bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What nobody refers to.
    pub leftovers: Vec<Leftover>,
}

impl Report {
    /// Leftovers of a kind.
    pub fn leftovers_of(&self, state: State) -> impl Iterator<Item = &Leftover> {
        self.leftovers
            .iter()
            .filter(move |leftover| leftover.state == state)
    }

    /// Nothing is wrong, and nothing lies about that could go.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.leftovers_of(State::Orphan).next().is_none()
    }
}
