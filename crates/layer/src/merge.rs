//! A merge: level-0 layers, a current layer and perhaps history go in; a current layer and one of history come out.
//!
//! It runs a page at a time ([`Merge::step`]) and holds of each input one block, of the page one segment, of each output
//! one block, whatever the size of the layers. Between two steps it may rest, or be given up: nothing counts before a
//! [`Finished`] is made durable and applied to the map. Outputs that have grown large are cut before the next page, so
//! that a merge of a large partition is many changes, each of use; the one that is given up is planned again from the
//! last cut on.

use std::io::Write;
use std::sync::Arc;

use lakebed_types::{Lsn, PageKey, ShardIdentity};

use crate::format::{Codec, Cursor, LayerReader, LayerWriter, Piece, ReadAt, ReadError, WriteError};
use crate::segments::{Cut, Segments};
use crate::{
    ImagePolicy, Job, LayerDesc, LayerId, LayerKind, MakeImage, Merged, PageRange, ReadPoints, Superseded,
    Value,
};

/// Where new layers go.
pub trait NewLayers {
    /// What takes a layer's bytes.
    type Sink: Write;

    /// A sink for a new layer, and its name.
    ///
    /// # Errors
    /// The merge ends; it may be planned again.
    fn create(&mut self, kind: LayerKind) -> std::io::Result<(LayerId, Self::Sink)>;
}

/// Why a merge ended. Nothing has changed; what it wrote since the last cut is of no use.
#[derive(Debug, thiserror::Error)]
pub enum MergeError<E> {
    /// An input cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An output cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// An output cannot be made.
    #[error("making a layer: {0}")]
    Create(std::io::Error),
    /// An image cannot be made.
    #[error("page {key}: {source}")]
    Image {
        /// The page.
        key: PageKey,
        /// Why not.
        source: E,
    },
}

/// What a merge obeys.
#[derive(Clone, Debug)]
pub struct MergeRules {
    /// When pages get images.
    pub images: ImagePolicy,
    /// LSNs that are read.
    pub points: ReadPoints,
    /// Size of the current layer, and of the one of history, at which outputs are cut.
    pub layer_bytes: u64,
    /// Whose pages these are: what inputs have of others, from before a split, is left out.
    pub shard: ShardIdentity,
}

/// What a merge has done, for metrics: bytes in and out are the write amplification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeCount {
    /// Pages.
    pub pages: u64,
    /// Values read.
    pub values: u64,
    /// Values that nobody reads any more.
    pub dropped: u64,
    /// Images made.
    pub images: u64,
    /// Bytes of the blocks that were read.
    pub bytes_read: u64,
    /// Bytes of the layers that were finished.
    pub bytes_written: u64,
}

/// Outputs that are complete: to be made durable, then applied.
#[derive(Debug)]
pub struct Finished<S> {
    /// The change.
    pub merged: Merged,
    /// Current layer and history, if there are such.
    pub sinks: Vec<(S, LayerDesc)>,
}

/// What a step did.
#[derive(Debug)]
pub enum Step<S> {
    /// It merged a page; more are to come.
    Page,
    /// Outputs are complete up to some page; more are to come.
    Cut(Box<Finished<S>>),
    /// Outputs are complete up to the partition's end. There is nothing more to do.
    Done(Box<Finished<S>>),
}

/// A merge that runs.
#[derive(Debug)]
pub struct Merge<R, S> {
    job: Job,
    rules: MergeRules,
    inputs: Vec<Input<R>>,
    current: Option<Output<S>>,
    history: Option<Output<S>>,
    /// Where the outputs begin.
    from: PageKey,
    done: bool,
    count: MergeCount,
}

#[derive(Debug)]
struct Input<R> {
    reader: Arc<LayerReader<R>>,
    cursor: Cursor,
}

#[derive(Debug)]
struct Output<S> {
    writer: LayerWriter<S>,
    /// Lowest and highest LSN.
    lsns: (Lsn, Lsn),
    /// See [`Merged::superseded`].
    superseded: Superseded,
}

impl<R: ReadAt, S: Write> Merge<R, S> {
    /// Begins a job. `readers` are those of the job's inputs, in that order.
    pub fn new(job: Job, rules: MergeRules, readers: Vec<Arc<LayerReader<R>>>) -> Merge<R, S> {
        let from = job.pages.from;
        let input = |reader: Arc<LayerReader<R>>| Input {
            cursor: Cursor::new(&reader, from),
            reader,
        };
        Merge {
            inputs: readers.into_iter().map(input).collect(),
            job,
            rules,
            current: None,
            history: None,
            from,
            done: false,
            count: MergeCount::default(),
        }
    }

    /// What was done so far.
    pub fn count(&self) -> MergeCount {
        let read = self.inputs.iter().map(|input| input.cursor.count.bytes).sum();
        MergeCount {
            bytes_read: read,
            ..self.count
        }
    }

    /// Merges the next page, or ends outputs that are large enough. After [`Step::Done`] it must not be called again.
    ///
    /// # Errors
    /// See [`MergeError`].
    pub fn step<M: MakeImage>(
        &mut self,
        layers: &mut impl NewLayers<Sink = S>,
        images: &mut M,
    ) -> Result<Step<S>, MergeError<M::Error>> {
        let next = self.next_page()?.filter(|key| self.job.pages.contains(key));
        let Some(key) = next else {
            self.done = true;
            return Ok(Step::Done(Box::new(self.finish(self.job.pages.to)?)));
        };
        let size = |output: &Option<Output<S>>| output.as_ref().map_or(0, |output| output.writer.bytes());
        if size(&self.current).max(size(&self.history)) >= self.rules.layer_bytes {
            return Ok(Step::Cut(Box::new(self.finish(Some(key))?)));
        }
        if self.rules.shard.owns(&key) {
            self.page(key, layers, images)?;
        } else {
            self.leave_out(key)?;
        }
        Ok(Step::Page)
    }

    /// Goes past a page that is another shard's.
    fn leave_out(&mut self, key: PageKey) -> Result<(), ReadError> {
        for at in 0..self.inputs.len() {
            while let Some(piece) = self.piece_of(at, key)? {
                self.count.values += piece.values.len() as u64;
                self.count.dropped += piece.values.len() as u64;
            }
        }
        Ok(())
    }

    /// The lowest page that an input has.
    fn next_page(&mut self) -> Result<Option<PageKey>, ReadError> {
        let mut lowest = None;
        for input in &mut self.inputs {
            let key = input.cursor.peek(&input.reader)?;
            lowest = match (lowest, key) {
                (Some(lowest), Some(key)) => Some(key.min(lowest)),
                (lowest, key) => lowest.or(key),
            };
        }
        Ok(lowest)
    }

    fn page<M: MakeImage>(
        &mut self,
        key: PageKey,
        layers: &mut impl NewLayers<Sink = S>,
        images: &mut M,
    ) -> Result<(), MergeError<M::Error>> {
        let failed = |source| MergeError::Image { key, source };
        // What ended later is of no account to the layers that come out: they say nothing of it.
        let mut ends = images.ends(&key);
        ends.retain(|end| *end <= self.job.through);
        let mut segments = Segments::new(ends);
        self.count.pages += 1;
        for at in 0..self.inputs.len() {
            while let Some(piece) = self.piece_of(at, key)? {
                self.count.values += piece.values.len() as u64;
                for (lsn, value) in piece.values {
                    let rules = (&self.rules.images, &self.rules.points);
                    let cut = segments.push((&key, lsn, value), rules, images);
                    self.old_values(key, cut.map_err(failed)?, layers)?;
                }
            }
        }
        let rules = (&self.rules.images, &self.rules.points);
        let (cut, current) = segments.end(&key, rules, images).map_err(failed)?;
        self.old_values(key, cut, layers)?;
        for (lsn, value) in current {
            put(&mut self.current, layers, LayerKind::Current, (key, lsn, &value))?;
        }
        Ok(())
    }

    fn piece_of(&mut self, at: usize, key: PageKey) -> Result<Option<Piece>, ReadError> {
        let Some(input) = self.inputs.get_mut(at) else {
            return Ok(None);
        };
        if input.cursor.peek(&input.reader)? != Some(key) {
            return Ok(None);
        }
        input.cursor.next(&input.reader)
    }

    fn old_values<E>(
        &mut self,
        key: PageKey,
        cut: Cut,
        layers: &mut impl NewLayers<Sink = S>,
    ) -> Result<(), MergeError<E>> {
        self.count.images += cut.images;
        self.count.dropped += cut.dropped;
        for (lsn, value) in &cut.history {
            put(&mut self.history, layers, LayerKind::History, (key, *lsn, value))?;
        }
        if let Some(history) = &mut self.history {
            history.superseded.add_all(&cut.superseded);
        }
        Ok(())
    }

    /// Ends the outputs before the page `to`.
    fn finish(&mut self, to: Option<PageKey>) -> Result<Finished<S>, WriteError> {
        let mut sinks = Vec::new();
        let mut end = |output: Option<Output<S>>| {
            let Some(Output { writer, lsns, .. }) = output else {
                return Ok(None);
            };
            let (sink, desc) = writer.finish(lsns.0, lsns.1, &[])?;
            sinks.push((sink, desc));
            Ok(Some(desc))
        };
        let superseded = self.history.as_mut();
        let superseded = superseded.map(|history| std::mem::take(&mut history.superseded));
        let points = &self.rules.points;
        let pinned = match (&self.history, &superseded) {
            (Some(history), Some(superseded)) if superseded.has_pinned() => points
                .below(points.horizon().unwrap_or(Lsn::MAX))
                .filter(|lsn| *lsn >= history.lsns.0)
                .collect(),
            _ => Vec::new(),
        };
        let (current, history) = (end(self.current.take())?, end(self.history.take())?);
        let from = to.map_or(self.from, |to| std::mem::replace(&mut self.from, to));
        let merged = Merged {
            pages: PageRange { from, to },
            of: self.job.of.clone(),
            through: self.job.through,
            current,
            history,
            superseded,
            pinned,
            reclaimed: self.job.reclaims.clone(),
        };
        // What is left of the partition once this is applied.
        self.job.of.from = self.from;
        self.count.bytes_written += sinks.iter().map(|(_, desc)| desc.bytes).sum::<u64>();
        Ok(Finished { merged, sinks })
    }
}

fn put<S: Write, E>(
    output: &mut Option<Output<S>>,
    layers: &mut impl NewLayers<Sink = S>,
    kind: LayerKind,
    (key, lsn, value): (PageKey, Lsn, &Value),
) -> Result<(), MergeError<E>> {
    let output = match output {
        Some(output) => output,
        None => {
            let (id, sink) = layers.create(kind).map_err(MergeError::Create)?;
            output.insert(Output {
                writer: LayerWriter::new(sink, id, kind, Codec::of(kind))?,
                lsns: (lsn, lsn),
                superseded: Superseded::default(),
            })
        }
    };
    output.lsns = (output.lsns.0.min(lsn), output.lsns.1.max(lsn));
    Ok(output.writer.value(&key, lsn, value)?)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
