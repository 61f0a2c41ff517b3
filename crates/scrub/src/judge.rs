//! From what is stored to what is wrong and what is left over. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lakebed_blobstore::Listed;
use lakebed_layer::LayerId;
use lakebed_pageserver::manifest::Manifest;

use crate::age;
use crate::names::Directory;
use crate::report::{Finding, Kind, Leftover, State};
use crate::stored::Stored;

/// Findings and leftovers of one timeline.
pub(crate) type Judged = (Vec<Finding>, Vec<Leftover>);

/// Looks at one timeline; the times are now and the grace time, by the store's clock.
pub(crate) fn timeline(directory: &Directory, stored: &Stored, (now, grace): (i64, i64)) -> Judged {
    let (mut findings, mut known) = (Vec::new(), BTreeSet::<LayerId>::new());
    let current = stored.current().map(|(version, _)| *version);
    let mut told = BTreeSet::new();
    for (version, read) in stored.manifests.iter().rev() {
        let manifest = match &read.manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                findings.push(Finding {
                    kind: Kind::Damaged,
                    path: read.listed.path.clone(),
                    what: error.to_string(),
                });
                continue;
            }
        };
        known.extend(manifest.gone.iter().map(|gone| gone.layer));
        let which = match Some(*version) == current {
            true => "the current manifest",
            false => "an older manifest, to which the timeline may be taken back,",
        };
        for desc in manifest.map.layers() {
            known.insert(desc.id);
            let path = directory.layer(desc.id);
            let (kind, what) = match stored.layers.get(&desc.id) {
                None => (Kind::Missing, format!("{which} names it, and it is not there")),
                Some(listed) if listed.bytes != desc.bytes => (
                    Kind::WrongSize,
                    format!("it has {} bytes, and {which} says {}", listed.bytes, desc.bytes),
                ),
                Some(_) => continue,
            };
            if told.insert(desc.id) {
                findings.push(Finding { kind, path, what });
            }
        }
    }
    let unnamed = stored.layers.iter().filter(|(id, _)| !known.contains(id));
    let leftovers = unnamed.map(|(id, listed)| {
        let (state, why) = leftover(stored, (*id, listed), (now, grace));
        Leftover {
            path: listed.path.clone(),
            bytes: listed.bytes,
            age_s: age(now, listed.written_unix_s),
            state,
            why: why.to_owned(),
        }
    });
    (findings, leftovers.collect())
}

/// The proof of the crate's header, but for the last listing.
fn leftover(
    stored: &Stored,
    (id, listed): (LayerId, &Listed),
    (now, grace): (i64, i64),
) -> (State, &'static str) {
    let Some((version, current)) = stored.current() else {
        return (
            State::Unfinished,
            "the timeline has no manifest: an import that runs, or was given up",
        );
    };
    if stored.manifests.values().any(|read| read.manifest.is_err()) {
        return (
            State::Unfinished,
            "no manifest that can be read names it, and one is damaged",
        );
    }
    let written = listed.written_unix_s;
    if now.saturating_sub(written) <= grace {
        return (State::Unfinished, "no manifest names it yet, and it is young");
    }
    if version.0 > id.generation {
        return (State::Orphan, "an owner of a higher generation does not name it");
    }
    if version.0 == id.generation && current.listed.written_unix_s.saturating_sub(written) > grace {
        return (
            State::Orphan,
            "its owner has stored manifests after it that do not name it",
        );
    }
    (
        State::Unfinished,
        "its owner has stored no manifest since, or not long after it",
    )
}

/// A branch hangs at a timeline that is there and reaches so far.
pub(crate) fn parent(
    directory: &Directory,
    stored: &Stored,
    all: &BTreeMap<Directory, Stored>,
) -> Option<Finding> {
    let manifest = current(stored)?;
    let parent = manifest.parent?;
    let beside = directory.beside(parent.timeline);
    let lost = |what: String| Finding {
        kind: Kind::NoParent,
        path: directory.path(),
        what,
    };
    let Some(found) = all.get(&beside).filter(|stored| !stored.manifests.is_empty()) else {
        return Some(lost(format!(
            "it is a branch of timeline {}, which has no manifest",
            parent.timeline
        )));
    };
    // A damaged one was told by itself.
    let found = current(found)?;
    let within = found.start <= parent.lsn && parent.lsn <= found.disk_consistent;
    (!within).then(|| {
        lost(format!(
            "it is a branch of timeline {} at {}, which reaches from {} to {} only",
            parent.timeline, parent.lsn, found.start, found.disk_consistent
        ))
    })
}

fn current(stored: &Stored) -> Option<&Manifest> {
    stored.current()?.1.manifest.as_deref().ok()
}
