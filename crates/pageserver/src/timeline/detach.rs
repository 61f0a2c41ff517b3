//! A branch becomes independent of its parent: what it reads there becomes its own.
//!
//! ```text
//!   a page at an LSN ─► own layers ─► base: the page as it was at the branch point      instead of ─► parent
//! ```
//!
//! A *base* is layers of history with an image of every page at the branch point, below everything that the branch has.
//! They are made range by range, in the order of the pages, as the last thing that compaction does, and each counts when
//! its manifest is stored. The manifest says how far it is ([`crate::manifest::Manifest::based`]), so whatever interrupts
//! it, the next one goes on there, and no layer is ever without a manifest that names it for long. With the last range the
//! same manifest gives up the parent and has a catalogue layer with everything as of the branch point.
//!
//! **Which pages there are** nobody keeps a list of; the indexes of the ancestors' layers tell how far each relation may
//! reach, and databases that were copied have what their template has. A page that turns out to be zeros needs no image.
//!
//! **Who still reads the parent** began before, and holds the [`Link`]. Only when the last of them is through does the
//! parent forget the branch point, and may give up what was kept for it. Should the process end in between, the next owner
//! finds a manifest without a parent and has it forget then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lakebed_layer::format::{Codec, LayerWriter, ReadCount};
use lakebed_layer::{Base, Chain, Edit, LayerDesc, LayerKind, ValueKind};
use lakebed_types::{Lsn, PageKey, RelTag, ShardIdentity, TimelineId};
use tokio::sync::OnceCell;

use super::commit::{blocking, in_background};
use super::read::Cost;
use super::{Link, Timeline, TimelineError};
use crate::catalogue::below::Shared;
use crate::catalogue::{self, Catalogue};
use crate::layer_store::{LayerSink, LayerStoreError};

/// How long reads of the parent are waited for at a time; a read takes no longer.
const READS_END: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// How far a branch is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    wanted: AtomicBool,
    pages: OnceCell<Arc<Pages>>,
    done: AtomicU64,
    /// What it hung on, until the parent has forgotten it.
    former: Mutex<Option<Arc<Link>>>,
}

/// How far a branch is, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// It reads from no parent, durably, and the parent has forgotten it.
    pub done: bool,
    /// Pages that have a base, or need none. Counted since the start of this process.
    pub pages_done: u64,
    /// Pages that there may be; 0 before that is known.
    pub pages_known: u64,
}

/// Pages of which ancestors may have something.
#[derive(Debug, Default)]
struct Pages {
    /// Blocks of each fork.
    relations: BTreeMap<RelTag, u32>,
    /// All others.
    others: BTreeSet<PageKey>,
}

impl Pages {
    fn add(&mut self, key: PageKey) {
        match key {
            PageKey::Rel { rel, block } => self.reach(rel, block.saturating_add(1)),
            PageKey::Slru { .. } | PageKey::Control => {
                self.others.insert(key);
            }
        }
    }

    fn reach(&mut self, rel: RelTag, blocks: u32) {
        let known = self.relations.entry(rel).or_insert(0);
        *known = blocks.max(*known);
    }

    /// A database has what another one has.
    fn copy(&mut self, to: catalogue::DatabasePlace, from: catalogue::DatabasePlace) {
        let of_template = |rel: &RelTag| (rel.spcnode, rel.dbnode) == from;
        let copies: Vec<(RelTag, u32)> = self
            .relations
            .iter()
            .filter(|(rel, _)| of_template(rel))
            .map(|(rel, blocks)| {
                let (spcnode, dbnode) = to;
                (
                    RelTag {
                        spcnode,
                        dbnode,
                        ..*rel
                    },
                    *blocks,
                )
            })
            .collect();
        for (rel, blocks) in copies {
            self.reach(rel, blocks);
        }
    }

    fn count(&self) -> u64 {
        let blocks = self.relations.values().map(|blocks| u64::from(*blocks));
        blocks.sum::<u64>() + self.others.len() as u64
    }

    /// Those of the shard, ascending, from one on.
    fn from(&self, from: PageKey, shard: ShardIdentity) -> impl Iterator<Item = PageKey> {
        let (first, block) = match from {
            PageKey::Rel { rel, block } => (Some(rel), block),
            PageKey::Slru { .. } | PageKey::Control => (None, 0),
        };
        let relations = first.into_iter().flat_map(move |first| {
            self.relations.range(first..).flat_map(move |(&rel, &blocks)| {
                let begin = if rel == first { block } else { 0 };
                (begin..blocks).map(move |block| PageKey::Rel { rel, block })
            })
        });
        let all = relations.chain(self.others.range(from..).copied());
        all.filter(move |key| shard.owns(key))
    }
}

/// A range that is being given its base.
pub struct Basing {
    /// Where the range begins.
    from: PageKey,
    /// Where to go on.
    next: PageKey,
    pages: Arc<Pages>,
    writer: Option<LayerWriter<LayerSink>>,
}

/// A range that has its base, which counts once it is committed.
pub struct Based {
    from: PageKey,
    /// Where the next one begins; none: this is the last.
    to: Option<PageKey>,
    layer: Option<LayerDesc>,
}

impl Timeline {
    /// Has it detached, by the task that compacts. Repeating it is harmless.
    pub fn detach(&self) {
        self.detaching.wanted.store(true, Ordering::Relaxed);
        self.history_news.notify_one();
    }

    /// How far that is.
    pub fn detached(&self) -> Detached {
        let pages = self.detaching.pages.get();
        Detached {
            done: self.parent().is_none() && self.former().is_none(),
            pages_done: self.detaching.done.load(Ordering::Relaxed),
            pages_known: pages.map_or(0, |pages| pages.count()),
        }
    }

    /// Whether it reads from this timeline, or may have done so a moment ago.
    pub fn hangs_on(&self, timeline: TimelineId) -> bool {
        let links = [self.parent(), self.former()];
        links
            .iter()
            .flatten()
            .any(|link| link.timeline.identity.timeline == timeline)
    }

    fn former(&self) -> Option<Arc<Link>> {
        let former = self.detaching.former.lock();
        former.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins with the next range, if it is to be detached.
    pub(super) async fn next_base(self: &Arc<Self>) -> Result<Option<Box<Basing>>, TimelineError> {
        let Some(link) = self.parent() else {
            return Ok(None);
        };
        if !self.detaching.wanted.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if link.timeline.disk_consistent() < link.lsn {
            link.timeline.flush().await?;
        }
        let of = self.clone();
        let find = || async move {
            blocking("finding the pages of a branch", move || of.pages_of_ancestors()).await
        };
        let pages = self.detaching.pages.get_or_try_init(find).await?.clone();
        let from = self.commits.lock().await.said.based.unwrap_or(PageKey::LOWEST);
        Ok(Some(Box::new(Basing {
            from,
            next: from,
            pages,
            writer: None,
        })))
    }

    /// Reads the indexes of all layers of the ancestors.
    fn pages_of_ancestors(&self) -> Result<Arc<Pages>, TimelineError> {
        let mut pages = Pages::default();
        let mut link = self.parent();
        while let Some(ancestor) = link {
            let timeline = &ancestor.timeline;
            // Again from the beginning when layers were exchanged meanwhile: what is added twice is there once.
            timeline.obtaining_here(|| {
                let layers = timeline.read(|state| state.layers.clone());
                for desc in layers.map.layers().filter(|desc| desc.pages_span.is_some()) {
                    let read = layers.reader(desc.id)?.for_each_page(|key| pages.add(key));
                    read.map_err(|error| layers.blame(error.into()))?;
                }
                Ok::<(), TimelineError>(())
            })?;
            link = timeline.parent();
        }
        let start = self.identity.start;
        for (to, from) in self.catalogue(|catalogue| catalogue.copied_databases(start)) {
            pages.copy(to, from);
        }
        Ok(Arc::new(pages))
    }

    /// Goes on with a range for about `time`. Nothing counts before it is committed.
    ///
    /// # Errors
    /// See [`TimelineError`]; the range is to be begun again then.
    pub async fn base_for(
        self: &Arc<Self>,
        mut basing: Box<Basing>,
        time: Duration,
    ) -> Result<(Box<Basing>, Option<Based>), TimelineError> {
        let timeline = self.clone();
        let work = move || {
            let begin = Instant::now();
            let (pages, next, from) = (basing.pages.clone(), basing.next, basing.from);
            let mut to = None;
            for key in pages.from(next, timeline.identity.shard) {
                let full = basing
                    .writer
                    .as_ref()
                    .is_some_and(|writer| writer.bytes() >= timeline.thresholds.plan.layer_bytes);
                if full {
                    to = Some(key);
                    break;
                }
                if begin.elapsed() >= time {
                    basing.next = key;
                    return Ok((basing, None));
                }
                timeline.base_of(&key, &mut basing.writer)?;
                timeline.detaching.done.fetch_add(1, Ordering::Relaxed);
            }
            let mut layer = None;
            if let Some(writer) = basing.writer.take() {
                let start = timeline.identity.start;
                let (sink, desc) = writer.finish(start, start, &[])?;
                timeline.files.seal(desc.id, sink)?;
                layer = Some(desc);
            }
            Ok((basing, Some(Based { from, to, layer })))
        };
        in_background("the base of a branch", work).await
    }

    /// Writes the page as it was at the branch point.
    fn base_of(
        self: &Arc<Self>,
        key: &PageKey,
        writer: &mut Option<LayerWriter<LayerSink>>,
    ) -> Result<(), TimelineError> {
        let start = self.identity.start;
        let (kind, body) = match key {
            PageKey::Control => {
                let Some(control) = self.obtaining_here(|| self.control_below(start))? else {
                    return Ok(());
                };
                (ValueKind::State, control)
            }
            _ => {
                let read = || self.page_of_life(key, start, &mut Cost::default());
                let page = self.obtaining_here(read)?;
                (ValueKind::Image, Bytes::from(page as Box<[u8]>))
            }
        };
        // Zeros are what a page without any version is.
        if kind == ValueKind::Image && body.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let writer = match writer {
            Some(writer) => writer,
            None => {
                let (id, sink) = self.files.begin().map_err(LayerStoreError::Create)?;
                let kind = LayerKind::History;
                writer.insert(LayerWriter::new(sink, id, kind, Codec::of(kind))?)
            }
        };
        Ok(writer.body(key, start, kind, &body)?)
    }

    fn control_below(&self, lsn: Lsn) -> Result<Option<Bytes>, TimelineError> {
        let mut chain = Chain::new(Lsn(0), lsn);
        self.collect(&PageKey::Control, &mut chain, &mut ReadCount::default(), &mut ())?;
        Ok(chain.into_values().last().map(|(_, value)| value.body))
    }

    /// Makes a range's base count. With the last one the timeline has no parent any more.
    ///
    /// # Errors
    /// See [`TimelineError`]; nothing has changed then.
    pub async fn commit_base(self: &Arc<Self>, based: Based) -> Result<(), TimelineError> {
        let Based { from, to, layer } = based;
        let last = to.is_none();
        let mut new = Vec::from_iter(layer);
        let mut catalogue = None;
        if last {
            let timeline = self.clone();
            let base = blocking("the base of a catalogue", move || timeline.base_of_catalogue()).await?;
            new.push(base.0);
            catalogue = Some(base);
        }
        let edit = Edit::Base(Base {
            from,
            pages: layer,
            catalogue: catalogue.as_ref().map(|(layer, _)| *layer),
        });
        let mut commits = self.commits.lock().await;
        let mut said = commits.said.clone();
        said.based = to;
        if last {
            said.parent = None;
        }
        let flushed = self.disk_consistent();
        let give_up = |state: &mut super::State| {
            if let Some((_, base)) = catalogue {
                let start = self.identity.start;
                self.catalogue.change(|catalogue| catalogue.rest_on(base, start));
                let former = self.detaching.former.lock();
                *former.unwrap_or_else(PoisonError::into_inner) = state.parent.take();
            }
        };
        let done = self.commit_saying(&mut commits, Some(edit), &new, (flushed, said), give_up);
        if let Err(error) = done.await {
            let ids: Vec<_> = new.iter().map(|desc| desc.id).collect();
            self.files.remove_local(&ids);
            return Err(error);
        }
        if last {
            tracing::info!(timeline = %self.identity.timeline, "the branch is detached from its parent");
        }
        Ok(())
    }

    /// Everything as of the branch point: a catalogue layer, and what stays resident in the parent's place.
    fn base_of_catalogue(&self) -> Result<(LayerDesc, Shared), TimelineError> {
        let start = self.identity.start;
        let entries = self.catalogue(|catalogue| catalogue.as_of(start));
        let entries: Vec<_> = entries.into_iter().map(|entry| (start, entry)).collect();
        let sections = catalogue::to_sections(&entries);
        let layer = self.write_layer(LayerKind::Catalogue, (start, start), &sections, |_| Ok(()))?;
        let mut base = Catalogue::default();
        base.add_all(&entries);
        Ok((layer, Shared::new(base)))
    }

    /// Once the branch is detached and nobody reads its former parent for it any more: has that forget it.
    ///
    /// # Errors
    /// See [`TimelineError`]; it is to be tried again.
    pub async fn leave_parent(self: &Arc<Self>) -> Result<(), TimelineError> {
        let Some(parent) = self.former().map(|link| link.timeline.clone()) else {
            return Ok(());
        };
        let deadline = tokio::time::Instant::now() + READS_END;
        let read = || {
            let former = self.detaching.former.lock();
            let former = former.unwrap_or_else(PoisonError::into_inner);
            former.as_ref().is_some_and(|link| Arc::strong_count(link) > 1)
        };
        while read() {
            if tokio::time::Instant::now() >= deadline {
                return Err(TimelineError::ParentIsRead(parent.identity.timeline));
            }
            tokio::time::sleep(LOOK).await;
        }
        parent.remove_branch(self.identity.timeline).await?;
        let former = self.detaching.former.lock();
        *former.unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}
