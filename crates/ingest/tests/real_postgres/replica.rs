//! A replica made of nothing but WAL: what `lakebed-ingest` says, folded together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lakebed_ingest::{
    CatalogueChange, ControlState, Effects, ShardSet, SlruDelta, interpret, reaches_every_shard,
    relation_map_bytes, route, two_phase_path,
};
use lakebed_redo::redo_block;
use lakebed_types::{ForkNumber, PAGE_SIZE, PageKey, PgVersion, RelTag, ShardCount, SlruKind};
use lakebed_wal::record::DecodedRecord;

pub type Page = [u8; PAGE_SIZE];
const ZEROS: Page = [0; PAGE_SIZE];

pub struct Replica {
    version: PgVersion,
    pub control: ControlState,
    pub slru: BTreeMap<(SlruKind, u64), Page>,
    pub two_phase: BTreeMap<u32, Vec<u8>>,
    pub maps: BTreeMap<(u32, u32), Vec<u8>>,
    /// Main forks of relations that WAL created, with their blocks.
    pub relations: BTreeMap<RelTag, u32>,
    pub dropped: BTreeSet<RelTag>,
    pub vm: BTreeMap<(RelTag, u32), Page>,
    /// How often each kind of change was seen.
    pub seen: BTreeMap<String, usize>,
}

impl Replica {
    pub fn new(data: &Path, version: PgVersion, control: ControlState) -> Replica {
        Replica {
            version,
            control,
            slru: read_slrus(data),
            two_phase: BTreeMap::new(),
            maps: BTreeMap::new(),
            relations: BTreeMap::new(),
            dropped: BTreeSet::new(),
            vm: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    pub fn replay(&mut self, record: &DecodedRecord) {
        let effects = interpret(record).unwrap_or_else(|error| panic!("{error}"));
        self.check_route(record, &effects);
        for (key, delta) in effects.slru_changes(self.control.commit_ts_active()) {
            let delta = SlruDelta::decode(&delta.encode()).expect("a delta that was just encoded");
            let PageKey::Slru { kind, page } = *key else {
                panic!("{record:?} changes {key} as an SLRU page")
            };
            delta.apply(self.slru.entry((kind, page)).or_insert(ZEROS));
            let name = format!(
                "{kind:?} {}",
                format!("{delta:?}").split([' ', '{']).next().unwrap()
            );
            *self.seen.entry(name).or_default() += 1;
        }
        self.control
            .apply(record)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ControlState::decode(&self.control.encode()), Ok(self.control));
        for &(rel, block) in &effects.touched {
            if let Some(blocks) = self.relations.get_mut(&rel) {
                *blocks = (*blocks).max(block + 1);
            }
        }
        self.replay_vm(record, &effects);
        for change in effects.catalogue {
            let text = format!("{change:?}");
            *self
                .seen
                .entry(text.split([' ', '{', '(']).next().unwrap().to_owned())
                .or_default() += 1;
            self.change(change);
        }
    }

    /// The files of prepared transactions, by path.
    pub fn two_phase_files(&self) -> BTreeMap<String, Vec<u8>> {
        let path = |xid| two_phase_path(self.version, xid, self.control.next_xid());
        self.two_phase
            .iter()
            .map(|(&xid, file)| (path(xid), file.clone()))
            .collect()
    }

    fn change(&mut self, change: CatalogueChange) {
        let main = |rel: RelTag| rel.with_fork(ForkNumber::Main);
        match change {
            CatalogueChange::RelationCreated { rel } if rel.fork == ForkNumber::Main => {
                self.dropped.remove(&rel);
                self.relations.entry(rel).or_insert(0);
            }
            CatalogueChange::RelationTruncated { rel, blocks } => {
                if let Some(size) = self.relations.get_mut(&rel) {
                    *size = (*size).min(blocks);
                }
                self.vm.retain(|&(vm, block), _| vm != rel || block < blocks);
            }
            CatalogueChange::RelationDropped { rel } => {
                self.relations.remove(&rel);
                self.vm.retain(|&(vm, _), _| main(vm) != rel);
                self.dropped.insert(rel);
            }
            CatalogueChange::DatabaseDropped { db, tablespaces } => {
                let gone = |rel: &RelTag| rel.dbnode == db && tablespaces.contains(&rel.spcnode);
                self.relations.retain(|rel, _| !gone(rel));
                self.vm.retain(|(rel, _), _| !gone(rel));
                self.maps
                    .retain(|&(map_db, tablespace), _| map_db != db || !tablespaces.contains(&tablespace));
            }
            CatalogueChange::DatabaseCreatedByCopy {
                source_db,
                source_tablespace,
                db,
                tablespace,
            } => {
                if let Some(map) = self.maps.get(&(source_db, source_tablespace)).cloned() {
                    self.maps.insert((db, tablespace), map);
                }
                let of_source = |rel: &RelTag| rel.dbnode == source_db && rel.spcnode == source_tablespace;
                let copy = |rel: RelTag| RelTag {
                    spcnode: tablespace,
                    dbnode: db,
                    ..rel
                };
                let copies: Vec<_> = self
                    .relations
                    .iter()
                    .filter(|(rel, _)| of_source(rel))
                    .map(|(&rel, &n)| (copy(rel), n))
                    .collect();
                self.relations.extend(copies);
                let maps: Vec<_> = self
                    .vm
                    .iter()
                    .filter(|((rel, _), _)| of_source(rel))
                    .map(|(&(rel, b), &p)| ((copy(rel), b), p))
                    .collect();
                self.vm.extend(maps);
            }
            CatalogueChange::RelationMapUpdated {
                db,
                tablespace,
                bytes,
            } => {
                assert_eq!(bytes.len(), relation_map_bytes(self.version));
                self.maps.insert((db, tablespace), bytes.to_vec());
            }
            CatalogueChange::TwoPhasePrepared { xid, file } => {
                assert!(self.two_phase.insert(xid, file.to_vec()).is_none());
            }
            CatalogueChange::TwoPhaseFinished { xid } => assert!(self.two_phase.remove(&xid).is_some()),
            CatalogueChange::SlruTruncated { kind, cut } => {
                self.slru
                    .retain(|&(of, page), _| of != kind || !cut.removes(kind, page));
            }
            _ => {}
        }
    }

    /// Visibility maps of relations that WAL created. Redo replays the pages that a record names; the others are what no
    /// other oracle sees.
    fn replay_vm(&mut self, record: &DecodedRecord, effects: &Effects) {
        for map in record
            .blocks
            .iter()
            .filter(|block| block.rel.fork == ForkNumber::Vm)
        {
            let page = self.vm.entry((map.rel, map.block)).or_insert(ZEROS);
            redo_block(record, map, page).unwrap_or_else(|error| panic!("{error}"));
            *self.seen.entry("Vm named".to_owned()).or_default() += 1;
        }
        for clear in &effects.vm_clears {
            *self.seen.entry(format!("VmClear {}", clear.flags)).or_default() += 1;
            if let Some(page) = self.vm.get_mut(&(clear.rel, clear.block)) {
                clear.apply(page);
            }
        }
        for cut in &effects.vm_truncates {
            *self.seen.entry("VmTruncate".to_owned()).or_default() += 1;
            if let Some(page) = self.vm.get_mut(&(cut.rel, cut.block)) {
                cut.apply(page);
            }
        }
    }

    /// A record with any effect goes somewhere, and a shard count of one gets all of those.
    fn check_route(&self, record: &DecodedRecord, effects: &Effects) {
        let one = route(record, effects, ShardCount::new(1).unwrap());
        let many = ShardCount::new(5).unwrap();
        let five = route(record, effects, many);
        assert_eq!(one.shards.is_empty(), five.shards.is_empty());
        if effects.catalogue.iter().any(reaches_every_shard) {
            assert_eq!(five.shards, ShardSet::all(many));
        }
        let mut after = self.control;
        after.apply(record).unwrap();
        let mut hinted = self.control;
        if let Some(xid) = five.xid {
            hinted.see_xid(xid);
        }
        assert!(
            five.shards.contains(0) || hinted == after,
            "shard 0 misses {record:?}"
        );
    }
}

/// All pages of all SLRU files. Pages of zeros count as absent ones.
pub fn read_slrus(data: &Path) -> BTreeMap<(SlruKind, u64), Page> {
    let mut pages = BTreeMap::new();
    for kind in SlruKind::ALL {
        for entry in fs::read_dir(data.join(kind.directory())).unwrap() {
            let entry = entry.unwrap();
            let segment = u64::from_str_radix(entry.file_name().to_str().unwrap(), 16).unwrap();
            let bytes = fs::read(entry.path()).unwrap();
            let (found, rest) = bytes.as_chunks::<PAGE_SIZE>();
            assert!(rest.is_empty());
            pages.extend(
                (segment * 32..)
                    .zip(found)
                    .map(|(page, bytes)| ((kind, page), *bytes)),
            );
        }
    }
    pages
}

/// Compares SLRUs byte by byte. A page that one side does not have must be all zeros on the other.
pub fn assert_same_slrus(
    found: &BTreeMap<(SlruKind, u64), Page>,
    expected: &BTreeMap<(SlruKind, u64), Page>,
) {
    let keys: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    for key in keys {
        let (found, expected) = (
            found.get(key).unwrap_or(&ZEROS),
            expected.get(key).unwrap_or(&ZEROS),
        );
        let differing: Vec<_> = (0..PAGE_SIZE).filter(|&at| found[at] != expected[at]).collect();
        assert!(
            differing.is_empty(),
            "{key:?} differs at {:?}",
            &differing[..differing.len().min(20)]
        );
    }
}

/// A relation fork's first file.
pub fn path(data: &Path, rel: RelTag) -> PathBuf {
    let suffix = ["", "_fsm", "_vm", "_init"][rel.fork as usize];
    directory(data, rel.spcnode, rel.dbnode).join(format!("{}{suffix}", rel.relnode))
}

/// A database's directory in a tablespace; `data` is of a server with one version directory per tablespace.
pub fn directory(data: &Path, tablespace: u32, db: u32) -> PathBuf {
    match tablespace {
        1663 => data.join(format!("base/{db}")),
        1664 => data.join("global"),
        _ => {
            let mut versions = fs::read_dir(data.join(format!("pg_tblspc/{tablespace}"))).unwrap();
            let version = versions.next().unwrap().unwrap();
            version.path().join(db.to_string())
        }
    }
}
