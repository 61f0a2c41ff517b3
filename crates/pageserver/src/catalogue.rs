//! The catalogue of a timeline: everything versioned that is not a page.
//!
//! Each change is an [`Entry`] at the end LSN of its record. A [`Catalogue`] is the fold of all entries, resident in
//! memory, with every version kept, so that it answers at any LSN. Layers carry the entries of their range; a child
//! timeline starts with its parent's entries up to the branch point.
//!
//! Shard 0 holds all of it. The other shards hold what a page's life depends on: truncations, drops, and databases
//! created by copying files. They answer [`Catalogue::life`] only.

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf, BufMut, Bytes};
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag, SlruKind};

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
    resets: HashMap<RelTag, Versions<u32>>,
    databases: HashMap<DatabasePlace, Versions<Option<DatabasePlace>>>,
    files: BTreeMap<String, Versions<Option<Bytes>>>,
    slru: BTreeMap<(SlruKind, u64), Versions<bool>>,
    times: Versions<i64>,
}

impl Catalogue {
    /// Adds an entry. Entries come in LSN order.
    pub fn add(&mut self, lsn: Lsn, entry: &Entry) {
        match entry {
            Entry::Size(rel, blocks) => self.sizes.entry(*rel).or_default().push((lsn, Some(*blocks))),
            Entry::Dropped(rel) => {
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
        fn table<K: Copy + Eq + std::hash::Hash, T: Clone>(
            map: &HashMap<K, Versions<T>>,
            lsn: Lsn,
        ) -> HashMap<K, Versions<T>> {
            map.iter()
                .map(|(key, versions)| (*key, cut(versions, lsn)))
                .collect()
        }
        Catalogue {
            sizes: tree(&self.sizes, lsn),
            resets: table(&self.resets, lsn),
            databases: table(&self.databases, lsn),
            files: tree(&self.files, lsn),
            slru: tree(&self.slru, lsn),
            times: cut(&self.times, lsn),
        }
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

const FORMAT: u8 = 1;

/// Entries as bytes: a format byte, then per entry LSN (8), kind (1) and fields, little-endian; texts and contents with
/// their length (4) before them.
pub fn encode(entries: &[(Lsn, Entry)]) -> Vec<u8> {
    let mut out = vec![FORMAT];
    for (lsn, entry) in entries {
        out.put_u64_le(lsn.0);
        match entry {
            Entry::Size(rel, blocks) => {
                out.put_u8(1);
                put_rel(&mut out, rel);
                out.put_u32_le(*blocks);
            }
            Entry::Dropped(rel) => {
                out.put_u8(2);
                put_rel(&mut out, rel);
            }
            Entry::Reset(rel, from) => {
                out.put_u8(3);
                put_rel(&mut out, rel);
                out.put_u32_le(*from);
            }
            Entry::DatabaseCopied { to, from } => {
                out.put_u8(4);
                [to.0, to.1, from.0, from.1]
                    .into_iter()
                    .for_each(|field| out.put_u32_le(field));
            }
            Entry::DatabaseGone(place) => {
                out.put_u8(5);
                [place.0, place.1]
                    .into_iter()
                    .for_each(|field| out.put_u32_le(field));
            }
            Entry::File(path, content) => {
                out.put_u8(if content.is_some() { 6 } else { 7 });
                put_bytes(&mut out, path.as_bytes());
                content.iter().for_each(|content| put_bytes(&mut out, content));
            }
            Entry::SlruPage(kind, page, exists) => {
                out.put_u8(8);
                out.put_u8(*kind as u8);
                out.put_u64_le(*page);
                out.put_u8(u8::from(*exists));
            }
            Entry::Time(micros) => {
                out.put_u8(9);
                out.put_i64_le(*micros);
            }
        }
    }
    out
}

/// Bytes of a section, but for the last of a run. A layer takes no section of any size.
const SECTION_BYTES: usize = 8 << 20;

/// Entries as sections of a layer: a byte that says whether the next section goes on with these (1) or not (0), then a
/// part of what [`encode`] gives. Sections of several layers may follow each other.
pub fn to_sections(entries: &[(Lsn, Entry)]) -> Vec<Bytes> {
    let encoded = encode(entries);
    let mut parts = encoded.chunks(SECTION_BYTES).peekable();
    let mut sections = Vec::new();
    while let Some(part) = parts.next() {
        let mut section = vec![u8::from(parts.peek().is_some())];
        section.extend_from_slice(part);
        sections.push(section.into());
    }
    sections
}

/// Reads what [`to_sections`] gave, of one layer or several.
///
/// # Errors
/// See [`CatalogueError`].
pub fn from_sections(sections: Vec<Bytes>) -> Result<Vec<(Lsn, Entry)>, CatalogueError> {
    let (mut entries, mut open) = (Vec::new(), Vec::new());
    for mut section in sections {
        let more = section.try_get_u8();
        let more = more.map_err(|_| CatalogueError("a section is empty"))?;
        open.extend_from_slice(&section);
        match more {
            0 => entries.extend(decode(std::mem::take(&mut open).into())?),
            1 => {}
            _ => return Err(CatalogueError("a section is of unknown kind")),
        }
    }
    match open.is_empty() {
        true => Ok(entries),
        false => Err(CatalogueError("the last section is missing")),
    }
}

fn put_rel(out: &mut Vec<u8>, rel: &RelTag) {
    [rel.spcnode, rel.dbnode, rel.relnode]
        .into_iter()
        .for_each(|field| out.put_u32_le(field));
    out.put_u8(rel.fork as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.extend_from_slice(bytes);
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// See [`CatalogueError`].
pub fn decode(mut input: Bytes) -> Result<Vec<(Lsn, Entry)>, CatalogueError> {
    let cut = |_| CatalogueError("an entry is cut");
    if input.try_get_u8().map_err(cut)? != FORMAT {
        return Err(CatalogueError("unknown version"));
    }
    let mut entries = Vec::new();
    while input.has_remaining() {
        let lsn = Lsn(input.try_get_u64_le().map_err(cut)?);
        let kind = input.try_get_u8().map_err(cut)?;
        let input = &mut input;
        let entry = match kind {
            1 => Entry::Size(get_rel(input)?, input.try_get_u32_le().map_err(cut)?),
            2 => Entry::Dropped(get_rel(input)?),
            3 => Entry::Reset(get_rel(input)?, input.try_get_u32_le().map_err(cut)?),
            4 => Entry::DatabaseCopied {
                to: get_place(input)?,
                from: get_place(input)?,
            },
            5 => Entry::DatabaseGone(get_place(input)?),
            6 | 7 => {
                let path = String::from_utf8(get_bytes(input)?.to_vec());
                let path = path.map_err(|_| CatalogueError("a path is not UTF-8"))?;
                Entry::File(path, if kind == 6 { Some(get_bytes(input)?) } else { None })
            }
            8 => {
                let number = usize::from(input.try_get_u8().map_err(cut)?);
                let kind = *SlruKind::ALL.get(number).ok_or(CatalogueError("unknown SLRU"))?;
                let page = input.try_get_u64_le().map_err(cut)?;
                Entry::SlruPage(kind, page, input.try_get_u8().map_err(cut)? != 0)
            }
            9 => Entry::Time(input.try_get_i64_le().map_err(cut)?),
            _ => return Err(CatalogueError("unknown kind of entry")),
        };
        entries.push((lsn, entry));
    }
    Ok(entries)
}

fn get_place(input: &mut Bytes) -> Result<DatabasePlace, CatalogueError> {
    let cut = |_| CatalogueError("an entry is cut");
    Ok((
        input.try_get_u32_le().map_err(cut)?,
        input.try_get_u32_le().map_err(cut)?,
    ))
}

fn get_rel(input: &mut Bytes) -> Result<RelTag, CatalogueError> {
    let cut = |_| CatalogueError("an entry is cut");
    let (spcnode, dbnode) = get_place(input)?;
    let relnode = input.try_get_u32_le().map_err(cut)?;
    let fork =
        ForkNumber::from_number(input.try_get_u8().map_err(cut)?).ok_or(CatalogueError("unknown fork"))?;
    Ok(RelTag {
        spcnode,
        dbnode,
        relnode,
        fork,
    })
}

fn get_bytes(input: &mut Bytes) -> Result<Bytes, CatalogueError> {
    let length = input
        .try_get_u32_le()
        .map_err(|_| CatalogueError("an entry is cut"))? as usize;
    if length > input.len() {
        Err(CatalogueError("an entry is cut"))
    } else {
        Ok(input.split_to(length))
    }
}

/// The key of a relation's page.
pub fn page_key(rel: RelTag, block: u32) -> PageKey {
    PageKey::Rel { rel, block }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rel(dbnode: u32, relnode: u32) -> RelTag {
        RelTag {
            spcnode: 1663,
            dbnode,
            relnode,
            fork: ForkNumber::Main,
        }
    }

    #[test]
    fn entries_round_trip_and_cuts_are_refused() {
        let entries = vec![
            (Lsn(1), Entry::Size(rel(5, 9), 7)),
            (Lsn(2), Entry::Dropped(rel(5, 9))),
            (Lsn(3), Entry::Reset(rel(5, 9), 4)),
            (
                Lsn(4),
                Entry::DatabaseCopied {
                    to: (1663, 7),
                    from: (1663, 1),
                },
            ),
            (Lsn(5), Entry::DatabaseGone((1663, 7))),
            (
                Lsn(6),
                Entry::File("a/b".to_owned(), Some(Bytes::from_static(b"x"))),
            ),
            (Lsn(7), Entry::File("a/b".to_owned(), None)),
            (Lsn(8), Entry::SlruPage(SlruKind::MultiXactMembers, 12, true)),
            (Lsn(9), Entry::Time(-5)),
        ];
        let bytes = Bytes::from(encode(&entries));
        assert_eq!(decode(bytes.clone()).unwrap(), entries);
        assert!(decode(bytes.slice(..bytes.len() - 1)).is_err());
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
