//! The replayed cluster: pages, sizes, and everything else that WAL changes.
//!
//! What exists follows the files as recovery keeps them (`XLogReadBufferExtended` in `access/transam/xlogutils.c`): a
//! record that names a page creates its fork; a page that redo builds anew or restores, and any map page, extends it; a
//! page that is to be changed and does not exist, or is all zeros, is *missing*: the record is left out for it, and a
//! later truncation or drop must explain why. What is dropped or cut off never comes back: pages of the base too.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lakebed_ingest::{CatalogueChange, ControlState, Effects, SlruDelta};
use lakebed_redo::{PageBytes, page, redo_vm_clear, redo_vm_truncate};
use lakebed_types::data_directory::SLRU_SEGMENT_PAGES;
use lakebed_types::{ForkNumber, Lsn, PageKey, PgVersion, RelTag, SlruKind};
use lakebed_wal::record::{BlockRef, DecodedRecord};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::compare::History;
use crate::directory::{DataDirectory, Place};
use crate::error::VerifyError;
use crate::store::{PageFile, PageStore};

/// Most references to missing pages that are remembered.
const MAX_MISSING: usize = 1 << 20;
const GIST: u8 = 14;
const GIST_DELETE: u8 = 0x10;

/// What became of a record's reference to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The page is there, to be changed by redo.
    Present,
    /// It does not exist, or is all zeros, and redo needs it.
    Missing,
}

/// See the module header.
#[derive(Debug)]
pub struct Cluster {
    version: PgVersion,
    store: PageStore,
    sizes: FxHashMap<RelTag, u32>,
    /// Length in pages of each SLRU segment.
    slrus: BTreeMap<(SlruKind, u64), u32>,
    relation_maps: BTreeMap<Place, Bytes>,
    database_versions: BTreeMap<Place, Bytes>,
    two_phase: BTreeMap<u32, Bytes>,
    tablespaces: BTreeSet<u32>,
    control: ControlState,
    missing: BTreeMap<(RelTag, u32), Lsn>,
    gist_pruned: FxHashSet<(RelTag, u32)>,
    maps_lost: FxHashSet<(RelTag, u32)>,
}

impl Cluster {
    /// The cluster as its base has it.
    pub fn new(base: &DataDirectory, memory_bytes: usize) -> Cluster {
        let mut store = PageStore::new(memory_bytes);
        let mut sizes = FxHashMap::default();
        for (rel, segments) in &base.forks {
            let blocks = DataDirectory::blocks(segments);
            sizes.insert(*rel, blocks);
            let paths = segments
                .iter()
                .map(|(number, (path, _))| (u64::from(*number), path.clone()))
                .collect();
            store.add_base(PageFile::Rel(*rel), paths, blocks);
        }
        let mut slrus = BTreeMap::new();
        for kind in SlruKind::ALL {
            let of_kind = base.slrus.iter().filter(|((of, _), _)| *of == kind);
            let mut paths = BTreeMap::new();
            for ((_, segment), (path, pages)) in of_kind {
                slrus.insert((kind, *segment), *pages);
                paths.insert(*segment, path.clone());
            }
            store.add_base(PageFile::Slru(kind), paths, u32::MAX);
        }
        Cluster {
            version: base.version,
            store,
            sizes,
            slrus,
            relation_maps: base.relation_maps.clone(),
            database_versions: base.database_versions.clone(),
            two_phase: base.two_phase.clone(),
            tablespaces: base.tablespaces.clone(),
            control: ControlState::from_checkpoint(&base.control.checkpoint()),
            missing: BTreeMap::new(),
            gist_pruned: FxHashSet::default(),
            maps_lost: FxHashSet::default(),
        }
    }

    /// Has the pages of these records brought near the processor, where memory has them: they are going to be changed.
    pub fn expect(&self, records: &[DecodedRecord]) {
        // What is touched second is found by what is touched first, for all of them at once.
        for step in [PageStore::expect_header, PageStore::expect_items] {
            for block in records.iter().flat_map(|record| &record.blocks) {
                step(&self.store, PageFile::Rel(block.rel), block.block);
            }
        }
    }

    /// Finds or makes the page of a reference; extends its fork as recovery does.
    ///
    /// # Errors
    /// A file cannot be read, or too many pages are missing.
    pub fn touch(&mut self, record: &DecodedRecord, block: &BlockRef) -> Result<Touch, VerifyError> {
        let size = self.sizes.entry(block.rel).or_insert(0);
        let from_nothing = block.will_init || block.image.as_ref().is_some_and(|image| image.apply);
        if from_nothing || block.rel.fork == ForkNumber::Vm {
            *size = (*size).max(block.block.saturating_add(1));
            return Ok(Touch::Present);
        }
        let exists = block.block < *size;
        if exists && !page::is_new(self.store.read(PageFile::Rel(block.rel), block.block)?) {
            return Ok(Touch::Present);
        }
        if self.missing.len() >= MAX_MISSING {
            return Err(VerifyError::Position(format!(
                "more than {MAX_MISSING} pages that the WAL changes are not in the base, the last at {}",
                record.start
            )));
        }
        self.missing
            .entry((block.rel, block.block))
            .or_insert(record.start);
        Ok(Touch::Missing)
    }

    /// The page of a reference, to be changed.
    ///
    /// # Errors
    /// As [`PageStore::write`].
    pub fn page_mut(&mut self, rel: RelTag, block: u32) -> Result<&mut PageBytes, VerifyError> {
        self.store.write(PageFile::Rel(rel), block)
    }

    /// A page as it is now; zeros where there is none.
    ///
    /// # Errors
    /// As [`PageStore::read`].
    pub fn page(&mut self, rel: RelTag, block: u32) -> Result<&PageBytes, VerifyError> {
        self.store.read(PageFile::Rel(rel), block)
    }

    /// Whether a page exists and has content: whether there is something to compare an image with.
    ///
    /// # Errors
    /// As [`PageStore::read`].
    pub fn has_content(&mut self, rel: RelTag, block: u32) -> Result<bool, VerifyError> {
        let exists = self.sizes.get(&rel).is_some_and(|blocks| block < *blocks);
        Ok(exists && !page::is_new(self.page(rel, block)?))
    }

    /// What a comparison must know of a page.
    pub fn history(&self, rel: RelTag, block: u32) -> History {
        History {
            gist_pruned: self.gist_pruned.contains(&(rel, block)),
            map_lost: self.maps_lost.contains(&(rel, block)),
        }
    }

    /// Takes note of what a page went through.
    pub fn remember(&mut self, record: &DecodedRecord, block: &BlockRef) {
        let key = (block.rel, block.block);
        if block.rel.fork == ForkNumber::Vm {
            if let Some(image) = block.image.as_ref().filter(|image| image.apply) {
                // A hole in a map is its content.
                if image.hole_length > 0 {
                    self.maps_lost.insert(key);
                } else {
                    self.maps_lost.remove(&key);
                }
            }
        } else if record.rmid == GIST && record.info & 0xF0 == GIST_DELETE {
            self.gist_pruned.insert(key);
        }
    }

    /// Does everything that the record does besides changing the pages that it names.
    ///
    /// # Errors
    /// As [`PageStore::write`], or the record is malformed.
    pub fn apply(&mut self, record: &DecodedRecord, effects: &Effects) -> Result<(), VerifyError> {
        for clear in &effects.vm_clears {
            let size = self.sizes.entry(clear.rel).or_insert(0);
            *size = (*size).max(clear.block.saturating_add(1));
            let page = self.store.write(PageFile::Rel(clear.rel), clear.block)?;
            redo_vm_clear(page, clear.heap_block, clear.flags);
        }
        for cut in &effects.vm_truncates {
            // A map that ends before this page stays as it is.
            if self.sizes.get(&cut.rel).is_some_and(|blocks| *blocks > cut.block) {
                let page = self.store.write(PageFile::Rel(cut.rel), cut.block)?;
                redo_vm_truncate(page, cut.first_heap_block);
            }
        }
        let commit_ts = self.control.commit_ts_active();
        for (key, delta) in effects.slru_changes(commit_ts) {
            if let PageKey::Slru { kind, page } = *key {
                self.slru(kind, page, delta)?;
            }
        }
        self.control.apply(record)?;
        for change in &effects.catalogue {
            self.change(change)?;
        }
        Ok(())
    }

    fn slru(&mut self, kind: SlruKind, number: u64, delta: &SlruDelta) -> Result<(), VerifyError> {
        let block = u32::try_from(number).map_err(|_| {
            VerifyError::Position(format!(
                "page {number} of {} is beyond all transactions",
                kind.directory()
            ))
        })?;
        delta.apply(self.store.write(PageFile::Slru(kind), block)?);
        let length = self.slrus.entry((kind, number / SLRU_SEGMENT_PAGES)).or_insert(0);
        // Less than a segment's pages.
        *length = (*length).max((number % SLRU_SEGMENT_PAGES) as u32 + 1);
        Ok(())
    }

    fn change(&mut self, change: &CatalogueChange) -> Result<(), VerifyError> {
        match change {
            CatalogueChange::RelationCreated { rel } => {
                self.sizes.entry(*rel).or_insert(0);
            }
            CatalogueChange::RelationTruncated { rel, blocks } => self.truncate(*rel, *blocks),
            CatalogueChange::RelationDropped { rel } => {
                for fork in ForkNumber::ALL {
                    self.drop_fork(rel.with_fork(fork));
                }
            }
            CatalogueChange::DatabaseCreatedByCopy {
                source_db,
                source_tablespace,
                db,
                tablespace,
            } => self.copy_database((*source_tablespace, *source_db), (*tablespace, *db))?,
            CatalogueChange::DatabaseCreatedWalLog { db, tablespace } => {
                let place = (*tablespace, *db);
                self.drop_database(place);
                let version = format!("{}\n", self.version.major());
                self.database_versions.insert(place, Bytes::from(version));
            }
            CatalogueChange::DatabaseDropped { db, tablespaces } => {
                for tablespace in tablespaces {
                    self.drop_database((*tablespace, *db));
                }
            }
            CatalogueChange::RelationMapUpdated {
                db,
                tablespace,
                bytes,
            } => {
                self.relation_maps.insert((*tablespace, *db), bytes.clone());
            }
            CatalogueChange::TwoPhasePrepared { xid, file } => {
                self.two_phase.insert(*xid, file.clone());
            }
            CatalogueChange::TwoPhaseFinished { xid } => {
                self.two_phase.remove(xid);
            }
            CatalogueChange::TablespaceCreated { oid, .. } => {
                self.tablespaces.insert(*oid);
            }
            CatalogueChange::TablespaceDropped { oid } => {
                self.tablespaces.remove(oid);
            }
            CatalogueChange::SlruTruncated { kind, cut } => {
                // A truncation removes whole segments.
                let gone: Vec<u64> = self
                    .slrus
                    .range((*kind, 0)..=(*kind, u64::MAX))
                    .map(|((_, segment), _)| *segment)
                    .filter(|segment| cut.removes(*kind, segment * SLRU_SEGMENT_PAGES))
                    .collect();
                for segment in gone {
                    self.slrus.remove(&(*kind, segment));
                    self.store.cut_segment(*kind, segment);
                }
            }
            // Not in files that are compared.
            CatalogueChange::OriginAdvanced { .. }
            | CatalogueChange::OriginDropped { .. }
            | CatalogueChange::TransactionEnd { .. }
            | CatalogueChange::FullPageWrites { .. }
            | CatalogueChange::ParametersChanged(_)
            | CatalogueChange::RestorePoint { .. }
            | CatalogueChange::LogicalRewriteMapping { .. } => {}
        }
        Ok(())
    }

    fn truncate(&mut self, rel: RelTag, blocks: u32) {
        if rel.fork == ForkNumber::Main {
            // `smgr_redo` creates the file if need be.
            self.sizes.entry(rel).or_insert(0);
        }
        if let Some(size) = self.sizes.get_mut(&rel) {
            *size = (*size).min(blocks);
        }
        self.store.cut(PageFile::Rel(rel), blocks);
        self.forget_notes(|(of, block)| *of == rel && *block >= blocks);
    }

    fn drop_fork(&mut self, rel: RelTag) {
        self.sizes.remove(&rel);
        self.store.cut(PageFile::Rel(rel), 0);
        self.forget_notes(|(of, _)| *of == rel);
    }

    fn forget_notes(&mut self, gone: impl Fn(&(RelTag, u32)) -> bool) {
        // Mostly empty; a drop of many relations would otherwise pass over them again and again.
        if !self.missing.is_empty() {
            self.missing.retain(|key, _| !gone(key));
        }
        if !self.gist_pruned.is_empty() {
            self.gist_pruned.retain(|key| !gone(key));
        }
        if !self.maps_lost.is_empty() {
            self.maps_lost.retain(|key| !gone(key));
        }
    }

    fn drop_database(&mut self, place: Place) {
        for rel in self.forks_of(place) {
            self.sizes.remove(&rel);
            self.store.cut(PageFile::Rel(rel), 0);
        }
        self.forget_notes(|(rel, _)| (rel.spcnode, rel.dbnode) == place);
        self.relation_maps.remove(&place);
        self.database_versions.remove(&place);
    }

    fn forks_of(&self, place: Place) -> Vec<RelTag> {
        let of_place = |rel: &&RelTag| (rel.spcnode, rel.dbnode) == place;
        self.sizes.keys().filter(of_place).copied().collect()
    }

    fn copy_database(&mut self, from: Place, to: Place) -> Result<(), VerifyError> {
        self.drop_database(to);
        for source in self.forks_of(from) {
            let target = RelTag {
                spcnode: to.0,
                dbnode: to.1,
                ..source
            };
            if let Some(blocks) = self.sizes.get(&source).copied() {
                self.sizes.insert(target, blocks);
            }
            self.store.copy(PageFile::Rel(source), PageFile::Rel(target))?;
        }
        let copied = |(rel, block): &(RelTag, u32)| {
            let target = RelTag {
                spcnode: to.0,
                dbnode: to.1,
                ..*rel
            };
            ((rel.spcnode, rel.dbnode) == from).then_some((target, *block))
        };
        let pruned: Vec<_> = self.gist_pruned.iter().filter_map(copied).collect();
        let lost: Vec<_> = self.maps_lost.iter().filter_map(copied).collect();
        self.gist_pruned.extend(pruned);
        self.maps_lost.extend(lost);
        if let Some(map) = self.relation_maps.get(&from).cloned() {
            self.relation_maps.insert(to, map);
        }
        if let Some(version) = self.database_versions.get(&from).cloned() {
            self.database_versions.insert(to, version);
        }
        Ok(())
    }

    /// References to missing pages that nothing has explained yet.
    pub fn unresolved(&self) -> &BTreeMap<(RelTag, u32), Lsn> {
        &self.missing
    }

    /// Changed pages that did not fit into memory at some time.
    pub fn spilled_pages(&self) -> u64 {
        self.store.spilled_pages()
    }

    /// Forks with their sizes in blocks.
    pub fn sizes(&self) -> &FxHashMap<RelTag, u32> {
        &self.sizes
    }

    /// Whether the relation is an unlogged one: those alone have an init fork.
    pub fn is_unlogged(&self, rel: RelTag) -> bool {
        self.sizes.contains_key(&rel.with_fork(ForkNumber::Init))
    }

    /// SLRU segments with their length in pages.
    pub fn slrus(&self) -> &BTreeMap<(SlruKind, u64), u32> {
        &self.slrus
    }

    /// A page of an SLRU; zeros where there is none.
    ///
    /// # Errors
    /// As [`PageStore::read`].
    pub fn slru_page(&mut self, kind: SlruKind, number: u32) -> Result<&PageBytes, VerifyError> {
        self.store.read(PageFile::Slru(kind), number)
    }

    /// `pg_filenode.map` files.
    pub fn relation_maps(&self) -> &BTreeMap<Place, Bytes> {
        &self.relation_maps
    }

    /// `PG_VERSION` files of databases.
    pub fn database_versions(&self) -> &BTreeMap<Place, Bytes> {
        &self.database_versions
    }

    /// Files of prepared transactions.
    pub fn two_phase(&self) -> &BTreeMap<u32, Bytes> {
        &self.two_phase
    }

    /// Tablespaces other than the two that every cluster has.
    pub fn tablespaces(&self) -> &BTreeSet<u32> {
        &self.tablespaces
    }
}
