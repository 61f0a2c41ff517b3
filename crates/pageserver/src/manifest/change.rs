//! What one manifest has other than an earlier one of the same owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lakebed_layer::{LayerId, MapChange};
use lakebed_types::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use super::{Gone, KeptLease, Manifest};

/// See the module header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// As in the manifest.
    pub disk_consistent: Lsn,
    /// As in the manifest.
    pub horizon: Lsn,
    /// Other layers.
    pub map: MapChange,
    /// Layers that have come to be gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<Gone>,
    /// Layers that were gone and whose objects are deleted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub deleted: BTreeSet<LayerId>,
    /// All branches, if they are others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branches: Option<BTreeMap<TimelineId, Lsn>>,
    /// All leases, if they are others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases: Option<Vec<KeptLease>>,
}

impl Change {
    /// From `before` to `after`. `None`: they differ in what seldom changes, as when a branch is detached.
    pub fn between(before: &Manifest, after: &Manifest) -> Option<Change> {
        let fixed = |m: &Manifest| (m.format, m.cluster, m.parent, m.start, m.consistent, m.based);
        if fixed(before) != fixed(after) {
            return None;
        }
        let ids = |gone: &[Gone]| gone.iter().map(|gone| gone.layer).collect::<BTreeSet<_>>();
        let (was, is) = (ids(&before.gone), ids(&after.gone));
        let new = after.gone.iter().filter(|gone| !was.contains(&gone.layer));
        Some(Change {
            disk_consistent: after.disk_consistent,
            horizon: after.horizon,
            map: before.map.change_to(&after.map),
            gone: new.copied().collect(),
            deleted: was.difference(&is).copied().collect(),
            branches: (before.branches != after.branches).then(|| after.branches.clone()),
            leases: (before.leases != after.leases).then(|| after.leases.clone()),
        })
    }

    /// What both make together.
    pub fn then(self, later: Change) -> Change {
        let mut deleted = self.deleted;
        let mut gone = self.gone;
        for id in later.deleted {
            let known = gone.len();
            gone.retain(|gone| gone.layer != id);
            // What came in between was never in the list before both.
            if gone.len() == known {
                deleted.insert(id);
            }
        }
        gone.extend(later.gone);
        Change {
            disk_consistent: later.disk_consistent,
            horizon: later.horizon,
            map: self.map.then(later.map),
            gone,
            deleted,
            branches: later.branches.or(self.branches),
            leases: later.leases.or(self.leases),
        }
    }

    /// The manifest after it.
    ///
    /// # Errors
    /// It is of another manifest: what does not fit.
    pub fn apply(self, mut manifest: Manifest) -> Result<Manifest, String> {
        let changed = Arc::unwrap_or_clone(manifest.map).changed(self.map);
        manifest.map = Arc::new(changed.map_err(|error| error.to_string())?);
        let before = manifest.gone.len();
        manifest.gone.retain(|gone| !self.deleted.contains(&gone.layer));
        if before - manifest.gone.len() != self.deleted.len() {
            return Err("it forgets a layer that was not there".to_owned());
        }
        manifest.gone.extend(self.gone);
        manifest.disk_consistent = self.disk_consistent;
        manifest.horizon = self.horizon;
        if let Some(branches) = self.branches {
            manifest.branches = branches;
        }
        if let Some(leases) = self.leases {
            manifest.leases = leases;
        }
        Ok(manifest)
    }
}
