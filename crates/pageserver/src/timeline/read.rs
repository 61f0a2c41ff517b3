//! A page at an LSN.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_layer::format::ReadCount;
use lakebed_layer::{Chain, MakeImage, ReadPoints, SinceImage, Stored, Value, read_watched};
use lakebed_redo::{PageBytes, checksum};
use lakebed_types::{Lsn, PageKey};

use super::explain::Source;
use super::{Link, Timeline, TimelineError};
use crate::catalogue::{Catalogue, Life};
use crate::page_cache::PageCache;
use crate::reconstruct;

/// What a read cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Values that were replayed: an image alone is 1, an unchanged page 0.
    pub values: usize,
    /// Layers and blocks.
    pub layers: ReadCount,
    /// Of those, what was replayed on top of an image, or of zeros.
    pub since: SinceImage,
    /// Time of the replay.
    pub redo: Duration,
}

/// Who wants to know how a chain is collected.
pub(super) trait Watch {
    /// What `source` has of the page is in the chain now.
    fn asked(&mut self, timeline: &Timeline, source: Source, chain: &Chain, count: &ReadCount);
}

/// Nobody.
impl Watch for () {
    fn asked(&mut self, _: &Timeline, _: Source, _: &Chain, _: &ReadCount) {}
}

impl Timeline {
    /// Offers `chain` what this timeline and its ancestors have of the page.
    pub(super) fn collect(
        &self,
        key: &PageKey,
        chain: &mut Chain,
        count: &mut ReadCount,
        watch: &mut impl Watch,
    ) -> Result<(), TimelineError> {
        // Layers and parent are looked at together: a branch that is detached gets the ones and gives up the other at once.
        let mut link: Option<Arc<Link>> = None;
        loop {
            let timeline = link.as_ref().map_or(self, |link| &*link.timeline);
            let (layers, next) = timeline.read(|state| {
                state.active.read(key, chain);
                watch.asked(timeline, Source::Memory, chain, count);
                if let Some(frozen) = &state.frozen {
                    frozen.table.read(key, chain);
                    watch.asked(timeline, Source::Frozen, chain, count);
                }
                (state.layers.clone(), state.parent.clone())
            });
            read_watched(
                &layers.map,
                key,
                chain,
                &timeline.index_cache,
                count,
                |id| layers.reader(id),
                |desc, chain, count| {
                    let source = Source::Layer {
                        id: desc.id,
                        kind: desc.kind,
                        first: desc.first,
                        last: desc.last,
                    };
                    watch.asked(timeline, source, chain, count);
                },
            )
            .map_err(|error| layers.blame(error))?;
            match next {
                Some(next) if !chain.is_complete() => {
                    chain.limit(next.lsn);
                    link = Some(next);
                }
                _ => return Ok(()),
            }
        }
    }

    /// A relation's or SLRU's page at an LSN: zeros if it has no version.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn page(&self, key: &PageKey, lsn: Lsn) -> Result<Box<PageBytes>, TimelineError> {
        self.page_and_cost(key, lsn).map(|(page, _)| page)
    }

    /// As [`Timeline::page`], and what it cost.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn page_and_cost(&self, key: &PageKey, lsn: Lsn) -> Result<(Box<PageBytes>, Cost), TimelineError> {
        if !self.identity.shard.owns(key) {
            return Err(TimelineError::WrongShard(*key));
        }
        let mut cost = Cost::default();
        let page = self.if_kept(lsn, || self.page_of_life(key, lsn, &mut cost))?;
        Ok((page, cost))
    }

    /// As [`Timeline::page_and_cost`], starting from what was built before.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn page_with(
        &self,
        cache: &PageCache,
        key: &PageKey,
        lsn: Lsn,
    ) -> Result<(Bytes, Cost), TimelineError> {
        if !self.identity.shard.owns(key) {
            return Err(TimelineError::WrongShard(*key));
        }
        let id = self.identity.timeline;
        // Of an earlier life of the page it is of no use.
        let known = cache
            .get(id, key, lsn)
            .filter(|(at, _)| *at >= self.life(key, lsn).floor);
        let mut cost = Cost::default();
        let page = self.if_kept(lsn, || match known {
            Some((at, page)) => self.page_since(key, at, page, lsn, &mut cost),
            None => {
                let page = self.page_of_life(key, lsn, &mut cost)?;
                Ok(self.sealed(key, page))
            }
        })?;
        cache.put(id, key, lsn, &page);
        Ok((page, cost))
    }

    /// The page at `lsn`, from the same page at `at` in the same life.
    fn page_since(
        &self,
        key: &PageKey,
        at: Lsn,
        known: Bytes,
        lsn: Lsn,
        cost: &mut Cost,
    ) -> Result<Bytes, TimelineError> {
        let mut chain = Chain::new(at, lsn);
        self.collect(key, &mut chain, &mut cost.layers, &mut ())?;
        if chain.is_empty() {
            return Ok(known);
        }
        let begin = if chain.has_base() {
            reconstruct::begin(chain.values().next().map(Stored::of))
        } else {
            let mut page = reconstruct::zeros();
            page.copy_from_slice(&known);
            (page, false)
        };
        let page = self.replay(key, chain, begin, cost)?;
        Ok(self.sealed(key, page))
    }

    /// A page as it is handed out: with its checksum, if the cluster's pages carry one. Redo leaves that alone, as
    /// Postgres does until it writes the page.
    fn sealed(&self, key: &PageKey, mut page: Box<PageBytes>) -> Bytes {
        if let (PageKey::Rel { block, .. }, true) = (key, self.identity.cluster.data_checksums) {
            checksum::set(&mut page, *block);
        }
        Bytes::from(page as Box<[u8]>)
    }

    /// Where the history of the page begins that counts at `lsn`.
    pub(super) fn life(&self, key: &PageKey, lsn: Lsn) -> Life {
        match key {
            PageKey::Rel { rel, block } => self.catalogue(|catalogue| catalogue.life(*rel, *block, lsn)),
            _ => Life {
                floor: Lsn(0),
                copied_from: None,
            },
        }
    }

    pub(super) fn page_of_life(
        &self,
        key: &PageKey,
        lsn: Lsn,
        cost: &mut Cost,
    ) -> Result<Box<PageBytes>, TimelineError> {
        let life = self.life(key, lsn);
        let mut chain = Chain::new(life.floor, lsn);
        self.collect(key, &mut chain, &mut cost.layers, &mut ())?;
        self.page_of_chain(key, life, chain, cost)
    }

    /// The page that it began as a copy of, with its whole database.
    pub(super) fn copied(&self, key: &PageKey, life: &Life) -> Option<PageKey> {
        match (key, life.copied_from) {
            (PageKey::Rel { block, .. }, Some(rel)) => Some(PageKey::Rel { rel, block: *block }),
            _ => None,
        }
    }

    pub(super) fn page_of_chain(
        &self,
        key: &PageKey,
        life: Life,
        chain: Chain,
        cost: &mut Cost,
    ) -> Result<Box<PageBytes>, TimelineError> {
        let begin = match self.copied(key, &life).filter(|_| !chain.has_base()) {
            // The copy was made of the template's files as of this record, which is after everything before it.
            Some(source) => (self.page_of_life(&source, life.floor, cost)?, false),
            None => reconstruct::begin(chain.values().next().map(Stored::of)),
        };
        self.replay(key, chain, begin, cost)
    }

    /// Replays a chain on what its page begins as; that may be the chain's oldest value already.
    fn replay(
        &self,
        key: &PageKey,
        chain: Chain,
        (mut page, has_oldest): (Box<PageBytes>, bool),
        cost: &mut Cost,
    ) -> Result<Box<PageBytes>, TimelineError> {
        let begin = Instant::now();
        let cluster = &self.identity.cluster;
        let values = chain.values().skip(usize::from(has_oldest)).map(Stored::of);
        let replayed = reconstruct::replay(cluster, &self.managers, key, &mut page, values);
        cost.values += chain.len();
        cost.since = chain.since_image();
        cost.redo += begin.elapsed();
        match replayed {
            Ok(()) => Ok(page),
            Err(source) => Err(TimelineError::Reconstruct { key: *key, source }),
        }
    }

    /// The control state's bytes at an LSN.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub fn control(&self, lsn: Lsn) -> Result<Bytes, TimelineError> {
        self.if_kept(lsn, || {
            let mut chain = Chain::new(Lsn(0), lsn);
            self.collect(&PageKey::Control, &mut chain, &mut ReadCount::default(), &mut ())?;
            let newest = chain.into_values().last();
            newest
                .map(|(_, value)| value.body)
                .ok_or(TimelineError::NoControl(lsn))
        })
    }
}

/// Makes the images of a merge.
pub(super) struct Redo<'a> {
    pub timeline: &'a Timeline,
    /// LSNs that the merge keeps.
    pub points: &'a ReadPoints,
}

impl MakeImage for Redo<'_> {
    type Error = TimelineError;

    fn ends(&mut self, key: &PageKey) -> Vec<Lsn> {
        match key {
            PageKey::Rel { rel, block } => {
                // Others were the parent's: what began after them is there.
                let start = self.timeline.identity.start;
                let ends = |catalogue: &Catalogue| catalogue.ends(*rel, *block, start);
                self.timeline.catalogue(ends)
            }
            _ => Vec::new(),
        }
    }

    fn image(
        &mut self,
        key: &PageKey,
        lsn: Lsn,
        values: &[(Lsn, Value)],
    ) -> Result<Option<Bytes>, TimelineError> {
        let Redo { timeline, points } = self;
        // Its versions are not steps from one to the next.
        if *key == PageKey::Control {
            return Ok(None);
        }
        let life = timeline.life(key, lsn);
        // A copy that nobody reads any more, and whose template may be given up: its values will be as well.
        if life.copied_from.is_some() && !points.contains(life.floor) {
            return Ok(None);
        }
        let page = timeline.obtaining_here(|| {
            let (mut chain, mut cost) = (Chain::new(life.floor, lsn), Cost::default());
            chain.offer(values.iter().cloned());
            if !chain.is_complete() {
                // What is below the inputs: the parent's, or after a detachment the own base, in layers of history.
                let start = timeline.identity.start;
                chain.limit(start);
                timeline.collect(key, &mut chain, &mut cost.layers, &mut ())?;
            }
            timeline.page_of_chain(key, life, chain, &mut cost)
        })?;
        Ok(Some(Bytes::from(page as Box<[u8]>)))
    }
}
