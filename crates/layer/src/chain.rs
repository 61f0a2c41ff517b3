//! Collecting the values that a read must replay.

use lakebed_types::Lsn;

use crate::{SinceImage, Value};

/// The values of one page in `(floor, upto]` that are needed to build its version at `upto`: from the newest value that
/// stands alone, onward. Layers are offered from the newest to the oldest.
#[derive(Debug)]
pub struct Chain {
    floor: Lsn,
    upto: Lsn,
    newest_first: Vec<(Lsn, Value)>,
    complete: bool,
}

impl Chain {
    /// A chain for the version at `upto`. Values at or below `floor` belong to an earlier life of the page (before a
    /// truncation or drop) and are not seen.
    pub fn new(floor: Lsn, upto: Lsn) -> Chain {
        Chain {
            floor,
            upto,
            newest_first: Vec::new(),
            complete: floor >= upto,
        }
    }

    /// The LSN that is read; lower once the chain goes on in a parent timeline.
    pub fn upto(&self) -> Lsn {
        self.upto
    }

    /// Whether nothing older can matter.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Offers the values of the next older layer, oldest first.
    pub fn offer(&mut self, values: impl IntoIterator<IntoIter: DoubleEndedIterator<Item = (Lsn, Value)>>) {
        values
            .into_iter()
            .rev()
            .all(|(lsn, value)| self.offer_one(lsn, value));
    }

    /// Offers the next older value. Whether older ones may matter.
    pub fn offer_one(&mut self, lsn: Lsn, value: Value) -> bool {
        if lsn <= self.floor {
            self.complete = true;
        } else if !self.complete && lsn <= self.upto {
            self.complete = value.kind.stands_alone();
            self.newest_first.push((lsn, value));
        }
        !self.complete
    }

    /// Tells that every layer down to `lsn` has been offered: below the floor there is nothing to see.
    pub fn reached(&mut self, lsn: Lsn) {
        self.complete |= lsn <= self.floor;
    }

    /// Goes on in the parent timeline, where only versions up to the branch point are seen.
    pub fn limit(&mut self, branch: Lsn) {
        self.upto = self.upto.min(branch);
        self.complete |= self.floor >= self.upto;
    }

    /// LSN of the newest value.
    pub fn newest(&self) -> Option<Lsn> {
        self.newest_first.first().map(|(lsn, _)| *lsn)
    }

    /// What is replayed on top of the value that stands alone, or of zeros.
    pub fn since_image(&self) -> SinceImage {
        let mut since = SinceImage::default();
        self.values()
            .for_each(|(_, value)| since.add(value.kind, value.body.len()));
        since
    }

    /// Number of values so far.
    pub fn len(&self) -> usize {
        self.newest_first.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.newest_first.is_empty()
    }

    /// Whether the oldest value stands alone; without it the page begins as zeros.
    pub fn has_base(&self) -> bool {
        self.newest_first
            .last()
            .is_some_and(|(_, value)| value.kind.stands_alone())
    }

    /// The values, oldest first.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &(Lsn, Value)> + Clone {
        self.newest_first.iter().rev()
    }

    /// As [`Chain::values`], taken out.
    pub fn into_values(self) -> impl Iterator<Item = (Lsn, Value)> {
        self.newest_first.into_iter().rev()
    }
}
