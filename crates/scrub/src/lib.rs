//! Is all that object storage should have there, and right? And what is there that nobody needs?
//!
//! ```text
//! listing ──► names ──► of each timeline of a shard: `stored` (manifests, then layers) ──► `judge` ──► findings, leftovers
//!                   └─► of each timeline's WAL: `wal` ──► findings                            │
//!                                                                          `orphans`: deletion ◄┘
//! ```
//!
//! **References.** Every manifest that is there, of all generations, is read and checked; every layer that one of them names has
//! to be there with the size that it says, and, looked at *deeply*, with every block's checksum right and all parts agreeing.
//! A branch's parent has to be there, and to reach the branch point. WAL has to be a chain without a gap, each object with header,
//! index and footer that fit its name and size, and deeply, each frame. What looks lost is looked for again, since an owner
//! may just have deleted it, with the manifests that named it.
//!
//! **Leftovers** are layers that no manifest names, neither among those that it has nor among those that are gone (which the
//! owner deletes). A layer is an *orphan*, which nobody will ever name, on this proof:
//! 1. The timeline has a manifest, all its manifests were read, and none is damaged: one that cannot be read might name it.
//!    Without a manifest it may be an import that runs.
//! 2. The current manifest was stored after the layer, or is of a higher generation. An owner stores a layer and then the
//!    manifest that names it, one change at a time: a layer that the next manifest does not name is of a change that was given
//!    up, and its name is never used again. What an owner of a lower generation stores from now on, nobody reads.
//! 3. It is older than a grace time, by the store's own clock, and so much older than the current manifest, too, if they are
//!    of one generation: so clocks of a store's parts that differ do not matter.
//! 4. A listing after all that shows the same manifests.
//!
//! Only then, and only when it was asked for, it is deleted; what comes after cannot change the proof. All else is kept and told:
//! leftovers that are young, *unfinished* ones, names that are not known. Unfinished uploads in parts are in no listing.
#![forbid(unsafe_code)]

mod deep;
mod judge;
mod names;
mod orphans;
mod report;
mod stored;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use lakebed_blobstore::{BlobError, BlobStore};
use lakebed_types::TenantId;

use names::{Directory, Name};
pub use report::{Finding, Kind, Leftover, Report, State};
use stored::Stored;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of this tenant alone.
    pub tenant: Option<TenantId>,
    /// Read every byte.
    pub deep: bool,
    /// Delete what is proven to be of no use.
    pub delete_orphans: bool,
    /// A leftover is younger than that.
    pub grace: Duration,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// Object storage failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A layer could not be put where it can be read.
    #[error("temporary files: {0}")]
    Scratch(#[from] std::io::Error),
    /// A timeline changes faster than it can be read.
    #[error("{0} changes faster than it can be read: manifests go before they are read")]
    Restless(String),
}

/// Looks at a store.
///
/// # Errors
/// See [`ScrubError`]. What is wrong with the data is in the report.
pub async fn scrub(store: &BlobStore, options: &Options) -> Result<Report, ScrubError> {
    let prefix = options
        .tenant
        .map_or(String::new(), |tenant| format!("tenants/{tenant}"));
    let mut report = Report::default();
    let (mut timelines, mut wals) = (BTreeSet::new(), BTreeSet::new());
    for listed in store.list_objects(&prefix).await? {
        report.objects += 1;
        report.bytes += listed.bytes;
        match names::parse(&listed.path) {
            Name::OfTimeline(directory) => {
                timelines.insert(directory);
            }
            Name::Wal(directory) => {
                wals.insert(directory);
            }
            Name::Other => {}
            Name::Unknown => report.leftovers.push(Leftover {
                path: listed.path,
                bytes: listed.bytes,
                age_s: age(now(), listed.written_unix_s),
                state: State::Unknown,
                why: "nothing of this tier has such a name".to_owned(),
            }),
        }
    }
    let grace = i64::try_from(options.grace.as_secs()).unwrap_or(i64::MAX);
    let clock = match options.delete_orphans {
        true => orphans::clock(store).await?,
        false => now(),
    };
    let mut all: BTreeMap<Directory, Stored> = BTreeMap::new();
    for directory in timelines {
        let mut stored = Stored::read(store, &directory).await?;
        let mut judged = judge::timeline(&directory, &stored, (clock, grace));
        if options.delete_orphans {
            (stored, judged) = orphans::delete(store, &directory, (stored, judged), (clock, grace)).await?;
        }
        let (mut findings, leftovers) = judged;
        stored.confirm(store, &mut findings).await?;
        if options.deep {
            deep::layers(store, &directory, &stored, &mut report, &mut findings).await?;
        }
        report.timelines += 1;
        report.manifests += stored.manifests.len();
        report.layers += stored.layers.len();
        report.findings.extend(findings);
        report.leftovers.extend(leftovers);
        all.insert(directory, stored);
    }
    for (directory, stored) in &all {
        report.findings.extend(judge::parent(directory, stored, &all));
    }
    for directory in wals {
        wal::look(store, &directory, options.deep, &mut report).await?;
    }
    Ok(report)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

fn age(now: i64, written: i64) -> u64 {
    now.saturating_sub(written).max(0) as u64
}
