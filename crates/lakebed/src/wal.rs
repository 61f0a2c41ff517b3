//! `lakebed wal restore`: a timeline's WAL from object storage alone, and a safekeeper that goes on with it.
//!
//! Object storage has WAL up to at most one upload interval before the loss. Layers may be newer than that: pageservers
//! store what they took in on their own schedule. Pages from the future would be wrong, so this command looks for them
//! and says so, or takes the manifests that name them back (`--rewind-layers`). It never restores less than object storage
//! has into a safekeeper: what it left out would be taken for uploaded.
//!
//! A branch that was made of the timeline beyond the end has lost what it was made of, and all branches of it with it:
//! those are named, to be deleted.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use lakebed_blobstore::{BlobStore, paths};
use lakebed_pageserver::manifest::{self, Parent, Place};
use lakebed_safekeeper::backup::BackupError;
use lakebed_safekeeper::backup::archive::Archive;
use lakebed_safekeeper::backup::restore::{Restored, restore};
use lakebed_safekeeper::data_dir::{DataDir, DataDirError};
use lakebed_types::{Lsn, TenantId, TimelineId};
use serde_json::json;

use crate::cli::{WalCommand, WalRestoreArgs};
use crate::roles::safekeeper::incarnation_path;

/// Runs a command.
pub async fn run(command: WalCommand, as_json: bool) -> anyhow::Result<()> {
    match command {
        WalCommand::Restore(args) => restore_wal(args, as_json).await,
    }
}

async fn restore_wal(args: WalRestoreArgs, as_json: bool) -> anyhow::Result<()> {
    let store = BlobStore::open(&args.from)?;
    let archive = Archive::new(store.clone(), (args.tenant, args.timeline));
    let restored = match args.safekeeper {
        None => {
            make_empty(&args.to)?;
            restore(&archive, &args.to, args.until).await?
        }
        Some(node_id) => as_safekeeper(&archive, &args, node_id).await?,
    };
    let end = restored.state.commit;
    let (ahead, emptied) = match args.safekeeper {
        Some(_) => manifests_beyond(&store, args.tenant, args.timeline, end).await?,
        None => (Vec::new(), Vec::new()),
    };
    let lost = match args.safekeeper {
        Some(_) => lost_branches(&parents(&store, args.tenant).await?, args.timeline, end),
        None => Vec::new(),
    };
    if let (Some(shard), true) = (emptied.first(), args.rewind_layers) {
        bail!(
            "the WAL was restored up to {end}, and all manifests in {shard} are of layers beyond that: pageservers keep \
             them for `rewind_s`, and the WAL got to object storage later than that. Nothing was removed"
        );
    }
    if args.rewind_layers {
        store
            .delete_all(ahead.iter().map(|beyond| beyond.path.clone()).collect())
            .await?;
    }
    report(&args, &restored, (&ahead, &lost), as_json);
    if !ahead.is_empty() && !args.rewind_layers {
        let furthest = ahead.iter().map(|beyond| beyond.reached).max().unwrap_or(end);
        bail!(
            "the WAL was restored up to {end}, and layers of pageservers reach {furthest}: pages would be newer than the \
             WAL. Stop the tenant's pageservers, empty their data directories, remove {} and run this again with \
             --rewind-layers before anything starts",
            args.to.display()
        );
    }
    Ok(())
}

fn report(
    args: &WalRestoreArgs,
    restored: &Restored,
    (ahead, lost): (&[Beyond], &[TimelineId]),
    as_json: bool,
) {
    let state = &restored.state;
    let rewound = if args.rewind_layers { ahead.len() } else { 0 };
    if as_json {
        println!(
            "{}",
            json!({
                "start_lsn": state.truncate,
                "end_lsn": state.commit,
                "term": state.term.0,
                "objects": restored.objects,
                "stored_bytes": restored.stored_bytes,
                "manifests_beyond": ahead.len(),
                "manifests_rewound": rewound,
                "lost_branches": lost.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        );
    } else {
        println!(
            "restored WAL from {} to {} of {} objects, {} bytes, into {}",
            state.truncate,
            state.commit,
            restored.objects,
            restored.stored_bytes,
            args.to.display()
        );
        if rewound > 0 {
            println!("took back {rewound} manifests of layers beyond {}", state.commit);
        }
        for timeline in lost {
            println!(
                "lost: the branch with timeline {timeline}, which was made of WAL that is not there any more: delete it, \
                 and do not restore it"
            );
        }
    }
}

fn make_empty(directory: &Path) -> anyhow::Result<()> {
    let shown = directory.display();
    std::fs::create_dir_all(directory).with_context(|| format!("making {shown}"))?;
    let mut entries = std::fs::read_dir(directory).with_context(|| format!("reading {shown}"))?;
    if entries.next().is_some() {
        bail!("{shown} is not empty: name another directory");
    }
    Ok(())
}

/// A timeline in the data directory of a safekeeper, which the controllers take for the one that was lost.
async fn as_safekeeper(archive: &Archive, args: &WalRestoreArgs, node_id: u64) -> anyhow::Result<Restored> {
    let data_dir = DataDir::open(&args.to, node_id)?;
    let name = (args.tenant, args.timeline);
    let place = data_dir.path(name);
    if place.exists() {
        bail!(
            "{} is there already: a safekeeper's WAL is not overwritten",
            place.display()
        );
    }
    let incarnation = args.to.join("incarnation");
    if !incarnation.exists() {
        let path = incarnation_path(node_id);
        let number = archive.store().get(&path).await.with_context(|| {
            format!(
                "finding out which data directory safekeeper {node_id} had, which the controllers know it by"
            )
        })?;
        std::fs::write(&incarnation, &number)
            .with_context(|| format!("writing {}", incarnation.display()))?;
    }
    // Beside its place first, so that a restore that was interrupted leaves no half of a timeline.
    let beside = place.with_extension("restoring");
    if beside.exists() {
        std::fs::remove_dir_all(&beside).with_context(|| format!("removing {}", beside.display()))?;
    }
    let restored = restore(archive, &beside, args.until).await?;
    data_dir.create::<Moving>(name, |directory| {
        for entry in std::fs::read_dir(&beside)? {
            let entry = entry?;
            std::fs::rename(entry.path(), directory.join(entry.file_name()))?;
        }
        std::fs::File::open(directory)?.sync_all()?;
        Ok(())
    })?;
    std::fs::remove_dir(&beside).with_context(|| format!("removing {}", beside.display()))?;
    Ok(restored)
}

/// Why files did not get to their place.
#[derive(Debug, thiserror::Error)]
enum Moving {
    #[error("moving the restored files: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
}

/// A manifest of layers that reach beyond the WAL.
struct Beyond {
    path: String,
    reached: Lsn,
}

/// Also the directories where nothing else would be left.
async fn manifests_beyond(
    store: &BlobStore,
    tenant: TenantId,
    timeline: TimelineId,
    end: Lsn,
) -> Result<(Vec<Beyond>, Vec<String>), BackupError> {
    let (mut beyond, mut within_end) = (Vec::new(), BTreeMap::new());
    let within = format!("/timelines/{timeline}/manifests/");
    for path in store.list(&format!("tenants/{tenant}/shards")).await? {
        if !path.contains(&within) {
            continue;
        }
        let bytes = store.get(&path).await?;
        let reached = manifest::parse(&path, &bytes)
            .map_err(|error| BackupError::NotWal(error.to_string()))?
            .disk_consistent();
        let directory = path
            .rsplit_once('/')
            .map_or(path.as_str(), |(directory, _)| directory);
        let is_within = reached <= end;
        *within_end.entry(directory.to_owned()).or_insert(false) |= is_within;
        if !is_within {
            beyond.push(Beyond { path, reached });
        }
    }
    let emptied = within_end.into_iter().filter(|(_, is_within)| !is_within);
    Ok((beyond, emptied.map(|(directory, _)| directory).collect()))
}

/// Every branch's parent, by what shard 0 has stored last.
async fn parents(store: &BlobStore, tenant: TenantId) -> Result<BTreeMap<TimelineId, Parent>, BackupError> {
    let mut newest: BTreeMap<TimelineId, String> = BTreeMap::new();
    for path in store.list(&format!("tenants/{tenant}/shards")).await? {
        let parts: Vec<&str> = path.split('/').collect();
        // Names sort by generation and sequence.
        if let [_, _, _, shard, "timelines", timeline, "manifests", _] = parts[..]
            && shard.starts_with("0-")
            && let Ok(timeline) = timeline.parse()
            && newest.get(&timeline).is_none_or(|other| *other < path)
        {
            newest.insert(timeline, path);
        }
    }
    let mut parents = BTreeMap::new();
    for (timeline, path) in newest {
        let within = path.rsplit_once("/manifests/").map(|(directory, _)| directory);
        let (Some(directory), Some(version)) = (within, paths::parse_manifest(&path)) else {
            continue;
        };
        let place = Place::in_directory(store, timeline, directory.to_owned());
        let manifest = place.read(version).await;
        let manifest = manifest.map_err(|error| BackupError::NotWal(error.to_string()))?;
        parents.extend(manifest.parent.map(|parent| (timeline, parent)));
    }
    Ok(parents)
}

/// Branches of `timeline` from beyond `end`, and all that come from them.
fn lost_branches(parents: &BTreeMap<TimelineId, Parent>, timeline: TimelineId, end: Lsn) -> Vec<TimelineId> {
    let made_beyond = |parent: &Parent| parent.timeline == timeline && parent.lsn > end;
    let mut lost: Vec<TimelineId> = Vec::new();
    loop {
        let next = parents.iter().find(|(branch, parent)| {
            !lost.contains(branch) && (made_beyond(parent) || lost.contains(&parent.timeline))
        });
        match next {
            Some((branch, _)) => lost.push(*branch),
            None => return lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_of_what_is_gone_are_lost_with_their_branches() {
        let timeline = |number: u8| TimelineId([number; 16]);
        let table = [
            (2, 1, 50),
            (3, 1, 100),
            (4, 1, 101),
            (5, 4, 7),
            (6, 2, 500),
            (7, 5, 9),
        ];
        let parents = table.map(|(branch, parent, lsn)| {
            let parent = Parent {
                timeline: timeline(parent),
                lsn: Lsn(lsn),
            };
            (timeline(branch), parent)
        });
        let parents = BTreeMap::from(parents);
        let expected = [timeline(4), timeline(5), timeline(7)];
        assert_eq!(lost_branches(&parents, timeline(1), Lsn(100)), expected);
        assert_eq!(lost_branches(&parents, timeline(2), Lsn(500)), []);
    }
}
