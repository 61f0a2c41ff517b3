//! From WAL records to versions of pages and catalogue entries, for one shard.
//!
//! The decisions of what a record means are in the crates `ingest` and `redo`; here they become values under keys.
//! One [`Ingestor`] per timeline takes records in order, collects [`Changes`], and publishes them in batches.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use lakebed_ingest::{CatalogueChange, ControlState, Effects, interpret_into, rmgr, two_phase_path};
use lakebed_layer::ValueKind;
use lakebed_redo::PageRecord;
use lakebed_types::{ForkNumber, Lsn, PageKey, PgVersion, RelTag, SlruKind};
use lakebed_wal::record::{DecodedRecord, FIRST_CUSTOM_MANAGER};
use lakebed_wal::stream::RawRecord;
use rustc_hash::FxHashMap;

use crate::catalogue::{DatabasePlace, Entry};
use crate::layer_handle::Miss;
use crate::timeline::obtain::MayMiss;
use crate::timeline::{Changes, Timeline, TimelineError};
use lakebed_types::data_directory::{database_directory, tablespace_directory};

/// Why a timeline's ingest stops. The record is not skipped: nothing after it is ingested.
#[derive(Debug, thiserror::Error)]
pub enum IngestStop {
    /// The record is malformed or of a kind that cannot be replayed.
    #[error(transparent)]
    Record(#[from] lakebed_ingest::IngestError),
    /// The record belongs to an extension's resource manager that this pageserver was built without.
    #[error(
        "record at {lsn}: custom resource manager {rmid} (info {info:#04x}) is an extension's, and this pageserver was \
         built without a plug-in for it"
    )]
    NoPlugIn {
        /// Start of the record.
        lsn: Lsn,
        /// Its resource manager.
        rmid: u8,
        /// Its info bits.
        info: u8,
    },
    /// The record changes a page, and records of its resource manager do not do that.
    #[error(
        "record at {lsn} (resource manager {}, info {info:#04x}) changes {rel} block {block}, and this version cannot \
         replay pages of this resource manager",
        rmgr::name(*.rmid)
    )]
    NoRedo {
        /// Start of the record.
        lsn: Lsn,
        /// Its resource manager.
        rmid: u8,
        /// Its info bits.
        info: u8,
        /// Relation fork of the page.
        rel: RelTag,
        /// Block of the page.
        block: u32,
    },
    /// The record's bytes are not a record.
    #[error(transparent)]
    Decode(#[from] lakebed_wal::parse::RecordError),
    /// Shard 0 has no control state to go on from.
    #[error("the control state at {0} is missing or damaged: {1}")]
    Control(Lsn, String),
    /// The control state is not to be read.
    #[error("reading the control state: {0}")]
    State(#[from] TimelineError),
    /// Records came out of order.
    #[error("a record that ends at {found} came after {last}")]
    Order {
        /// Its end.
        found: Lsn,
        /// The last ingested record's end.
        last: Lsn,
    },
}

impl MayMiss for IngestStop {
    fn miss(&self) -> Option<&Miss> {
        match self {
            IngestStop::State(error) => error.miss(),
            _ => None,
        }
    }
}

/// Takes records of one timeline in order.
pub struct Ingestor {
    timeline: Arc<Timeline>,
    changes: Changes,
    last: Lsn,
    /// Shard 0 only.
    control: Option<ControlState>,
    /// Newest sizes, ahead of the published catalogue.
    sizes: FxHashMap<RelTag, Option<u32>>,
    /// SLRU pages known to exist, or not to.
    slru: FxHashMap<(SlruKind, u64), bool>,
    /// Files changed since the last publication.
    files: HashMap<String, Option<Bytes>>,
    /// The record that is taken, and its effects: their memory is used again. Boxed, for they are large and change hands with
    /// each record.
    decoded: Option<Box<DecodedRecord>>,
    effects: Option<Box<Effects>>,
}

impl Ingestor {
    /// Goes on after the timeline's last record.
    ///
    /// # Errors
    /// [`IngestStop::Control`], [`IngestStop::State`].
    pub fn new(timeline: Arc<Timeline>) -> Result<Ingestor, IngestStop> {
        let last = timeline.last_record();
        let control = if timeline.identity.shard.keeps_catalogue() {
            let bytes = timeline.control(last).map_err(|error| match error {
                TimelineError::NoControl(_) => IngestStop::Control(last, error.to_string()),
                error => error.into(),
            })?;
            Some(ControlState::decode(&bytes).map_err(|error| IngestStop::Control(last, error.to_string()))?)
        } else {
            None
        };
        let changes = Changes::default();
        let (sizes, slru, files) = Default::default();
        Ok(Ingestor {
            timeline,
            changes,
            last,
            control,
            sizes,
            slru,
            files,
            decoded: None,
            effects: None,
        })
    }

    /// End of the last record taken.
    pub fn last(&self) -> Lsn {
        self.last
    }

    /// Makes everything taken so far visible, up to `end`, which is at or after the last record.
    pub fn publish(&mut self, end: Lsn) {
        self.last = self.last.max(end);
        self.files.clear();
        self.timeline.publish_from(&mut self.changes, self.last);
        if self.sizes.len() > 100_000 {
            self.sizes.clear();
        }
    }

    /// Versions of pages that were taken and not yet published.
    pub fn unpublished(&self) -> usize {
        self.changes.len()
    }

    /// Takes the next record apart, and takes it.
    ///
    /// # Errors
    /// See [`IngestStop`]; nothing of this record was taken then.
    pub fn raw(&mut self, raw: RawRecord) -> Result<(), IngestStop> {
        let version = raw.version;
        let record = self.decoded.take();
        let mut record = record.unwrap_or_else(|| Box::new(DecodedRecord::empty(version)));
        let taken = raw
            .decode_into(&mut record)
            .map_err(IngestStop::from)
            .and_then(|()| self.record(&record));
        self.decoded = Some(record);
        taken
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// See [`IngestStop`]; nothing of this record was taken then.
    pub fn record(&mut self, record: &DecodedRecord) -> Result<(), IngestStop> {
        let mut effects = self.effects.take().unwrap_or_default();
        let taken = self.take(record, &mut effects);
        self.effects = Some(effects);
        taken
    }

    fn take(&mut self, record: &DecodedRecord, effects: &mut Effects) -> Result<(), IngestStop> {
        if record.end <= self.last {
            return Err(IngestStop::Order {
                found: record.end,
                last: self.last,
            });
        }
        interpret_into(record, effects)?;
        self.check_redo(record)?;
        let commit_ts = self.control.as_ref().is_some_and(ControlState::commit_ts_active);
        if let Some(control) = &mut self.control
            && control.apply(record)?
        {
            let state = control.encode();
            self.changes
                .value(PageKey::Control, record.end, ValueKind::State, |out| {
                    out.extend_from_slice(&state);
                });
        }
        self.pages(record);
        self.map_bits(record.end, effects);
        if self.timeline.identity.shard.keeps_catalogue() {
            self.slru_pages(record.end, effects, commit_ts);
        }
        for change in &effects.catalogue {
            self.catalogue(record.end, change);
        }
        self.last = record.end;
        Ok(())
    }

    /// Found out here and not when the page is read: until then later records would have been taken, the position
    /// would have been reported as stored, and the WAL that a version with redo needs would be gone.
    fn check_redo(&self, record: &DecodedRecord) -> Result<(), IngestStop> {
        if self.timeline.managers().knows(record.rmid) {
            return Ok(());
        }
        if record.rmid >= FIRST_CUSTOM_MANAGER {
            return Err(IngestStop::NoPlugIn {
                lsn: record.start,
                rmid: record.rmid,
                info: record.info,
            });
        }
        let refused = record.blocks.iter().find(|block| {
            let key = PageKey::Rel {
                rel: block.rel,
                block: block.block,
            };
            let has_image = block.image.as_ref().is_some_and(|image| image.apply);
            !has_image && block.rel.fork != ForkNumber::Fsm && self.timeline.identity.shard.owns(&key)
        });
        match refused {
            None => Ok(()),
            Some(block) => Err(IngestStop::NoRedo {
                lsn: record.start,
                rmid: record.rmid,
                info: record.info,
                rel: block.rel,
                block: block.block,
            }),
        }
    }

    /// Takes a hint: a record of another shard, which ends at `lsn`, touched this fork below `blocks`.
    pub fn extent(&mut self, lsn: Lsn, rel: RelTag, blocks: u32) {
        if let Some(last) = blocks.checked_sub(1) {
            self.extend(lsn, rel, last);
        }
    }

    /// Takes a hint: a record of another shard, which ends at `lsn`, carried this transaction id.
    pub fn xid(&mut self, lsn: Lsn, xid: u32) {
        if let Some(control) = &mut self.control
            && control.see_xid(xid)
        {
            let state = control.encode();
            self.changes
                .value(PageKey::Control, lsn, ValueKind::State, |out| {
                    out.extend_from_slice(&state);
                });
        }
    }

    fn value(&mut self, key: PageKey, lsn: Lsn, kind: ValueKind, body: &[u8]) {
        if self.timeline.identity.shard.owns(&key) {
            self.changes
                .value(key, lsn, kind, |out| out.extend_from_slice(body));
        }
        if let PageKey::Rel { rel, block } = key {
            self.extend(lsn, rel, block);
        }
    }

    fn entry(&mut self, lsn: Lsn, entry: Entry) {
        self.changes.entries.push((lsn, entry));
    }

    /// Pages that the record names.
    fn pages(&mut self, record: &DecodedRecord) {
        for block in &record.blocks {
            let key = PageKey::Rel {
                rel: block.rel,
                block: block.block,
            };
            let has_image = block.image.as_ref().is_some_and(|image| image.apply);
            // The free space map is a hint that no record but an image tells; without one, nothing changes. The same
            // holds for a hint-bit record that carries no image.
            let is_hint =
                block.rel.fork == ForkNumber::Fsm || (record.rmid == 0 && record.info & 0xF0 == 0xA0);
            if is_hint && !has_image {
                continue;
            }
            if !self.timeline.identity.shard.owns(&key) {
                self.extend(record.end, block.rel, block.block);
                continue;
            }
            let page_record = PageRecord::new(record, block);
            let kind = if page_record.starts_page() {
                ValueKind::Base
            } else {
                ValueKind::Delta
            };
            self.changes
                .value(key, record.end, kind, |out| page_record.encode(out));
            self.extend(record.end, block.rel, block.block);
        }
    }

    /// Visibility-map bits that records clear without naming the map's page.
    fn map_bits(&mut self, lsn: Lsn, effects: &Effects) {
        for clear in &effects.vm_clears {
            let [a, b, c, d] = clear.heap_block.to_le_bytes();
            self.value(
                PageKey::Rel {
                    rel: clear.rel,
                    block: clear.block,
                },
                lsn,
                ValueKind::VmClear,
                &[a, b, c, d, clear.flags],
            );
        }
        for cut in &effects.vm_truncates {
            let key = PageKey::Rel {
                rel: cut.rel,
                block: cut.block,
            };
            // A map that ends before this page stays as it is; only shard 0 knows, and elsewhere a page that does not
            // exist is never asked for.
            let known = self.timeline.identity.shard.keeps_catalogue();
            if !known || self.size(cut.rel).is_some_and(|blocks| blocks > cut.block) {
                self.value(
                    key,
                    lsn,
                    ValueKind::VmTruncate,
                    &cut.first_heap_block.to_le_bytes(),
                );
            }
        }
    }

    fn slru_pages(&mut self, lsn: Lsn, effects: &Effects, commit_ts: bool) {
        for (key, delta) in effects.slru_changes(commit_ts) {
            let PageKey::Slru { kind, page } = *key else {
                continue;
            };
            self.value(*key, lsn, ValueKind::Slru, &delta.encode());
            if !self.has_slru_page(kind, page) {
                self.slru.insert((kind, page), true);
                self.entry(lsn, Entry::SlruPage(kind, page, true));
            }
        }
    }

    fn has_slru_page(&mut self, kind: SlruKind, page: u64) -> bool {
        let timeline = &self.timeline;
        let stored =
            || timeline.catalogue(|catalogue| catalogue.has_slru_page(kind, page, timeline.last_record()));
        *self.slru.entry((kind, page)).or_insert_with(stored)
    }

    /// The newest size, published or not.
    fn size(&mut self, rel: RelTag) -> Option<u32> {
        let timeline = &self.timeline;
        *self
            .sizes
            .entry(rel)
            .or_insert_with(|| timeline.relation_size(rel, timeline.last_record()))
    }

    fn set_size(&mut self, lsn: Lsn, rel: RelTag, blocks: u32) {
        self.sizes.insert(rel, Some(blocks));
        self.entry(lsn, Entry::Size(rel, blocks));
    }

    /// A block at or beyond the end extends its fork.
    fn extend(&mut self, lsn: Lsn, rel: RelTag, block: u32) {
        if self.timeline.identity.shard.keeps_catalogue()
            && self.size(rel).is_none_or(|blocks| blocks <= block)
        {
            self.set_size(lsn, rel, block.saturating_add(1));
        }
    }

    fn set_file(&mut self, lsn: Lsn, path: String, content: Option<Bytes>) {
        if self.timeline.identity.shard.keeps_catalogue() {
            self.files.insert(path.clone(), content.clone());
            self.entry(lsn, Entry::File(path, content));
        }
    }

    fn version(&self) -> PgVersion {
        self.timeline.identity.cluster.postgres_major
    }

    fn database_directory(&self, (tablespace, database): DatabasePlace) -> String {
        database_directory(self.version(), tablespace, database)
    }

    /// Only the shard that keeps the catalogue has a control state, and files.
    fn two_phase_path(&self, xid: u32) -> String {
        let next_xid = self.control.as_ref().map_or(0, ControlState::next_xid);
        two_phase_path(self.version(), xid, next_xid)
    }

    /// Files whose path begins so, newest content.
    fn files_below(&self, directory: &str) -> Vec<(String, Bytes)> {
        let prefix = format!("{directory}/");
        let timeline = &self.timeline;
        let published = timeline.catalogue(|catalogue| {
            let below = catalogue
                .files(timeline.last_record())
                .filter(|(path, _)| path.starts_with(&prefix));
            below
                .map(|(path, content)| (path.to_owned(), content.clone()))
                .collect::<HashMap<_, _>>()
        });
        let mut files = published;
        for (path, content) in self.files.iter().filter(|(path, _)| path.starts_with(&prefix)) {
            match content {
                Some(content) => files.insert(path.clone(), content.clone()),
                None => files.remove(path),
            };
        }
        files.into_iter().collect()
    }

    /// Relations of a place, newest sizes.
    fn relations(&self, place: DatabasePlace) -> Vec<(RelTag, u32)> {
        let timeline = &self.timeline;
        let mut relations: HashMap<RelTag, u32> =
            timeline.catalogue(|catalogue| catalogue.relations(place, timeline.last_record()).collect());
        for (rel, blocks) in self
            .sizes
            .iter()
            .filter(|(rel, _)| (rel.spcnode, rel.dbnode) == place)
        {
            match blocks {
                Some(blocks) => relations.insert(*rel, *blocks),
                None => relations.remove(rel),
            };
        }
        relations.into_iter().collect()
    }

    fn drop_place(&mut self, lsn: Lsn, place: DatabasePlace) {
        for (rel, _) in self.relations(place) {
            self.sizes.insert(rel, None);
            self.entry(lsn, Entry::Dropped(rel));
        }
        for (path, _) in self.files_below(&self.database_directory(place)) {
            self.set_file(lsn, path, None);
        }
        self.entry(lsn, Entry::DatabaseGone(place));
    }

    fn catalogue(&mut self, lsn: Lsn, change: &CatalogueChange) {
        let keeps = self.timeline.identity.shard.keeps_catalogue();
        match change {
            CatalogueChange::RelationCreated { rel } => {
                if keeps && self.size(*rel).is_none() {
                    self.set_size(lsn, *rel, 0);
                }
            }
            CatalogueChange::RelationTruncated { rel, blocks } => {
                self.entry(lsn, Entry::Reset(*rel, *blocks));
                if keeps && self.size(*rel).is_some_and(|size| size > *blocks) {
                    self.set_size(lsn, *rel, *blocks);
                }
            }
            CatalogueChange::RelationDropped { rel } => {
                for rel in ForkNumber::ALL.map(|fork| rel.with_fork(fork)) {
                    if !keeps || self.size(rel).is_some() {
                        self.sizes.insert(rel, None);
                        self.entry(lsn, Entry::Dropped(rel));
                    }
                }
            }
            CatalogueChange::DatabaseCreatedByCopy {
                source_db,
                source_tablespace,
                db,
                tablespace,
            } => {
                let (from, to) = ((*source_tablespace, *source_db), (*tablespace, *db));
                let source = self.database_directory(from);
                let target = self.database_directory(to);
                let (relations, files) = (self.relations(from), self.files_below(&source));
                self.drop_place(lsn, to);
                self.entry(lsn, Entry::DatabaseCopied { to, from });
                for (rel, blocks) in relations {
                    self.set_size(
                        lsn,
                        RelTag {
                            spcnode: to.0,
                            dbnode: to.1,
                            ..rel
                        },
                        blocks,
                    );
                }
                for (path, content) in files {
                    self.set_file(lsn, path.replacen(&source, &target, 1), Some(content));
                }
            }
            CatalogueChange::DatabaseCreatedWalLog { db, tablespace } => {
                let place = (*tablespace, *db);
                self.drop_place(lsn, place);
                let path = format!("{}/PG_VERSION", self.database_directory(place));
                self.set_file(lsn, path, Some(format!("{}\n", self.version()).into()));
            }
            CatalogueChange::DatabaseDropped { db, tablespaces } => {
                for tablespace in tablespaces {
                    self.drop_place(lsn, (*tablespace, *db));
                }
            }
            CatalogueChange::RelationMapUpdated {
                db,
                tablespace,
                bytes,
            } => {
                let path = format!("{}/pg_filenode.map", self.database_directory((*tablespace, *db)));
                self.set_file(lsn, path, Some(bytes.clone()));
            }
            CatalogueChange::TwoPhasePrepared { xid, file } => {
                let path = self.two_phase_path(*xid);
                self.set_file(lsn, path, Some(file.clone()));
            }
            CatalogueChange::TwoPhaseFinished { xid } => {
                let path = self.two_phase_path(*xid);
                self.set_file(lsn, path, None);
            }
            CatalogueChange::TablespaceCreated { oid, path } => {
                self.set_file(lsn, tablespace_directory(*oid), Some(path.clone()));
            }
            CatalogueChange::TablespaceDropped { oid } => {
                self.set_file(lsn, tablespace_directory(*oid), None)
            }
            CatalogueChange::OriginAdvanced {
                origin,
                remote,
                local: _,
                force,
            } => {
                self.origin(lsn, *origin, *remote, *force);
            }
            CatalogueChange::OriginDropped { origin } => self.set_file(lsn, origin_path(*origin), None),
            CatalogueChange::SlruTruncated { kind, cut } => {
                if keeps {
                    let timeline = &self.timeline;
                    let mut pages: HashSet<(SlruKind, u64)> = timeline
                        .catalogue(|catalogue| catalogue.slru_pages(timeline.last_record()).collect());
                    pages.extend(
                        self.slru
                            .iter()
                            .filter(|(_, exists)| **exists)
                            .map(|(page, _)| *page),
                    );
                    let gone = pages
                        .into_iter()
                        .filter(|(of, page)| of == kind && cut.removes(*kind, *page));
                    for (kind, page) in gone.collect::<Vec<_>>() {
                        if self.slru.insert((kind, page), false) != Some(false) {
                            self.entry(lsn, Entry::SlruPage(kind, page, false));
                        }
                    }
                }
            }
            CatalogueChange::TransactionEnd {
                time_micros,
                committed,
                ..
            } => {
                if keeps && *committed {
                    self.entry(lsn, Entry::Time(*time_micros));
                }
            }
            CatalogueChange::LogicalRewriteMapping {
                file_name,
                offset,
                bytes,
            } => {
                let path = format!("pg_logical/mappings/{file_name}");
                let old = self.file(&path).unwrap_or_default();
                let mut content = old.to_vec();
                content.resize(*offset as usize, 0);
                content.extend_from_slice(bytes);
                self.set_file(lsn, path, Some(content.into()));
            }
            // In the control state, or nothing that is kept.
            CatalogueChange::FullPageWrites { .. }
            | CatalogueChange::ParametersChanged(_)
            | CatalogueChange::RestorePoint { .. } => {}
        }
    }

    fn file(&self, path: &str) -> Option<Bytes> {
        let timeline = &self.timeline;
        let stored = || timeline.catalogue(|catalogue| catalogue.file(path, timeline.last_record()));
        self.files.get(path).cloned().unwrap_or_else(stored)
    }

    /// Progress of a replication origin: 8 bytes, the remote LSN.
    fn origin(&mut self, lsn: Lsn, origin: u16, remote: Lsn, force: bool) {
        let path = origin_path(origin);
        let old = self
            .file(&path)
            .and_then(|bytes| bytes[..].try_into().ok())
            .map_or(0, u64::from_le_bytes);
        if force || remote.0 > old {
            self.set_file(lsn, path, Some(Bytes::copy_from_slice(&remote.0.to_le_bytes())));
        }
    }
}

/// Where the catalogue keeps an origin's progress. The basebackup turns all of them into `replorigin_checkpoint`.
pub fn origin_path(origin: u16) -> String {
    format!("{ORIGINS}{origin}")
}

/// Prefix of the paths of origins: not a path of a data directory.
pub const ORIGINS: &str = "origin:";
