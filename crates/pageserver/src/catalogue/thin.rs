//! Giving up versions of the catalogue that nobody reads.
//!
//! A version is kept if it is the newest at one of the LSNs that are read, or the last one: the rule that merges have for
//! pages. Commit times are kept less exactly the older they are, so that their number follows the window's length and not
//! the number of commits: see [`RESOLUTIONS`].
//!
//! What is stored is thinned when catalogue layers become one. Such a run of layers may begin in the middle of history:
//! then what was before is unknown, and "it does not exist" must stay where at the very beginning it goes without saying.
//! So it must in a branch, for what its parent has at the branch point. The parent's versions are the parent's to give up.
//! What is resident is thinned in slices, between which others get the lock.

use std::collections::BTreeMap;
use std::ops::Bound;

use lakebed_layer::ReadPoints;
use lakebed_types::{Lsn, RelTag, SlruKind};

use super::{Catalogue, Entry, Versions};

/// For times that are at least so many microseconds before the newest one: of each so many microseconds, the last commit.
/// Younger ones are all kept.
pub const RESOLUTIONS: [(i64, i64); 2] = [(86_400_000_000, 1_000_000), (600_000_000, 100_000)];
/// Keys for which the lock is held.
const SLICE: usize = 20_000;

/// Where thinning of the resident catalogue goes on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    part: Part,
    after: Option<RelTag>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Part {
    #[default]
    Sizes,
    Resets,
    Rest,
}

/// Commit times, thinned. There may be millions of them, so that is done with a copy and without the lock.
#[derive(Debug)]
pub struct ThinnedTimes {
    left: Versions<i64>,
    /// How many there were.
    of: usize,
}

impl ThinnedTimes {
    /// Of a catalogue's times those that reads at `points` see, and old ones less exactly.
    pub fn of(mut times: Vec<(Lsn, i64)>, points: &ReadPoints) -> ThinnedTimes {
        let of = times.len();
        thin(&mut times, points);
        thin_times(&mut times);
        ThinnedTimes { left: times, of }
    }
}

impl Catalogue {
    /// Versions that are known.
    pub fn versions(&self) -> usize {
        self.versions
    }

    /// Whether it has so many versions more than twice what was left when it was thinned.
    pub fn wants_thinning(&self, more: usize) -> bool {
        self.versions > self.thinned.saturating_mul(2).saturating_add(more)
    }

    /// Gives up what reads at `points` do not see, of entries that stand alone. `from_the_beginning`: there is nothing older
    /// elsewhere, in a parent or in layers before these.
    pub fn thin(&mut self, points: &ReadPoints, from_the_beginning: bool) {
        let new = |_: &RelTag| from_the_beginning;
        let (sizes, _) = thin_sizes(&mut self.sizes, (points, &new), None, usize::MAX);
        let (resets, _) = thin_resets(&mut self.resets, points, None, usize::MAX);
        self.versions -= sizes + resets;
        self.thin_rest(points, from_the_beginning, |_| from_the_beginning);
        let times = std::mem::take(&mut self.times);
        self.versions -= times.len();
        let times = ThinnedTimes::of(times, points);
        self.versions += times.left.len();
        self.times = times.left;
        self.thinned = self.versions;
    }

    /// A part of [`Catalogue::thin`] for one that is resident, but for times. `None`: it is done.
    pub fn thin_slice(&mut self, points: &ReadPoints, at: Progress) -> Option<Progress> {
        let (next, (dropped, after)) = match at.part {
            Part::Sizes => {
                let below = self.below.as_ref();
                let known =
                    |rel: &RelTag| below.and_then(|below| below.ask(Lsn::MAX, |c, lsn| c.size(*rel, lsn)));
                let new = |rel: &RelTag| known(rel).is_none();
                let thinned = thin_sizes(&mut self.sizes, (points, &new), at.after, SLICE);
                (Part::Resets, thinned)
            }
            Part::Resets => (Part::Rest, thin_resets(&mut self.resets, points, at.after, SLICE)),
            Part::Rest => {
                let below = self.below.clone();
                let known = |(kind, page): &(SlruKind, u64)| {
                    let below = below.as_ref();
                    below
                        .is_some_and(|below| below.ask(Lsn::MAX, |c, lsn| c.has_slru_page(*kind, *page, lsn)))
                };
                self.thin_rest(points, true, |page| !known(page));
                return None;
            }
        };
        self.versions -= dropped;
        let part = if after.is_some() { at.part } else { next };
        Some(Progress { part, after })
    }

    /// `new_files` and `new` tell of files and SLRU pages whether they are not there before their first version.
    fn thin_rest(&mut self, points: &ReadPoints, new_files: bool, new: impl Fn(&(SlruKind, u64)) -> bool) {
        let mut dropped = 0;
        // A database that is gone ends lives of pages, whatever was before.
        for versions in self.databases.values_mut() {
            dropped += thin(versions, points);
        }
        self.files.retain(|_, versions| {
            dropped += thin(versions, points) + begin_with(versions, new_files, Option::is_some);
            !versions.is_empty()
        });
        self.slru.retain(|page, versions| {
            dropped += thin(versions, points) + begin_with(versions, new(page), |exists| *exists);
            !versions.is_empty()
        });
        self.versions -= dropped;
    }

    /// Commit times, ascending by LSN.
    pub fn times(&self) -> Vec<(Lsn, i64)> {
        self.times.clone()
    }

    /// Puts times in the place of those that they were made of; later ones stay. It is thinned then.
    pub fn replace_times(&mut self, times: ThinnedTimes) {
        let ThinnedTimes { mut left, of } = times;
        self.versions -= of - left.len();
        left.extend(self.times.iter().skip(of));
        self.times = left;
        self.thinned = self.versions;
    }

    /// Entries that make this catalogue, in LSN order, without what is below it.
    pub fn entries(&self) -> Vec<(Lsn, Entry)> {
        let mut entries = Vec::with_capacity(self.versions);
        for (rel, versions) in &self.sizes {
            entries.extend(versions.iter().map(|(lsn, size)| match size {
                Some(blocks) => (*lsn, Entry::Size(*rel, *blocks)),
                None => (*lsn, Entry::Dropped(*rel)),
            }));
        }
        for (rel, resets) in &self.resets {
            let sizes = self.sizes.get(rel);
            let is_a_drop = |(lsn, from): &(Lsn, u32)| {
                let gone = |(at, size): &(Lsn, Option<u32>)| at == lsn && size.is_none();
                *from == 0 && sizes.is_some_and(|sizes| sizes.iter().any(gone))
            };
            let others = resets.iter().filter(|reset| !is_a_drop(reset));
            entries.extend(others.map(|(lsn, from)| (*lsn, Entry::Reset(*rel, *from))));
        }
        for (place, versions) in &self.databases {
            entries.extend(versions.iter().map(|(lsn, template)| match template {
                Some(from) => {
                    let (to, from) = (*place, *from);
                    (*lsn, Entry::DatabaseCopied { to, from })
                }
                None => (*lsn, Entry::DatabaseGone(*place)),
            }));
        }
        for (path, versions) in &self.files {
            let file = |content: &Option<_>| Entry::File(path.clone(), content.clone());
            entries.extend(versions.iter().map(|(lsn, content)| (*lsn, file(content))));
        }
        for ((kind, page), versions) in &self.slru {
            let page = |exists| Entry::SlruPage(*kind, *page, exists);
            entries.extend(versions.iter().map(|(lsn, exists)| (*lsn, page(*exists))));
        }
        entries.extend(
            self.times
                .iter()
                .map(|(lsn, micros)| (*lsn, Entry::Time(*micros))),
        );
        entries.sort_by_key(|(lsn, _)| *lsn);
        entries
    }

    /// Counts its versions.
    pub(super) fn count(&self) -> usize {
        fn of<'a, T: 'a>(lists: impl Iterator<Item = &'a Versions<T>>) -> usize {
            lists.map(Vec::len).sum()
        }
        of(self.sizes.values())
            + of(self.resets.values())
            + of(self.databases.values())
            + of(self.files.values())
            + of(self.slru.values())
            + self.times.len()
    }
}

/// Keeps of each span between two versions' LSNs the older one's version, if a point is in it, and the last. How many went.
fn thin<T>(versions: &mut Versions<T>, points: &ReadPoints) -> usize {
    let is_read = |pair: &[(Lsn, T)]| match pair {
        [(lsn, _), (next, _)] => points.newest_in(*lsn, *next).is_some(),
        _ => true,
    };
    let mut read: Vec<bool> = versions.windows(2).map(is_read).collect();
    read.push(true);
    retain(versions, read)
}

fn retain<T>(versions: &mut Versions<T>, kept: Vec<bool>) -> usize {
    let (mut kept, before) = (kept.into_iter(), versions.len());
    versions.retain(|_| kept.next().unwrap_or(true));
    if versions.capacity() > 2 * versions.len() + 8 {
        versions.shrink_to_fit();
    }
    before - versions.len()
}

/// Leaves out that it does not exist at first, of what is new. How many went.
fn begin_with<T>(versions: &mut Versions<T>, is_new: bool, exists: impl Fn(&T) -> bool) -> usize {
    if !is_new {
        return 0;
    }
    let first = versions.iter().position(|(_, value)| exists(value));
    versions.drain(..first.unwrap_or(versions.len())).count()
}

/// How many versions went, and the last relation if there may be more.
type Thinned = (usize, Option<RelTag>);

fn thin_sizes(
    sizes: &mut BTreeMap<RelTag, Versions<Option<u32>>>,
    (points, is_new): (&ReadPoints, &dyn Fn(&RelTag) -> bool),
    after: Option<RelTag>,
    most: usize,
) -> Thinned {
    let (mut dropped, mut last, mut empty) = (0, None, Vec::new());
    for (rel, versions) in slice(sizes, after, most) {
        dropped += thin(versions, points) + begin_with(versions, is_new(rel), Option::is_some);
        if versions.is_empty() {
            empty.push(*rel);
        }
        last = Some(*rel);
    }
    for rel in empty {
        sizes.remove(&rel);
    }
    (dropped, last.filter(|_| most < usize::MAX))
}

/// A reset that a later one repeats is given up if nobody reads in between.
fn thin_resets(
    resets: &mut BTreeMap<RelTag, Versions<u32>>,
    points: &ReadPoints,
    after: Option<RelTag>,
    most: usize,
) -> Thinned {
    let (mut dropped, mut last) = (0, None);
    for (rel, resets) in slice(resets, after, most) {
        let is_kept = |(at, (lsn, from)): (usize, &(Lsn, u32))| {
            let mut later = resets.iter().skip(at + 1);
            let repeated = later.find(|(_, again)| again <= from);
            repeated.is_none_or(|(again, _)| points.newest_in(*lsn, *again).is_some())
        };
        let kept = resets.iter().enumerate().map(is_kept).collect();
        dropped += retain(resets, kept);
        last = Some(*rel);
    }
    (dropped, last.filter(|_| most < usize::MAX))
}

fn slice<T>(
    map: &mut BTreeMap<RelTag, T>,
    after: Option<RelTag>,
    most: usize,
) -> impl Iterator<Item = (&RelTag, &mut T)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    map.range_mut((from, Bound::Unbounded)).take(most)
}

/// See [`RESOLUTIONS`].
fn thin_times(times: &mut Versions<i64>) {
    let Some(newest) = times.iter().map(|(_, micros)| *micros).max() else {
        return;
    };
    let resolution = |micros: i64| {
        let age = newest.saturating_sub(micros);
        let rule = RESOLUTIONS.iter().find(|(from, _)| age >= *from);
        rule.map(|(_, resolution)| *resolution)
    };
    let is_kept = |pair: &[(Lsn, i64)]| match pair {
        [(_, micros), (_, next)] => resolution(*micros)
            .is_none_or(|resolution| micros.div_euclid(resolution) != next.div_euclid(resolution)),
        _ => true,
    };
    let mut kept: Vec<bool> = times.windows(2).map(is_kept).collect();
    kept.push(true);
    retain(times, kept);
}

#[cfg(test)]
#[path = "thin_tests.rs"]
pub(super) mod tests;
