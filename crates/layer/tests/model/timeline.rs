//! One timeline's storage: durable maps, and an engine over them that may be lost at any time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use lakebed_layer::format::{Codec, IndexCache, LayerReader, LayerWriter, ReadCount, ReadError};
use lakebed_layer::{
    Chain, DeadBytes, Durable, Edit, Finished, ImagePolicy, LayerDesc, LayerId, LayerKind, LayerMap,
    MakeImage, Memtable, Merge, MergeRules, NewLayers, Plan, PlanPolicy, ReadPoints, Reclaimed, Step, Value,
    ValueKind, durable_steps, plan, read,
};
use lakebed_types::{Generation, Lsn, PageKey, ShardCount, ShardIdentity};

use crate::reference::{Log, image, redo};
use crate::sabotage::Sabotage;

/// Why the run ends.
pub type Violation = String;

const POLICY: PlanPolicy = PlanPolicy {
    level0: 3,
    layer_bytes: 6000,
    history: 2,
    waste: 8,
    catalogue: 3,
};
pub const IMAGES: ImagePolicy = ImagePolicy {
    deltas: 5,
    bytes: 1500,
};

/// What outlives a crash.
#[derive(Clone, Debug, Default)]
pub struct Durables {
    pub objects: BTreeMap<LayerId, Bytes>,
    /// By generation and number; the highest is current.
    pub manifests: BTreeMap<(Generation, u64), Manifest>,
    pub log: Log,
    /// Sections by the LSN of their flush.
    pub sections: Vec<(Lsn, Bytes)>,
}

#[derive(Clone, Debug, Default)]
pub struct Manifest {
    pub map: LayerMap,
    pub flushed: Lsn,
}

/// The owner's memory.
#[derive(Debug)]
pub struct Engine {
    pub generation: Generation,
    sequence: u64,
    next_layer: u64,
    pub map: LayerMap,
    pub flushed: Lsn,
    pub last_record: Lsn,
    table: Memtable,
    frozen: Option<(Memtable, Lsn)>,
    readers: BTreeMap<LayerId, Arc<LayerReader<Bytes>>>,
    cache: IndexCache,
    merge: Option<Merge<Bytes, Vec<u8>>>,
    /// The change that is being made durable, and the layers that it stores.
    steps: VecDeque<Durable>,
    stored: BTreeMap<LayerId, Bytes>,
    /// `flushed` once that is done.
    flushing: Option<Lsn>,
    sabotage: Option<Sabotage>,
}

/// Sinks for new layers.
struct Sinks<'a> {
    generation: Generation,
    next_layer: &'a mut u64,
}

impl NewLayers for Sinks<'_> {
    type Sink = Vec<u8>;

    fn create(&mut self, _: LayerKind) -> std::io::Result<(LayerId, Vec<u8>)> {
        *self.next_layer += 1;
        let id = LayerId {
            generation: self.generation,
            number: *self.next_layer,
        };
        Ok((id, Vec::new()))
    }
}

/// Redo, for values whose page began as `start` says.
struct Redo<'a> {
    start: &'a dyn Fn(&PageKey) -> Result<u64, Violation>,
    sabotage: Option<Sabotage>,
}

impl MakeImage for Redo<'_> {
    type Error = Violation;

    fn ends(&mut self, _: &PageKey) -> Vec<Lsn> {
        Vec::new()
    }

    fn image(&mut self, key: &PageKey, _: Lsn, values: &[(Lsn, Value)]) -> Result<Option<Bytes>, Violation> {
        let left_out = usize::from(self.sabotage == Some(Sabotage::ImageTooOld));
        let values = &values[..values.len() - left_out];
        let start = match values.first() {
            Some((_, value)) if value.kind.stands_alone() => 0,
            _ => (self.start)(key)?,
        };
        let page = values.iter().fold(start, |page, (_, value)| redo(page, value));
        Ok(Some(image(page)))
    }
}

fn text(error: impl std::fmt::Display) -> Violation {
    error.to_string()
}

impl Engine {
    /// Takes over: reads the newest manifest, stores its own with a higher generation, and ingests what came after.
    pub fn open(
        durables: &mut Durables,
        start: Lsn,
        sabotage: Option<Sabotage>,
    ) -> Result<Engine, Violation> {
        let back = usize::from(sabotage == Some(Sabotage::StaleManifest) && durables.manifests.len() > 1);
        let newest = durables.manifests.iter().nth_back(back);
        let (before, manifest) = match newest {
            Some(((generation, _), manifest)) => (generation.0, manifest.clone()),
            None => (
                0,
                Manifest {
                    map: LayerMap::default(),
                    flushed: start,
                },
            ),
        };
        let before = durables
            .manifests
            .keys()
            .next_back()
            .map_or(before, |(newest, _)| newest.0);
        manifest.map.check().map_err(text)?;
        let mut engine = Engine {
            generation: Generation(before + 1),
            sequence: 0,
            next_layer: 0,
            map: manifest.map.clone(),
            flushed: manifest.flushed,
            last_record: manifest.flushed,
            table: Memtable::new(8 << 20),
            frozen: None,
            readers: BTreeMap::new(),
            cache: IndexCache::new(1 << 16),
            merge: None,
            steps: VecDeque::new(),
            stored: BTreeMap::new(),
            flushing: None,
            sabotage,
        };
        durables.manifests.insert((engine.generation, 0), manifest);
        engine.open_layers(durables)?;
        engine.check_sections(durables)?;
        let missing: Vec<_> = durables
            .log
            .values
            .iter()
            .filter(|(lsn, ..)| *lsn > engine.flushed)
            .cloned()
            .collect();
        for (lsn, key, value) in missing {
            engine.ingest(&key, lsn, &value)?;
        }
        Ok(engine)
    }

    fn open_layers(&mut self, durables: &Durables) -> Result<(), Violation> {
        self.readers.retain(|id, _| self.map.get(*id).is_some());
        for desc in self.map.layers() {
            if self.readers.contains_key(&desc.id) {
                continue;
            }
            let object = durables.objects.get(&desc.id);
            let object = object.ok_or_else(|| format!("layer {} is named and not there", desc.id))?;
            let reader = LayerReader::open(object.clone(), desc.id, desc.bytes).map_err(text)?;
            reader.verify().map_err(text)?;
            if reader.desc() != desc {
                return Err(format!("layer {} is not as the manifest says", desc.id));
            }
            self.readers.insert(desc.id, Arc::new(reader));
        }
        Ok(())
    }

    /// All sections of what was flushed are there, in order.
    fn check_sections(&self, durables: &Durables) -> Result<(), Violation> {
        let mut found = Vec::new();
        for id in self.map.catalogue() {
            found.extend(self.readers[id].sections().map_err(text)?);
        }
        let flushed = durables.sections.iter().filter(|(lsn, _)| *lsn <= self.flushed);
        let expected: Vec<_> = flushed.map(|(_, section)| section.clone()).collect();
        if found == expected {
            return Ok(());
        }
        Err(format!(
            "{} sections where there should be {}",
            found.len(),
            expected.len()
        ))
    }

    pub fn ingest(&mut self, key: &PageKey, lsn: Lsn, value: &Value) -> Result<(), Violation> {
        self.table
            .push(*key, lsn, value.kind, &value.body)
            .map_err(text)?;
        self.last_record = lsn;
        Ok(())
    }

    /// Whether a change is being made durable.
    pub fn is_busy(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Number of the page's values that a read of its newest version replays in memory.
    pub fn wants_image(&self, key: &PageKey) -> bool {
        self.table
            .since_image(key)
            .is_some_and(|since| since.is_due(&IMAGES))
    }

    /// Values that are not in the memory table are at or below.
    pub fn table_begin(&self) -> Lsn {
        self.frozen.as_ref().map_or(self.flushed, |(_, last)| *last)
    }

    /// Adds an image that was made of a read at `lsn`, unless values may have come between it and the memory table.
    pub fn insert_image(&mut self, key: &PageKey, lsn: Lsn, page: u64) -> Result<bool, Violation> {
        if lsn < self.table_begin() {
            return Ok(false);
        }
        self.table.insert_image(key, lsn, &image(page)).map_err(text)?;
        Ok(true)
    }

    /// Values of the page that this timeline has.
    pub fn read(&self, key: &PageKey, chain: &mut Chain, count: &mut ReadCount) -> Result<(), Violation> {
        self.table.read(key, chain);
        if let Some((frozen, _)) = &self.frozen {
            frozen.read(key, chain);
        }
        let open = |id| Ok::<_, ReadError>(self.readers[&id].clone());
        read(&self.map, key, chain, &self.cache, count, open).map_err(text)
    }

    /// Level-0 layers that a read at `lsn` may have to ask.
    pub fn level0(&self, key: &PageKey, lsn: Lsn) -> usize {
        let order = self.map.read_order(key, lsn);
        order.filter(|desc| desc.kind == LayerKind::Level0).count()
    }

    fn writer(&mut self, kind: LayerKind, codec: Codec) -> Result<LayerWriter<Vec<u8>>, Violation> {
        let mut sinks = Sinks {
            generation: self.generation,
            next_layer: &mut self.next_layer,
        };
        let (id, sink) = sinks.create(kind).map_err(text)?;
        LayerWriter::new(sink, id, kind, codec).map_err(text)
    }

    fn finish(
        &mut self,
        writer: LayerWriter<Vec<u8>>,
        lsns: (Lsn, Lsn),
        sections: &[Bytes],
    ) -> Result<LayerDesc, Violation> {
        let (bytes, desc) = writer.finish(lsns.0, lsns.1, sections).map_err(text)?;
        self.stored.insert(desc.id, bytes.into());
        Ok(desc)
    }

    /// Freezes what is in memory and begins to make a level-0 layer of it, with a section.
    pub fn flush(&mut self) -> Result<(), Violation> {
        if self.frozen.is_none() {
            // There may be images, but no record.
            if self.table.is_empty() || self.last_record == self.flushed {
                return Ok(());
            }
            let table = std::mem::replace(&mut self.table, Memtable::new(8 << 20));
            self.frozen = Some((table, self.last_record));
        }
        let Some((table, last)) = self.frozen.take() else {
            return Ok(());
        };
        let mut writer = self.writer(LayerKind::Level0, Codec::Lz4)?;
        let mut left_out = self.sabotage == Some(Sabotage::DroppedDelta) && last.0 % 3 == 0;
        table.for_each_page(|key, values| {
            for value in values {
                if value.kind == ValueKind::Delta && std::mem::take(&mut left_out) {
                    continue;
                }
                writer
                    .body(key, value.lsn, value.kind, value.body)
                    .map_err(text)?;
            }
            Ok::<_, Violation>(())
        })?;
        self.frozen = Some((table, last));
        let desc = self.finish(writer, (self.flushed, last), &[])?;
        if self.sabotage == Some(Sabotage::WrongFilter) {
            let bytes = self.stored[&desc.id].to_vec();
            self.stored.insert(desc.id, without_filter(desc.id, bytes).into());
        }
        let writer = self.writer(LayerKind::Catalogue, Codec::Lz4)?;
        let sections = self.finish(writer, (self.flushed, last), &[section(last)])?;
        self.flushing = Some(last);
        self.begin(Edit::Flush(vec![desc, sections]), &[desc, sections])
    }

    /// Plans the next merge, or goes on with the one that runs for some steps.
    pub fn merge(
        &mut self,
        points: &ReadPoints,
        start: &dyn Fn(&PageKey) -> Result<u64, Violation>,
        steps: u32,
    ) -> Result<(), Violation> {
        let Some(mut merge) = self.merge.take() else {
            return self.plan(points);
        };
        let mut redo = Redo {
            start,
            sabotage: self.sabotage,
        };
        for _ in 0..steps {
            let mut sinks = Sinks {
                generation: self.generation,
                next_layer: &mut self.next_layer,
            };
            match merge.step(&mut sinks, &mut redo).map_err(text)? {
                Step::Page => {}
                Step::Cut(finished) => {
                    self.merge = Some(merge);
                    return self.begin_merge(*finished);
                }
                Step::Done(finished) => return self.begin_merge(*finished),
            }
        }
        self.merge = Some(merge);
        Ok(())
    }

    fn plan(&mut self, points: &ReadPoints) -> Result<(), Violation> {
        let mut job = match plan(&self.map, points, &POLICY, &DeadBytes::default()) {
            None => return Ok(()),
            Some(Plan::Catalogue(layers)) => return self.merge_catalogue(layers),
            Some(Plan::Merge(job)) => *job,
        };
        match self.sabotage {
            Some(Sabotage::MergedTooMuch) => drop(job.inputs.pop()),
            Some(Sabotage::WrongOrder) => {
                let last = job.inputs.len() - 1;
                job.inputs.swap(last - 1, last);
            }
            Some(Sabotage::ForgottenHistory) => job.reclaims = Some(Reclaimed::default()),
            _ => {}
        }
        let rules = MergeRules {
            images: IMAGES,
            points: points.clone(),
            layer_bytes: POLICY.layer_bytes,
            shard: ShardIdentity::new(0, ShardCount::new(1).unwrap()).unwrap(),
        };
        let readers = job.inputs.iter().map(|id| self.readers[id].clone()).collect();
        self.merge = Some(Merge::new(job, rules, readers));
        Ok(())
    }

    fn begin_merge(&mut self, finished: Finished<Vec<u8>>) -> Result<(), Violation> {
        let mut new = Vec::new();
        for (bytes, desc) in finished.sinks {
            self.stored.insert(desc.id, bytes.into());
            new.push(desc);
        }
        self.begin(Edit::Merge(Box::new(finished.merged)), &new)
    }

    fn merge_catalogue(&mut self, replaced: Vec<LayerId>) -> Result<(), Violation> {
        let mut sections = Vec::new();
        for id in &replaced {
            sections.extend(self.readers[id].sections().map_err(text)?);
        }
        let left_out = usize::from(self.sabotage == Some(Sabotage::DroppedSection));
        let writer = self.writer(LayerKind::Catalogue, Codec::Lz4)?;
        let with = self.finish(writer, (Lsn(0), self.flushed), &sections[left_out..])?;
        self.begin(Edit::Catalogue { replaced, with }, &[with])
    }

    fn begin(&mut self, edit: Edit, new: &[LayerDesc]) -> Result<(), Violation> {
        let mut steps = durable_steps(&self.map, &edit, new).map_err(text)?;
        match self.sabotage {
            Some(Sabotage::CommitFirst) => steps.sort_by_key(|step| !matches!(step, Durable::Commit(_))),
            Some(Sabotage::RemoveFirst) => steps.sort_by_key(|step| !matches!(step, Durable::Remove(_))),
            Some(Sabotage::RemovedInUse) => {
                let named = self.map.layers().next().map(|desc| Durable::Remove(desc.id));
                steps.extend(named);
            }
            _ => {}
        }
        self.steps = steps.into();
        Ok(())
    }

    /// Makes the next step durable. `false`: another owner has taken over, and this one must stop.
    pub fn durable_step(&mut self, durables: &mut Durables) -> Result<bool, Violation> {
        match self.steps.pop_front() {
            None => return Ok(true),
            Some(Durable::Store(id)) => {
                if durables.objects.insert(id, self.stored[&id].clone()).is_some() {
                    return Err(format!("layer {id} was written over"));
                }
            }
            Some(Durable::Commit(map)) => {
                self.sequence += 1;
                let extra = u64::from(self.sabotage == Some(Sabotage::FlushedTooMuch)) * 9;
                let manifest = Manifest {
                    map: *map,
                    flushed: Lsn(self.flushing.map_or(self.flushed.0, |lsn| lsn.0 + extra)),
                };
                durables
                    .manifests
                    .insert((self.generation, self.sequence), manifest.clone());
                if self.is_superseded(durables) && self.sabotage != Some(Sabotage::SupersededRemoves) {
                    return Ok(false);
                }
                self.map = manifest.map;
                if let Some(flushed) = self.flushing.take() {
                    if !self.is_superseded(durables) {
                        durables.sections.push((flushed, section(flushed)));
                    }
                    (self.flushed, self.frozen) = (flushed, None);
                }
                if !self.is_superseded(durables) {
                    self.open_layers(durables)?;
                }
            }
            Some(Durable::Remove(id)) => {
                durables.objects.remove(&id);
            }
        }
        if self.steps.is_empty() {
            self.stored.clear();
        }
        Ok(true)
    }

    fn is_superseded(&self, durables: &Durables) -> bool {
        durables
            .manifests
            .keys()
            .any(|(generation, _)| *generation > self.generation)
    }
}

/// What a flush up to this LSN adds to the catalogue.
fn section(last: Lsn) -> Bytes {
    format!("up to {last}").into()
}

/// The file with a filter of zeros and the right checksum.
fn without_filter(id: LayerId, mut bytes: Vec<u8>) -> Vec<u8> {
    let footer = bytes.len() - 144;
    let number = |at: usize, length: usize| {
        bytes[footer + at..footer + at + length]
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (offset, length) = (number(88, 8), number(96, 4));
    let block = &mut bytes[offset..offset + length];
    block[32..].fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&block[..28]), &block[32..]);
    let crc = crc32c::crc32c_append(crc, &(offset as u64).to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &id.encode());
    block[28..32].copy_from_slice(&crc.to_le_bytes());
    bytes
}
