//! The catalogue of a timeline: everything versioned that is not a page.
//!
//! Each change is an [`Entry`] at the end LSN of its record. A [`Catalogue`] is the fold of all entries, resident in
//! memory, with every version that is still read ([`thin`]). Layers carry the entries of their range.
//!
//! A branch has its own versions and, [`below`] them, its parent's as of the branch point, which are not copied: so making
//! one costs the same however many relations there are. A question that its own versions do not answer is asked there.
//!
//! Shard 0 holds all of it. The other shards hold what a page's life depends on: truncations, drops, and databases
//! created by copying files. They answer [`Catalogue::life`] only.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use lakebed_layer::PageRange;
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag, SlruKind};

pub mod below;
mod codec;
pub mod thin;

use below::Below;
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

fn version_at<T>(versions: &Versions<T>, lsn: Lsn) -> Option<&(Lsn, T)> {
    let after = versions.partition_point(|(version, _)| *version <= lsn);
    versions.get(after.checked_sub(1)?)
}

fn at<T>(versions: &Versions<T>, lsn: Lsn) -> Option<&T> {
    version_at(versions, lsn).map(|(_, value)| value)
}

/// A database's template, if it was copied from one; `None` once it is gone.
type Template = Option<DatabasePlace>;

/// All entries of a timeline up to some LSN, by what they are about.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// What a branch has of its parent.
    below: Option<Below>,
    sizes: BTreeMap<RelTag, Versions<Option<u32>>>,
    resets: BTreeMap<RelTag, Versions<u32>>,
    databases: BTreeMap<DatabasePlace, Versions<Template>>,
    /// With a parent's: see [`below`].
    files: BTreeMap<String, Versions<Option<Bytes>>>,
    slru: BTreeMap<(SlruKind, u64), Versions<bool>>,
    times: Versions<i64>,
    /// How many versions all of them have, without what is below.
    versions: usize,
    /// How many were left when it was thinned.
    thinned: usize,
    /// Of entries that were added and that [`Catalogue::forget_ends`] has not taken: whose pages' lives ended, in LSN order.
    ends: Vec<(Lsn, PageRange)>,
}

impl Catalogue {
    /// Adds entries, in LSN order.
    pub fn add_all(&mut self, entries: &[(Lsn, Entry)]) {
        for (lsn, entry) in entries {
            self.add(*lsn, entry);
        }
    }

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

    /// LSNs after `start`, where the timeline's own versions begin, at which lives of a relation's page ended, ascending.
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

    /// Blocks of a fork, `None` if it does not exist.
    pub fn size(&self, rel: RelTag, lsn: Lsn) -> Option<u32> {
        let own = self.sizes.get(&rel).and_then(|versions| at(versions, lsn));
        match own {
            Some(size) => *size,
            None => self.ask_below(lsn, |below, lsn| below.size(rel, lsn)).flatten(),
        }
    }

    /// Forks of a database in a tablespace, with their sizes.
    pub fn relations(&self, place: DatabasePlace, lsn: Lsn) -> impl Iterator<Item = (RelTag, u32)> + use<> {
        let rel = |relnode, fork| RelTag {
            spcnode: place.0,
            dbnode: place.1,
            relnode,
            fork,
        };
        let (first, last) = (rel(0, ForkNumber::Main), rel(u32::MAX, ForkNumber::Init));
        self.relations_in((Bound::Included(first), Bound::Included(last)), lsn)
            .into_iter()
    }

    /// All forks with their sizes.
    pub fn all_relations(&self, lsn: Lsn) -> impl Iterator<Item = (RelTag, u32)> + use<> {
        self.relations_in((Bound::Unbounded, Bound::Unbounded), lsn)
            .into_iter()
    }

    fn relations_in(&self, range: (Bound<RelTag>, Bound<RelTag>), lsn: Lsn) -> BTreeMap<RelTag, u32> {
        let below = self.ask_below(lsn, |below, lsn| below.relations_in(range, lsn));
        let own = self.sizes.range(range);
        overlaid(
            below,
            own.map(|(rel, versions)| (*rel, at(versions, lsn).copied())),
        )
    }

    /// Where the history of a block begins that counts at `lsn`.
    pub fn life(&self, rel: RelTag, block: u32, lsn: Lsn) -> Life {
        let reset = self.last_reset(rel, block, lsn).unwrap_or_default();
        let database = self.database_at((rel.spcnode, rel.dbnode), lsn);
        match database.filter(|(born, _)| *born >= reset) {
            Some((born, template)) => Life {
                floor: born,
                copied_from: template.map(|(spcnode, dbnode)| RelTag {
                    spcnode,
                    dbnode,
                    ..rel
                }),
            },
            None => Life {
                floor: reset,
                copied_from: None,
            },
        }
    }

    /// When a block last came to begin as zeros.
    fn last_reset(&self, rel: RelTag, block: u32, lsn: Lsn) -> Option<Lsn> {
        let mut own = self.resets.get(&rel).into_iter().flatten().rev();
        let own = own.find(|(at, from)| *at <= lsn && *from <= block);
        match own {
            Some((at, _)) => Some(*at),
            None => self
                .ask_below(lsn, |below, lsn| below.last_reset(rel, block, lsn))
                .flatten(),
        }
    }

    /// When a database was copied or given up last.
    fn database_at(&self, place: DatabasePlace, lsn: Lsn) -> Option<(Lsn, Template)> {
        let own = self.databases.get(&place);
        match own.and_then(|versions| version_at(versions, lsn)) {
            Some(version) => Some(*version),
            None => self
                .ask_below(lsn, |below, lsn| below.database_at(place, lsn))
                .flatten(),
        }
    }

    /// All versions of all databases up to `lsn`.
    fn databases_up_to(&self, lsn: Lsn) -> BTreeMap<DatabasePlace, Versions<Template>> {
        let below = self.ask_below(lsn, Catalogue::databases_up_to);
        let mut all = below.unwrap_or_default();
        for (place, versions) in &self.databases {
            let own = versions.iter().take_while(|(version, _)| *version <= lsn);
            all.entry(*place).or_default().extend(own.copied());
        }
        all
    }

    /// Databases that are there at `lsn` and were copied: where to and where from, in the order in which it was done.
    pub fn copied_databases(&self, lsn: Lsn) -> Vec<(DatabasePlace, DatabasePlace)> {
        let all = self.databases_up_to(lsn);
        let last = all.iter().filter_map(|(to, versions)| {
            let (born, from) = versions.last()?;
            Some((*born, *to, (*from)?))
        });
        let mut found: Vec<_> = last.collect();
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
    pub fn copies(&self) -> Vec<(Lsn, Option<Lsn>)> {
        let all = self.databases_up_to(Lsn::MAX);
        let copies = all.values().flat_map(|versions| {
            let until = versions.iter().skip(1).map(|(lsn, _)| Some(*lsn)).chain([None]);
            let copies = versions.iter().zip(until);
            copies.filter_map(|((born, template), gone)| template.map(|_| (*born, gone)))
        });
        copies.collect()
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
    pub fn slru_pages(&self, lsn: Lsn) -> impl Iterator<Item = (SlruKind, u64)> + use<> {
        self.slru_at(lsn).into_keys()
    }

    fn slru_at(&self, lsn: Lsn) -> BTreeMap<(SlruKind, u64), ()> {
        let below = self.ask_below(lsn, Catalogue::slru_at);
        let there = |versions: &Versions<bool>| at(versions, lsn).map(|exists| exists.then_some(()));
        let own = self.slru.iter();
        overlaid(below, own.map(|(page, versions)| (*page, there(versions))))
    }

    /// Whether an SLRU page exists.
    pub fn has_slru_page(&self, kind: SlruKind, page: u64, lsn: Lsn) -> bool {
        let own = self.slru.get(&(kind, page));
        match own.and_then(|versions| at(versions, lsn)) {
            Some(exists) => *exists,
            None => self
                .ask_below(lsn, |below, lsn| below.has_slru_page(kind, page, lsn))
                .unwrap_or_default(),
        }
    }

    /// End and time of the last transaction that ended at or before an LSN.
    pub fn commit_at(&self, lsn: Lsn) -> Option<(Lsn, i64)> {
        match version_at(&self.times, lsn) {
            Some(commit) => Some(*commit),
            None => self.ask_below(lsn, Catalogue::commit_at).flatten(),
        }
    }

    /// End of the last transaction that ended at or before a time; `None` if all known ones ended later.
    pub fn lsn_at(&self, micros: i64) -> Option<Lsn> {
        self.lsn_up_to(micros, Lsn::MAX)
    }

    fn lsn_up_to(&self, micros: i64, lsn: Lsn) -> Option<Lsn> {
        let mut own = self.times.iter().rev();
        match own.find(|(end, time)| *end <= lsn && *time <= micros) {
            Some((end, _)) => Some(*end),
            None => self
                .ask_below(lsn, |below, lsn| below.lsn_up_to(micros, lsn))
                .flatten(),
        }
    }
}

/// What is there: what was `below`, and own values that are known instead of it (`None` within: it is gone).
fn overlaid<K: Ord, T>(
    below: Option<BTreeMap<K, T>>,
    own: impl Iterator<Item = (K, Option<Option<T>>)>,
) -> BTreeMap<K, T> {
    let mut there = below.unwrap_or_default();
    for (key, known) in own {
        match known {
            Some(Some(value)) => {
                there.insert(key, value);
            }
            Some(None) => {
                there.remove(&key);
            }
            None => {}
        }
    }
    there
}

#[cfg(test)]
mod tests {
    use super::below::Shared;
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
        let branch = Catalogue::branch(Shared::new(catalogue), Lsn(15));
        assert_eq!(
            (
                branch.size(rel(5, 9), Lsn(99)),
                branch.life(rel(5, 9), 60, Lsn(99)).floor
            ),
            (Some(100), Lsn(0))
        );
    }
}
