//! Stock recovery to an LSN, of the data directory that a tenant was imported from and the safekeepers' WAL.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use lakebed_pgtest::Cluster;
use lakebed_types::Lsn;

use crate::Tier;
use crate::pages::Pages;

/// `wal_segment_size` of `initdb`.
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// Where a safekeeper keeps the WAL of a branch.
pub fn wal_directory(tier: &Tier, safekeeper: &str, branch: &Pages) -> PathBuf {
    let name = format!("{}-{}", branch.tenant(), branch.timeline());
    tier.home().join(safekeeper).join("timelines").join(name)
}

/// WAL segment files of a directory, in order.
pub fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    paths.sort();
    paths
}

/// Recovers `base`, which was imported as a timeline that starts at `start`, to exactly what ends at `end`, with WAL
/// from a directory of a safekeeper.
///
/// A target is tested against the *start* of a record, so what begins at `end` is left out by being exclusive. The end
/// is a promotion, whose checkpoint writes every page; after a shutdown at the target the files would be stale.
pub fn recover(base: &mut Cluster, start: Lsn, wal: &Path, end: Lsn) {
    let pg_wal = base.data_dir().join("pg_wal");
    let owner = fs::metadata(&pg_wal).expect("pg_wal");
    for segment in segments(wal) {
        let mut bytes = fs::read(&segment).expect("a segment");
        let name = segment.file_name().expect("a name");
        let path = pg_wal.join(name);
        // The first one: what comes before the start is in the data directory alone, the checkpoint among it.
        if let Ok(before) = fs::read(&path) {
            let keep = usize::try_from(start.0 % SEGMENT_BYTES).expect("an offset");
            bytes[..keep].copy_from_slice(&before[..keep]);
        }
        fs::write(&path, bytes).expect("a segment");
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("a segment of Postgres");
    }
    fs::write(base.data_dir().join("recovery.signal"), "").expect("a signal file");
    let target = format!("recovery_target_lsn={end}");
    base.recover(&[
        "restore_command=false",
        &target,
        "recovery_target_inclusive=off",
        "recovery_target_action=promote",
        "hot_standby=off",
        "max_prepared_transactions=10",
    ]);
    // What it names is the next record's start, which is behind `end` by a page header at times.
    let stopped = "recovery stopping before WAL location";
    assert!(base.log().contains(stopped), "{}", base.log());
}
