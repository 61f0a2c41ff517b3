//! The catalogue of a timeline: everything versioned that is not a page.
//!
//! Each change is an [`Entry`] at the end LSN of its record. A [`Catalogue`] is the fold of all entries, resident in
//! memory, with every version that is still read ([`thin`]). Layers carry the entries of their range; a child timeline
//! starts with its parent's entries up to the branch point.
//!
//! Shard 0 holds all of it. The other shards hold what a page's life depends on: truncations, drops, and databases
//! created by copying files. They answer [`Catalogue::life`] only.

use std::collections::BTreeMap;

use bytes::Bytes;
use lakebed_layer::PageRange;
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag, SlruKind};

mod codec;
pub mod thin;

pub use codec::{decode, encode, from_sections, to_sections};

/// Tablespace and database: where a database's files of one tablespace are.
pub type DatabasePlace = (u32, u32);

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The fork exists and has this many blocks.
    Size(RelTag, u32),
    /// The fork does not exist any more.
    Dropped(RelTag),
    /// Blocks from this one on are gone; if they come back, they begin as zeros.
    Reset(RelTag, u32),
    /// A database's files in one tablespace were copied from another place, as they were at this LSN.
    DatabaseCopied {
        /// New place.
        to: DatabasePlace,
        /// Where its files were copied from.
        from: DatabasePlace,
    },
    /// A database's files in one tablespace are gone.
    DatabaseGone(DatabasePlace),
    /// A file has this content (`None`: it is gone). Paths are relative to the data directory; the content of a path
    /// below `pg_tblspc` is a link's target.
    File(String, Option<Bytes>),
    /// An SLRU page came or went.
    SlruPage(SlruKind, u64, bool),
    /// A transaction ended at this time, in microseconds since 1970.
    Time(i64),
}

impl Entry {
    /// Whether lives of pages depend on it: then every shard keeps it, and not only shard 0.
    pub fn is_of_lives(&self) -> bool {
        match self {
            Entry::Dropped(_) | Entry::Reset(..) | Entry::DatabaseCopied { .. } | Entry::DatabaseGone(_) => {
                true
            }
            Entry::Size(..) | Entry::File(..) | Entry::SlruPage(..) | Entry::Time(_) => false,
        }
    }
}

impl Entry {
    /// Pages whose lives end with it.
    fn ends(&self) -> Option<PageRange> {
        let of_rel = |rel: &RelTag, from| PageRange {
            from: PageKey::Rel {
                rel: *rel,
                block: from,
            },
            // There is no block of this number.
            to: Some(PageKey::Rel {
                rel: *rel,
                block: u32::MAX,
            }),
        };
        let of_database = |place: &DatabasePlace, relnode, fork, block| PageKey::Rel {
            rel: RelTag {
                spcnode: place.0,
                dbnode: place.1,
                relnode,
                fork,
            },
            block,
        };
        match self {
            Entry::Dropped(rel) => Some(of_rel(rel, 0)),
            Entry::Reset(rel, from) => Some(of_rel(rel, *from)),
            Entry::DatabaseGone(place) => Some(PageRange {
                from: of_database(place, 0, ForkNumber::Main, 0),
                to: Some(of_database(place, u32::MAX, ForkNumber::Init, u32::MAX)),
            }),
            // Nothing is where it is copied to.
            Entry::DatabaseCopied { .. } => None,
            Entry::Size(..) | Entry::File(..) | Entry::SlruPage(..) | Entry::Time(_) => None,
        }
    }
}

/// Stored entries that do not decode. They passed a checksum, so this is a bug or a newer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalogue is damaged or of a newer format: {0}")]
pub struct CatalogueError(&'static str);

/// Where the history of a page begins that counts at some LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Versions at or below this LSN belong to an earlier life.
    pub floor: Lsn,
    /// The page began as a copy of this relation's page, as it was at the floor; otherwise as zeros.
    pub copied_from: Option<RelTag>,
}

/// A versioned value: ascending LSNs.
type Versions<T> = Vec<(Lsn, T)>;

fn at<T>(versions: &Versions<T>, lsn: Lsn) -> Option<&T> {
    let after = versions.partition_point(|(version, _)| *version <= lsn);
    after.checked_sub(1).map(|index| &versions[index].1)
}

/// All entries of a timeline up to some LSN, by what they are about.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    sizes: BTreeMap<RelTag, Versions<Option<u32>>>,
    resets: BTreeMap<RelTag, Versions<u32>>,
    databases: BTreeMap<DatabasePlace, Versions<Option<DatabasePlace>>>,
    files: BTreeMap<String, Versions<Option<Bytes>>>,
    slru: BTreeMap<(SlruKind, u64), Versions<bool>>,
    times: Versions<i64>,
    /// How many versions all of them have.
    versions: usize,
    /// How many were left when it was thinned.
    thinned: usize,
    /// Of entries that were added and that [`Catalogue::forget_ends`] has not taken: whose pages' lives ended, in LSN order.
    ends: Vec<(Lsn, PageRange)>,
}

impl Catalogue {
    /// Adds an entry. Entries come in LSN order.
    pub fn add(&mut self, lsn: Lsn, entry: &Entry) {
        self.versions += 1;
        self.ends.extend(entry.ends().map(|pages| (lsn, pages)));
        match entry {
            Entry::Size(rel, blocks) => self.sizes.entry(*rel).or_default().push((lsn, Some(*blocks))),
            Entry::Dropped(rel) => {
                self.versions += 1;
                self.sizes.entry(*rel).or_default().push((lsn, None));
                self.resets.entry(*rel).or_default().push((lsn, 0));
            }
            Entry::Reset(rel, from) => self.resets.entry(*rel).or_default().push((lsn, *from)),
            Entry::DatabaseCopied { to, from } => {
                self.databases.entry(*to).or_default().push((lsn, Some(*from)))
            }
            Entry::DatabaseGone(place) => self.databases.entry(*place).or_default().push((lsn, None)),
            Entry::File(path, content) => {
                self.files
                    .entry(path.clone())
                    .or_default()
                    .push((lsn, content.clone()));
            }
            Entry::SlruPage(kind, page, exists) => {
                self.slru.entry((*kind, *page)).or_default().push((lsn, *exists));
            }
            Entry::Time(micros) => self.times.push((lsn, *micros)),
        }
    }

    /// LSNs after `start` at which lives of a relation's page ended, ascending.
    pub fn ends(&self, rel: RelTag, block: u32, start: Lsn) -> Vec<Lsn> {
        let resets = self.resets.get(&rel).into_iter().flatten();
        let resets = resets.filter(|(_, from)| *from <= block).map(|(lsn, _)| *lsn);
        let databases = self.databases.get(&(rel.spcnode, rel.dbnode));
        let databases = databases.into_iter().flatten().map(|(lsn, _)| *lsn);
        let mut ends: Vec<Lsn> = resets.chain(databases).filter(|lsn| *lsn > start).collect();
        ends.sort_unstable();
        ends
    }

    /// Pages whose lives ended up to `upto`, as far as they are not forgotten. Not those of a parent.
    pub fn pages_ended(&self, upto: Lsn) -> &[(Lsn, PageRange)] {
        let count = self.ends.partition_point(|(lsn, _)| *lsn <= upto);
        self.ends.get(..count).unwrap_or_default()
    }

    /// Forgets the first of [`Catalogue::pages_ended`].
    pub fn forget_ends(&mut self, count: usize) {
        self.ends.drain(..count.min(self.ends.len()));
    }

    /// A copy that knows nothing after `lsn`: where a branch starts.
    pub fn branch(&self, lsn: Lsn) -> Catalogue {
        fn cut<T: Clone>(versions: &Versions<T>, lsn: Lsn) -> Versions<T> {
            versions[..versions.partition_point(|(version, _)| *version <= lsn)].to_vec()
        }
        fn tree<K: Clone + Ord, T: Clone>(
            map: &BTreeMap<K, Versions<T>>,
            lsn: Lsn,
        ) -> BTreeMap<K, Versions<T>> {
            let cut = map
                .iter()
                .map(|(key, versions)| (key.clone(), cut(versions, lsn)));
            cut.filter(|(_, versions)| !versions.is_empty()).collect()
        }
        let mut branch = Catalogue {
            sizes: tree(&self.sizes, lsn),
            resets: tree(&self.resets, lsn),
            databases: tree(&self.databases, lsn),
            files: tree(&self.files, lsn),
            slru: tree(&self.slru, lsn),
            times: cut(&self.times, lsn),
            versions: 0,
            thinned: 0,
            ends: Vec::new(),
        };
        branch.versions = branch.count();
        branch
    }

    /// Blocks of a fork, `None` if it does not exist.
    pub fn size(&self, rel: RelTag, lsn: Lsn) -> Option<u32> {
        at(self.sizes.get(&rel)?, lsn).copied().flatten()
    }

    /// Forks of a database in a tablespace, with their sizes.
    pub fn relations(&self, place: DatabasePlace, lsn: Lsn) -> impl Iterator<Item = (RelTag, u32)> {
        let rel = |relnode, fork| RelTag {
            spcnode: place.0,
            dbnode: place.1,
            relnode,
            fork,
        };
        self.sizes
            .range(rel(0, ForkNumber::Main)..=rel(u32::MAX, ForkNumber::Init))
            .filter_map(move |(rel, versions)| Some((*rel, at(versions, lsn).copied().flatten()?)))
    }

    /// All forks with their sizes.
    pub fn all_relations(&self, lsn: Lsn) -> impl Iterator<Item = (RelTag, u32)> {
        self.sizes
            .iter()
            .filter_map(move |(rel, versions)| Some((*rel, at(versions, lsn).copied().flatten()?)))
    }

    /// Where the history of a block begins that counts at `lsn`.
    pub fn life(&self, rel: RelTag, block: u32, lsn: Lsn) -> Life {
        let mut life = Life {
            floor: Lsn(0),
            copied_from: None,
        };
        if let Some(resets) = self.resets.get(&rel) {
            let last = resets
                .iter()
                .rev()
                .find(|(at, from)| *at <= lsn && *from <= block);
            life.floor = last.map_or(Lsn(0), |(at, _)| *at);
        }
        if let Some(versions) = self.databases.get(&(rel.spcnode, rel.dbnode)) {
            let last = versions.iter().rev().find(|(at, _)| *at <= lsn);
            if let Some((born, template)) = last.filter(|(born, _)| *born >= life.floor) {
                let copied_from = template.map(|(spcnode, dbnode)| RelTag {
                    spcnode,
                    dbnode,
                    ..rel
                });
                life = Life {
                    floor: *born,
                    copied_from,
                };
            }
        }
        life
    }

    /// Databases that are there at `lsn` and were copied: where to and where from, in the order in which it was done.
    pub fn copied_databases(&self, lsn: Lsn) -> Vec<(DatabasePlace, DatabasePlace)> {
        let last = |versions: &Versions<Option<DatabasePlace>>| {
            let after = versions.partition_point(|(version, _)| *version <= lsn);
            after.checked_sub(1).and_then(|at| versions.get(at)).copied()
        };
        let mut found: Vec<_> = self
            .databases
            .iter()
            .filter_map(|(to, versions)| {
                let (born, from) = last(versions)?;
                Some((born, *to, from?))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, to, from)| (to, from)).collect()
    }

    /// Entries that say what is there at `lsn`, for who begins there with an image of every page: how it came to be so is
    /// of no use to them.
    pub fn as_of(&self, lsn: Lsn) -> Vec<Entry> {
        let sizes = self
            .all_relations(lsn)
            .map(|(rel, blocks)| Entry::Size(rel, blocks));
        let files = self
            .files(lsn)
            .map(|(path, content)| Entry::File(path.to_owned(), Some(content.clone())));
        let slru = self
            .slru_pages(lsn)
            .map(|(kind, page)| Entry::SlruPage(kind, page, true));
        let time = self.commit_at(lsn).map(|(_, micros)| Entry::Time(micros));
        sizes.chain(files).chain(slru).chain(time).collect()
    }

    /// Databases that were copied from a template: from when to when each is there.
    pub fn copies(&self) -> impl Iterator<Item = (Lsn, Option<Lsn>)> {
        self.databases.values().flat_map(|versions| {
            let until = versions.iter().skip(1).map(|(lsn, _)| Some(*lsn)).chain([None]);
            let copies = versions.iter().zip(until);
            copies.filter_map(|((born, template), gone)| template.map(|_| (*born, gone)))
        })
    }

    /// A file's content, `None` if it does not exist.
    pub fn file(&self, path: &str, lsn: Lsn) -> Option<Bytes> {
        at(self.files.get(path)?, lsn).cloned().flatten()
    }

    /// Whether a file had this content from this LSN on.
    pub fn has_version(&self, path: &str, lsn: Lsn, content: &Option<Bytes>) -> bool {
        let versions = self.files.get(path).into_iter().flatten();
        let mut at_lsn = versions.filter(|(at, _)| *at == lsn);
        at_lsn.any(|(_, known)| known == content)
    }

    /// All files with their contents.
    pub fn files(&self, lsn: Lsn) -> impl Iterator<Item = (&str, &Bytes)> {
        self.files
            .iter()
            .filter_map(move |(path, versions)| Some((path.as_str(), at(versions, lsn)?.as_ref()?)))
    }

    /// All SLRU pages that exist.
    pub fn slru_pages(&self, lsn: Lsn) -> impl Iterator<Item = (SlruKind, u64)> {
        self.slru
            .iter()
            .filter(move |(_, versions)| at(versions, lsn).is_some_and(|exists| *exists))
            .map(|(page, _)| *page)
    }

    /// Whether an SLRU page exists.
    pub fn has_slru_page(&self, kind: SlruKind, page: u64, lsn: Lsn) -> bool {
        self.slru
            .get(&(kind, page))
            .and_then(|versions| at(versions, lsn))
            .is_some_and(|exists| *exists)
    }

    /// End and time of the last transaction that ended at or before an LSN.
    pub fn commit_at(&self, lsn: Lsn) -> Option<(Lsn, i64)> {
        let after = self.times.partition_point(|(end, _)| *end <= lsn);
        self.times.get(after.checked_sub(1)?).copied()
    }

    /// End of the last transaction that ended at or before a time; `None` if all known ones ended later.
    pub fn lsn_at(&self, micros: i64) -> Option<Lsn> {
        self.times
            .iter()
            .rev()
            .find(|(_, time)| *time <= micros)
            .map(|(lsn, _)| *lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn rel(dbnode: u32, relnode: u32) -> RelTag {
        RelTag {
            spcnode: 1663,
            dbnode,
            relnode,
            fork: ForkNumber::Main,
        }
    }

    #[test]
    fn a_page_lives_from_its_last_reset_on() {
        let mut catalogue = Catalogue::default();
        let add = |catalogue: &mut Catalogue, lsn, entry| catalogue.add(Lsn(lsn), &entry);
        add(&mut catalogue, 10, Entry::Size(rel(5, 9), 100));
        add(&mut catalogue, 20, Entry::Reset(rel(5, 9), 50));
        add(&mut catalogue, 20, Entry::Size(rel(5, 9), 50));
        add(
            &mut catalogue,
            30,
            Entry::DatabaseCopied {
                to: (1663, 7),
                from: (1663, 5),
            },
        );
        add(&mut catalogue, 40, Entry::Dropped(rel(7, 9)));
        add(&mut catalogue, 50, Entry::DatabaseGone((1663, 7)));
        let floor = |rel, block, lsn| catalogue.life(rel, block, Lsn(lsn)).floor.0;
        assert_eq!(
            (
                floor(rel(5, 9), 49, 99),
                floor(rel(5, 9), 50, 99),
                floor(rel(5, 9), 50, 19)
            ),
            (0, 20, 0)
        );
        assert_eq!(
            catalogue.life(rel(7, 9), 0, Lsn(35)),
            Life {
                floor: Lsn(30),
                copied_from: Some(rel(5, 9))
            }
        );
        assert_eq!(
            catalogue.life(rel(7, 9), 0, Lsn(45)),
            Life {
                floor: Lsn(40),
                copied_from: None
            }
        );
        assert_eq!(
            catalogue.life(rel(7, 9), 0, Lsn(55)),
            Life {
                floor: Lsn(50),
                copied_from: None
            }
        );
        assert_eq!(
            (
                catalogue.size(rel(5, 9), Lsn(15)),
                catalogue.size(rel(5, 9), Lsn(25))
            ),
            (Some(100), Some(50))
        );
        let branch = catalogue.branch(Lsn(15));
        assert_eq!(
            (
                branch.size(rel(5, 9), Lsn(99)),
                branch.life(rel(5, 9), 60, Lsn(99)).floor
            ),
            (Some(100), Lsn(0))
        );
    }
}
