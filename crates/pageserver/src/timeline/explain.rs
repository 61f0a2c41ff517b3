//! How a page at an LSN comes about: which layers were asked, what they had, and what each step took.
//!
//! The same way as a read takes ([`super::read`]), watched, and without pages that were built before: so it shows what the
//! first read of the page costs.

use std::time::{Duration, Instant};

use lakebed_ingest::{names, rmgr};
use lakebed_layer::format::ReadCount;
use lakebed_layer::{Chain, LayerId, LayerKind, Stored, Value, ValueKind};
use lakebed_redo::{PageBytes, PageRecord, StoredPlace};
use lakebed_types::{Lsn, PageKey, TimelineId};

use super::read::Watch;
use super::{Timeline, TimelineError};
use crate::reconstruct;

/// Where values were looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The table that is filled.
    Memory,
    /// The table that is being stored.
    Frozen,
    /// A layer.
    Layer {
        /// Its name.
        id: LayerId,
        /// Its kind.
        kind: LayerKind,
        /// Its lowest LSN.
        first: Lsn,
        /// Its highest LSN.
        last: Lsn,
    },
}

/// One place that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Of this timeline: the one that is read, or an ancestor.
    pub timeline: TimelineId,
    /// For this page: the one that is read, or the one that it was copied from with its database.
    pub key: PageKey,
    /// Where.
    pub source: Source,
    /// Values that it added to the chain.
    pub values: usize,
    /// Its filter said that the page is not in it.
    pub filtered: bool,
    /// Index blocks that were not in memory.
    pub index_blocks: u32,
    /// Data blocks.
    pub data_blocks: u32,
    /// How long it took.
    pub took: Duration,
}

/// A value of the chain, in the order of the replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Which of the steps found it.
    pub step: usize,
    /// Its LSN.
    pub lsn: Lsn,
    /// What it is.
    pub kind: ValueKind,
    /// Type of its record as `pg_waldump` names it, if it is one.
    pub record: Option<String>,
    /// Stored bytes.
    pub bytes: usize,
    /// Time of its replay.
    pub took: Duration,
}

/// See the module header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Where the page's present life begins: values at or below are of an earlier one.
    pub floor: Lsn,
    /// The page that it is a copy of, if nothing of its own says how it began.
    pub copied_from: Option<PageKey>,
    /// Places that were asked, in that order.
    pub steps: Vec<Step>,
    /// Values, oldest first.
    pub values: Vec<Replayed>,
    /// The page.
    pub page: Box<PageBytes>,
    /// All of it.
    pub took: Duration,
}

impl Explained {
    /// LSN of the image or the record that the page begins with; none for a page that begins as zeros.
    pub fn base_lsn(&self) -> Option<Lsn> {
        let first = self.values.first()?;
        first.kind.stands_alone().then_some(first.lsn)
    }

    /// Time of the replay.
    pub fn redo(&self) -> Duration {
        self.values.iter().map(|value| value.took).sum()
    }
}

/// Takes note of the steps of one page's collection.
struct Watched<'a> {
    key: PageKey,
    steps: &'a mut Vec<Step>,
    since: Instant,
    values: usize,
    count: ReadCount,
}

impl Watch for Watched<'_> {
    fn asked(&mut self, timeline: &Timeline, source: Source, chain: &Chain, count: &ReadCount) {
        let now = Instant::now();
        self.steps.push(Step {
            timeline: timeline.identity.timeline,
            key: self.key,
            source,
            values: chain.len() - self.values,
            filtered: count.filtered > self.count.filtered,
            index_blocks: count.index_blocks - self.count.index_blocks,
            data_blocks: count.data_blocks - self.count.data_blocks,
            took: now - self.since,
        });
        (self.since, self.values, self.count) = (now, chain.len(), *count);
    }
}

impl Timeline {
    /// Builds a page as a read does, and tells how.
    ///
    /// # Errors
    /// As [`Timeline::page`].
    pub fn explain(&self, key: &PageKey, lsn: Lsn) -> Result<Explained, TimelineError> {
        if !self.identity.shard.owns(key) {
            return Err(TimelineError::WrongShard(*key));
        }
        let begin = Instant::now();
        let mut explained = Explained {
            floor: self.life(key, lsn).floor,
            copied_from: None,
            steps: Vec::new(),
            values: Vec::new(),
            page: reconstruct::zeros(),
            took: Duration::ZERO,
        };
        self.if_kept(lsn, || self.explain_life(key, lsn, &mut explained))?;
        explained.took = begin.elapsed();
        Ok(explained)
    }

    fn explain_life(&self, key: &PageKey, lsn: Lsn, explained: &mut Explained) -> Result<(), TimelineError> {
        let life = self.life(key, lsn);
        let mut chain = Chain::new(life.floor, lsn);
        let first = explained.steps.len();
        let mut watched = Watched {
            key: *key,
            steps: &mut explained.steps,
            since: Instant::now(),
            values: 0,
            count: ReadCount::default(),
        };
        self.collect(key, &mut chain, &mut ReadCount::default(), &mut watched)?;
        // The chain was filled from its newest value on, step by step.
        let of_own = (first..).zip(&explained.steps[first..]);
        let mut found_by: Vec<usize> = of_own
            .flat_map(|(at, step)| std::iter::repeat_n(at, step.values))
            .collect();
        if let Some(source) = self.copied(key, &life).filter(|_| !chain.has_base()) {
            explained.copied_from.get_or_insert(source);
            self.explain_life(&source, life.floor, explained)?;
        }
        for value in chain.values() {
            let begin = Instant::now();
            let cluster = &self.identity.cluster;
            reconstruct::replay(
                cluster,
                &self.managers,
                key,
                &mut explained.page,
                std::iter::once(Stored::of(value)),
            )
            .map_err(|source| TimelineError::Reconstruct { key: *key, source })?;
            let took = begin.elapsed();
            let (lsn, value) = value;
            explained.values.push(Replayed {
                step: found_by.pop().unwrap_or(first),
                lsn: *lsn,
                kind: value.kind,
                record: self.record_name(key, *lsn, value),
                bytes: value.body.len(),
                took,
            });
        }
        Ok(())
    }

    fn record_name(&self, key: &PageKey, lsn: Lsn, value: &Value) -> Option<String> {
        let (PageKey::Rel { rel, block }, ValueKind::Base | ValueKind::Delta) = (*key, value.kind) else {
            return None;
        };
        let version = self.identity.cluster.postgres_major;
        let place = StoredPlace {
            version,
            end: lsn,
            rel,
            block,
        };
        let PageRecord { rmid, info, .. } = PageRecord::decode(&value.body, place).ok()?;
        if let Some(manager) = self.managers.get(rmid) {
            return Some(format!("{}/{}", manager.name(), manager.operation(info & 0xF0)));
        }
        let operation = names::operation_or_bits(version, rmid, info);
        Some(format!("{}/{operation}", rmgr::name(rmid)))
    }
}
