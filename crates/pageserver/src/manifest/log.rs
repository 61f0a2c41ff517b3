//! What is stored of the next manifest: all of it, or what it has other than an earlier one.
//!
//! Manifests since the last whole one are numbered 1, 2, … Number `n` is stored as its difference from number
//! `n & (n - 1)`, which is `n` without its lowest bit; 0 is the whole one:
//!
//! ```text
//!   0 ◄── 1      0 ◄── 2 ◄── 3      0 ◄── 4 ◄── 5      4 ◄── 6 ◄── 7      0 ◄── 8
//! ```
//!
//! So a reader goes through at most as many objects as `n` has bits, and a change is written as many times at most, where a
//! plain list would have it written once and read all. A whole one is stored when what a reader would go through is as much as
//! that, or after [`MOST`]: then a commit costs, over time, what has changed and not what there is.

use super::change::Change;
use super::{Manifest, ManifestError, Version};

/// Differences in a row, at most: they and the whole one are kept as long as one of them may be gone back to.
const MOST: u64 = 1024;

/// An owner's manifests since the last whole one.
#[derive(Debug)]
pub struct Log {
    newest: Manifest,
    whole: Version,
    whole_bytes: usize,
    /// Of the newest.
    number: u64,
    /// What a reader of the newest goes through after the whole one, in this order.
    path: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Step {
    number: u64,
    version: Version,
    change: Change,
    bytes: usize,
}

/// A manifest as its difference from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    /// The other.
    pub follows: Version,
    /// The whole one in the end.
    pub whole: Version,
    /// The difference.
    pub change: Change,
}

impl Log {
    /// Of a whole manifest that was stored in `bytes`.
    pub fn new(version: Version, manifest: Manifest, bytes: usize) -> Log {
        Log {
            newest: manifest,
            whole: version,
            whole_bytes: bytes,
            number: 0,
            path: Vec::new(),
        }
    }

    /// Of what [`super::claim`] stored.
    ///
    /// # Errors
    /// It cannot be written as text.
    pub fn claimed(version: Version, manifest: &Manifest) -> Result<Log, ManifestError> {
        let bytes = super::encode("the manifest that was claimed", manifest)?.len();
        Ok(Log::new(version, manifest.clone(), bytes))
    }

    /// The next manifest as a difference; `None` if it has to be stored whole.
    pub fn follow(&self, next: &Manifest) -> Option<Following> {
        let number = self.number + 1;
        let read: usize = self.path.iter().map(|step| step.bytes).sum();
        if number > MOST || read >= self.whole_bytes {
            return None;
        }
        let change = Change::between(&self.newest, next)?;
        let before = number & (number - 1);
        let (kept, joined) = self.split(before);
        let changes = joined.iter().map(|step| step.change.clone()).chain([change]);
        Some(Following {
            follows: kept.last().map_or(self.whole, |step| step.version),
            whole: self.whole,
            change: changes.reduce(Change::then)?,
        })
    }

    /// Steps that lead to number `before`, and those after.
    fn split(&self, before: u64) -> (&[Step], &[Step]) {
        let kept = self.path.partition_point(|step| step.number <= before);
        self.path.split_at(kept)
    }

    /// The next manifest was stored under this version, in `bytes`, as `following` says.
    pub fn stored(&mut self, version: Version, next: Manifest, following: Option<Following>, bytes: usize) {
        let Some(following) = following else {
            *self = Log::new(version, next, bytes);
            return;
        };
        self.number += 1;
        let before = self.number & (self.number - 1);
        self.path.retain(|step| step.number <= before);
        self.path.push(Step {
            number: self.number,
            version,
            change: following.change,
            bytes,
        });
        self.newest = next;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use lakebed_layer::{Edit, LayerDesc, LayerId, LayerKind};
    use lakebed_types::{Generation, Lsn, PageKey, PgVersion, SlruKind, TimelineId};

    use super::super::{Cluster, FORMAT, Gone, Object, resolve};
    use super::*;

    fn version(sequence: u64) -> Version {
        (Generation(7), sequence)
    }

    fn key(page: u64) -> PageKey {
        PageKey::Slru {
            kind: SlruKind::Clog,
            page,
        }
    }

    fn layer(number: u64) -> LayerDesc {
        LayerDesc {
            id: LayerId {
                generation: Generation(7),
                number,
            },
            kind: LayerKind::Level0,
            first: Lsn(number * 100),
            last: Lsn(number * 100 + 100),
            pages_span: Some((key(0), key(9))),
            pages: 10,
            values: 100,
            bytes: 10_000,
        }
    }

    fn flushed(manifest: &Manifest, number: u64) -> Manifest {
        let (map, _) = manifest.map.apply(&Edit::Flush(vec![layer(number)])).unwrap();
        Manifest {
            map: Arc::new(map),
            disk_consistent: Lsn(number * 100 + 100),
            ..manifest.clone()
        }
    }

    fn empty() -> Manifest {
        Manifest {
            format: FORMAT,
            cluster: Cluster {
                system_identifier: 1,
                postgres_major: PgVersion::V15,
                wal_segment_bytes: 16 << 20,
                data_checksums: false,
            },
            parent: None,
            start: Lsn(100),
            consistent: Lsn(100),
            disk_consistent: Lsn(100),
            map: Arc::default(),
            gone: Vec::new(),
            branches: BTreeMap::new(),
            horizon: Lsn(100),
            leases: Vec::new(),
            based: None,
        }
    }

    /// Stores manifests as an owner does; the objects, and their bytes.
    struct Stored {
        log: Log,
        objects: BTreeMap<Version, Object>,
        sequence: u64,
        bytes: Vec<usize>,
    }

    fn length(manifest: &Manifest) -> usize {
        serde_json::to_vec(manifest).unwrap().len()
    }

    impl Stored {
        fn new(first: &Manifest) -> Stored {
            let object = Object::Whole(Box::new(first.clone()));
            Stored {
                log: Log::new(version(1), first.clone(), length(first)),
                objects: BTreeMap::from([(version(1), object)]),
                sequence: 1,
                bytes: Vec::new(),
            }
        }

        fn store(&mut self, manifest: &Manifest) {
            self.sequence += 1;
            let version = version(self.sequence);
            let following = self.log.follow(manifest);
            let (object, bytes) = match &following {
                Some(following) => (
                    Object::Following(Box::new(following.clone())),
                    serde_json::to_vec(&following.change).unwrap().len(),
                ),
                None => (Object::Whole(Box::new(manifest.clone())), length(manifest)),
            };
            self.objects.insert(version, object);
            self.log.stored(version, manifest.clone(), following, bytes);
            self.bytes.push(bytes);
        }

        /// Objects that a reader of the newest goes through.
        fn steps(&self) -> usize {
            let (mut at, mut steps) = (version(self.sequence), 1);
            while let Some(follows) = self.objects[&at].follows() {
                (at, steps) = (follows, steps + 1);
            }
            steps
        }
    }

    #[test]
    fn what_is_read_is_what_was_stored() {
        let mut manifest = empty();
        let mut stored = Stored::new(&manifest);
        let mut wholes = 0;
        for round in 1..400_u64 {
            manifest = flushed(&manifest, round);
            match round % 5 {
                0 => {
                    let gone = |number| Gone {
                        layer: layer(1_000_000 + number).id,
                        since: version(round),
                    };
                    manifest.gone.extend([gone(round), gone(round + 1_000)]);
                }
                1 => manifest.gone.retain(|gone| gone.layer.number % 3 == 0),
                2 => {
                    let branch = TimelineId([round as u8; 16]);
                    manifest.branches.insert(branch, Lsn(round));
                }
                3 => manifest.horizon = Lsn(round),
                _ => {
                    manifest.branches.pop_first();
                }
            }
            // An attempt of which it is not known whether it took effect is not followed.
            if round % 7 == 0 {
                stored.sequence += 1;
            }
            stored.store(&manifest);
            let newest = version(stored.sequence);
            let read = resolve("m", newest, &stored.objects).unwrap();
            assert_eq!(read, manifest, "round {round}");
            wholes += usize::from(stored.objects[&newest].follows().is_none());
            assert!(stored.steps() <= 11, "round {round}: {}", stored.steps());
        }
        assert!((3..100).contains(&wholes), "{wholes}");
        // Earlier ones are read as well: what is followed is below.
        for at in stored.objects.keys() {
            resolve("m", *at, &stored.objects).unwrap();
        }
        // One without what it follows is not believed.
        let (lost, _) = stored.objects.pop_first().unwrap();
        let follows = |object: &Object| match object {
            Object::Following(following) => following.whole == lost,
            Object::Whole(_) => false,
        };
        let orphan = stored.objects.iter().find(|(_, object)| follows(object)).unwrap();
        let error = resolve("m", *orphan.0, &stored.objects).unwrap_err().to_string();
        assert!(error.contains("builds on"), "{error}");
    }

    #[test]
    fn a_commit_costs_what_changes() {
        let cost = |layers: u64| {
            let mut manifest = empty();
            for number in 1..=layers {
                manifest = flushed(&manifest, number);
            }
            // Level 0 is a list that stands whole; here it stands for layers of partitions as well.
            let whole = length(&manifest);
            let mut stored = Stored::new(&manifest);
            for number in 1..=500 {
                manifest.horizon = Lsn(number);
                manifest.branches = BTreeMap::from([(TimelineId([1; 16]), Lsn(number))]);
                stored.store(&manifest);
            }
            (whole, stored.bytes.iter().sum::<usize>() / 500)
        };
        let ((small, _), (large, bytes)) = (cost(20), cost(400));
        assert!(large > 15 * small, "{small} {large}");
        assert!(
            bytes < large / 10,
            "a commit of {bytes} bytes, where the whole is {large}"
        );
    }
}
