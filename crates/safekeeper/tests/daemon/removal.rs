//! WAL that nobody needs any more goes, and the timeline starts without it.

use lakebed_safekeeper::control_file::{self, ControlFile};
use lakebed_safekeeper::disk::{Batch, Disk};
use lakebed_safekeeper::timeline;
use lakebed_safekeeper::wal_store::WalStore;

use crate::sample::{SEGMENT, sample};
use crate::stream::durable;

#[test]
fn segments_go_once_the_control_file_says_so_and_a_load_does_without_them() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("timeline");
    let (start, end) = (sample().start, sample().end());
    let mut state = durable(&[1]);
    timeline::create(&directory, &state).unwrap();
    let store = WalStore::open(&directory, SEGMENT.into(), start, start).unwrap();
    let mut disk = Disk::new(ControlFile::open(&directory).unwrap(), store);
    let mut batch = Batch::default();
    batch.write(start, sample().bytes(start, end));
    batch.flush();
    state.commit = end;
    batch.control(1, Box::new(state.clone()));
    disk.execute(batch).unwrap();
    let first = directory.join(format!(
        "{:024X}",
        (1u128 << 64) + u128::from(start.0 / u64::from(SEGMENT))
    ));
    assert!(first.exists());

    // The first boundary of the second segment and more.
    let second = (start.0 / u64::from(SEGMENT) + 1) * u64::from(SEGMENT);
    let at = sample()
        .records
        .iter()
        .find(|record| record.end.0 > second)
        .unwrap()
        .end;
    (state.truncate, state.backup) = (at, end);
    let mut batch = Batch::default();
    batch.control(2, Box::new(state.clone()));
    disk.execute(batch).unwrap();
    assert!(!first.exists());
    drop(disk);
    assert_eq!(control_file::load(&directory).unwrap().truncate, at);
    timeline::load(&directory, at).unwrap();
}
