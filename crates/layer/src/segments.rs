//! One page's values, cut into segments: what goes into the current layer, what into history, what nowhere.
//!
//! A *segment* is a value that stands alone and the deltas above it, up to the next such value. It is what reads at
//! LSNs from its first value up to the next segment need, and nothing else is. So
//! - the last segment of a page is its current version;
//! - an older one is kept as far as the newest LSN that is still read among its own, and dropped if there is none;
//! - the end of a page's life (a truncation, a drop) ends its segment, and leaves it without a current version;
//! - when a segment's deltas pass the policy's bound, an image at the last one's LSN begins the next segment.
//!
//! Values go through one after the other; what is held is one segment.

use std::iter::Peekable;
use std::vec::IntoIter;

use bytes::Bytes;
use lakebed_types::{Lsn, PageKey};

use crate::{ImagePolicy, ReadPoints, SinceImage, Superseded, Value, ValueKind};

/// Makes a page from its values: redo, which this crate knows nothing of.
pub trait MakeImage {
    /// Why it could not.
    type Error;

    /// The page at `lsn`, of which `values` are all the values up to then that this timeline has, or all since one that
    /// stands alone. Values of an earlier life of the page, before a drop or truncation, may be among them: the caller
    /// knows where the life began. `None` for what has no image.
    ///
    /// # Errors
    /// A value does not fit the page, or what else the caller says. The merge ends.
    fn image(
        &mut self,
        key: &PageKey,
        lsn: Lsn,
        values: &[(Lsn, Value)],
    ) -> Result<Option<Bytes>, Self::Error>;

    /// LSNs at which lives of the page ended, ascending: reads from there on see no value at or below.
    fn ends(&mut self, key: &PageKey) -> Vec<Lsn>;
}

/// Versions of one page, oldest first.
type Versions = Vec<(Lsn, Value)>;

/// Takes the values of one page, oldest first.
#[derive(Debug)]
pub(crate) struct Segments {
    open: Versions,
    since: SinceImage,
    /// Ends of lives that are yet to come.
    ends: Peekable<IntoIter<Lsn>>,
}

/// What was made of values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Values for history, oldest first.
    pub history: Versions,
    /// Images that were made.
    pub images: u64,
    /// Values that nobody reads any more.
    pub dropped: u64,
    /// Until when the window needs what is in history.
    pub superseded: Superseded,
}

impl Segments {
    /// Of a page whose lives ended at these LSNs, ascending.
    pub(crate) fn new(ends: Vec<Lsn>) -> Segments {
        Segments {
            open: Vec::new(),
            since: SinceImage::default(),
            ends: ends.into_iter().peekable(),
        }
    }

    /// Takes the next value; gives what became history by it.
    pub(crate) fn push<M: MakeImage>(
        &mut self,
        (key, lsn, value): (&PageKey, Lsn, Value),
        (policy, points): (&ImagePolicy, &ReadPoints),
        images: &mut M,
    ) -> Result<Cut, M::Error> {
        let mut cut = Cut::default();
        let mut begin = None;
        while let Some(end) = self.ends.next_if(|end| *end < lsn) {
            self.end_life(end, points, &mut cut);
            begin = Some(end);
        }
        // An image comes after every value of its LSN.
        if self.open.last().is_some_and(|(last, _)| *last < lsn) {
            self.make_image(key, (policy, points), images, &mut cut)?;
        }
        if value.kind.stands_alone() {
            self.close(lsn, points, &mut cut);
        } else if let Some(begin) = begin {
            // The new life begins as zeros: who has come to here need not look into older layers, which may have the former one.
            let (kind, body) = (ValueKind::Image, Bytes::new());
            self.open.push((begin, Value { kind, body }));
        }
        self.since.add(value.kind, value.body.len());
        self.open.push((lsn, value));
        Ok(cut)
    }

    /// The page's current version, and what became history by an image of it.
    pub(crate) fn end<M: MakeImage>(
        mut self,
        key: &PageKey,
        rules: (&ImagePolicy, &ReadPoints),
        images: &mut M,
    ) -> Result<(Cut, Versions), M::Error> {
        let mut cut = Cut::default();
        while let Some(end) = self.ends.next() {
            self.end_life(end, rules.1, &mut cut);
        }
        self.make_image(key, rules, images, &mut cut)?;
        Ok((cut, self.open))
    }

    fn make_image<M: MakeImage>(
        &mut self,
        key: &PageKey,
        (policy, points): (&ImagePolicy, &ReadPoints),
        images: &mut M,
        cut: &mut Cut,
    ) -> Result<(), M::Error> {
        let Some((lsn, _)) = self.open.last().filter(|_| self.since.is_due(policy)) else {
            return Ok(());
        };
        let lsn = *lsn;
        if let Some(body) = images.image(key, lsn, &self.open)? {
            let kind = ValueKind::Image;
            self.close(lsn, points, cut);
            self.open.push((lsn, Value { kind, body }));
            cut.images += 1;
        }
        self.since = SinceImage::default();
        Ok(())
    }

    /// What comes later begins anew.
    fn end_life(&mut self, end: Lsn, points: &ReadPoints, cut: &mut Cut) {
        self.close(end, points, cut);
        self.since = SinceImage::default();
    }

    /// Ends the open segment: reads from `next` on see nothing of it.
    fn close(&mut self, next: Lsn, points: &ReadPoints, cut: &mut Cut) {
        let first = self.open.first().map_or(next, |(first, _)| *first);
        let newest = points.newest_in(first, next);
        let values = self.open.len();
        let kept = newest.map_or(0, |newest| self.open.partition_point(|(lsn, _)| *lsn <= newest));
        cut.dropped += (values - kept) as u64;
        let bytes = |values: &[(Lsn, Value)]| values.iter().map(|(_, value)| value.body.len() as u64).sum();
        match self.open.get(..kept).map_or(0, bytes) {
            0 => {}
            bytes if newest >= points.horizon() => cut.superseded.add(next, bytes),
            bytes => cut.superseded.add_pinned(bytes),
        }
        cut.history.extend(self.open.drain(..).take(kept));
    }
}

#[cfg(test)]
#[path = "segments_tests.rs"]
mod tests;
