//! What is in memory becomes layers.

use std::sync::Arc;

use bytes::Bytes;
use lakebed_layer::format::{Codec, LayerWriter};
use lakebed_layer::{Chain, Edit, LayerDesc, LayerKind, Memtable, SinceImage, Stored, ValueKind};
use lakebed_redo::PageBytes;
use lakebed_types::{Lsn, PageKey};

use super::commit::blocking;
use super::read::Cost;
use super::{Changes, Layers, Timeline, TimelineError, empty_table};
use crate::catalogue::{self, Entry};
use crate::layer_handle::LayerHandle;
use crate::layer_store::{LayerSink, LayerStoreError};
use crate::reconstruct;

/// What one flush stores. After a failure the next flush stores the same again.
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    pub table: Arc<Memtable>,
    /// How many of the pending entries belong to it.
    entries: usize,
    last: Lsn,
}

impl Timeline {
    /// Whether enough is in memory for a flush.
    pub fn wants_flush(&self) -> bool {
        self.read(|state| state.active.bytes() >= self.thresholds.flush_bytes)
    }

    /// Moves what is in memory into layers, and those to object storage. Returns when the manifest is stored. A
    /// timeline that is not stored yet is stored by its first flush, also when there is nothing in memory.
    ///
    /// # Errors
    /// See [`TimelineError`]. Nothing is lost: what was in memory stays readable, and the next flush tries again.
    pub async fn flush(self: &Arc<Self>) -> Result<(), TimelineError> {
        let mut commits = self.commits.lock().await;
        let first = self.disk_consistent();
        let (frozen, entries) = self.freeze(commits.stored())?;
        let last = frozen.last;
        if commits.stored() && frozen.table.is_empty() && entries.is_empty() && last == first {
            self.write(|state| state.frozen = None);
            return Ok(());
        }
        let count = entries.len();
        let (timeline, table) = (self.clone(), frozen.table);
        let new = if table.is_empty() && entries.is_empty() {
            Vec::new()
        } else {
            let write = move || timeline.write_layers(&table, &entries, (first, last));
            blocking("a flush", write).await?
        };
        let edit = (!new.is_empty()).then(|| Edit::Flush(new.clone()));
        let stored = self.commit(&mut commits, edit, &new, last, |state| {
            state.pending.drain(..count);
            state.frozen = None;
        });
        if let Err(error) = stored.await {
            // The next attempt writes its own.
            self.files
                .remove_local(&new.iter().map(|desc| desc.id).collect::<Vec<_>>());
            return Err(error);
        }
        self.disk_consistent.send_replace(last);
        Ok(())
    }

    /// What there is to flush: what the last attempt did not store, or what is in memory now.
    fn freeze(&self, stored: bool) -> Result<(Frozen, Vec<(Lsn, Entry)>), TimelineError> {
        self.write(|state| {
            if state.broken {
                let reason = state.stopped.clone().unwrap_or_default();
                return Err(TimelineError::Internal(reason));
            }
            let frozen = match state.frozen.take() {
                Some(frozen) => frozen,
                // No record came: what may be in memory are images, and a layer of nothing else has no LSNs of its own.
                None if stored && self.last_record() == self.disk_consistent() => Frozen {
                    table: Arc::new(empty_table()),
                    entries: state.pending.len(),
                    last: self.last_record(),
                },
                None => Frozen {
                    table: Arc::new(std::mem::replace(&mut state.active, empty_table())),
                    entries: state.pending.len(),
                    last: self.last_record(),
                },
            };
            state.begin = frozen.last;
            state.frozen = Some(frozen.clone());
            let entries = state.pending.get(..frozen.entries).unwrap_or_default().to_vec();
            Ok((frozen, entries))
        })
    }

    /// Stores images of an import, all at the start, as a layer of its own. Nobody sees it before the first
    /// [`Timeline::flush`] has stored the manifest that names it.
    ///
    /// # Errors
    /// See [`TimelineError`].
    pub async fn store_portion(self: &Arc<Self>, portion: Changes) -> Result<(), TimelineError> {
        let _one = self.commits.lock().await;
        let mut table = empty_table();
        let taken = portion.store(&mut table);
        taken.map_err(|error| TimelineError::Internal(error.to_string()))?;
        let (timeline, start, entries) = (self.clone(), self.identity.start, portion.entries);
        let write = move || timeline.write_layers(&table, &entries, (start, start));
        let new = blocking("an import", write).await?;
        let layers = self.read(|state| state.layers.clone());
        let (map, _) = layers.map.apply(&Edit::Flush(new.clone()))?;
        let mut open = layers.open.clone();
        for desc in &new {
            self.files.upload(desc).await?;
            open.insert(desc.id, LayerHandle::of_new(desc, &self.files)?);
        }
        let map = Arc::new(map);
        self.write(|state| state.layers = Arc::new(Layers { map, open }));
        Ok(())
    }

    /// Writes what is in memory to local disk: a layer of level 0, and one of the catalogue.
    fn write_layers(
        self: &Arc<Self>,
        table: &Memtable,
        entries: &[(Lsn, Entry)],
        lsns: (Lsn, Lsn),
    ) -> Result<Vec<LayerDesc>, TimelineError> {
        let mut new = Vec::new();
        if !table.is_empty() {
            new.push(self.write_layer(LayerKind::Level0, lsns, &[], |writer| {
                table.for_each_page(|key, values| {
                    for value in values {
                        writer.body(key, value.lsn, value.kind, value.body)?;
                    }
                    if let Some((lsn, image)) = self.image_for(key, values, lsns.0)? {
                        writer.body(key, lsn, ValueKind::Image, &image[..])?;
                    }
                    Ok(())
                })
            })?);
        }
        if !entries.is_empty() {
            let sections = catalogue::to_sections(entries);
            new.push(self.write_layer(LayerKind::Catalogue, lsns, &sections, |_| Ok(()))?);
        }
        Ok(new)
    }

    /// Writes a layer to local disk.
    pub(super) fn write_layer(
        &self,
        kind: LayerKind,
        (first, last): (Lsn, Lsn),
        sections: &[Bytes],
        fill: impl FnOnce(&mut LayerWriter<LayerSink>) -> Result<(), TimelineError>,
    ) -> Result<LayerDesc, TimelineError> {
        let (id, sink) = self.files.begin().map_err(LayerStoreError::Create)?;
        let mut writer = LayerWriter::new(sink, id, kind, Codec::of(kind))?;
        fill(&mut writer)?;
        let (sink, desc) = writer.finish(first, last, sections)?;
        self.files.seal(id, sink)?;
        Ok(desc)
    }

    /// An image of the page's newest version in a table that has these values of it, if its chain has become long there.
    /// Older values are at or below `begin`.
    ///
    /// The table's values are replayed from where they are: to collect them as a read does would take longer than the replay.
    fn image_for(
        self: &Arc<Self>,
        key: &PageKey,
        values: &[Stored<'_>],
        begin: Lsn,
    ) -> Result<Option<(Lsn, Box<PageBytes>)>, TimelineError> {
        let mut since = SinceImage::default();
        values
            .iter()
            .for_each(|value| since.add(value.kind, value.body.len()));
        let newest = values.last().map(|value| value.lsn);
        let Some(newest) = newest.filter(|_| since.is_due(&self.thresholds.images)) else {
            return Ok(None);
        };
        let life = self.life(key, newest);
        let own = values.partition_point(|value| value.lsn <= life.floor);
        let own = values.get(own..).unwrap_or_default();
        let base = own.iter().rposition(|value| value.kind.stands_alone());
        let own = own.get(base.unwrap_or_default()..).unwrap_or_default();
        let mut page = match base {
            Some(_) => reconstruct::zeros(),
            None => self.obtaining_here(|| {
                let (mut chain, mut cost) = (Chain::new(life.floor, begin), Cost::default());
                self.collect(key, &mut chain, &mut cost.layers, &mut ())?;
                self.page_of_chain(key, life, chain, &mut cost)
            })?,
        };
        let cluster = &self.identity.cluster;
        let replayed = reconstruct::replay(cluster, &self.managers, key, &mut page, own.iter().copied());
        replayed.map_err(|source| TimelineError::Reconstruct { key: *key, source })?;
        Ok(Some((newest, page)))
    }
}
